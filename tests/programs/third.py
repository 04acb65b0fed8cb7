"""A regressor whose widths, depth, activation, optimizer and batch size are drawn from a seed.

    python third.py SEED [STEPS]

Prints what was drawn, a loss for each step and a hash of the final parameters.
"""
import hashlib
import math
import random
import sys

import torch
from torch import nn


class Gelu(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def optimizer_for(name, parameters, foreach):
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, foreach=foreach)
    return {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[name](parameters, lr=1e-3, foreach=foreach)


def make(seed):
    """What was drawn, in words; the model; a function that trains one step and returns the loss."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    widths = [rng.randint(24, 300) for _ in range(rng.randint(3, 6))]
    activation = rng.choice([nn.ReLU, nn.Tanh, Gelu])
    name, foreach, batch = rng.choice(["AdamW", "Adam", "SGD"]), rng.random() < 0.5, rng.randint(8, 100)
    layers = []
    for i, (inputs, outputs) in enumerate(zip(widths, widths[1:])):
        layers += [activation()] if i else []
        layers.append(nn.Linear(inputs, outputs))
    model = nn.Sequential(*layers)
    optimizer = optimizer_for(name, model.parameters(), foreach)
    x, y = torch.randn(batch, widths[0]), torch.randn(batch, widths[-1])

    def step():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return f"{widths} {activation.__name__} {name} {'foreach' if foreach else 'loop'} batch {batch}", model, step


def main(seed, steps=8):
    drawn, model, step = make(seed)
    print(drawn)
    for i in range(steps):
        print(f"step {i} loss {step().item().hex()}", flush=True)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy())
    print("parameters", digest.hexdigest())


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(int, sys.argv[2:]))
