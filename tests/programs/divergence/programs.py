"""Programs that look at, or change, tensor memory in every way that an op dispatcher does not see, and programs that leave the
path that was traced. Each must print what eager prints, bit for bit.

    python programs.py NAME SIZE...    prints the results of one program, once for each size, one after the other
    python programs.py --all           those of every program at each of its sizes
    python programs.py --together      those of every program that leaves the process as it was
    python programs.py --forked JSON   those of [[NAME, [SIZE, ...]], ...], each in a forked child of its own; prints a line of JSON
                                       for each: name, sizes, how the child ended, what it printed
    python programs.py --list          a line of JSON each: name, guard that it needs, flush reason that it must cause, ...

`guard` is the replay guard (TERRA_TEST_NO_GUARD) without which the result must differ, or those that cover each other, so that it
takes the removal of all to show. `reason` is what the step must cause: a flush reason, and with some another count
behind it. Sizes are factors to the number of elements: at the first, a few thousand, no flush is worth threads; at the second each is. Programs that are about
memory or threads are large as they are, and have the first alone. `apart` are those after which nothing waits in the process
any more, and those that tell how much waited: a process for each size.
"""
import ctypes
import gc
import hashlib
import io
import json
import math
import os
import signal
import sys
import tempfile
import threading
import traceback
import warnings
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from chains import (Block, chain, classes, gelu, in_place, list_optimizers, lists, mixed, model,  # noqa: E402
                    train_step)

SIZES = (1, 16)
PROGRAMS = {}
size = 1  # of the program that runs


def program(guard, reason="op", sizes=SIZES, apart=False):
    def register(function):
        PROGRAMS[function.__name__] = (function, guard, reason, sizes, apart)
        return function
    return register


def rows(n):
    """Of a tensor whose number of elements is to grow with the size."""
    return n * size


def side(n):
    """Of a square one."""
    return n * math.isqrt(size)


class Counts:
    """What replay says of the hazard's step; nothing under eager."""

    def __init__(self):
        try:
            self.count = ctypes.CDLL(None).terra_replay_count
            self.count.restype = ctypes.c_uint64
        except AttributeError:
            self.count = None
        self.seen = {}

    def read(self, name):
        return self.count(name.encode()) if self.count else 0

    @contextmanager
    def hazard(self):
        names = ("deferred", "fused", "op", "complete", "memory", "access", "syscall", "fork", "thread",
                 "parallel", "ahead", "lowered")
        before = {name: self.read(name) for name in names}
        yield
        for name in names:
            self.seen[name] = self.read(name) - before[name]


COUNTS = Counts()


def raw(x):
    """The bytes of a tensor or array, read where they lie."""
    if isinstance(x, torch.Tensor):
        x = x.detach().numpy()
    return np.ascontiguousarray(x).tobytes()


def show(name, *values):
    digest = hashlib.sha256()
    for value in values:
        digest.update(value if isinstance(value, bytes) else raw(value))
    print(name, digest.hexdigest()[:16], flush=True)


def data(*shape):
    return torch.randn(*shape)


# ---- reads behind the dispatcher's back ----

@program("results", "access")
def numpy_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        show("numpy", y.numpy())


@program("results", "access")
def view_taken_before_read(hazard):
    x = data(rows(64), 64)
    view = x.numpy()
    with hazard():
        in_place(x)
        show("view", view)


@program("results", "access")
def pointer_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        show("pointer", ctypes.string_at(y.data_ptr(), y.nbytes))


@program("results", "access")
def dlpack_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        show("dlpack", np.from_dlpack(y))


@program("results", "access")
def tolist_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        show("tolist", np.asarray(y.tolist(), dtype=np.float32))


@program("ops+pages", "op")
def item_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        show("item", np.float32([y[3, 5].item(), float(y.sum())]))


@program("ops+pages", "op")
def printed(hazard):
    x = data(rows(64), 64)
    with hazard():
        print(chain(x))


# ---- writes behind the dispatcher's back ----

@program("foreign", "access")
def from_numpy_written(hazard):
    a = np.arange(rows(4096), dtype=np.float32)
    t = torch.from_numpy(a)
    with hazard():
        held = chain(data(rows(64), 64))
        y = t * 1.5 + 0.25
        a[:] = 5
        show("foreign", y, held)


@program("inputs", "access", sizes=(1,))
def view_taken_before_written(hazard):
    x = data(1024, 1024)  # pages of its own: those of the result are not enough
    view = x.numpy()
    with hazard():
        y = chain(x)
        view[:] = 5
        show("written", y, x)


@program("inputs", "access", sizes=(1,))
def pointer_written(hazard):
    x = data(1024, 1024)  # pages of its own: those of the result are not enough
    pointer = x.data_ptr()
    with hazard():
        y = chain(x)
        ctypes.memset(pointer, 0, x.nbytes)
        show("memset", y, x)


# ---- pages that are closed before there is need: what the last such step needed, from its third time on ----

LARGE = 1 << 19  # elements of a tensor that has pages of its own


def four_in_place(tensors, between=lambda: None):
    """A step of which all waits until its end, with something else in the middle of it."""
    for i, t in enumerate(tensors):
        in_place(t)
        if i == 1:
            between()
    tensors[0].sum()


def read_from_zeros(x):
    with open("/dev/zero", "rb") as f:
        return os.readv(f.fileno(), [memoryview(x.numpy()).cast("B")[:4096]])


def flushed():
    return sum(COUNTS.read(name) for name in ("op", "complete", "memory", "access", "syscall"))


