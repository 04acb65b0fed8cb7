"""The classifier of tests/programs/mlp.py on a device; prints the bits of each loss and a hash of the final parameters.

    train.py STEPS DEVICE [profile]

With `profile`, also how often PyTorch's own profiler saw an aten operator.
"""
import contextlib
import hashlib
import sys

import torch
from torch import nn


def train(steps, device):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(),
        nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, 10),
    ).to(device)
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(64, 784).to(device)
    labels = torch.randint(0, 10, (64,)).to(device)
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), labels)
        loss.backward()
        optimizer.step()
        print("loss", step, loss.item().hex())
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    print("parameters", digest.hexdigest())


def main():
    steps, device = int(sys.argv[1]), sys.argv[2]
    profiled = "profile" in sys.argv[3:]
    with torch.profiler.profile() if profiled else contextlib.nullcontext() as profile:
        train(steps, device)
    if profiled:
        print("profiled", sum(event.count for event in profile.key_averages() if event.key.startswith("aten::")))


if __name__ == "__main__":
    main()
