#!/usr/bin/env python3
"""terra-trace's life cycle: attaching to programs that run, following what they start, and every way to stop."""
# timeout: 900
# long: 200
import glob
import json
import os
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, clean_env, main, need_bpf, program, run, skip, temporary_folder, test, tool

CYCLES = int(os.environ.get("TERRA_ATTACH_CYCLES", "3"))

# Trains a step for each line that it gets, and answers with the loss, bit for bit.
PACED = """
import sys, torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
optimizer = torch.optim.AdamW(model.parameters())
x, labels = torch.randn(32, 64), torch.randint(0, 8, (32,))
print("begun", flush=True)
for line in sys.stdin:
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(model(x), labels)
    loss.backward()
    optimizer.step()
    print(loss.item().hex(), flush=True)
"""

LOOP = """
import torch
a = torch.ones(8)
b = torch.ones(4, 4)
print("begun", flush=True)
while True:
    a = a * 1.0
    b = b.mm(b).relu().clamp(max=1)
"""

# For recordings of so and so long: every op of theirs is read back as JSON.
SLOW_LOOP = LOOP.replace("import torch", "import time, torch") + "    time.sleep(0.0005)\n"

FORKS = """
import os, subprocess, sys, time, torch
a = torch.ones(4)
a.exp()
if os.fork() == 0:
    end = time.monotonic() + 20
    while time.monotonic() < end and not os.path.exists(f"{sys.argv[1]}.{os.getpid()}"):
        a.sin()
    a.sin()
    os._exit(0)
os.wait()
if os.fork() == 0:
    os._exit(0)
os.wait()
subprocess.run([sys.executable, "-c", "import torch; torch.ones(3).tan()"], check=True)
subprocess.run(["true"], check=True)
a.cos()
"""

LOADER = """
import torch
class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 64
    def __getitem__(self, i):
        return torch.full((8,), float(i)).tanh()
print(sum(batch.sum().item() for batch in torch.utils.data.DataLoader(Numbers(), batch_size=8, num_workers=2)))
"""


