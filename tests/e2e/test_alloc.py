#!/usr/bin/env python3
"""The allocator level alone (TERRA_MODE=alloc): same output, warm memory, and never hungrier than without it; and no hungrier
with a plan above it."""
# timeout: 900
# long: 120
import functools
import glob
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, main, make_plan, program, python, run, skip, temporary_folder, test

MEASURED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "measured.py")
MB = 1 << 20
ALLOC = {"TERRA_MODE": "alloc"}
FOLDER = temporary_folder()
LOG = os.path.join(FOLDER.name, "log.json")


def measure(*command, preload=None, env=None, address_space=None, timeout=300):
    """Standard output of a Python program, and what measured.py says of it."""
    with temporary_folder() as folder:
        path = os.path.join(folder, "measure.json")
        words = [PYTHON, MEASURED, *command]
        if address_space:
            words = ["/bin/sh", "-c", f'ulimit -v {address_space // 1024}; exec "$@"', "sh", *words]
        done = run(words, preload=preload, env={**ALLOC, **(env or {}), "TERRA_TEST_MEASURE": path}, timeout=timeout)
        with open(path, encoding="ascii") as measures:
            return done.stdout, json.load(measures)


@functools.cache
def measure_eager(*command, address_space=None):
    return measure(*command, address_space=address_space)


def both(*command, env=None):
    """What was measured without and with the library; the outputs must be the same."""
    eager, ours = measure_eager(*command), measure(*command, preload=REPLAY, env=env)
    assert eager[0] == ours[0], f"output differs:\n{eager[0]}\n{ours[0]}"
    return eager[1], ours[1]


@functools.cache
def without(code):
    return python(code, check=False, env=ALLOC)


def same(code, *, preload=REPLAY):
    """Runs source text without and with the library; returns the output, which must be the same."""
    eager = without(code)
    ours = python(code, check=False, preload=preload, env=ALLOC)
    assert (eager.stdout, eager.returncode) == (ours.stdout, ours.returncode), \
        f"{eager.returncode} {eager.stdout}{eager.stderr}\n{ours.returncode} {ours.stdout}{ours.stderr}"
    return ours.stdout


@functools.cache
def random_shapes_plan():
    """What to set for a run with a plan that random_shapes.py follows at each of its shapes."""
    plan = make_plan(os.path.join(FOLDER.name, "shapes"), [program("random_shapes.py"), "40"], "--disable-pass", "cost")
    return {"TERRA_MODE": "replay", "TERRA_PLAN": plan, "TERRA_LOG": "json:" + LOG}


def fused():
    with open(LOG, encoding="ascii") as file:
        return json.load(file)["ops_fused"]


def told(**numbers):
    print("  " + ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in numbers.items()))


@test
def mlp_is_the_same_and_warm():
    eager, ours = both(program("mlp.py"), "200")
    after = [sum(each["faults"][100:]) / len(each["faults"][100:]) for each in (eager, ours)]
    told(eager_faults_per_step=after[0], faults_per_step=after[1])
    assert after[1] < 5


@test(timeout=400)
def gpt2_is_the_same_warm_and_not_hungrier():
    eager, ours = both(program("gpt2.py"), "4")
    told(eager_faults_of_last_step=eager["faults"][-1], faults_of_last_step=ours["faults"][-1],
         eager_peak_mb=eager["peak"] / MB, peak_mb=ours["peak"] / MB)
    assert ours["faults"][-1] < 0.02 * eager["faults"][-1]
    assert ours["peak"] <= 1.1 * eager["peak"]


def random_shapes(env=None):
    eager, ours = both(program("random_shapes.py"), "300", env=env)
    told(eager_peak_mb=eager["peak"] / MB, peak_mb=ours["peak"] / MB, eager_left_mb=eager["resident"] / MB,
         left_mb=ours["resident"] / MB, eager_faults_per_step=sum(eager["faults"]) / 299,
         faults_per_step=sum(ours["faults"]) / 299)
    assert ours["peak"] <= 1.1 * eager["peak"]
    assert ours["resident"] <= 1.2 * eager["resident"]


@test(timeout=600)
def random_shapes_are_not_hungrier_and_memory_goes_back():
    random_shapes()


@test(timeout=600)
def random_shapes_with_a_plan_are_not_hungrier():
    random_shapes(random_shapes_plan())
    assert fused() > 20 * 300, f"{fused()} ops fused"


def survives_a_limit(env=None):
    command = (program("random_shapes.py"), "20")
    out, eager = measure_eager(*command)
    limit = eager["virtual_peak"] + 64 * MB
    assert measure_eager(*command, address_space=limit)[0] == out
    limited, ours = measure(*command, address_space=limit, preload=REPLAY, env=env)
    assert limited == out
    told(limit_mb=limit / MB, eager_virtual_peak_mb=eager["virtual_peak"] / MB,
         virtual_peak_mb=ours["virtual_peak"] / MB)