@program("ops+pages", "op lowered", sizes=(1,), apart=True)
def touched_before_closing(hazard):
    """What nothing waits in is touched at once, though it is closed, and runs nothing."""
    touches = {"read": lambda x: show("read", x.numpy()),
               "written": lambda x: x.numpy().fill(0.5),
               "memset": lambda x: ctypes.memset(x.data_ptr(), 0, x.nbytes),
               "op reads": lambda x: show("sum", x.sum()),
               "op writes": lambda x: x.fill_(0.25),
               "call": lambda x: print(read_from_zeros(x))}
    kept = []
    with hazard():
        for name, touch in touches.items():
            tensors = [data(LARGE) for _ in range(4)]
            kept.append(tensors)
            for _ in range(3):
                four_in_place(tensors)
            lowered = COUNTS.read("lowered")

            def between():
                before = flushed()
                touch(tensors[3])
                print(name, "flushed", flushed() - before)

            four_in_place(tensors, between)
            print(name, "was closed", not COUNTS.count or COUNTS.read("lowered") > lowered)
            deferred = COUNTS.read("deferred")
            four_in_place(tensors)
            print(name, "went on", not COUNTS.count or COUNTS.read("deferred") - deferred == 8)
            show(name, *tensors)


@program("results", "access", sizes=(1,))
def touched_when_closed_ahead(hazard):
    """What waits is not seen, whenever it was closed."""
    tensors = [data(LARGE) for _ in range(4)]
    views = [t.numpy() for t in tensors]
    with hazard():
        for step in range(6):
            four_in_place(tensors, lambda: show("waits", views[1]) if step >= 3 else None)
        show("end", *views)


@program("inputs", "access", sizes=(1,), apart=True)
def written_when_closed_ahead(hazard):
    """Inputs lie among results and are closed as these, until they are read: then to writes."""
    whole = data(4 * LARGE)  # in order, whatever was there before
    x, y = whole[:LARGE], whole[LARGE:2 * LARGE]
    view = x.numpy()
    lowered = COUNTS.read("lowered")
    with hazard():
        for step in range(7):
            y.add_(x * 1.5)
            if step == 6:
                show("read", view[::4096])
                view[:] = step
            y.sum()
        print("was closed", not COUNTS.count or COUNTS.read("lowered") > lowered)
        show("end", whole)


@program("ops+pages", "op lowered", sizes=(1,))
def memory_taken_before_closing(hazard):
    """Others get the memory that a result was expected in, and write it on all threads."""
    x, y = data(LARGE), data(LARGE)
    a, b = data(512, 256), data(256, 1024)
    with hazard():
        for step in range(12):
            in_place(x)
            product = a @ b if step % 4 == 3 else None
            z = chain(y)
            x.sum()
            show("step", z, *([] if product is None else [product]))
            del z, product


@program("ops+pages", "op lowered", sizes=(1,), apart=True)
def steps_of_two_kinds(hazard):
    """Every third step touches what the others let wait: that is learnt."""
    tensors = [data(LARGE) for _ in range(4)]
    lowered = COUNTS.read("lowered")
    with hazard():
        for step in range(60):
            if step % 3 < 2:
                four_in_place(tensors)
            else:
                in_place(tensors[0])
                tensors[3].numpy()[5] = step
                tensors[0].sum()
        print("few", COUNTS.read("lowered") - lowered < 6)
        show("end", *tensors)


@program("ops+pages", "op ahead", sizes=(1,), apart=True)
def steps_alike(hazard):
    tensors = [data(LARGE) for _ in range(4)]
    with hazard():
        for _ in range(3):
            four_in_place(tensors)
        closings = COUNTS.read("closings")
        for _ in range(20):
            four_in_place(tensors)
        print("few", COUNTS.read("closings") - closings <= 20)
        show("end", *tensors)


# ---- memory that is freed, replaced, resized ----

@program("ops+pages", "access", sizes=(1,))
def input_freed(hazard):
    x = data(512, 512)
    with hazard():
        y = chain(x)
        del x
        z = torch.full((512, 512), 7.0)
        show("freed", y, z)


@program("hold", "access")
def row_freed(hazard):
    """A result of the same region may not take the freed input's place: its first row is read to the end."""
    x, t = data(rows(64), 64), data(rows(64), 64)
    with hazard():
        y = x + t[0]
        del t
        y = y * 0.5
        y = y + 0.25
        show("freed", y.numpy())


@program("ops+pages", "access")
def data_replaced(hazard):
    x = data(rows(64), 64)
    with hazard():
        in_place(x)
        other = torch.ones(64, 64)
        old = x.detach()
        x.data = other
        show("replaced", x, old)