def start(code, *arguments, **options):
    """A Python program that has said "begun"."""
    child = subprocess.Popen([PYTHON, "-c", code, *arguments], env=clean_env({"OMP_NUM_THREADS": "1"}), text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
    assert child.stdout.readline() == "begun\n", child.stderr.read()
    return child


def end(child):
    child.kill()
    child.communicate()


def attach(pid, path, *options):
    return subprocess.Popen([tool("terra-trace"), "-o", path, *options, "-p", str(pid)], env=clean_env(), text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def attached(tracer):
    """Waits until it says so."""
    line = tracer.stderr.readline()
    assert "attached to process" in line, line
    return tracer


def finish(tracer, code=0):
    out, err = tracer.communicate(timeout=120)
    assert tracer.returncode == code, (tracer.returncode, out, err)
    return err


def load(path):
    """All events of a trace, and its description (first line) and end (last line)."""
    lines = [json.loads(line) for line in run([tool("trace_dump"), path]).stdout.splitlines()]
    return lines[1:-1], lines[0], lines[-1]


def ops_of(events):
    return {event["op"] for event in events if event["event"] == "enter"}


def notes_of(events):
    return [event["text"] for event in events if event["event"] == "note"]


def probes_in(pid):
    """Bytes of libtorch's code that are not what the file has: a probe is one."""
    differences = 0
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps, open(f"/proc/{pid}/mem", "rb") as memory:
        for line in maps:
            fields = line.split()
            if "x" not in fields[1] or not line.rstrip().endswith("/libtorch_cpu.so"):
                continue
            begin, stop = (int(part, 16) for part in fields[0].split("-"))
            with open(fields[5], "rb") as library:
                library.seek(int(fields[2], 16))
                memory.seek(begin)
                for _ in range(begin, stop, 1 << 24):
                    size = min(1 << 24, stop - memory.tell())
                    mine, there = library.read(size), memory.read(size)
                    if mine != there:
                        differences += sum(a != b for a, b in zip(mine, there))
    return differences


def traces_of_us_in(pid):
    """What a debugger or an injected library would leave in a process. The kernel keeps its own page for stepping over probed
    instructions, [uprobes], until the process ends."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        files = sorted({line.split()[5] for line in maps if len(line.split()) > 5} - {"[uprobes]"})
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        kept = [line for line in status if re.match("Threads|TracerPid|SigBlk|SigCgt|SigIgn|Seccomp", line)]
    return files, kept, sorted(os.listdir(f"/proc/{pid}/fd"))


def bpf_objects():
    """Programs of ours that are loaded and that no process holds: other tracers may run beside a test."""
    held = set()
    for path in glob.glob("/proc/[0-9]*/fdinfo/*"):
        try:
            with open(path, encoding="utf-8") as about:
                held.update(int(line.split()[1]) for line in about if line.startswith("prog_id:"))
        except OSError:
            pass  # closed meanwhile
    shown = run(["bpftool", "-j", "prog", "show"], check=False)
    if shown.returncode:
        return set()
    return {item["id"] for item in json.loads(shown.stdout)
            if item.get("name") in ("op_enter", "op_exit", "function_enter", "on_fork", "on_exec") and item["id"] not in held}


def steps(child, n):
    losses = []
    for _ in range(n):
        child.stdin.write("\n")
        child.stdin.flush()
        losses.append(child.stdout.readline().strip())
    return losses


@test(timeout=120 + 30 * CYCLES)
def attaching_leaves_nothing():
    """Attached and detached again and again while it trains: the same bits, and no probe, file, thread or BPF object stays."""
    need_bpf()
    loaded = bpf_objects()
    with temporary_folder() as folder:
        child = start(PACED)
        try:
            losses = steps(child, 3)
            before = traces_of_us_in(child.pid)
            for cycle in range(CYCLES):
                path = os.path.join(folder, "t.terra")
                tracer = attached(attach(child.pid, path))
                losses += steps(child, 2)
                if cycle == 0:
                    assert probes_in(child.pid) > 4000
                tracer.send_signal(signal.SIGINT)
                losses += steps(child, 2)
                finish(tracer)
                assert os.listdir(folder) == ["t.terra"], os.listdir(folder)
                events, _, ending = load(path)
                assert ending["clean"] and "aten::gelu" in ops_of(events), ending
                assert any("began in its middle" in text or "begins in its middle" in text for text in notes_of(events))
            assert probes_in(child.pid) == 0
            assert traces_of_us_in(child.pid) == before
            losses += steps(child, 1)
        finally:
            end(child)
        alone = start(PACED)
        try:
            assert steps(alone, len(losses)) == losses
        finally:
            end(alone)
    deadline = time.monotonic() + 10
    while bpf_objects() - loaded and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not bpf_objects() - loaded


@test(timeout=240)
def either_may_be_killed():
    """kill -9 of the tracer: the program goes on without probes. Of the program: the trace is whole. Both traces are readable."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        child = start(SLOW_LOOP)
        try:
            tracer = attached(attach(child.pid, path))
            time.sleep(1)
            tracer.kill()
            tracer.communicate()
            deadline = time.monotonic() + 20
            while probes_in(child.pid) and time.monotonic() < deadline:
                time.sleep(0.2)
            assert probes_in(child.pid) == 0 and child.poll() is None
            events, _, ending = load(path)
            assert not ending["clean"] and len(events) > 100, ending
            tracer = attached(attach(child.pid, path))
            time.sleep(1)
            child.kill()
            finish(tracer)
            events, _, ending = load(path)
            assert ending["clean"] and len(events) > 100, ending
        finally:
            end(child)


@test(timeout=240)
def attached_recordings_have_limits():
    """--duration, --max-size, --ops, --start-after and --iterations of a program that runs; what ended them is said."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        child = start(SLOW_LOOP)
        try:
            begin = time.monotonic()
            finish(attach(child.pid, path, "--duration", "0.5"))
            events, _, ending = load(path)
            times = [event["time"] for event in events if event["event"] == "enter"]
            assert 0.3e9 < times[-1] - times[0] < 0.6e9, (times[0], times[-1], time.monotonic() - begin)
            assert ending["clean"] and any("--duration" in text for text in notes_of(events)), ending

            finish(attach(child.pid, path, "--max-size", "100k"))
            events, _, ending = load(path)
            assert 60_000 < os.path.getsize(path) <= 100 << 10, os.path.getsize(path)
            assert ending["clean"] and any("--max-size" in text for text in notes_of(events)), ending

            finish(attach(child.pid, path, "--ops", "aten::mm,clam[p]", "--ops", "rel*", "--duration", "0.3"))
            events, _, ending = load(path)
            assert ops_of(events) == {"aten::mm", "aten::clamp", "aten::relu"}, ops_of(events)

            err = finish(attach(child.pid, path, "--json", "--start-after", "3", "--iterations", "4"))
            summary = json.loads(err.splitlines()[-1])
            events, _, ending = load(path)
            assert summary["stopped"] == "--iterations" and summary["iterations"] >= 4, summary
            assert 0 < summary["events"] <= len(events), (summary, len(events))
            assert ending["clean"] and any("begins behind" in text for text in notes_of(events)), notes_of(events)
            exits = [event for event in events if event["event"] == "exit"]
            assert exits and all(event["enter"] is not None for event in exits), "an exit of an op before the beginning"

            err = finish(attach(child.pid, path, "--ops", "aten::no_such_*"), code=125)
            assert "aten::no_such_*" in err and "no operator" in err, err
            assert child.poll() is None
        finally:
            end(child)


@test(timeout=240)
def flight_recorder():
    """Keeps the last seconds: written on SIGUSR2 while it goes on, again at ^C, and when the program is killed."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        child = start(SLOW_LOOP)
        try:
            tracer = attached(attach(child.pid, path, "--flight-recorder", "0.5"))
            time.sleep(2)
            assert not os.path.exists(path)
            tracer.send_signal(signal.SIGUSR2)
            assert "are written" in tracer.stderr.readline()
            spans = []
            for ending in (signal.SIGINT, None):
                events, _, marker = load(path)
                times = [event["time"] for event in events if event["event"] == "enter"]
                spans.append(times[-1])
                assert 0.2e9 < times[-1] - times[0] <= 0.5e9, times[-1] - times[0]
                assert marker["clean"] and any("flight recorder" in text for text in notes_of(events)), notes_of(events)
                assert [e["enter"] for e in events if e["event"] == "exit" and e["enter"] is None] == []
                if ending:
                    tracer.send_signal(ending)
                    finish(tracer)
            assert spans[1] > spans[0]
            tracer = attached(attach(child.pid, path, "--flight-recorder", "0.5"))
            time.sleep(1)
            child.kill()
            finish(tracer)
            assert load(path)[2]["clean"] and sorted(os.listdir(folder)) == ["t.terra"], os.listdir(folder)
        finally:
            end(child)


@test(timeout=240)
def the_flight_recorders_summary_is_of_the_file():
    """Events that were seen and not kept are not counted, in either backend; nor are they in the index."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        code = LOOP.replace("while True", "import os, time; child = os.fork(); end = time.monotonic() + 1.5\n"
                                          "while time.monotonic() < end") + "if child: os.wait()"
        for backend in ("bpf", "preload"):
            outcome = run([tool("terra-trace"), "-o", path, "--backend", backend, "--json", "--flight-recorder", "0.3", "--", PYTHON,
                           "-c", code], timeout=120)
            summary, index = json.loads(outcome.stderr.splitlines()[-1]), index_of(path)
            counts = {entry["file"]: entry["events"] for entry in index}
            found = {file: len(load(os.path.join(folder, file))[0]) for file in counts}
            assert counts == found and len(found) == 2, (backend, counts, found)
            assert summary["events"] == sum(found.values()) and summary["traces"] == 2 and not summary["failed"], (backend, summary)


@test(timeout=240)
def waits_for_torch():
    """A process without PyTorch is waited for; it is recorded from its import on, or told to have used none."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        code = "print('begun', flush=True); input(); import torch; torch.ones(2); input(); torch.ones(3).exp()"
        child = start(code)
        tracer = attach(child.pid, path)
        assert "waiting" in tracer.stderr.readline()
        child.stdin.write("\n")
        child.stdin.flush()
        deadline = time.monotonic() + 60
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.1)
        child.communicate("\n")
        finish(tracer)
        assert "aten::exp" in ops_of(load(path)[0])
        child = start("print('begun', flush=True); input()")
        tracer = attach(child.pid, path)
        assert "waiting" in tracer.stderr.readline()
        child.communicate("\n")
        assert "no PyTorch" in finish(tracer, code=1)


@test
def attaching_fails_clearly():
    """A process that is not there, a thread, a right that is missing: each says what it is and what helps."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")

        def refused(pid, *words, options=(), before=()):
            outcome = run([*before, tool("terra-trace"), "-o", path, *options, "-p", str(pid)], check=False)
            assert outcome.returncode in (2, 125), outcome
            assert all(word in outcome.stderr for word in words), outcome.stderr

        outcome = run([tool("terra-trace"), "-o", folder, "--", "true"], check=False)
        assert outcome.returncode == 125 and "Is a directory" in outcome.stderr, outcome
        refused(0x3ffffff, "no process")
        refused(2, "kernel's own") if os.path.exists("/proc/2") and not os.path.exists("/proc/2/exe") else None
        refused(os.getpid(), "preload", options=("--backend", "preload"))
        threads = subprocess.Popen([PYTHON, "-c", "import threading; threading.Thread(target=input).start(); print(1, flush=True)"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        threads.stdout.readline()
        try:
            other = [int(tid) for tid in os.listdir(f"/proc/{threads.pid}/task") if int(tid) != threads.pid]
            refused(other[0], "is a thread of process", str(threads.pid))
            if os.geteuid() == 0:
                os.chmod(folder, 0o777)
                refused(threads.pid, "CAP_SYS_PTRACE", "cap_sys_ptrace", "--cap-add SYS_PTRACE", "CAP_BPF and CAP_PERFMON",
                        before=("capsh", "--drop=cap_sys_ptrace,cap_sys_admin,cap_dac_override,cap_dac_read_search,cap_setpcap,"
                                "cap_bpf,cap_perfmon", "--user=nobody", "--", "-c", 'exec "$@"', "sh"))
        finally:
            threads.communicate(b"\n")


@test(timeout=240)
def what_the_library_has_not_is_said_before_the_program_begins():
    """--ops that match nothing, and a --library that is not there or is none: an error in each backend, and nothing was started."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        loads = [PYTHON, "-c", "print('begun', flush=True); import torch; torch.ones(2)"]
        for options, reason in ((["--ops", "aten::mm,aten::no_such_*"], "no operator has such a name"),
                                (["--library", "/does/not/exist.so"], "/does/not/exist.so: No such file"),
                                (["--library", "/bin/true"], "/bin/true exports no op"),
                                (["--library", __file__], "is not an x86-64 ELF library")):
            for backend in ("auto", "bpf", "preload"):
                outcome = run([tool("terra-trace"), "-o", path, "--backend", backend, *options, "--", *loads], check=False)
                assert outcome.returncode == 125 and reason in outcome.stderr and not outcome.stdout, (backend, outcome)
                assert "preload" not in outcome.stderr and outcome.stderr.count("\n") == 1, outcome.stderr
        child = start("print('begun', flush=True); input()")  # without PyTorch
        try:
            err = finish(attach(child.pid, path, "--ops", "aten::no_such_*"), code=125)
            assert "no operator has such a name" in err and "waiting" not in err, err
            assert child.poll() is None
        finally:
            end(child)
        # not found by itself: said by what finds it, and the summary knows
        for backend in ("bpf", "preload"):
            outcome = run([tool("terra-trace"), "-o", path, "--backend", backend, "--json", "--ops", "aten::no_such_*", "--", "sh",
                           "-c", 'exec "$@"', "sh", *loads], timeout=60)
            summary = json.loads(outcome.stderr.splitlines()[-1])
            assert "no operator has such a name" in outcome.stderr and outcome.stdout == "begun\n", outcome
            assert summary["failed"] and summary["file"] is None and "used no PyTorch" not in outcome.stderr, outcome


@test(timeout=240)
def a_composite_op_that_is_named_is_recorded():
    """--ops linear is there at the default levels, in either backend; what only fits a pattern is as without --ops."""
    code = "import torch; torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).reshape(4)"
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        for backend in ("bpf", "preload"):
            run([tool("terra-trace"), "-o", path, "--backend", backend, "--ops", "aten::linear,*shape*", "--", PYTHON, "-c", code])
            assert ops_of(load(path)[0]) == {"aten::linear"}, (backend, ops_of(load(path)[0]))


@test
def no_file_but_a_trace_is_replaced():
    """-o names the program by mistake, or notes: an error. An old trace, and an empty file, are replaced."""
    with temporary_folder() as folder:
        path = os.path.join(folder, "train.py")
        for options in (["--backend", "bpf"], ["--backend", "preload"], ["-p", str(os.getpid())]):
            with open(path, "w", encoding="utf-8") as file:
                file.write("import torch\n")
            command = [] if "-p" in options else ["--", PYTHON, path]
            outcome = run([tool("terra-trace"), "-o", path, *options, *command], check=False)
            assert outcome.returncode == 125 and "is no trace" in outcome.stderr, outcome
            with open(path, encoding="utf-8") as file:
                assert file.read() == "import torch\n"
        trace = os.path.join(folder, "t.terra")
        open(trace, "a", encoding="utf-8").close()
        for _ in range(2):
            run([tool("terra-trace"), "-o", trace, "--backend", "preload", "--", PYTHON, "-c", "import torch; torch.ones(2)"])
            assert load(trace)[2]["clean"]


@test
def a_process_that_is_ending_is_not_the_kernels():
    """Its memory is gone before it is: that is said, and not that it never was a program."""
    sleeper = subprocess.Popen(["sleep", "60"])
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    with temporary_folder() as folder:
        outcome = run([tool("terra-trace"), "-o", os.path.join(folder, "t"), "-p", str(sleeper.pid)], check=False)
    sleeper.wait()
    assert outcome.returncode == 125 and "has ended" in outcome.stderr, outcome


def index_of(path):
    with open(path + ".index", encoding="utf-8") as file:
        return json.load(file)["traces"]


def check_children(backend, folder):
    path = os.path.join(folder, "t.terra")
    run([tool("terra-trace"), "-o", path, "--backend", backend, "--", PYTHON, "-c", FORKS, path], timeout=180)
    index = index_of(path)
    assert sorted(os.listdir(folder)) == sorted([entry["file"] for entry in index] + ["t.terra.index"]), os.listdir(folder)
    assert [entry["file"] == "t.terra" for entry in index] == [True, False, False], index
    assert all(entry["complete"] and entry["lost"] == 0 for entry in index), index
    parent = index[0]["pid"]
    assert all(entry["parent"] == parent and entry["file"] == f"t.terra.{entry['pid']}" for entry in index[1:]), index
    seen = [ops_of(load(os.path.join(folder, entry["file"]))[0]) for entry in index]
    assert {"aten::exp", "aten::cos"} <= seen[0] and "aten::sin" in seen[1] and "aten::tan" in seen[2], seen
    assert "aten::sin" not in seen[0] | seen[2] and "aten::tan" not in seen[0] | seen[1], seen
    events, about, _ = load(os.path.join(folder, index[1]["file"]))
    assert {event["thread"] for event in events if event["event"] == "enter"} == {index[1]["pid"]} == {about["pid"]}
    assert [text for text in notes_of(events) if "while probes were put in place" in text] or backend == "preload"
    if backend == "preload":  # which always has some
        assert [text for text in notes_of(events) if "beside the ops not seen" in text], "the gaps are a child's, too"
    if backend == "bpf":  # test_bpf_trace.py has --no-children
        return
    run([tool("terra-trace"), "-o", path, "--no-children", "--backend", backend, "--", PYTHON, "-c",
         "import os, subprocess, sys, torch; torch.ones(2); os.fork() or (torch.ones(2), os._exit(0)); os.wait();"
         "subprocess.run([sys.executable, '-c', 'import torch; torch.ones(3).tan()'])"], timeout=180)
    assert not [name for name in os.listdir(folder) if name not in [entry["file"] for entry in index]]


@test(timeout=400)
def children_have_traces_bpf():
    """Forked and executed children leave a trace each, those without an op none; the index lists them."""
    need_bpf()
    with temporary_folder() as folder:
        check_children("bpf", folder)


@test(timeout=400)
def children_have_traces_preload():
    """The same through the preload backend, which misses nothing of a forked child."""
    with temporary_folder() as folder:
        check_children("preload", folder)


def check_workers(folder, *options):
    path = os.path.join(folder, "t.terra")
    outcome = run([tool("terra-trace"), "-o", path, *options, "--", PYTHON, "-c", LOADER], timeout=180)
    assert float(outcome.stdout) > 400, outcome.stdout
    workers = [load(os.path.join(folder, entry["file"]))[0] for entry in index_of(path)[1:]]
    calls = [sum(e["event"] == "enter" and e["op"] == "aten::tanh" and e["level"] == 0 for e in events) for events in workers]
    assert calls == [32, 32], calls


@test(timeout=240)
def loader_workers_preload():
    """Both workers of a DataLoader are recorded whole."""
    with temporary_folder() as folder:
        check_workers(folder, "--backend", "preload")


def need_holding(folder):
    need_bpf()
    outcome = run([tool("terra-trace"), "-o", os.path.join(folder, "t.terra"), "--backend", "bpf", "--hold-children", "--", "true"],
                  check=False)
    if "Linux 6.13" in outcome.stderr:
        skip("this kernel cannot hold children")


@test(timeout=240)
def loader_workers_bpf():
    """The same through the bpf backend with --hold-children."""
    with temporary_folder() as folder:
        need_holding(folder)
        check_workers(folder, "--backend", "bpf", "--hold-children")


HELD = """
import os, torch
torch.ones(2)
print("begun", flush=True)
input()
child = os.fork()
if child == 0:
    torch.ones(2)
    os._exit(0)
print(child, flush=True)
print(os.wait()[1], flush=True)
"""


@test(timeout=120)
def a_held_child_outlives_the_tracer():
    """A child that waits for its probes goes on when the tracer is killed before it could let it."""
    with temporary_folder() as folder:
        need_holding(folder)
        child, held = start(HELD), 0
        try:
            tracer = attached(attach(child.pid, os.path.join(folder, "t.terra"), "--hold-children"))
            tracer.send_signal(signal.SIGSTOP)
            time.sleep(0.5)
            child.stdin.write("\n")
            child.stdin.flush()
            held = int(child.stdout.readline())
            time.sleep(0.5)
            with open(f"/proc/{held}/stat", encoding="utf-8") as stat:
                assert stat.read().rpartition(")")[2].split()[0] == "T", "it does not wait"
            tracer.kill()
            tracer.communicate()
            deadline = time.monotonic() + 20
            while os.path.exists(f"/proc/{held}") and time.monotonic() < deadline:
                time.sleep(0.1)
            assert not os.path.exists(f"/proc/{held}"), "it waits for ever"
            assert child.stdout.readline() == "0\n"
        finally:
            if held and os.path.exists(f"/proc/{held}"):
                os.kill(held, signal.SIGKILL)
            end(child)


SHORT_LIVES = """
import os, torch
a = torch.ones(2)
for run in (lambda: os._exit(0), lambda: os.execv("/bin/true", ["true"])):
    child = os.fork()
    if child == 0:
        a.sin()
        run()
    os.wait()
"""


@test(timeout=240)
def short_lived_children_are_described():
    """A child that has ended, or runs another program, before its first operator is read: its trace and the index say what it was."""
    with temporary_folder() as folder:
        need_holding(folder)
        path = os.path.join(folder, "t.terra")
        run([tool("terra-trace"), "-o", path, "--backend", "bpf", "--hold-children", "--", PYTHON, "-c", SHORT_LIVES],
            env={"RANK": "3"}, timeout=180)
        first, *children = index_of(path)
        assert len(children) == 2, children
        for child in children:
            events, about, _ = load(os.path.join(folder, child["file"]))
            assert ops_of(events) == {"aten::sin"}, ops_of(events)
            assert about["command"] == child["command"] == first["command"], (about, child)
            assert (child["parent"], child["rank"], child["local_rank"], child["world_size"]) == (first["pid"], 3, None, None), child


MANY = """
import os, resource, sys, time, torch
a = torch.ones(2)
children = []
for _ in range(24):
    children.append(os.fork())
    if not children[-1]:
        end = time.monotonic() + 60
        while time.monotonic() < end and not os.path.exists(f"{sys.argv[1]}.{os.getpid()}"):
            a.sin()
            time.sleep(0.01)
        os._exit(0)
for child in children:
    os.waitpid(child, 0)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@test(timeout=240)
def many_children_need_many_files():
    """More probed processes than files that may be open: the tracer raises its own limit, and not the program's."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        outcome = run(["sh", "-c", 'ulimit -Sn 80; exec "$@"', "sh", tool("terra-trace"), "-o", path, "--backend", "bpf", "--", PYTHON,
                       "-c", MANY, path], timeout=200)
        assert outcome.stdout == "80\n", outcome
        assert len(index_of(path)) == 25 and "early" not in outcome.stderr, (len(index_of(path)), outcome.stderr)


