"""What the divergence programs compute: runs of elementwise ops that a plan fuses, and small models around them.

Run as a script it is the program that is traced for their plan: every chain once an iteration, with and without gradients.
"""
import math

import torch
from torch import nn


def chain(x):
    return (x * 1.5 + 0.25) * x


def gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def in_place(x):
    return x.mul_(1.5).add_(0.25)


def mixed(x, bias):
    return ((x + bias) * 0.5 - x) * bias


def pair(a, b):
    y = a * 1.5
    b.add_(0.25)
    return y


def row_added(x, row):
    y = x * 1.5
    return row + y


def shifted(a, b):
    return b.add_(a * 1.5)


def biased(x, bias):
    return (x + bias) * 0.5 + 0.25


def classes(rows=96, columns=101):
    """Scores and labels, some of which are to be ignored."""
    target = torch.randint(columns, (rows,))
    target[::7] = -100
    return torch.randn(rows, columns, requires_grad=True), target


def lists(kept, added, moved):
    """Momentum for all tensors, one op after the other, as the foreach forms of optimizers do it."""
    torch._foreach_mul_(kept, 0.9)
    torch._foreach_add_(kept, added)
    torch._foreach_add_(moved, kept, alpha=-0.1)


def list_optimizers(parameters):
    return [torch.optim.AdamW(parameters, lr=1e-2, foreach=True),
            torch.optim.Adam(parameters, lr=1e-2, weight_decay=1e-2, foreach=True),
            torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=1e-2, foreach=True)]


class Block(nn.Module):
    """A layer with a fused activation, dropout and a residual."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.down(gelu(self.up(x))))


def model(width=64, depth=2):
    return nn.Sequential(*[Block(width) for _ in range(depth)])


def train_step(net, optimizer, x):
    optimizer.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    optimizer.step()
    return loss


def main(steps=8):
    torch.manual_seed(0)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    optimizers = list_optimizers(list(net.parameters()))
    x = torch.randn(32, 64)
    bias = torch.randn(64)
    for _ in range(steps):
        train_step(net, optimizer, x)
        with torch.no_grad():
            y, other = torch.randn(64, 64), torch.randn(64, 64)
            # A sum after each: a region ends there, so that each chain is one of its own.
            for run in (chain, gelu, lambda x: mixed(x, bias), in_place, lambda x: pair(x, other),
                        lambda x: row_added(x, bias), lambda x: shifted(x, other), lambda x: biased(x, bias)):
                run(y).sum()
            kept, added, moved = ([torch.randn(64, 64), torch.randn(200)] for _ in range(3))
            lists(kept, added, moved)
            sum(t.sum() for t in moved)
        for other_form in optimizers:
            train_step(net, other_form, x)
        z = torch.randn(64, 64, requires_grad=True)
        (chain(z).sum() + gelu(z).sum()).backward()
        scores, target = classes()
        nn.functional.cross_entropy(scores, target).backward()


if __name__ == "__main__":
    main()
