"""A small program that trains a few steps whenever a line comes in, and answers with the CPU time and the time that they took, in ns.

    python paced.py [SEED]    a model of its own, or third.py's of this seed
"""
import sys
import time

import torch
from torch import nn

import third


def small_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    x, labels = torch.randn(64, 256), torch.randint(0, 10, (64,))

    def step():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()

    return step


def main():
    step = third.make(int(sys.argv[1]))[2] if sys.argv[1:] else small_model()
    for line in sys.stdin:
        cpu, begin = time.process_time_ns(), time.monotonic_ns()
        for _ in range(int(line)):
            step()
        print(time.process_time_ns() - cpu, time.monotonic_ns() - begin, flush=True)


if __name__ == "__main__":
    main()
