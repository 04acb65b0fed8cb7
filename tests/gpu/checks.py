"""Terra on a machine that it was not built on: another CPU, another Python, a GPU. Run by tests/gpu/run.

What CPU programs do is compared with eager bit for bit, with all processors and with two; programs that use CUDA must do
what they do without us. Lines that begin with two spaces tell what was seen.
"""
import glob
import json
import os
import re
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from harness import (BUILD, PYTHON, REPLAY, drive, main, make_plan, make_trace, program, python, run, skip,  # noqa: E402
                     temporary_folder, test, tool, without_guard)

GPU = os.path.join(ROOT, "tests", "gpu")
STEPS, TRACED = {"mlp": 60, "gpt2": 6}, {"mlp": 12, "gpt2": 4}
CUDA_STEPS, CUDA_TRACED = 30, 12
folder = temporary_folder()
made = {}


def path(name):
    return os.path.join(folder.name, name)


def say(text):
    print("  " + str(text).rstrip().replace("\n", "\n  "), flush=True)


def once(function):
    """What several checks need is made by the first; one that failed fails the others, too."""
    def wrapped(*arguments):
        key = (function.__name__, arguments)
        if key not in made:
            made[key] = function(*arguments)
        return made[key]
    return wrapped


def threads(n):
    return {"OMP_NUM_THREADS": str(n)} if n else {}


# ---- the machine ----

@test
def facts():
    "What the machine is."
    for line in run(["lscpu"], check=False).stdout.splitlines():
        if re.match(r"Model name|CPU\(s\)|Thread\(s\) per core|CPU family|Model:|Stepping|L[123]", line):
            say(re.sub(r":\s+", ": ", line))
        if line.startswith("Flags"):
            flags = line.split()
            say("AVX: " + " ".join(flag for flag in flags if re.match("avx|fma|amx", flag)))
    say(os.uname().release + " " + " ".join(os.confstr("CS_GNU_LIBC_VERSION").split()))
    say(run([os.environ.get("CC", "cc"), "--version"]).stdout.splitlines()[0])
    say(python("""
import sys, torch
print("Python", sys.version.split()[0], "PyTorch", torch.__version__, "capability", torch.backends.cpu.get_cpu_capability(),
      "threads", torch.get_num_threads(), "OpenMP of", [l.split()[-1] for l in open("/proc/self/maps") if "omp" in l][:1])
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(0), "CUDA", torch.version.cuda)
""", timeout=120).stdout)


@once
def has_gpu():
    return python("import torch; print(torch.cuda.is_available())", timeout=120).stdout.strip() == "True"


def need_gpu():
    if not has_gpu():
        skip("no CUDA device")


@test
def ops_are_understood():
    "The op table of this libtorch."
    library = glob.glob(os.path.join(python("import torch; print(torch.__path__[0])", timeout=120).stdout.strip(), "lib",
                                     "libtorch_cpu.so"))[0]
    start = time.monotonic()
    done = run([tool("terra-trace"), "--list-ops", "--library", library])
    line = (done.stdout + done.stderr).splitlines()
    total = next(each for each in line if "op entry points" in each)
    say(re.sub(r" in \S+:", ":", total) + f"; {time.monotonic() - start:.1f} s")
    points, complete = map(int, re.search(r"(\d+) op entry points .*: (\d+) complete", total).groups())
    assert points > 5000 and complete > 0.95 * points


# ---- CPU programs ----

@once
def trace(name, n):
    return make_trace(path(f"{name}-{n}"), [program(name + ".py"), TRACED[name]], env=threads(n))


@once
def plan(name, n):
    file = path(f"{name}-{n}.plan")
    start = time.monotonic()
    measure = ["--no-measure"] if name == "gpt2" else []
    done = run([tool("terra-opt"), "-o", file, *measure, trace(name, n)], env=threads(n), timeout=200)
    text = done.stdout
    summary = re.search(r"\d+ regions, .*", text)
    cpu = re.search(r"^cpu .*", text, re.MULTILINE)
    say(f"terra-opt {''.join(measure)} {time.monotonic() - start:.1f} s: {summary and summary[0]}; {cpu and ' '.join(cpu[0].split())}")
    for line in re.findall(r"^ +\d+ +[\d.]+x .*", text, re.MULTILINE):
        say(line)
    return file


def driven(name, n, env=None, preload=None):
    return drive(path("run.json"), name, STEPS[name], env={**threads(n), **(env or {})}, preload=preload, timeout=200)


@once
def eager(name, n):
    return driven(name, n)[0]


