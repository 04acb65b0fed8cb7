"""Matrix products in the form that a plan has a kernel for, and in forms near it.

    python products.py            prints a hash of each result, and on standard error how often a plan's kernel ran and
                                  which products should have run by one, if the plan has them
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


def dense(x, w, b):
    """A layer with a bias."""
    return torch.addmm(b, x, w.t())


def layer():
    return torch.randn(64, 300), torch.randn(520, 300), torch.randn(520)


@contextmanager
def counted(name, *expected):
    """How often the plan's kernels ran in the block, and for which products they should."""
    before = replaced()
    yield
    print(f"{name}: {replaced() - before} replaced, expected {' '.join(expected)}", file=sys.stderr)


def variations(x, w):
    with counted("plain", "logits", "grad_x", "grad_w"):
        show("plain", *step(x, w))

    with counted("special values", "logits", "grad_x", "grad_w"):
        special = x.detach().clone()
        special[3, 5], special[7, 1], special[9, 9] = float("nan"), float("inf"), 1e-42
        show("special values", *step(special.requires_grad_(), w))

    with counted("unaligned", "grad_x"):
        memory = torch.zeros(ROWS * WIDTH + 1)
        memory[1:] = x.detach().flatten()
        unaligned = memory[1:].view(ROWS, WIDTH).requires_grad_()
        show("unaligned", *step(unaligned, w))

    with counted("padded rows"):
        padded = torch.zeros(ROWS, WIDTH + 16)
        padded[:, :WIDTH] = x.detach()
        show("padded rows", padded[:, :WIDTH].requires_grad_() @ w.t())

    with counted("fewer rows"):
        show("fewer rows", *step(x.detach()[:-1].clone().requires_grad_(), w))

    with counted("double"):
        show("double", *step(x.detach().double().requires_grad_(), w.detach().double().requires_grad_()))

    with counted("one thread"):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        show("one thread", *step(x, w))
        torch.set_num_threads(threads)

    with counted("more threads"):
        torch.set_num_threads(threads + 1)
        show("more threads", *step(x, w))
        torch.set_num_threads(threads)

    with counted("waiting inputs", "logits", "grad_x", "grad_w"):
        show("waiting inputs", *step((x.detach() * 2 + 1).requires_grad_(), w))

    with counted("beside a thread"):
        stop = threading.Event()
        beside = threading.Thread(target=stop.wait)
        beside.start()
        show("beside a thread", *step(x, w))
        stop.set()
        beside.join()


def layer_variations(x, w, b):
    with counted("layer", "dense"):
        show("layer", dense(x, w, b))

    with counted("layer, special values", "dense"):
        special, bias = x.clone(), b.clone()
        special[3, 5], special[7, 1], bias[2], bias[3], bias[4] = float("nan"), 1e-42, float("nan"), float("-inf"), -0.0
        show("layer, special values", dense(special, w, bias))

    with counted("layer, waiting bias", "dense"):
        show("layer, waiting bias", dense(x, w, b * 2 + 1))

    with counted("layer, factors"):
        show("layer, factors", torch.addmm(b, x, w.t(), beta=0.5), torch.addmm(b, x, w.t(), alpha=2),
             torch.addmm(b * float("nan"), x, w.t(), beta=0))

    with counted("layer, other biases"):
        show("layer, other biases", dense(x, w, b[:1]), dense(x, w, b.expand(64, 520)), dense(x, w, b.repeat(64, 1)),
             dense(x, w, b.repeat_interleave(2)[::2]))

    with counted("layer, written to"):
        out = torch.empty(64, 520)
        show("layer, written to", torch.addmm(b, x, w.t(), out=out), b.expand(64, 520).clone().addmm_(x, w.t()))

    try:
        dense(x, w, b[:-1])
    except RuntimeError as error:
        print("layer, wrong size:", error)


def main():
    torch.manual_seed(7)
    parts = layer()
    x, w = torch.randn(ROWS, WIDTH, requires_grad=True), torch.randn(WORDS, WIDTH, requires_grad=True)
    if sys.argv[1:] == ["--trace"]:
        for _ in range(12):
            step(x, w)
            dense(*parts)
    else:
        variations(x, w)
        layer_variations(*parts)


if __name__ == "__main__":
    main()
