"""CPU and GPU work on the same memory: the GPU copies from and to CPU memory behind the processor's back, where no page
protection is asked.

    mixed.py trace            the chains that a plan is made from, on the CPU alone
    mixed.py DEVICE [NAME]... prints a hash of what each part computed, and as JSON on standard error how many ops were
                              put off in it, how many waited at its critical place, and which flushes that caused

With DEVICE "cpu" the parts run without a GPU, as far as they make sense: to test this file.
"""
import ctypes
import hashlib
import json
import os
import sys
import threading

import torch

SIZES = (4096, 1 << 16, 1 << 22)  # elements: 16 KB, 256 KB, 16 MB; drivers treat small copies in another way than large
REASONS = ("op", "complete", "memory", "access", "syscall", "fork", "thread", "setting")
PARTS = {}
device = None


def part(function):
    PARTS[function.__name__] = function
    return function


def chain(x):
    return (x * 1.5 + 0.25) * x


def in_place(x):
    return x.mul_(1.5).add_(0.25)


def trace():
    for _ in range(12):
        for n in SIZES[:2]:
            x = torch.linspace(-1, 1, n)
            chain(x).sum()
            in_place(x).sum()


# ---- what replay says ----

try:
    _count = ctypes.CDLL(None).terra_replay_count
    _count.restype = ctypes.c_uint64
except AttributeError:
    def _count(name):
        return 0


def count(name):
    return _count(name.encode()) & 0xffffffffffffffff


class Seen:
    def __init__(self, name):
        self.name, self.deferred, self.waiting = name, count("deferred"), 0
        self.before = {reason: count(reason) for reason in REASONS}

    def close(self):
        flushes = {reason: count(reason) - before for reason, before in self.before.items() if count(reason) != before}
        print(json.dumps({"part": self.name, "deferred": count("deferred") - self.deferred, "waiting": self.waiting,
                          "flushes": flushes}), file=sys.stderr)


def critical():
    """Called where work should be waiting, right before somebody else looks."""
    seen.waiting += count("waiting")


# ---- helpers ----

