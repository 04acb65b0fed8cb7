"""DistributedDataParallel on gloo, as a tutorial has it; for torchrun --nproc-per-node 2.

    torchrun --nproc-per-node 2 ddp.py [STEPS]
"""
import os
import sys

import torch
import torch.distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def main(steps=4):
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(rank)
    inputs, labels = torch.randn(16, 32), torch.randint(0, 4, (16,))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
    total = loss.detach().clone()
    torch.distributed.all_reduce(total)
    # One write, so that the ranks' lines stay whole.
    sys.stdout.write(f"rank {rank} of {os.environ['WORLD_SIZE']} loss {total.item():.6f}\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4)