@test(timeout=240)
def limits_preload():
    """--duration, --max-size, --ops and the flight recorder through the preload backend."""
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")

        def record(loop, *options):
            code = loop.replace("while True", "import time; end = time.monotonic() + 1.2\nwhile time.monotonic() < end")
            outcome = run([tool("terra-trace"), "-o", path, "--backend", "preload", *options, "--", PYTHON, "-c", code], timeout=120)
            return load(path), outcome.stderr

        (events, _, ending), err = record(LOOP, "--json", "--max-size", "100k")
        assert json.loads(err.splitlines()[-1])["stopped"] == "--max-size", err
        assert ending["clean"] and os.path.getsize(path) <= 100 << 10 and any("--max-size" in t for t in notes_of(events))
        (events, _, ending), _ = record(SLOW_LOOP, "--duration", "0.5", "--ops", "mm,relu")
        times = [event["time"] for event in events if event["event"] == "enter"]
        assert ending["clean"] and times[-1] - times[0] <= 0.6e9 and ops_of(events) == {"aten::mm", "aten::relu"}, ops_of(events)
        (events, _, ending), _ = record(SLOW_LOOP, "--flight-recorder", "0.5")
        times = [event["time"] for event in events if event["event"] == "enter"]
        assert ending["clean"] and 0.2e9 < times[-1] - times[0] <= 0.5e9, times[-1] - times[0]