@program("ops+pages", "op")
def resized(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        y.resize_(rows(128), 64)
        show("resized", y[:rows(64)])


@program("ops+pages", "op")
def shared(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        y.share_memory_()
        show("shared", y)


@program("ops+pages", "access")
def results_dropped(hazard):
    x = data(rows(64), 64)
    with hazard():
        for _ in range(50):
            y = chain(x)
        show("last", y)


@program("live", "access")
def intermediate_kept(hazard):
    x = data(rows(64), 64)
    with hazard():
        a = x * 1.5
        b = a + 0.25
        c = b * x
        show("kept", a, b, c)


# ---- overlap ----

@program("overlap", "access")
def overlapping_in_place(hazard):
    """In one go, block by block, the next block of `x` would be changed before it is read."""
    n = rows(4096)
    x = data(n + 8)
    with hazard():
        y = x[:n] * 1.5
        x[1:n + 1].add_(y)
        show("overlap", y, x)


@program("overlap", "op")
def row_of_result_read(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = x * 1.5
        z = y[1] + y
        show("row", z, y)


@program("ops+pages", "op")
def transposed_read(hazard):
    x = data(side(64), side(64))
    with hazard():
        y = chain(x)
        z = y.t() + y
        show("transposed", z, y)


@program("ops+pages", "op")
def expanded(hazard):
    x = data(rows(64), 1)
    bias = data(64)
    with hazard():
        y = mixed(x.expand(rows(64), 64), bias)
        z = mixed(data(rows(64), 64), y[0])
        show("expanded", y, z)


@program("ops+pages", "access", sizes=(1,))
def written_after_read_by_others(hazard):
    """Large enough for several threads: the in-place op must not overtake the chain that reads the same tensor."""
    bad = 0
    with hazard():
        for _ in range(40):
            x = data(200000)
            want = (x.numpy() * np.float32(1.5) + np.float32(0.25)) * x.numpy()
            y = chain(x)
            in_place(x)
            bad += not np.array_equal(y.numpy(), want)
        print("bad", bad)


@program("ops+pages", "access")
def strides_of_results(hazard):
    with hazard():
        held = chain(data(rows(64), 64))
        a = data(1, 64, 8).transpose(0, 1)
        b = torch.arange(400.0).unfold(0, 64, 1)[:4]
        print((a * 1.5).stride(), (b * data(4, 64)).stride(), (data(6, 64, 1)[::2] * 1.5 + 0.25).stride())
        show("held", held)


@program("ops+pages", "access")
def named_dims(hazard):
    import warnings
    warnings.simplefilter("ignore")
    with hazard():
        held = chain(data(rows(64), 64))
        n = data(rows(8), 64).refine_names("N", "C")
        print(chain(n).names)
        try:
            data(64).refine_names("N") * data(64).refine_names("M")
        except RuntimeError:
            print("raised")
        show("held", held)


# ---- system calls ----

def written_by(hazard, write):
    x = data(rows(64), 64)
    view = memoryview(x.numpy()).cast("B")
    with tempfile.TemporaryFile() as f, hazard():
        in_place(x)
        try:
            n = write(f.fileno(), view)
        except OSError as error:
            n = str(error)
        f.seek(0)
        print("wrote", n)
        show("file", f.read())


@program("syscalls", "syscall")
def written_to_file(hazard):
    written_by(hazard, os.write)


@program("syscalls", "syscall")
def written_at_place(hazard):
    written_by(hazard, lambda file, view: os.pwritev(file, [view], 16))


def read_by(hazard, read):
    x = data(rows(64), 64)
    view = memoryview(x.numpy()).cast("B")
    with tempfile.TemporaryFile() as f:
        f.write(bytes(x.nbytes))
        f.flush()
        f.seek(0)
        with hazard():
            y = chain(x)
            try:
                n = read(f.fileno(), view)
            except OSError as error:
                n = str(error)
            print("read", n)
            show("read", x, y)


@program("syscalls", "syscall")
def read_from_file(hazard):
    read_by(hazard, lambda file, view: os.readv(file, [view]))


@program("syscalls", "syscall")
def read_by_checked_call(hazard):
    """As code calls it that was compiled with _FORTIFY_SOURCE."""
    def read(file, view):
        n = ctypes.c_size_t(len(view))
        return ctypes.CDLL(None)["__read_chk"](file, ctypes.byref(ctypes.c_char.from_buffer(view)), n, n)
    read_by(hazard, read)


@program("syscalls", "syscall")
def array_tofile(hazard):
    x = data(rows(64), 64)
    view = x.numpy()
    with tempfile.NamedTemporaryFile() as f, hazard():
        in_place(x)
        try:
            view.tofile(f.name)
        except OSError:
            print("failed")
        show("tofile", open(f.name, "rb").read())


class AsynchronousIo(ctypes.Structure):
    _fields_ = [("file", ctypes.c_int), ("opcode", ctypes.c_int), ("priority", ctypes.c_int), ("buffer", ctypes.c_void_p),
                ("size", ctypes.c_size_t), ("value", ctypes.c_uint64), ("signal", ctypes.c_int), ("notify", ctypes.c_int),
                ("rest", ctypes.c_uint64 * 16)]


@program("threads", "thread", apart=True)
def written_asynchronously(hazard):
    """By a thread that libc makes by itself, and that is there later, too."""
    libc, none = ctypes.CDLL(None), 1
    x, z = data(rows(64), 64), data(rows(64), 64, 1)
    with tempfile.TemporaryFile() as f:
        with hazard():
            y = chain(x)
            request = AsynchronousIo(file=f.fileno(), buffer=y.data_ptr(), size=y.nbytes, notify=none)
            libc.aio_write(ctypes.byref(request))
            libc.aio_suspend(ctypes.byref(ctypes.pointer(request)), 1, None)
            print("wrote", libc.aio_return(ctypes.byref(request)))
        show("after", chain(z))
        f.seek(0)
        show("file", f.read())


@program("ops+pages", "op")
def saved(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x = data(rows(32), 64)
    for step in range(4):
        with hazard():
            train_step(net, optimizer, x)
            if step == 2:
                f = io.BytesIO()
                torch.save({"net": net.state_dict(), "opt": optimizer.state_dict()}, f)
                f.seek(0)
                state = torch.load(f)
                show("state", *state["net"].values())
    show("end", *net.parameters())


# ---- other threads, processes, signals ----

@program("threads+ops+pages", "thread")
def thread_reads(hazard):
    x = data(rows(64), 64)
    seen = []
    with hazard():
        y = chain(x)
        thread = threading.Thread(target=lambda: seen.append(y.clone()))
        thread.start()
        thread.join()
        show("thread", *seen)


@program("threads", "thread", sizes=(1,))
def thread_polls(hazard):
    """A thread that looks while the main thread runs what waits sees the last element as it was issued, never older. Where it
    looks too early it waits, and proves nothing: hence many tries, each a little later."""
    x = torch.zeros(1 << 18)
    view = x.numpy()
    state = {"issued": 0.0, "stop": False, "bad": 0}

    def watch():
        tries = 0
        while not state["stop"]:
            issued = state["issued"]
            if issued > tries:
                tries += 1
                for _ in range(tries % 40):
                    pass
                state["bad"] += float(view[-1]) < issued

    with hazard():
        held = chain(data(64, 64))
        thread = threading.Thread(target=watch)
        thread.start()
        other = data(1 << 19)  # with x below what makes work run at once
        for i in range(200):
            y = gelu(other)
            x.mul_(1.0).add_(1.0)
            state["issued"] = float(i + 1)
            y.sum()
        state["stop"] = True
        thread.join()
        show("polled", x, held)
        print("bad", state["bad"] > 0)


@program("fork+pages", "fork")
def forked_child(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        r, w = os.pipe()
        pid = os.fork()
        if pid == 0:
            torch.set_num_threads(1)  # OpenMP's threads are not in the child, and it would wait for them
            os.write(w, hashlib.sha256(raw(chain(y))).hexdigest()[:16].encode())
            os._exit(0)
        os.waitpid(pid, 0)
        print("child", os.read(r, 16).decode())
        show("parent", y)


class Samples(torch.utils.data.Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i] * 1.5 + 0.25


@program("threads+pages", "fork")
def loader_workers(hazard):
    x = data(rows(64), 64)
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    with hazard():
        in_place(x)
        losses = []
        for batch in torch.utils.data.DataLoader(Samples(x), batch_size=rows(16), num_workers=2):
            losses.append(train_step(net, optimizer, batch).detach())
        show("loader", torch.stack(losses), *net.parameters())


@program("signals", "access")
def segv_blocked(hazard):
    x = data(rows(64), 64)
    view = x.numpy()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGSEGV})
    with hazard():
        in_place(x)
        show("blocked", view)


@program("signals", "access")
def all_signals_blocked(hazard):
    x = data(rows(64), 64)
    view = x.numpy()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with hazard():
        in_place(x)
        show("blocked", view)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@program("signals", "access")
def fault_handler_enabled(hazard):
    """Enabled when replay's own handler has long been there: it must not take its place."""
    import faulthandler
    x = data(rows(64), 64)
    view = x.numpy()
    faulthandler.enable()
    with hazard():
        in_place(x)
        show("faulthandler", view)


@program("ops+pages", "access")
def signal_handler_reads(hazard):
    x = data(rows(64), 64)
    view = x.numpy()
    seen = []
    signal.signal(signal.SIGUSR1, lambda *_: seen.append(raw(view)))
    with hazard():
        in_place(x)
        os.kill(os.getpid(), signal.SIGUSR1)
        show("signal", *seen)


class StackOfSignals(ctypes.Structure):
    _fields_ = [("begin", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


class SignalAction(ctypes.Structure):
    _fields_ = [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]


@program("results", "access")
def handler_on_its_own_stack(hazard):
    """What it reads waits: the fault comes on that stack."""
    on_stack, disabled = 0x08000000, 2
    libc, x = ctypes.CDLL(None), data(rows(64), 64)
    seen, view = bytearray(4 * x.numel()), x.numpy()
    copy = (ctypes.c_char * len(seen)).from_buffer(seen)
    libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: libc.memcpy(copy, view.ctypes.data, len(seen)))
    stack = ctypes.create_string_buffer(1 << 18)
    action = SignalAction(handler=ctypes.cast(handler, ctypes.c_void_p), flags=on_stack)
    libc.sigaltstack(ctypes.byref(StackOfSignals(begin=ctypes.addressof(stack), size=len(stack))), None)
    libc.sigaction(signal.SIGUSR2, ctypes.byref(action), None)
    with hazard():
        in_place(x)
        libc["raise"](signal.SIGUSR2)
        show("on its own stack", bytes(seen))
    libc.sigaltstack(ctypes.byref(StackOfSignals(flags=disabled)), None)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)


@program("results", "access")
def read_in_a_parallel_region(hazard):
    """By all threads of the pool at once."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        gomp = ctypes.CDLL(next(line.split()[-1] for line in maps if "/libgomp" in line))
    libc, x, n = ctypes.CDLL(None), data(rows(64), 64), torch.get_num_threads()
    seen, view = bytearray(4 * x.numel()), x.numpy()
    to, part = ctypes.addressof(ctypes.c_char.from_buffer(seen)), len(seen) // n
    libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def copy_part(_):
        at = gomp.omp_get_thread_num() * part
        libc.memcpy(to + at, view.ctypes.data + at, part)

    in_region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(copy_part)
    with hazard():
        in_place(x)
        gomp.GOMP_parallel(in_region, None, n, 0)
        show("in parallel", bytes(seen[:n * part]))


# ---- hidden inputs ----

@program("mxcsr", "op", apart=True)
def denormals_flushed_after(hazard):
    x = torch.full((rows(64), rows(64)), 2e-38)  # enough work for each thread to have some of it
    with hazard():
        y = (x * 0.25 + 0.0) * x.sign()
        torch.set_flush_denormal(True)
        y.sum()
        torch.set_flush_denormal(False)
        show("denormal", y)


@program("ops+pages", "access", sizes=(1,))
def threads_changed(hazard):
    x = data(300, 300)
    with hazard():
        y = gelu(x)
        torch.set_num_threads(1)
        z = gelu(x)
        show("threads", y, z)
    torch.set_num_threads(2)


@program("ops+pages", "op")
def seeds_and_states(hazard):
    net = model()
    x = data(rows(32), 64)
    with hazard():
        torch.manual_seed(7)
        state = torch.get_rng_state()
        a = net(x)
        show("state", torch.get_rng_state())
        torch.set_rng_state(state)
        b = net(x)
        show("seeded", a, b)
        with torch.random.fork_rng():
            c = net(x)
        show("after", c, net(x))


# ---- errors where eager raises them ----

@program("level", "op")
def version_error(hazard):
    x = data(rows(64), 64).requires_grad_()
    with hazard():
        y = chain(x)
        z = y * y
        y.mul_(2.0)
        try:
            z.sum().backward()
            print("no error")
        except RuntimeError as error:
            print("raised", "modified by an inplace operation" in str(error))
        show("y", y)


@program("ops+pages", "op")
def shape_error(hazard):
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        for _ in range(100):
            try:
                y = y + torch.ones(63)
            except RuntimeError as error:
                message = str(error)
        print(message.split(".")[0])
        show("after", y)


class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block(64)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.block(x)
        if self.calls % 3 == 0:
            raise ValueError("every third time")
        return gelu(y)


@program("ops+pages", "op")
def exception_in_forward(hazard):
    net = Picky()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x = data(rows(32), 64)
    caught = 0
    with hazard():
        for _ in range(9):
            try:
                train_step(net, optimizer, x)
            except ValueError:
                caught += 1
    print("caught", caught)
    show("parameters", *net.parameters())


# ---- the program's own settings, kernels and operators ----

@program("ops+pages", "access")
def deterministic_algorithms(hazard):
    """Memory that is not set is filled with NaN from then on."""
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        torch.use_deterministic_algorithms(True)
        z = chain(y)
        show("deterministic", y, z, torch.isnan(torch.empty(rows(64))))
        torch.use_deterministic_algorithms(False)


@program("ops+pages", "op")
def out_of_memory(hazard):
    """The error is raised where the memory is asked for, and what waited then is right."""
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        try:
            y.expand(1 << 40, *y.shape).contiguous()
        except RuntimeError as error:
            print("error", "allocate" in str(error))
        show("memory", y, chain(y))


@program("ops+pages", "access")
def scripted(hazard):
    """TorchScript's interpreter calls kernels past the entry points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there will be no TorchScript any more
        script = torch.jit.CompilationUnit("""
def both(x, y):
    return (x - y).mul_(0.5) + x
""").both
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        z = script(x, y)
        show("scripted", y, z, chain(z))


@program("ops+pages", "op")
def operator_of_the_programs_own(hazard):
    """It reads its argument through numpy."""
    @torch.library.custom_op("terra_test::half", mutates_args=())
    def half(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy() * np.float32(0.5))

    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        z = half(y)
        show("custom", y, z, chain(z))


@contextmanager
def registered(name, key, kernel):
    """Meanwhile the dispatcher has a kernel of the program's for an op."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one already
        library.impl(name, kernel, key)
    yield
    library._destroy()


@program("registered", "op")
def kernel_registered(hazard):
    """The product is a sum from now on, in eager; and a product again."""
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        with registered("mul.Tensor", "CPU", lambda a, b: torch.add(a, b)):
            z = chain(y)
        show("registered", y, z, chain(z))


@program("registered", "op")
def kernel_registered_from_c(hazard):
    """Through the stable C interface, whose adapter is code of libtorch's. The product is its first factor."""
    libtorch = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libtorch_cpu.so"))
    kind = ctypes.CFUNCTYPE(None, ctypes.POINTER(ctypes.c_uint64), ctypes.c_uint64, ctypes.c_uint64)

    def first(stack, arguments, results):
        copy = ctypes.c_void_p()
        libtorch.aoti_torch_clone(ctypes.c_void_p(stack[0]), ctypes.byref(copy))
        stack[0] = copy.value

    kernel, library = kind(first), ctypes.c_void_p()
    x = data(rows(64), 64)
    with hazard():
        y = chain(x)
        assert libtorch.aoti_torch_library_init_impl(b"aten", b"CPU", b"", 0, ctypes.byref(library)) == 0
        assert libtorch.aoti_torch_library_impl(library, b"mul.Tensor", kernel) == 0
        z = chain(y)
        assert libtorch.aoti_torch_delete_library_object(library) == 0
        show("registered", y, z, chain(z))


@program("registered", "op")
def kernel_registered_in_place(hazard):
    x, y = data(rows(64), 64), data(rows(64), 64)
    with hazard():
        in_place(x)
        with registered("mul_.Tensor", "CPU", lambda a, b: a.sub_(b)):
            in_place(y)
        in_place(x)
        show("registered", x, y)


@program("ops+pages", "op")
def kernel_registered_between(hazard):
    """Below autograd, but above the backend; for lists' parts, too."""
    kept, added, moved = ([data(rows(64), 64) for _ in range(3)] for _ in range(3))
    with hazard():
        y = chain(kept[0])
        with registered("mul.Tensor", "ADInplaceOrView", lambda a, b: torch.add(a, b)):
            z = chain(y)
            halves = torch._foreach_mul(kept, 0.5)
        lists(kept, added, moved)
        show("registered", y, z, *halves, *kept, *moved)


# ---- training as people write it ----

def trained(hazard, steps=8, change=None, x=None, first=0, **options):
    """The hazard's steps are those from the first on."""
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, **options)
    x = data(rows(32), 64) if x is None else x
    losses = []

    def train(steps):
        for step in steps:
            batch = change(step, x, optimizer) if change else x
            losses.append(train_step(net, optimizer, batch))

    train(range(first))
    with hazard():
        train(range(first, steps))
    show("losses", torch.stack([loss.detach() for loss in losses]))
    show("parameters", *net.parameters())
    return net


@program("ops+pages", "op")
def batch_changes(hazard):
    trained(hazard, 24, lambda step, x, _: x[:rows(20)] if 20 <= step < 22 else x, first=20)


@program("ops+pages", "op")
def learning_rate_changes(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    x = data(rows(32), 64)
    with hazard():
        for _ in range(10):
            train_step(net, optimizer, x)
            scheduler.step()
    show("parameters", *net.parameters())


@program("ops+pages", "op")
def losses_kept(hazard):
    trained(hazard, 50)


@program("ops+pages", "op")
def foreach_and_amsgrad(hazard):
    trained(hazard, 6, foreach=True)
    trained(hazard, 6, amsgrad=True)
    trained(hazard, 6, maximize=True)


@program("ops+pages", "op", sizes=(1,))
def lists_optimizers(hazard):
    with hazard():
        for which in range(3):
            net = model()
            optimizer = list_optimizers(list(net.parameters()))[which]
            for step in range(6):
                optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
                train_step(net, optimizer, data(32, 64))
            show("parameters", *net.parameters())
            show("state", *[t for state in optimizer.state.values() for t in state.values()])


@program("ops+pages", "op", sizes=(1,))
def lists_other_forms(hazard):
    forms = [{"amsgrad": True}, {"maximize": True}, {"capturable": False, "differentiable": False}]
    with hazard():
        for options in forms:
            trained(hazard, 4, foreach=True, **options)
        net = model()
        optimizer = torch.optim.SGD(net.parameters(), lr=torch.tensor(1e-2), momentum=0.9, nesterov=True, foreach=True)
        for _ in range(4):
            train_step(net, optimizer, data(32, 64))
        show("parameters", *net.parameters())


@program("ops+pages", "op", sizes=(1,))
def lists_clipped(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, foreach=True)
    x = data(32, 64)
    with hazard():
        for step in range(6):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            net(x).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1, foreach=True)
            optimizer.step()
    show("parameters", *net.parameters())


def two_of_each(size=4096):
    return ([data(size), data(size)] for _ in range(3))


@program("ops+pages", "op", sizes=(1,))
def lists_in_turn(hazard):
    """More tensors than may wait, of few sizes; and a second list that has them in another order."""
    sizes = [64 + 16 * (i % 5) for i in range(1300)]
    kept, added, moved = ([data(size) for size in sizes] for _ in range(3))
    with hazard():
        for _ in range(3):
            lists(kept, added, moved)
            lists(kept[::-1], added[::-1], moved[::-1])
        torch._foreach_mul_(kept, 0.9)
        torch._foreach_add_(kept[::-1], added[::-1])
        torch._foreach_add_(moved, kept, alpha=-0.1)
    show("lists", *kept, *moved)


@program("order", "access", sizes=(1,))
def lists_written_behind(hazard):
    """What is added to the first tensor is what the second one is multiplied to, which begins later and ends later."""
    (u, v), (g, _), (p, q) = two_of_each()
    with hazard():
        lists([u, v], [v, g], [p, q])
        show("written", u, v, p, q)


@program("order", "access", sizes=(1,))
def lists_read_behind(hazard):
    """The second tensor's sum reads what the first one's last op writes."""
    (u, v), (g, _), (p, q) = two_of_each()
    with hazard():
        lists([u, v], [g, p], [p, q])
        show("read", u, v, p, q)


@program("ops+pages", "op", sizes=(1,))
def lists_of_one_storage(hazard):
    whole = data(2 * 4096)
    gradients = data(2 * 4096)
    parameters = [nn.Parameter(whole[:4096]), nn.Parameter(whole[4096:])]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, foreach=True)
    with hazard():
        for _ in range(4):
            for parameter, gradient in zip(parameters, gradients.split(4096)):
                parameter.grad = gradient
            optimizer.step()
        show("views", whole)


@program("ops+pages", "access", sizes=(1,))
def lists_of_overlapping_views(hazard):
    whole = data(4096 + 64)
    (u, v), (g, h), _ = two_of_each()
    with hazard():
        lists([u, v], [g, h], [whole[:4096], whole[64:]])
        lists([whole[:4096], whole[64:]], [g, h], [u, v])
        show("overlap", whole, u, v)


@program("ops+pages", "access", sizes=(1,))
def lists_with_one_twice(hazard):
    (u, _), (g, h), (p, q) = two_of_each()
    with hazard():
        lists([u, u], [g, h], [p, q])
        lists([u, p], [g, g], [q, q])
        show("twice", u, p, q)


@program("ops+pages", "access", sizes=(1,))
def lists_read_between(hazard):
    kept, added, moved = two_of_each()
    view = added[0].numpy()
    with hazard():
        torch._foreach_mul_(kept, 0.9)
        show("before", kept[0].numpy())
        torch._foreach_add_(kept, added)
        view[:] = 5
        torch._foreach_add_(moved, kept, alpha=-0.1)
        show("between", *kept, *moved, *added)


@program("ops+pages", "op", sizes=(1,))
def lists_interrupted(hazard):
    """The second tensor of a list raises, when the first has been dealt with."""
    kept, added, moved = two_of_each()
    with hazard():
        for wrong in ([added[0], data(63)], [added[0], added[1].int()[:7]]):
            torch._foreach_mul_(kept, 0.9)
            try:
                torch._foreach_add_(kept, wrong)
            except RuntimeError as error:
                print("raised", str(error).split(".")[0][:40])
            lists(kept, added, moved)
        show("interrupted", *kept, *moved)


@program("ops+pages", "op", sizes=(1,))
def lists_and_ops_between(hazard):
    kept, added, moved = two_of_each()
    with hazard():
        torch._foreach_mul_(kept, 0.9)
        y = chain(data(4096))
        torch._foreach_add_(kept, added)
        added[1].add_(1.0)
        moved[0].mul_(0.5)
        torch._foreach_add_(moved, kept, alpha=-0.1)
        show("between", y, *kept, *moved, *added)


@program("ops+pages", "op", sizes=(1,))
def lists_results_kept(hazard):
    kept, added, moved = two_of_each()
    parameters = [nn.Parameter(t) for t in moved]
    optimizer = list_optimizers(parameters)[1]
    roots = []
    with hazard():
        for _ in range(3):
            for parameter, gradient in zip(parameters, added):
                parameter.grad = gradient
            optimizer.step()
            roots += torch._foreach_sqrt([state["exp_avg_sq"] for state in optimizer.state.values()])
        show("roots", *roots, *parameters)


@program("keys", "op", sizes=(1,))
def calls_above_autograd(hazard):
    """Regions that begin in lists are begun by calls, too; others must stay what autograd sees first."""
    x = data(64, 64).requires_grad_()
    with hazard():
        kept, added, moved = two_of_each()
        lists(kept, added, moved)
        gelu(chain(x)).sum().backward()
        roots = torch._foreach_sqrt([x.abs() + 1, x.square() + 1])
        sum(root.sum() for root in roots).backward()
    show("gradient", x.grad, *moved)


@program("ops+pages", "op", sizes=(1,))
def calls_under_modes(hazard):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(function.__name__)
            return function(*args, **(kwargs or {}))

    names = []
    kept, added, moved = two_of_each()
    with hazard():
        lists(kept, added, moved)
        with Names():
            lists(kept, added, moved)
            roots = torch._foreach_sqrt(torch._foreach_abs(kept))
        with torch.inference_mode():
            more = torch._foreach_sqrt(torch._foreach_abs(moved))
            lists(more, added, roots)
    print(*names)
    show("modes", *roots, *more, *kept)


@program("threads+ops+pages", "thread", sizes=(1,))
def calls_profiled(hazard):
    kept, added, moved = two_of_each()
    with hazard():
        lists(kept, added, moved)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            roots = torch._foreach_sqrt(torch._foreach_abs(kept))
    print({event.key: event.count for event in profile.key_averages() if event.key == "aten::sqrt"})
    show("profiled", *roots, *moved)


@program("ops+pages", "op")
def gradients_clipped(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x = data(rows(32), 64)
    with hazard():
        for step in range(8):
            net(x).square().mean().backward()
            if step % 2:
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 4 == 1)
    show("parameters", *net.parameters())


@program("ops+pages", "op")
def double_backward(hazard):
    x = data(rows(64), 64).requires_grad_()
    with hazard():
        y = gelu(chain(x)).sum()
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        g.square().sum().backward()
    show("gradients", g, x.grad)


@program("ops+pages", "op")
def checkpointed(hazard):
    from torch.utils.checkpoint import checkpoint
    net = model()
    x = data(rows(32), 64).requires_grad_()
    with hazard():
        y = x
        for block in net:
            y = checkpoint(block, y, use_reentrant=False)
        y.square().mean().backward()
    show("gradients", x.grad, *[p.grad for p in net.parameters()])


@program("ops+pages", "op")
def attention(hazard):
    q, k, v = (data(rows(2), 4, 64, 32).requires_grad_() for _ in range(3))
    with hazard():
        y = nn.functional.scaled_dot_product_attention(chain(q), gelu(k), v, is_causal=True)
        chain(y).sum().backward()
    show("gradients", q.grad, k.grad, v.grad)


@program("ops+pages", "op")
def autocast(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x = data(rows(32), 64)
    with hazard():
        for _ in range(5):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(x).float().square().mean()
            loss.backward()
            optimizer.step()
    show("parameters", *net.parameters())


@program("ops+pages", "access")
def lstm_lengths(hazard):
    net = nn.LSTM(64, 64)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    with hazard():
        for length in (3, 7, 2, 5):
            y, _ = net(chain(data(length, rows(4), 64)))
            optimizer.zero_grad()
            gelu(y).sum().backward()
            optimizer.step()
    show("parameters", *net.parameters())


@program("ops+pages", "op")
def inference(hazard):
    net = model().eval()
    x = data(rows(64), 64)
    with hazard():
        kept = chain(x)
        with torch.inference_mode():
            a = net(chain(x))
            b = gelu(kept)
        with torch.no_grad():
            c = net(chain(x))
    show("inference", a, b, c)


@program("ops+pages", "op")
def custom_function(hazard):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return chain(x)

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return in_place(g.clone()) * x

    x = data(rows(64), 64).requires_grad_()
    with hazard():
        Double.apply(gelu(x)).sum().backward()
    show("gradient", x.grad)


@program("ops+pages", "op")
def functional_transforms(hazard):
    x = data(rows(16), 64)
    with hazard():
        held = chain(data(rows(64), 64))
        a = torch.func.vmap(chain)(x)
        b = torch.func.grad(lambda t: gelu(t).sum())(x)
    show("transforms", a, b, held)


@program("ops+pages", "op")
def garbage_collected(hazard):
    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    x = data(rows(32), 64)
    with hazard():
        train_step(net, optimizer, x)
        kept = [p.detach().clone() for p in net.parameters()]
        del net, optimizer
        gc.collect()
    show("kept", *kept)


# ---- what goes by rows: the gradient of a loss ----

def loss_gradient(grad, scores, target, total):
    """The two ops that autograd runs, as it runs them."""
    first = torch.ops.aten.nll_loss_backward(grad, scores, target, None, 1, -100, total)
    return first, torch.ops.aten._log_softmax_backward_data(first, scores, 1, torch.float32)


def loss_parts(n=96):
    scores, target = classes(rows(n))
    return torch.tensor(0.5), scores.detach().log_softmax(1), target, torch.tensor(82.0)


@program("ops+pages", "op")
def loss_in_all_forms(hazard):
    scores, target = classes(rows(96))
    weight = torch.rand(101)
    with hazard():
        for options in ({}, {"reduction": "sum"}, {"weight": weight}, {"label_smoothing": 0.1}, {"ignore_index": 3}):
            scores.grad = None
            labels = target.clamp(min=0) if "ignore_index" in options else target
            loss = nn.functional.cross_entropy(scores, labels, **options)
            loss.backward()
            show(str(options), loss, scores.grad)
        scores.grad = None
        nn.functional.cross_entropy(scores, torch.full_like(target, -100)).backward()
        show("all ignored", scores.grad)


@program("results", "access")
def loss_gradient_read(hazard):
    parts = loss_parts()
    with hazard():
        first, second = loss_gradient(*parts)
        show("both", first.numpy(), second.numpy())


@program("columns", "access")
def label_out_of_range(hazard):
    grad, scores, target, total = loss_parts()
    target[5] = 101
    with hazard():
        show("before", chain(data(rows(64), 64)))
        try:
            loss_gradient(grad, scores, target, total)
            print("no error")
        except IndexError as error:
            print(error)


@program("inputs", "access", sizes=(1,))
def label_changed_behind(hazard):
    parts = loss_parts(16384)  # labels that have pages of their own
    labels = parts[2].numpy()
    with hazard():
        _, second = loss_gradient(*parts)
        labels[3] = 7
        show("gradient", second)


@program("ops+pages", "op")
def label_changed(hazard):
    parts = loss_parts()
    with hazard():
        _, second = loss_gradient(*parts)
        parts[2][3] = 7
        show("gradient", second)


@program("ops+pages", "access", sizes=(1,))  # what others own may wait only when it is small
def labels_from_numpy(hazard):
    grad, scores, target, total = loss_parts()
    labels = target.numpy().copy()
    with hazard():
        _, second = loss_gradient(grad, scores, torch.from_numpy(labels), total)
        labels[3] = 7
        show("gradient", second)


@program("rows", "op")
def rows_of_another_length(hazard):
    grad, scores, target, total = loss_parts()
    scores, target = scores[:, :100].contiguous(), target.clamp(max=99)
    with hazard():
        first = torch.ops.aten.nll_loss_backward(grad, scores, target, None, 1, -100, total)
        second = torch.ops.aten._log_softmax_backward_data(first.view(-1, 50), scores.view(-1, 50), 1, torch.float32)
        third = torch.ops.aten._log_softmax_backward_data(first, scores, 0, torch.float32)
        show("gradients", first, second, third)


@program("ops+pages", "op")
def type_error_in_loss(hazard):
    grad, scores, target, total = loss_parts()
    with hazard():
        held = chain(data(rows(64), 64))
        for wrong in ((grad.double(), scores, target, total), (grad, scores, target.int(), total),
                      (grad, scores, target[:90], total), (grad, scores, target, torch.ones(2)),
                      (grad.view(1, 1), scores, target, total), (grad, scores.view(-1, 8, 101), target, total)):
            try:
                show("gradient", *loss_gradient(*wrong))
            except RuntimeError as error:
                print(str(error).splitlines()[0])
    show("held", held)


@program("ops+pages", "op")
def loss_gradient_of_gradient(hazard):
    scores, target = classes(rows(96))
    with hazard():
        loss = nn.functional.cross_entropy(scores * 2, target)
        (first,) = torch.autograd.grad(loss, scores, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), scores)
        show("gradients", first, second)


def run_one(name, sizes):
    """The program once for each size; what replay counted in each hazard's step goes to a file, a line for each program."""
    global size
    counts = []
    print("==", name, flush=True)
    for size in sizes:
        print("-- size", size, flush=True)
        torch.manual_seed(0)
        PROGRAMS[name][0](COUNTS.hazard)
        counts.append(dict(COUNTS.seen))
    if "TERRA_TEST_COUNTS" in os.environ:
        with open(os.environ["TERRA_TEST_COUNTS"], "a") as f:
            f.write(json.dumps([name, counts]) + "\n")


def go_on_in_child():
    """What is forked runs without replay: in a test it goes on, as in a process of its own. TERRA_TEST_DISABLED_AT is the address
    in the library of the flag that says so."""
    at = os.environ.get("TERRA_TEST_DISABLED_AT")
    if at:
        with open("/proc/self/maps", encoding="utf-8") as maps:
            begin = next(line.split("-")[0] for line in maps if line.rstrip().endswith("/libterra_replay.so"))
        flag = ctypes.c_int.from_address(int(begin, 16) + int(at, 16))
        assert flag.value == 1
        flag.value = 0


def run_forked(name, sizes):
    """A program in a child that has PyTorch from us, but nothing of the programs before it."""
    with tempfile.TemporaryFile() as out:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            try:
                go_on_in_child()
                run_one(name, sizes)
                status = 0
            except BaseException:
                traceback.print_exc()
                status = 1
            sys.stdout.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        text = out.read().decode(errors="replace")
    print(json.dumps([name, sizes, os.waitstatus_to_exitcode(status), text]), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--forked":
        listed = json.loads(sys.argv[2])
        if len(listed) > 3:
            import torch._dynamo  # which an optimizer's first step imports in each child otherwise
        for each in listed:
            run_forked(*each)
    elif sys.argv[1] in ("--all", "--together"):
        for key, entry in PROGRAMS.items():
            if sys.argv[1] == "--all" or not entry[4]:
                run_one(key, entry[3])
    elif sys.argv[1] == "--list":
        for key, (_, guard, reason, sizes, apart) in PROGRAMS.items():
            print(json.dumps({"name": key, "guard": guard, "reason": reason, "sizes": sizes, "apart": apart}))
    else:
        run_one(sys.argv[1], [int(word) for word in sys.argv[2:]])