def speed(result):
    ends = result["iteration_ends"]
    return f"{(len(ends) - 3) / (ends[-1] - ends[2]):.1f} steps/s"


def same_bits(have, want):
    different = [i for i, (a, b) in enumerate(zip(want["losses"], have["losses"])) if a != b]
    assert len(have["losses"]) == len(want["losses"]) and not different, f"losses differ from step {different[:1]} on"
    assert have["parameters"] == want["parameters"], "final parameters differ"


def counts_of(log):
    with open(log, encoding="utf-8") as file:
        return json.load(file)


def cpu_program(name, n):
    want, log = eager(name, n), path("counts.json")
    have, done = driven(name, n, {"TERRA_PLAN": plan(name, n), "TERRA_LOG": "json:" + log}, REPLAY)
    counts = counts_of(log)
    say(f"{want['threads']} threads: eager {speed(want)}, replay {speed(have)}; " + json.dumps(
        {key: counts[key] for key in ("ops_seen", "ops_deferred", "ops_fused", "ops_singly", "ops_replaced")}))
    say(f"threads {json.dumps(counts.get('threads'))}, flushes " + json.dumps({key: value for key, value in counts["flushes"].items() if value}))
    assert "terra:" not in done.stderr, done.stderr
    same_bits(have, want)
    assert counts["ops_fused"] > 10 * STEPS[name], "hardly anything was fused"


@test(timeout=300)
def mlp_all_threads():
    "Trace, plan, replay with as many threads as the machine has: eager's bits."
    cpu_program("mlp", 0)


@test
def cpu_program_beside_gpu():
    "Autograd's thread for a GPU that the program does not use keeps nothing from waiting."
    log = path("beside.json")
    done = python("""
import sys, runpy
import torch
if not torch.cuda.is_available():
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
    _setup_privateuseone_for_python_backend("npy")
import os
path = sys.argv[1]
sys.argv = [path, "12"]
runpy.run_path(path, run_name="__main__")
print(*(open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")), file=sys.stderr)
""", program("mlp.py"), env={"TERRA_PLAN": plan("mlp", 0), "TERRA_LOG": "json:" + log}, preload=REPLAY)
    counts = counts_of(log)
    say(f"{counts['ops_deferred']} deferred, {counts['ops_fused']} fused; threads: " + " ".join(sorted(set(done.stderr.split()))))
    assert "pt_autograd" in done.stderr, "no thread of autograd's: it showed nothing"
    assert counts["ops_fused"] > 100


@test
def plan_of_another_machine():
    "A plan that was made elsewhere is refused with one line, and the program is left alone."
    file = os.path.join(BUILD, "foreign.plan")
    if not os.path.exists(file):
        skip("no foreign.plan in the build folder")
    say("\n".join(run([tool("terra-opt"), "--list", file]).stdout.splitlines()[1:4]))
    log = path("foreign.json")
    have, done = driven("mlp", 0, {"TERRA_PLAN": file, "TERRA_LOG": "json:" + log}, REPLAY)
    lines = [line for line in done.stderr.splitlines() if line.startswith("terra:")]
    say("\n".join(lines))
    same_bits(have, eager("mlp", 0))
    if not lines:
        skip("accepted: this is the same kind of CPU")
    assert len(lines) == 1, lines
    assert counts_of(log)["ops_deferred"] == 0


@test(timeout=200)
def bpf_trace():
    "The tracer that works from outside, where it is allowed."
    done = run([tool("terra-trace"), "--backend", "bpf", "-o", path("bpf.terra"), "--", PYTHON, program("mlp.py"), TRACED["mlp"]],
               check=False, timeout=120)
    if done.returncode == 125:
        skip(" ".join((done.stderr or "terra-trace refused").split())[:300])
    assert done.returncode == 0, done.stderr
    reports = [run([tool("terra-report"), file]).stdout for file in (path("bpf.terra"), trace("mlp", 0))]
    ops = [re.search(r"^ops +(.*)", report, re.MULTILINE)[1] for report in reports]
    say(f"bpf {ops[0]}; preload {ops[1]}; lost {re.search(r'^lost +(.*)', reports[0], re.MULTILINE)[1]}")
    assert ops[0] == ops[1]


@test
def python_stacks_are_named():
    "Call sites in Python are found in this interpreter."
    sites = run([tool("terra-report"), trace("mlp", 0)]).stdout.split("Slowest call sites")[1]
    say("\n".join(sites.splitlines()[2:5]))
    assert "mlp.py:" in sites or "linear.py:" in sites


# ---- CUDA programs ----