def show(name, *tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    print(name, digest.hexdigest()[:16], flush=True)


def data(n, first=-1.0):
    return torch.linspace(first, 1, n)


def pinned(tensor):
    return tensor.pin_memory() if device.type == "cuda" else tensor.clone()


def synchronize():
    if device.type == "cuda":
        torch.cuda.synchronize()


def sent(tensor):
    return tensor.to(device, non_blocking=True)


# ---- parts ----

@part
def first_use():
    """CUDA starts up inside the copy: until then nothing but the processor has been there."""
    y = chain(data(1 << 20))
    critical()
    show("first use", sent(y))


@part
def pageable_sent():
    for n in SIZES:
        y = chain(data(n))
        critical()
        show(f"sent {n}", sent(y))


@part
def pageable_sent_after_in_place():
    for n in SIZES:
        x = data(n) + 0.0
        in_place(x)
        critical()
        a = sent(x)
        in_place(x)
        show(f"in place {n}", a, sent(x), x)


@part
def copied_into_gpu():
    for n in SIZES:
        target = torch.zeros(n, device=device)
        y = chain(data(n))
        critical()
        target.copy_(y, non_blocking=True)
        show(f"copied {n}", target, y)


@part
def view_sent():
    y = chain(data(1 << 20)).view(1024, 1024)
    critical()
    show("rows", sent(y[512:]), sent(y[:, ::2]), sent(y.t()))


@part
def pinned_filled():
    for n in SIZES:
        p = pinned(torch.zeros(n))
        y = chain(data(n))
        critical()
        p.copy_(y)
        show(f"pinned {n}", sent(p), p)


@part
def result_pinned():
    y = chain(data(1 << 20))
    critical()
    p = pinned(y)
    show("pin_memory", sent(p), p)


@part
def pinned_in_place():
    for n in SIZES:
        p = pinned(data(n))
        in_place(p)
        critical()
        a = sent(p)
        synchronize()
        in_place(p)
        show(f"pinned in place {n}", a, p, sent(p))


@part
def pinned_result():
    p = pinned(torch.zeros(1 << 20))
    y = chain(data(1 << 20))
    torch.mul(y, 1.5, out=p)
    critical()
    show("pinned result", sent(p))


@part
def fetched():
    """CPU work on what comes back, from pageable and from pinned memory."""
    for n in SIZES:
        g = chain(sent(data(n)))
        y = chain(g.cpu())
        p = pinned(torch.empty(n))
        p.copy_(g, non_blocking=True)
        synchronize()
        z = chain(p)
        critical()
        show(f"fetched {n}", y, z, sent(y + z))


@part
def fetched_over_what_is_read():
    """The GPU writes memory that waiting work has yet to read."""
    for n in SIZES:
        x = data(n) + 0.0
        g = sent(data(n, 0.5))
        y = chain(x)
        critical()
        x.copy_(g)
        synchronize()
        z = chain(x)
        p = pinned(data(n))
        a = chain(p)
        p.copy_(g, non_blocking=True)
        synchronize()
        show(f"overwritten {n}", y, z, a, p)


@part
def fetched_over_result():
    x = data(1 << 20)
    g = sent(data(1 << 20, 0.5))
    y = chain(x)
    critical()
    y.copy_(g)
    show("over result", y, chain(y))


@part
def scalar_of_cpu():
    """A CPU tensor of one element beside a GPU tensor; views of a result that waits."""
    y = chain(data(1 << 16))
    critical()
    show("scalar", sent(data(4096)) * y[77], sent(data(4096)).add_(y[78]))


@part
def indexed():
    g = sent(data(1 << 16))
    index = (chain(data(1 << 12)).abs() * 1000).long()
    mask = chain(data(1 << 16)) > 0
    critical()
    show("indexed", g[index], g[mask])


@part
def side_stream():
    if device.type != "cuda":
        return
    stream = torch.cuda.Stream()
    y = chain(data(1 << 22))
    with torch.cuda.stream(stream):
        critical()
        g = sent(y)
        event = torch.cuda.Event()
        event.record()
    in_place(y)
    event.wait()
    show("side stream", g * 2, y)


@part
def raw_copy():
    """No operator copies: the runtime's function gets the address, as other libraries do it."""
    if device.type != "cuda":
        return
    for n in SIZES:
        g = torch.zeros(n, device=device)
        y = chain(data(n))
        critical()
        copy(g.data_ptr(), y.data_ptr(), 4 * n)
        show(f"raw {n}", g)
        x = data(n) + 0.0
        z = chain(x)
        copy(x.data_ptr(), g.data_ptr(), 4 * n)
        show(f"raw back {n}", z, x)


def copy(to, source, size):
    runtime = ctypes.CDLL("libcudart.so.13")
    runtime.cudaMemcpyAsync.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
    error = runtime.cudaMemcpyAsync(to, source, size, 4, None)  # 4: the direction follows from the addresses
    assert error == 0, f"cudaMemcpyAsync: error {error}"
    torch.cuda.synchronize()


@part
def graph_captured():
    """A captured graph copies from and to pinned memory and trains a step: its replay is no operator."""
    if device.type != "cuda":
        return
    p, q = pinned(data(1 << 20)), pinned(torch.zeros(1 << 20))
    g = torch.zeros(1 << 20, device=device)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        chain(g)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        g.copy_(p, non_blocking=True)
        q.copy_(chain(g), non_blocking=True)
    for _ in range(3):
        in_place(p)
        critical()
        graph.replay()
        torch.cuda.synchronize()
        y = chain(q)
        graph.replay()
        torch.cuda.synchronize()
        show("graph", g, q, y, p)


@part
def registered():
    """Memory of an ordinary tensor, registered for the GPU, and a graph that copies from it."""
    if device.type != "cuda":
        return
    x = data(1 << 20) + 0.0
    x.sum()
    assert int(torch.cuda.cudart().cudaHostRegister(x.data_ptr(), 4 << 20, 0)) == 0
    g = torch.zeros(1 << 20, device=device)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        g.copy_(x, non_blocking=True)
    for _ in range(3):
        in_place(x)
        critical()
        graph.replay()
        torch.cuda.synchronize()
        show("registered", g)
    show("registered at last", x)
    assert int(torch.cuda.cudart().cudaHostUnregister(x.data_ptr())) == 0


@part
def thread_sends():
    """Another Python thread copies what the main thread computed."""
    y = chain(data(1 << 20))
    got = []
    critical()
    thread = threading.Thread(target=lambda: got.append(sent(y).sum().cpu()))
    thread.start()
    thread.join()
    show("thread", *got)


@part
def trained_on_both():
    """Backward through both devices: autograd runs a thread for the GPU beside the main thread. Never three gradients are
    added: in which order they come is not fixed."""
    w = torch.linspace(-1, 1, 1 << 20).requires_grad_()
    v = torch.linspace(1, 2, 1 << 20, device=device).requires_grad_()
    for _ in range(4):
        w.grad = v.grad = None
        loss = (sent(w * 1.5 + 0.25) * v).sum() + (v * 0.5 + 0.25).cpu().mul(0.5).mean()
        loss.backward()
        with torch.no_grad():
            in_place(w.grad)
            critical()
            w -= w.grad * 1e-3
            v -= v.grad * 1e-3
    show("trained", w, v)


def main():
    global device, seen
    if sys.argv[1] == "trace":
        return trace()
    device = torch.device(sys.argv[1])
    for name in sys.argv[2:] or PARTS:
        seen = Seen(name)
        PARTS[name]()
        seen.close()
    names = sorted(open(f"/proc/self/task/{task}/comm", encoding="ascii").read().strip() for task in os.listdir("/proc/self/task"))
    print(json.dumps({"threads": names}), file=sys.stderr)


if __name__ == "__main__":
    main()
