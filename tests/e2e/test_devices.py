"""Machines with a GPU, as far as they can be had without one: threads that exist there and look at nothing keep no work from
waiting, and as soon as a device is in use nothing waits. On a machine with a GPU tests/gpu/run asks more.
"""
# timeout: 600
# long: 60
import json
import os

from harness import (PYTHON, REPLAY, ROOT, main, make_plan, make_without_guards, program, python, run, skip, temporary_folder,
                     test, traced, without_guard)

MIXED = os.path.join(ROOT, "tests", "gpu", "mixed.py")
_folder = temporary_folder()

# What the tests need of CUDA's driver: a thread when it starts, another with a context, and what it says of contexts.
DRIVER = """
#include <pthread.h>
#include <unistd.h>
static int active;
static void *sleeps(void *unused) { for (;;) pause(); return unused; }
static int start(void) { pthread_t thread; return pthread_create(&thread, 0, sleeps, 0); }
int cuInit(unsigned flags) { return (int)flags + start(); }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *out) { *flags = 0; *out = active; return device; }
void activate(void) { active = 1; }
int other_context(void) { return start(); }
"""

PROBE = """
import ctypes, os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import torch
import mixed

def step():
    before = mixed.count("deferred")
    mixed.chain(mixed.data(1 << 16)).sum()
    return mixed.count("deferred") - before

step()
y = mixed.chain(mixed.data(1 << 16))
waiting = [mixed.count("waiting")]
exec(sys.argv[2])
waiting.append(mixed.count("waiting"))
print(waiting[0], waiting[1], step(), step())
"""


# A library whose name says that its thread sleeps until there is work for it: to read a number.
READER = """
#include <pthread.h>
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static const volatile float *wanted;
static volatile float seen;
static volatile int sleeping, done;
static void *serve(void *unused)
{
    pthread_mutex_lock(&lock);
    for (sleeping = 1;; done = 1) {
        while (!wanted)
            pthread_cond_wait(&work, &lock);
        seen = *wanted;
        wanted = 0;
    }
    return unused;
}
int start(void)
{
    pthread_t thread;
    int err = pthread_create(&thread, 0, serve, 0);
    while (!err && !sleeping)
        ;
    return err;
}
float ask(const float *p)
{
    pthread_mutex_lock(&lock);
    done = 0;
    wanted = p;
    pthread_cond_signal(&work);
    pthread_mutex_unlock(&lock);
    while (!done)
        ;
    return seen;
}
"""

WOKEN = """
import ctypes, os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import torch
import mixed

reader = ctypes.CDLL(sys.argv[2])
reader.ask.restype = ctypes.c_float
assert reader.start() == 0
for i in range(2):
    y = mixed.chain(torch.full((1 << 16,), 2.0 + i))
    waiting, threads = mixed.count("waiting"), mixed.count("thread")
    print(reader.ask(ctypes.c_void_p(y.data_ptr())))
    print(waiting, mixed.count("waiting"), mixed.count("thread") - threads, file=sys.stderr)
"""


def path(name):
    return os.path.join(_folder.name, name)


def plan():
    return make_plan(path("mixed"), [MIXED, "trace"], "--disable-pass", "cost")


def library(name, source):
    """The path of a library, compiled once."""
    if not os.path.exists(path(name)):
        run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-pthread", "-Wl,-soname," + name, "-x", "c", "-", "-o", path(name)],
            input=source)
    return path(name)


def driver():
    """Stands for CUDA's driver."""
    return library("libcuda.so.1", DRIVER)


def probe(code):
    """How many ops waited before and after the code, and how many were put off in two steps behind it."""
    out = python(PROBE, MIXED, code, env={"TERRA_PLAN": plan()}, preload=REPLAY)
    return [int(word) for word in out.stdout.split()]


@test
def drivers_first_thread_looks_at_nothing():
    "A program that only asked what devices there are goes on as before, once what waited has been run."
    assert probe(f"ctypes.CDLL({driver()!r}).cuInit(0)") == [3, 0, 3, 3]


@test
def nothing_waits_beside_a_device_in_use():
    "With a context nothing waits: known from the driver, or from the thread that it makes for one."
    assert probe(f"d = ctypes.CDLL({driver()!r}); d.cuInit(0); d.activate()") == [3, 0, 0, 0]
    assert probe(f"d = ctypes.CDLL({driver()!r}); d.cuInit(0); d.other_context()") == [3, 0, 0, 0]


@test
def threads_of_others_count_in_their_sleep():
    code = "import threading; e = threading.Event(); threading.Thread(target=e.wait, daemon=True).start()"
    assert probe(code) == [3, 0, 0, 0]


@test
def thread_of_an_allocator_is_asleep():
    "pyarrow's, where it is installed."
    try:
        run([PYTHON, "-c", "import pyarrow"])
    except AssertionError:
        skip("no pyarrow")
    assert probe("import pyarrow")[2:] == [3, 3]


def woken(preload):
    """What a thread of a library read when it woke; and how many ops waited before and after, and how many flushes a thread caused."""
    done = python(WOKEN, MIXED, library("libarrow_like.so", READER), env={"TERRA_PLAN": plan()}, preload=preload)
    return done.stdout, [[int(word) for word in line.split()] for line in done.stderr.splitlines()]


@test(timeout=600)
def a_librarys_thread_wakes_to_results():
    "Work waits beside a library's sleeping thread, and is done before that goes on; without counting, or closed pages, it reads what was there."
    want = woken(None)[0]
    assert woken(REPLAY) == (want, [[3, 0, 1], [3, 0, 1]])
    make_without_guards()
    have, seen = woken(without_guard("threads"))
    assert have == want and [line[2] for line in seen] == [0, 0], seen  # the pages' work
    assert woken(without_guard("threads+pages"))[0] != want


@test
def autograds_threads_for_devices_sleep():
    "From the first backward on autograd has a thread for a device that nobody uses: work waits as without it, with eager's bits."
    code = """
import os, sys, runpy
import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as add_device
add_device("other")
path = sys.argv[1]
sys.argv = [path, "--out", sys.argv[2], *sys.argv[3:]]
runpy.run_path(path, run_name="__main__")
print(*(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")))
"""
    if "_setup_privateuseone_for_python_backend" not in python(
            "import torch.utils.backend_registration as b; print(dir(b))").stdout:
        skip("this PyTorch can't be given a device")
    mlp, results = program("mlp.py"), []
    mlp_plan = make_plan(path("mlp"), traced("mlp"))
    for preload in (None, REPLAY):
        done = python(code, program("bench_driver.py"), path("run.json"), mlp, "12", preload=preload,
                      env={"TERRA_PLAN": mlp_plan, "TERRA_LOG": "json:" + path("log.json")})
        assert "pt_autograd" in done.stdout, done.stdout
        with open(path("run.json"), encoding="utf-8") as file:
            result = json.load(file)
        results.append((result["losses"], result["parameters"]))
    assert results[0] == results[1]
    with open(path("log.json"), encoding="utf-8") as file:
        assert json.load(file)["ops_fused"] > 400


if __name__ == "__main__":
    main()