def train(device, *words, env=None, preload=None):
    return run([PYTHON, os.path.join(GPU, "train.py"), CUDA_STEPS, device, *words], env=env, preload=preload, timeout=120)


@once
def train_trace(device):
    return make_trace(path(f"train-{device}"), [os.path.join(GPU, "train.py"), CUDA_TRACED, device])


@once
def train_plan(device):
    """From the trace of the program on the device."""
    file = path(f"train-{device}.plan")
    done = run([tool("terra-opt"), "--no-measure", "--disable-pass", "cost", "-o", file, train_trace(device)],
               timeout=120, check=False)
    say(f"plan of the program on {device}: " + " ".join(re.findall(r"\d+ regions, .*", done.stdout)) +
        (f" exit code {done.returncode}: {done.stderr.splitlines()[-1]}" if done.returncode else ""))
    return file if os.path.exists(file) else None


@once
def train_eager(device):
    a, b = (train(device).stdout for _ in range(2))
    say("two runs without us are " + ("the same bits" if a == b else "NOT the same bits: nothing can be compared"))
    assert a == b, "the framework itself is not deterministic here"
    return a


def train_like_eager(mode, plan_file=None):
    need_gpu()
    log = path("train.json")
    env = {"TERRA_MODE": mode, "TERRA_LOG": "json:" + log, **({"TERRA_PLAN": plan_file} if plan_file else {})}
    done = train("cuda", env=env, preload=REPLAY)
    counts = counts_of(log)
    say(f"mode {counts['mode']}: {counts['ops_seen']} ops seen, {counts['ops_deferred']} deferred; " +
        (done.stderr.strip() or "silent"))
    assert done.stdout == train_eager("cuda"), "losses or parameters differ"


@test
def cuda_training_with_allocator():
    "The training on the GPU in mode alloc: the same bits."
    train_like_eager("alloc")


@test
def cuda_training_observed():
    "In mode observe."
    need_gpu()
    train_like_eager("observe", train_plan("cpu"))


@test
def cuda_training_with_cpu_plan():
    "In mode replay with a plan that was made from the same program on the CPU."
    need_gpu()
    train_like_eager("replay", train_plan("cpu"))


@test
def cuda_training_with_own_plan():
    "In mode replay with a plan from its own trace, if there is anything to plan."
    need_gpu()
    plan_file = train_plan("cuda")
    if plan_file is None:
        skip("terra-opt makes no plan of it")
    train_like_eager("replay", plan_file)


@test
def cuda_training_traced():
    "A trace of a program on the GPU: as many calls as PyTorch's profiler saw."
    need_gpu()
    report = run([tool("terra-report"), train_trace("cuda")]).stdout
    line = re.search(r"^ops .*", report, re.MULTILINE)[0]
    profiled = int(run([PYTHON, os.path.join(GPU, "train.py"), CUDA_TRACED, "cuda", "profile"], timeout=120).stdout.split()[-1])
    calls = int(re.search(r"\((\d+) calls", line)[1])
    say(f"{line}; profiler {profiled}")
    assert re.search(r"^lost +0 ", report, re.MULTILINE), "events were lost"
    assert abs(calls - profiled) <= 0.05 * profiled


@once
def mixed_plan():
    return make_plan(path("mixed"), [os.path.join(GPU, "mixed.py"), "trace"], "--disable-pass", "cost")


def mixed(device, *parts, env=None, preload=None):
    """What each part printed, and what replay said of each."""
    done = run([PYTHON, os.path.join(GPU, "mixed.py"), device, *parts], env=env, preload=preload, timeout=120)
    seen = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    return done.stdout, [line for line in seen if "part" in line], seen[-1]["threads"]


@once
def mixed_eager(device):
    a, b = (mixed(device)[0] for _ in range(2))
    assert a == b, f"the framework itself is not deterministic here: {set(a.splitlines()) - set(b.splitlines())}"
    return a


def mixed_like_eager(device, library, *, env=None):
    out, seen, names = mixed(device, env={"TERRA_PLAN": mixed_plan(), **(env or {})}, preload=library)
    for line in seen:
        say(f"{line['part']:30} {line['deferred']:4} deferred, {line['waiting']:3} waiting; {json.dumps(line['flushes'])}")
    say("threads: " + ", ".join(names))
    want = mixed_eager(device)
    different = [line for line, right in zip(out.splitlines(), want.splitlines()) if line != right]
    return seen, different if len(out) == len(want) else ["another number of lines", *different]


