"""Runs an unmodified training script and notes the time of each iteration, each loss and the final parameters.

    bench_driver.py [OPTION]... --out FILE PROGRAM [ARGUMENT]...

The script runs as if it had been started itself. Two places outside it are used: an iteration ends when the script's first
optimizer has made its step, and the loss is what the script calls backward() on. Neither reads a value or makes the
program wait; all values are read after the script's end, and the time of that end includes that every parameter has been
computed. --compile hands the first module that the script calls to torch.compile. With --turns the script stops after FIRST
iterations, and then after every N: it writes a byte to the file descriptor DONE and goes on when it has read one from GO. The
time in between is in none of the times.

--profiler, --observer and --count-ops have PyTorch itself watch the script: torch.profiler with shapes and stacks, the
ExecutionTraceObserver, or a TorchDispatchMode that counts the ops up to the end of each iteration. What the first two write
is written after the end that is measured.
"""
import argparse
import contextlib
import hashlib
import json
import os
import resource
import runpy
import sys
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.optim.optimizer import register_optimizer_step_post_hook


class Turns:
    """Stops the script so that others can have theirs."""

    def __init__(self, text):
        self.go, self.done, self.next_stop, self.every = (int(word) for word in text.split(","))
        self.paused = 0  # ns

    def iteration_ended(self, iterations):
        if iterations < self.next_stop:
            return
        self.next_stop += self.every
        stopped = time.monotonic_ns()
        os.write(self.done, b".")
        if not os.read(self.go, 1):
            sys.exit("bench_driver: whoever gives the turns is gone")
        self.paused += time.monotonic_ns() - stopped


class Watch:
    """What was seen of the script."""

    def __init__(self, turns, counter):
        self.ends, self.faults, self.losses, self.optimizers, self.ops = [], [], [], [], []
        self.turns, self.counter = turns, counter

    def now(self):
        return time.monotonic_ns() - (self.turns.paused if self.turns else 0)

    def optimizer_stepped(self, optimizer, args, kwargs):
        if all(optimizer is not known for known in self.optimizers):
            self.optimizers.append(optimizer)
        if optimizer is self.optimizers[0]:
            self.ends.append(self.now())
            self.faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
            if self.counter:
                self.ops.append(self.counter.ops)
            if self.turns:
                self.turns.iteration_ended(len(self.ends))

    def parameters(self):
        return [parameter for optimizer in self.optimizers for group in optimizer.param_groups
                for parameter in group["params"]]


class Counter(TorchDispatchMode):
    """Counts ops."""

    def __init__(self):
        super().__init__()
        self.ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops += 1
        return func(*args, **(kwargs or {}))


def start_profiler(path):
    """What to call at the end."""
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True, with_stack=True)
    profiler.start()

    def stop():
        profiler.stop()
        profiler.export_chrome_trace(path)
    return stop


def start_observer(path):
    """What to call at the end."""
    observer = torch.profiler.ExecutionTraceObserver().register_callback(path)
    observer.start()

    def stop():
        observer.stop()
        observer.unregister_callback()
    return stop


def watch_backward(watch):
    backward = torch.Tensor.backward

    def watched(self, *args, **kwargs):
        watch.losses.append(self.detach())
        return backward(self, *args, **kwargs)

    torch.Tensor.backward = watched


def compile_first_module():
    """torch.compile in place, on the first module with parameters that is called: the model, in most scripts."""
    call = torch.nn.Module.__call__

    def first_call(self, *args, **kwargs):
        if next(self.parameters(), None) is not None:
            torch.nn.Module.__call__ = call
            self.compile()
        return call(self, *args, **kwargs)

    torch.nn.Module.__call__ = first_call


def wait_for_values(tensors):
    """One element of each, read on the host: whatever was put off has been done then."""
    for tensor in tensors:
        if tensor.numel():
            tensor.detach().reshape(-1)[-1].item()


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def digest(tensors):
    result = hashlib.sha256()
    for tensor in tensors:
        result.update(bits(tensor))
    return result.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--started", type=int, default=time.monotonic_ns(), metavar="NS",
                        help="CLOCK_MONOTONIC when the process was started, in ns")
    parser.add_argument("--turns", type=Turns, metavar="GO,DONE,FIRST,N")
    by_pytorch = parser.add_mutually_exclusive_group()
    by_pytorch.add_argument("--profiler", metavar="FILE")
    by_pytorch.add_argument("--observer", metavar="FILE")
    by_pytorch.add_argument("--count-ops", action="store_true")
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()

    counter = Counter() if options.count_ops else None
    watch = Watch(options.turns, counter)
    register_optimizer_step_post_hook(watch.optimizer_stepped)
    watch_backward(watch)
    if options.compile:
        compile_first_module()
    sys.argv = [options.program, *options.arguments]
    stop = None
    if options.profiler or options.observer:
        stop = start_profiler(options.profiler) if options.profiler else start_observer(options.observer)
    with counter or contextlib.nullcontext():
        runpy.run_path(options.program, run_name="__main__")
        wait_for_values(watch.parameters() + watch.losses)
    end, cpu = watch.now(), time.process_time()
    if stop:
        stop()
    writing = watch.now() - end
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = [(moment - options.started) / 1e9 for moment in watch.ends]
    with open(options.out, "w", encoding="utf-8") as out:
        json.dump({"iteration_ends": seconds, "page_faults": watch.faults, "end": (end - options.started) / 1e9, "cpu": cpu,
                   "writing": writing / 1e9, "ops": watch.ops + [counter.ops] if counter else None, "peak_bytes": peak,
                   "losses": [bits(loss).hex() for loss in watch.losses], "parameters": digest(watch.parameters()),
                   "torch": torch.__version__, "threads": torch.get_num_threads()}, out)


if __name__ == "__main__":
    main()
