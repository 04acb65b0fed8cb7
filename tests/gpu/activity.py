"""GPU work whose activity is recorded: training steps, or replays of a captured graph. Prints one line of JSON.

    activity.py train STEPS DEVICE [profile]    steps per second; with `profile` the kernels that PyTorch's own profiler saw
    activity.py graph STEPS                     a CUDA graph of three ops, replayed
"""
import json
import sys
import time
from collections import Counter

import torch
from torch import nn

WARM_UP = 10


def train(steps, device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs, labels = torch.randn(64, 784).to(device), torch.randint(0, 10, (64,)).to(device)
    start = time.monotonic()
    for step in range(steps):
        if step == WARM_UP:
            start = time.monotonic()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()
    return {"rate": max(steps - WARM_UP, 1) / (time.monotonic() - start)}


def profiled(steps, device):
    activities = [torch.profiler.ProfilerActivity.CPU] + ([torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else [])
    with torch.profiler.profile(activities=activities) as profile:
        train(steps, device)
    on_device = (event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return {"kernels": Counter(name for name in on_device if not name.startswith(("Memcpy", "Memset")))}


def graph(steps):
    x = torch.ones(1 << 16, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # PyTorch wants a capture warmed up
        (x * 2).relu().sum()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        y = (x * 2).relu().sum()
    for _ in range(steps):
        captured.replay()
    torch.cuda.synchronize()
    return {"sum": y.item()}


def main():
    what, steps = sys.argv[1], int(sys.argv[2])
    if what == "graph":
        result = graph(steps)
    else:
        result = profiled(steps, sys.argv[3]) if "profile" in sys.argv[4:] else train(steps, sys.argv[3])
    print(json.dumps(result))


if __name__ == "__main__":
    main()
