"""Matrix products with results larger than the caches, in the form that a plan has a kernel for, and in forms near it.

    python products.py            prints a hash of each result
    python products.py --trace    the products alone that a plan is made from
"""
import ctypes
import hashlib
import sys
import threading
from contextlib import contextmanager

import torch

ROWS, WIDTH, WORDS = 512, 48, 8321  # results of 17 MB; words is odd, so that rows are badly aligned


def replaced():
    try:
        count = ctypes.CDLL(None).terra_replay_count
    except AttributeError:
        return 0
    count.restype = ctypes.c_uint64
    return count(b"replaced")


def show(name, *tensors):
    digest = hashlib.sha256()
    for t in tensors:
        digest.update(t.detach().contiguous().numpy().tobytes())
    print(name, digest.hexdigest()[:16])


def step(x, w):
    """Logits and both gradients, as a language model's last layer has them."""
    w.grad = x.grad = None
    logits = x @ w.t()
    logits.backward(torch.ones_like(logits) * 0.5)
    return logits, x.grad, w.grad


@contextmanager
def counted(name, expected):
    """How often the plan's kernel ran in the block, and how often it should, on standard error."""
    before = replaced()
    yield
    print(f"{name}: {replaced() - before} replaced, {expected} expected", file=sys.stderr)


def variations(x, w):
    with counted("plain", 1):
        show("plain", *step(x, w))

    with counted("special values", 1):
        special = x.detach().clone()
        special[3, 5], special[7, 1], special[9, 9] = float("nan"), float("inf"), 1e-42
        show("special values", *step(special.requires_grad_(), w))

    with counted("unaligned", 0):
        memory = torch.zeros(ROWS * WIDTH + 1)
        memory[1:] = x.detach().flatten()
        unaligned = memory[1:].view(ROWS, WIDTH).requires_grad_()
        show("unaligned", *step(unaligned, w))

    with counted("padded rows", 0):
        padded = torch.zeros(ROWS, WIDTH + 16)
        padded[:, :WIDTH] = x.detach()
        show("padded rows", padded[:, :WIDTH].requires_grad_() @ w.t())

    with counted("fewer rows", 0):
        show("fewer rows", *step(x.detach()[:-1].clone().requires_grad_(), w))

    with counted("double", 0):
        show("double", *step(x.detach().double().requires_grad_(), w.detach().double().requires_grad_()))

    with counted("one thread", 1):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        show("one thread", *step(x, w))
        torch.set_num_threads(threads)

    with counted("more threads", 0):
        torch.set_num_threads(threads + 1)
        show("more threads", *step(x, w))
        torch.set_num_threads(threads)

    with counted("waiting inputs", 1):
        show("waiting inputs", *step((x.detach() * 2 + 1).requires_grad_(), w))

    with counted("beside a thread", 0):
        stop = threading.Event()
        beside = threading.Thread(target=stop.wait)
        beside.start()
        show("beside a thread", *step(x, w))
        stop.set()
        beside.join()


def main():
    torch.manual_seed(7)
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(WORDS, WIDTH, requires_grad=True)
    if sys.argv[1:] == ["--trace"]:
        for _ in range(12):
            step(x, w)
    else:
        variations(x, w)


if __name__ == "__main__":
    main()