@test(timeout=400)
def an_address_space_limit_is_survived():
    "64 MB above what eager needed: eager survives that, and so do we."
    survives_a_limit()


@test(timeout=400)
def an_address_space_limit_is_survived_with_a_plan():
    survives_a_limit(random_shapes_plan())
    assert fused() > 20 * 20, f"{fused()} ops fused"


@test
def errors_are_the_programs_own():
    out = same("""
import torch
for size in (10 ** 14, 2 ** 62, 2 ** 63 - 1):
    try:
        torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:
        print(str(error).splitlines()[0])
print(torch.ones(1000).sum().item())
""")
    assert out.count("you tried to allocate") == 3, out


@test
def where_tensors_live():
    "Tensors of some size are ours when alloc is on, and only then; small ones never."
    code = """
import torch
small, large = torch.zeros(8), torch.zeros(100000)
print(large.data_ptr() - small.data_ptr() > 1 << 44 or small.data_ptr() - large.data_ptr() > 1 << 44)
"""
    assert python(code, preload=REPLAY, env=ALLOC).stdout == "True\n"
    assert python(code, preload=REPLAY, env={"TERRA_MODE": "off"}).stdout == "False\n"
    assert python(code).stdout == "False\n"


@test
def fill_flags_are_obeyed():
    assert same("""
import ctypes, glob, os, torch
c10 = ctypes.CDLL(os.path.join(os.path.dirname(torch.__file__), "lib", "libc10.so"))
flag = ctypes.c_bool.in_dll(c10, "FLAGS_caffe2_cpu_allocator_do_zero_fill")
for size in (100, 10000, 1000000):
    for _ in range(20):
        torch.full((size,), 7.0)
    flag.value = True
    print(max(torch.empty(size).abs().max().item() for _ in range(20)))
    flag.value = False
""") == "0.0\n0.0\n0.0\n"


@test
def forked_children_work():
    assert same("""
import os, torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
data = torch.randn(64, 3000)
loader = DataLoader(TensorDataset(data), batch_size=8, num_workers=2)
print(sum((batch * 2).double().sum().item() for batch, in loader))
pid = os.fork()
if not pid:
    data.mul_(3)
    del data
    os._exit(0 if torch.ones(1000000).sum().item() == 1000000 else 1)
print(os.waitpid(pid, 0)[1], data.double().sum().item())
""").splitlines()[1].startswith("0 ")


@test
def threads_allocate_for_each_other():
    same("""
import queue, threading, torch
torch.set_num_threads(1)
torch.manual_seed(0)
made, sums = queue.Queue(4), []
def produce():
    for i in range(2000):
        made.put(torch.full((64 + i * 37 % 50000,), float(i)))
    made.put(None)
def consume():
    while (t := made.get()) is not None:
        sums.append((t + 1).double().sum().item())
threads = [threading.Thread(target=each) for each in (produce, consume)]
[each.start() for each in threads]
[each.join() for each in threads]
print(len(sums), sum(sums))
""")


@test
def every_way_to_end():
    "With tensors alive, and while another thread allocates."
    begin = "import os, sys, threading, torch\nkept = [torch.ones(n, 1000) for n in range(50)]\n"
    busy = "threading.Thread(target=lambda: [torch.ones(50000) for _ in iter(int, 1)], daemon=True).start()\n"
    for ending, code in (("sys.exit(3)", 3), (busy + "os._exit(4)", 4), (busy + "os.abort()", -6),
                         (busy + "os.kill(os.getpid(), 15)", -15)):
        done = python(begin + ending, preload=REPLAY, env=ALLOC, check=False)
        assert done.returncode == code, f"{ending}: {done.returncode}\n{done.stderr}"


@test
def other_allocators_beside():
    "Preloaded before or after us, jemalloc and tcmalloc keep what is malloc's."
    code = "import torch\ntorch.manual_seed(0)\nt = torch.randn(500, 500)\nprint((t @ t).sum().item(), len([t + i for i in range(99)]))"
    found = [path for name in ("tcmalloc_minimal", "tcmalloc", "jemalloc")
             for path in sorted(glob.glob(f"/usr/lib/*/lib{name}.so.*"))[:1]]
    if not found:
        skip("neither tcmalloc nor jemalloc is installed")
    for path in found:
        same(code, preload=[REPLAY, path])
        same(code, preload=[path, REPLAY])


@test
def a_program_without_torch_is_left_alone():
    done = run(["/bin/sh", "-c", "echo text; exit 5"], preload=REPLAY, env=ALLOC, check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("text\n", "", 5)


if __name__ == "__main__":
    main()