@test(timeout=120)
def an_interrupt_ends_cleanly_preload():
    """^C to a Python program: it ends by that signal, with a whole trace."""
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        for options in ([], ["--flight-recorder", "60"]):
            child = subprocess.Popen([tool("terra-trace"), "-o", path, "--backend", "preload", *options, "--", PYTHON, "-c", SLOW_LOOP],
                                     env=clean_env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert child.stdout.readline() == "begun\n"
            time.sleep(0.3)
            child.send_signal(signal.SIGINT)
            _, err = child.communicate(timeout=60)
            assert child.returncode == -signal.SIGINT and "KeyboardInterrupt" in err, (child.returncode, err)
            events, _, ending = load(path)
            assert ending["clean"] and len(events) > 100, (options, ending)


@test(timeout=400)
def torchrun_ranks():
    """Both ranks of a DistributedDataParallel program under torchrun are recorded; the report matches their collectives."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        outcome = run([tool("terra-trace"), "-o", path, "--backend", "bpf", "--", PYTHON, "-m", "torch.distributed.run",
                       "--nproc-per-node", "2", program("ddp.py")], env={"OMP_NUM_THREADS": "1"}, timeout=300)
        assert sorted(line.split(" loss")[0] for line in outcome.stdout.splitlines()) == ["rank 0 of 2", "rank 1 of 2"], outcome
        ranks = sorted((entry["rank"], entry["local_rank"], entry["world_size"], entry["file"]) for entry in index_of(path)
                       if entry["rank"] is not None)
        assert [rank[:3] for rank in ranks] == [(0, 0, 2), (1, 1, 2)], ranks
        for rank in ranks:
            events, _, ending = load(os.path.join(folder, rank[3]))
            losses = [e for e in events if e["event"] == "enter" and e["op"] == "aten::nll_loss_forward" and e["level"] == 0]
            assert len(losses) == 4 and ending["clean"], (len(losses), ending)
            reduced = [e for e in events if e["event"] == "enter" and e["op"] == "c10d::allreduce_"]
            tensors = [e["values"][0]["value"][0]["sizes"] for e in reduced]
            assert tensors == [[2372]] * 4 + [[]], tensors  # all gradients in one bucket, and the loss at the end
        report = run([tool("terra-report"), path + ".index"]).stdout
        match = re.search(r"Collectives: (\d+) of (\d+) match in all ranks", report)
        assert match and match[1] == match[2] and int(match[1]) >= 5 and "MISMATCH" not in report, report
        assert re.search(r" 4 +2372 .* c10d::allreduce_ \[2372\] float32  \(ddp.py:\d+ main\)", report), report


@test(timeout=120)
def a_full_disk_ends_the_recording():
    """The trace is readable up to where the disk was full, the program goes on."""
    need_bpf()
    if os.geteuid():
        skip("needs root, to mount a small file system")
    with temporary_folder() as folder:
        if run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False).returncode:
            skip("may not mount here")
        child = start(LOOP)
        try:
            path = os.path.join(folder, "t.terra")
            err = finish(attach(child.pid, path), code=125)
            assert "No space left" in err, err
            events, _, ending = load(path)
            assert len(events) > 100 and not ending["clean"], ending
            assert child.poll() is None
            os.unlink(path)
            outcome = run([tool("terra-trace"), "-o", path, "--json", "--backend", "preload", "--", PYTHON, "-c",
                           LOOP.replace("while True", "for _ in range(20000)")], timeout=120)
            summary = json.loads(outcome.stderr.splitlines()[-1])
            assert "No space left" in outcome.stderr and outcome.stdout == "begun\n", outcome
            assert summary["failed"] and summary["file"] == path and summary["events"] > 100, summary
            for backend in ("bpf", "preload"):
                os.unlink(path)
                outcome = run([tool("terra-trace"), "-o", path, "--json", "--flight-recorder", "100", "--backend", backend, "--",
                               PYTHON, "-c", LOOP.replace("while True", "for _ in range(5000)")], timeout=120)
                summary = json.loads(outcome.stderr.splitlines()[-1])
                assert "No space left" in outcome.stderr, outcome.stderr
                assert summary["file"] is None and summary["failed"], (backend, summary)
                open(path, "a", encoding="utf-8").close()
        finally:
            end(child)
            run(["umount", folder])


if __name__ == "__main__":
    main()
