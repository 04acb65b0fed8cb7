#!/usr/bin/env python3
"""C++ exceptions of a program that is recorded: they are its own, and where they are not seen the trace says so."""
# timeout: 600
import functools
import json
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, ROOT, can_load_bpf, main, need_bpf, run, skip, temporary_folder, test, tool

RAISES = """
import torch
a = torch.ones(2, 3)
for i in range(50):
    try:
        torch.mm(a, a)
    except RuntimeError as error:
        print(i, error)
a.sum()
"""

# Exceptions of every sort, through a C++ library of its own and through libtorch's, outside of ops and inside of one.
EXCEPTIONS = """
import ctypes, sys, torch
libraries = [ctypes.CDLL(path) for path in sys.argv[1:]]
for library in libraries:
    library.exceptions.restype = ctypes.c_char_p

def all_of_them():
    for library in libraries:
        print(library.exceptions().decode())

class Inside(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        all_of_them()
        return torch.ones(3)

for i in range(3):
    all_of_them()
    try:
        torch.mm(torch.ones(2, 3), torch.ones(2, 3))
    except RuntimeError as error:
        print(error)
    all_of_them()
    torch.neg(torch.ones(3).as_subclass(Inside))
"""


def make_exceptions(folder, name, *options):
    path = os.path.join(folder, name)
    run(["c++", "-std=c++17", "-w", "-shared", "-fPIC", "-pthread", *options, "-o", path,
         os.path.join(ROOT, "tests", "programs", "exceptions.cpp")], timeout=100)
    return path


def need_compiler():
    if not shutil.which("c++"):
        skip("no C++ compiler here")
    if run([PYTHON, "-c", "import torch"], check=False).returncode:
        skip("no PyTorch here")


def trace(code, *arguments, backend, folder, preload=None):
    """Runs a program under terra-trace; what it printed, its events and the trace's end."""
    path = os.path.join(folder, backend + ".terra")
    outcome = run([tool("terra-trace"), "-o", path, "--backend", backend, "--", PYTHON, "-c", code, *arguments], preload=preload,
                  timeout=150)
    lines = [json.loads(line) for line in run([tool("trace_dump"), path]).stdout.splitlines()]
    return outcome.stdout, lines[1:-1], lines[-1]


def gaps(events):
    return [event["text"] for event in events if event["event"] == "note" and "exceptions are not seen" in event["text"]]


def raised_of(events):
    enters = {event["seq"]: event for event in events if event["event"] == "enter"}
    return [enters[event["enter"]]["op"] for event in events if event["event"] == "exit" and event["raised"]]


@test(timeout=400)
def exceptions_are_the_programs_own():
    """Throwing, catching, rethrowing, ending a thread, terminating: all as without us, also where a library brings its own C++."""
    need_compiler()
    with temporary_folder() as folder:
        libraries = [make_exceptions(folder, "shared.so"), make_exceptions(folder, "own.so", "-static-libstdc++", "-static-libgcc")]
        plain = run([PYTHON, "-c", EXCEPTIONS, *libraries], timeout=100).stdout
        assert plain.count("terminated 42 done") == 18 and plain.count("cannot be multiplied") == 3, plain
        for backend in ("preload", "bpf") if can_load_bpf() else ("preload",):
            printed, events, end = trace(EXCEPTIONS, *libraries, backend=backend, folder=folder)
            assert printed == plain, printed
            assert end["clean"] and end["lost"] == 0, end
            assert raised_of(events) == ["aten::mm"] * 3, raised_of(events)
            assert not gaps(events), gaps(events)


# Another function of that name, as a tool for debugging may bring.
BEGIN_CATCH = """
#include <dlfcn.h>
extern "C" void *__cxa_begin_catch(void *exception) throw();
extern "C" void *__cxa_begin_catch(void *exception) throw()
{
    static void *(*next)(void *) = (void *(*)(void *))dlsym(RTLD_NEXT, "__cxa_begin_catch");
    return next(exception);
}
"""


@functools.cache
def plain_raises():
    return run([PYTHON, "-c", RAISES], timeout=60).stdout


def check_gap(backend, preload, folder):
    printed, events, end = trace(RAISES, backend=backend, folder=folder, preload=preload)
    assert printed == plain_raises(), printed
    assert end["clean"] and len(gaps(events)) == 1, gaps(events)
    raised = raised_of(events)    # each with the next one at its place; the last may never be seen to end
    assert set(raised) == {"aten::mm"} and len(raised) >= 49, raised


@test(timeout=200)
def another_begin_of_handlers_is_named_preload():
    """Where libtorch's handlers begin in a function that somebody put in front of the C++ library's, the trace says what follows."""
    need_compiler()
    with temporary_folder() as folder:
        interposed = os.path.join(folder, "interposed.so")
        run(["c++", "-w", "-shared", "-fPIC", "-D_GNU_SOURCE", "-x", "c++", "-", "-x", "none", "-o", interposed, "-ldl"],
            input=BEGIN_CATCH)
        check_gap("preload", interposed, folder)


@test(timeout=200)
def an_unknown_library_of_handlers_is_named_bpf():
    """So where the C++ library has a name that we do not know."""
    need_bpf()
    need_compiler()
    with temporary_folder() as folder:
        unknown = os.path.join(folder, "another-name.so")
        shutil.copy(run(["c++", "-print-file-name=libstdc++.so.6"]).stdout.strip(), unknown)
        check_gap("bpf", unknown, folder)


if __name__ == "__main__":
    main()
