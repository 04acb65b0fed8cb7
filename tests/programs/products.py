"""Matrix products with results larger than the caches, in the form that a plan has a kernel for, and in forms near it.

    python products.py            prints a hash of each result
    python products.py --trace    the products alone that a plan is made from
"""
import ctypes
import hashlib
import sys
import threading

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


class Count:
    def __init__(self, name, expected):
        self.name, self.expected, self.before = name, expected, replaced()

    def done(self):
        print(f"{self.name}: {replaced() - self.before} replaced, {self.expected} expected", file=sys.stderr)


def variations(x, w):
    n = Count("plain", 1)
    show("plain", *step(x, w))
    n.done()

    n = Count("special values", 1)
    special = x.detach().clone()
    special[3, 5], special[7, 1], special[9, 9] = float("nan"), float("inf"), 1e-42
    with torch.no_grad():
        special.requires_grad_()
    show("special values", *step(special, w))
    n.done()

    n = Count("unaligned", 0)
    memory = torch.zeros(ROWS * WIDTH + 1)
    memory[1:] = x.detach().flatten()
    unaligned = memory[1:].view(ROWS, WIDTH).requires_grad_()
    show("unaligned", *step(unaligned, w))
    n.done()

    n = Count("padded rows", 0)
    padded = torch.zeros(ROWS, WIDTH + 16)
    padded[:, :WIDTH] = x.detach()
    show("padded rows", padded[:, :WIDTH].requires_grad_() @ w.t())
    n.done()

    n = Count("fewer rows", 0)
    show("fewer rows", *step(x.detach()[:-1].clone().requires_grad_(), w))
    n.done()

    n = Count("double", 0)
    show("double", *step(x.detach().double().requires_grad_(), w.detach().double().requires_grad_()))
    n.done()

    n = Count("one thread", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    show("one thread", *step(x, w))
    torch.set_num_threads(threads)
    n.done()

    n = Count("more threads", 0)
    torch.set_num_threads(threads + 1)
    show("more threads", *step(x, w))
    torch.set_num_threads(threads)
    n.done()

    n = Count("waiting inputs", 1)
    show("waiting inputs", *step((x.detach() * 2 + 1).requires_grad_(), w))
    n.done()

    n = Count("beside a thread", 0)
    stop = threading.Event()
    beside = threading.Thread(target=stop.wait)
    beside.start()
    show("beside a thread", *step(x, w))
    stop.set()
    beside.join()
    n.done()


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