@test
def mixed_memory_on_cpu():
    "The parts of mixed.py without a GPU: work waits in them, with eager's bits."
    seen, different = mixed_like_eager("cpu", REPLAY)
    assert not different, different
    assert sum(line["waiting"] for line in seen) > 50


@test
def mixed_memory():
    "CPU work beside GPU copies: eager's bits, and the first copy finds work waiting."
    need_gpu()
    seen, different = mixed_like_eager("cuda", REPLAY)
    assert not different, different
    assert seen[0]["waiting"] > 0, "nothing waited at the first copy: it showed nothing"


@test
def mixed_memory_without_counting_threads():
    "The same where work waits though the driver's threads run: page protection and hooks alone keep the bits."
    need_gpu()
    library = without_guard("threads")
    if not os.path.exists(library):
        skip("no library without that guard")
    seen, different = mixed_like_eager("cuda", library)
    # A registered block is read by the device whenever it likes: there the counting is what is needed.
    lone = [line for line in different if line.startswith("registered ")]
    say(f"memory registered for the GPU: {'WRONG without the count of threads' if lone else 'right'}")
    assert not set(different) - set(lone), different
    assert sum(line["waiting"] for line in seen[1:]) > 30, "nothing waited"


# ---- GPU activity by CUPTI ----

def need_cupti():
    need_gpu()
    if not os.path.exists(os.path.join(BUILD, "lib", "libterra_cupti.so")):
        skip("no libterra_cupti.so in the build folder")


def activity(*words, trace_options=None, file=None):
    """What activity.py printed, run by itself or under terra-trace."""
    command = [PYTHON, os.path.join(GPU, "activity.py"), *words]
    if trace_options is not None:
        command = [tool("terra-trace"), "-o", file, *trace_options, "--", *command]
    done = run(command, check=False, timeout=150)
    if done.returncode == 125:
        skip(" ".join((done.stderr or "terra-trace refused").split())[:300])
    assert done.returncode == 0, done.stderr[-3000:]
    if trace_options is not None:
        say(done.stderr.strip())
    return json.loads(done.stdout.splitlines()[-1])


@once
def activity_trace(backend, gpu, *words):
    """The JSON report of a trace of activity.py, and its events of GPU activity and ops."""
    file = path(f"activity-{backend}-{words[0]}-{gpu}.terra")
    activity(*words, trace_options=["--backend", backend, *(["--gpu", gpu] if gpu else [])], file=file)
    report = json.loads(run([tool("terra-report"), "--json", file], check=False).stdout)
    for note in report["notes"]:
        if any(word in note["text"] for word in ("GPU", "CUPTI", "external id")):
            say("note: " + note["text"])
    return report, [json.loads(line) for line in run([tool("terra-report"), "--dump", "--json", file], check=False).stdout.splitlines()]


def kernels_of(report):
    return {work["demangled"]: work["count"] for work in report["gpu"]["by_work"] if work["kind"] == "kernel"}


@test(timeout=300)
def cupti_kernels_are_the_profilers():
    "The kernels of a training, by name and number, are those that PyTorch's profiler sees in a run of its own."
    need_cupti()
    report, events = activity_trace("preload", None, "train", CUDA_TRACED, "cuda")
    seen, profiled = kernels_of(report), activity("train", CUDA_TRACED, "cuda", "profile")["kernels"]
    say(f"{sum(seen.values())} kernels of {len(seen)} names; profiler {sum(profiled.values())} of {len(profiled)}")
    for name in sorted(set(seen) | set(profiled)):
        if seen.get(name) != profiled.get(name):
            say(f"differs: {seen.get(name)} profiler {profiled.get(name)}: {name[:150]}")
    assert report["lost"] == 0 and report["ended_cleanly"]
    assert seen == profiled
    gpu = [event for event in events if event["type"] == "gpu"]
    ops = [event for event in events if event["type"] == "enter"]
    assert all(ops[0]["time_ns"] <= event["time_ns"] <= ops[-1]["time_ns"] + 10**9
               for event in gpu if event["kind"] == "kernel" and event["timed"]), "not the ops' clock"


@test(timeout=300)
def cupti_kernels_have_ops():
    "Every kernel of a training has the op that launched it, by external id; the bpf backend names the same ones by thread and time."
    need_cupti()
    report, _ = activity_trace("preload", None, "train", CUDA_TRACED, "cuda")
    sums = report["gpu"]
    say("by op: " + ", ".join(f"{op['name']} {op['count']}" for op in sums["by_op"][:8]))
    say(f"without an op {sums['without_op']['count']} of {sums['all']['count']}; overhead {sums['overhead']['total_ns'] / 1e6:.3f} ms")
    assert sums["without_op"]["count"] <= 0.01 * sums["all"]["count"]
    assert not any("name different ops" in note["text"] for note in report["notes"])
    other, _ = activity_trace("bpf", None, "train", CUDA_TRACED, "cuda")
    assert kernels_of(other) == kernels_of(report)
    assert other["gpu"]["without_op"]["count"] <= 0.01 * other["gpu"]["all"]["count"]


@test(timeout=300)
def cupti_graphs():
    "Kernels of a replayed graph have its number and their nodes'; --gpu graphs records it as a whole."
    need_cupti()
    _, events = activity_trace("preload", None, "graph", 20)
    nodes = [event for event in events if event["type"] == "gpu" and event["graph"] and event["kind"] == "kernel"]
    say(f"{len(nodes)} kernels of graphs, {len({event['graph_node'] for event in nodes})} nodes")
    assert len(nodes) >= 20 * 3 and all(event["graph_node"] for event in nodes)
    _, events = activity_trace("preload", "graphs,runtime", "graph", 20)
    whole = [event for event in events if event["type"] == "gpu" and event["kind"] == "graph"]
    say(f"{len(whole)} graphs as a whole")
    assert len(whole) == 20


@test(timeout=600)
def cupti_cost():
    "Steps per second of a training by itself, with its ops recorded, and with the GPU's activity too."
    need_cupti()
    rates = {"alone": [], "ops": [], "ops and GPU": [], "GPU kernels": []}
    options = {"ops": ["--gpu", "none"], "ops and GPU": [], "GPU kernels": ["--gpu", "kernels"]}
    for _ in range(3):
        for name, all_rates in rates.items():
            words = None if name == "alone" else ["--quiet", "--backend", "preload", "--no-stacks", *options[name]]
            all_rates.append(activity("train", 200, "cuda", trace_options=words, file=path("cost.terra"))["rate"])
    for name, all_rates in rates.items():
        say(f"{name:12} {', '.join(f'{rate:.1f}' for rate in all_rates)} steps/s: {max(all_rates) / max(rates['alone']):.3f}")
    assert max(rates["ops and GPU"]) > 0


# ---- what takes longer ----

@test(timeout=300)
def mlp_two_threads():
    "Trace, plan, replay with two threads."
    cpu_program("mlp", 2)


@test
def plan_for_other_threads():
    "A plan made with two threads, used with all: eager's bits."
    have, done = driven("mlp", 0, {"TERRA_PLAN": plan("mlp", 2)}, REPLAY)
    say(done.stderr or "silent")
    same_bits(have, eager("mlp", 0))


@test(timeout=400)
def figures():
    "Rough times of mlp on two processors: eager, the allocator alone, replay."
    cpus = sorted(os.sched_getaffinity(0))[:2]
    command = [PYTHON, os.path.join(ROOT, "tests", "bench.py"), "--programs", "mlp", "--modes", "eager,alloc,replay", "--rounds",
               "3", "--iterations", os.environ.get("TERRA_GPU_ITERATIONS", "300")]
    done = run(["taskset", "-c", ",".join(map(str, cpus)), *command],
               env={"OMP_NUM_THREADS": str(len(cpus)), "TERRA_BUILD": BUILD}, timeout=380)
    say(done.stdout)
    assert "NO" not in done.stdout.split()


@test(timeout=300)
def gpt2_all_threads():
    "GPT-2, all threads."
    cpu_program("gpt2", 0)


@test(timeout=300)
def gpt2_two_threads():
    "GPT-2, two threads."
    cpu_program("gpt2", 2)


@test
def unit_tests_pass():
    "The C programs that need neither PyTorch nor the source tree, where they are at hand."
    names = ["test_arena", "test_arena_threads", "test_blocks", "test_place", "test_decode", "test_mangle", "test_iterations",
             "test_plan", "test_trace", "test_product", "test_launch"]
    programs = [tool(name) for name in names if os.path.exists(tool(name))]
    if not programs:
        skip("no test programs in the build folder")
    cases, bad = 0, []
    for each in programs:
        done = run([each], check=False, timeout=60)
        cases += len(re.findall(r"\[ +OK \]", done.stdout + done.stderr))
        if done.returncode != 0:
            bad.append(os.path.basename(each) + ": " + " ".join(re.findall(r"\[  FAILED  \] (\w+)", done.stdout + done.stderr)))
    say(f"{cases} cases in {len(programs)} programs")
    assert not bad, "\n".join(bad)


if __name__ == "__main__":
    main()
