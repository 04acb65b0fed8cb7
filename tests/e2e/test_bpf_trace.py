#!/usr/bin/env python3
"""terra-trace as a user meets it: what it records, through both backends, and what it leaves alone."""
# timeout: 900
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, can_load_bpf, clean_env, main, need_bpf, program, run, skip, temporary_folder, test, tool

# A forward pass that raises inside an operator (shapes that do not fit) and in Python, and is caught, 100 times.
RAISES = """
import torch
torch.manual_seed(0)
a, b = torch.randn(3, 4), torch.randn(5, 6)
layer = torch.nn.Linear(4, 2)
caught = 0
def forward(i):
    h = layer(a)
    if i % 2:
        h = a @ b
    raise ValueError(str(h.sum().item()))
for i in range(100):
    try:
        forward(i)
    except (RuntimeError, ValueError) as error:
        caught += 1
        if i < 2 or i > 97:
            print(type(error).__name__, error)
print(caught, layer(a).sum().item())
"""

LOOP = """
import sys, torch
a = torch.ones(8)
print("begun", flush=True)
try:
    while True:
        a = a * 1.0
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(7)
"""


def trace(*command, options=(), folder, name="t.terra", **keywords):
    """Run a command under terra-trace; its outcome and the path of the trace."""
    path = os.path.join(folder, name)
    outcome = run([tool("terra-trace"), "-o", path, *options, "--", *command], **{"check": False, **keywords})
    return outcome, path


def load(path):
    """All events of a trace, and its description (first line) and end (last line)."""
    lines = [json.loads(line) for line in run([tool("trace_dump"), path]).stdout.splitlines()]
    return lines[1:-1], lines[0], lines[-1]


def without_addresses(value):
    """What is the same in every run of a program: all but where things lie in memory."""
    if isinstance(value, list):
        return [without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: without_addresses(item) for key, item in value.items() if key not in ("data", "impl", "storage", "storage_data")}
    return value


def op_stream(events):
    """Operators of the main thread, in order, by what they are called with and return."""
    ops = [event for event in events if event["event"] in ("enter", "exit")]
    thread = ops[0]["thread"]
    keys = ("event", "op", "overload", "level", "raised", "keyset", "frames", "values")
    return [{key: without_addresses(event[key]) for key in keys} for event in ops if event["thread"] == thread]


def first_difference(bpf, preload):
    """None when both streams agree; else where and what."""
    if len(bpf) != len(preload):
        return f"{len(bpf)} and {len(preload)} events"
    for position, (left, right) in enumerate(zip(bpf, preload)):
        for key in left:
            if key != "values" and left[key] != right[key]:
                return f"event {position}, {key}: {left} and {right}"
        if len(left["values"]) != len(right["values"]):
            return f"event {position}: {left} and {right}"
        for one, other in zip(left["values"], right["values"]):
            if one != other:
                return f"event {position}: {one} and {other} of {left['op']}"
    return None


def need_torch():
    if run([PYTHON, "-c", "import torch"], check=False).returncode:
        skip("no PyTorch here")


def doubles(stream):
    """Floating-point arguments that were recorded."""
    return [value for event in stream for value in event["values"] if value["kind"] == "float" and value["present"]]


def check_both_backends(name, steps, levels):
    need_bpf()
    with temporary_folder() as folder:
        streams, outputs = {}, {}
        for backend in ("bpf", "preload"):
            outcome, path = trace(PYTHON, program(name), steps, options=("--backend", backend, *levels), folder=folder,
                                  name=backend, timeout=180)
            events, about, end = load(path)
            assert outcome.returncode == 0, outcome.stderr
            assert about["backend"] == backend, about
            assert not [event for event in events if event["event"] == "lost"], end
            streams[backend], outputs[backend] = op_stream(events), outcome.stdout
        assert outputs["bpf"] == outputs["preload"] == run([PYTHON, program(name), steps], timeout=120).stdout
        difference = first_difference(streams["bpf"], streams["preload"])
        assert difference is None, difference
        assert doubles(streams["bpf"]), "no floating-point argument: then this does not test that they are read"
        stacks = [event["frames"] for event in streams["bpf"] if event["event"] == "enter" and event["level"] == 0]
        complete = [stack for stack in stacks if stack and stack[-1][:2] == [program(name), "<module>"]]
        assert len(complete) > 0.9 * len(stacks), f"{len(complete)} of {len(stacks)} ops have their stack"


@test(timeout=400)
def both_backends_see_the_same_of_mlp():
    """Every op, level, size, stride, dtype, scalar and call stack is the same through bpf and preload."""
    check_both_backends("mlp.py", "30", levels=("--levels", "all"))


@test(timeout=400)
def both_backends_see_the_same_of_gpt2():
    check_both_backends("gpt2.py", "1", levels=())


@test(timeout=400)
def both_backends_give_the_same_plan():
    """From the program to fused execution through bpf at the default level: the plan has the regions that preload's has at all
    levels, and replay keeps the bits."""
    need_bpf()
    with temporary_folder() as folder:
        regions = {}
        for backend, levels in (("bpf", ()), ("preload", ("--levels", "all"))):
            _, path = trace(PYTHON, program("mlp.py"), "12", options=("--backend", backend, *levels), folder=folder,
                            name=backend, timeout=180)
            plan = os.path.join(folder, backend + ".plan")
            run([tool("terra-opt"), "-q", "--no-measure", path, "-o", plan], timeout=200)
            regions[backend] = json.loads(run([tool("terra-opt"), "--json", plan]).stdout)["regions"]
        names = {backend: [(region["name"], region["ops"]) for region in regions[backend]] for backend in regions}
        assert names["bpf"] == names["preload"] and names["bpf"], names
        log = os.path.join(folder, "log.json")
        done = run([PYTHON, program("mlp.py"), "60"], env={"TERRA_PLAN": os.path.join(folder, "bpf.plan"),
                                                           "TERRA_LOG": "json:" + log}, preload=REPLAY)
        assert done.stdout == run([PYTHON, program("mlp.py"), "60"]).stdout
        with open(log, encoding="utf-8") as file:
            assert json.load(file)["ops_fused"] > 20 * 60


@test
def comparison_notices():
    """An op dropped, two swapped, one stride, one scalar changed: each is a difference."""
    def tensor(stride):
        return {"kind": "tensor", "present": True, "value": {"tensor": True, "sizes": [2], "strides": [stride]}}

    def event(op, stride=1, scalar=1):
        return {"event": "enter", "op": op, "level": 0, "raised": 0, "frames": [],
                "values": [tensor(stride), {"kind": "float", "present": True, "value": scalar}]}

    base = [event("a"), event("b"), event("c")]
    assert first_difference(base, [event("a"), event("b"), event("c")]) is None
    assert first_difference(base, [event("a"), event("c")])
    assert first_difference(base, [event("b"), event("a"), event("c")])
    assert first_difference(base, [event("a"), event("b", stride=2), event("c")])
    assert first_difference(base, [event("a"), event("b", scalar=2), event("c")])
    unread = [event("a"), event("b"), event("c")]
    unread[1]["values"][1] = {"kind": "float", "present": False}
    assert first_difference(unread, base) and first_difference(base, unread)


def check_raises(backend, folder):
    outcome, path = trace(PYTHON, "-c", RAISES, options=("--backend", backend, "--levels", "all"), folder=folder, timeout=120)
    eager = run([PYTHON, "-c", RAISES], timeout=60)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout == eager.stdout, outcome.stdout
    events, _, end = load(path)
    raised = [event for event in events if event["event"] == "exit" and event["raised"]]
    outer = [event for event in raised if event["op"] == "aten::matmul" and event["level"] == 0]
    assert len(outer) == 50, f"{len(outer)} of 50 matmuls marked"
    assert {event["op"] for event in raised} <= {"aten::matmul", "aten::mm"}, {event["op"] for event in raised}
    assert end["clean"], end


@test(timeout=240)
def raising_program_bpf():
    """Raised inside operators and caught 100 times: the program ends as it does without us; raised ops are marked."""
    need_bpf()
    with temporary_folder() as folder:
        check_raises("bpf", folder)


@test(timeout=240)
def raising_program_preload():
    """The same through the preload backend."""
    need_torch()
    with temporary_folder() as folder:
        check_raises("preload", folder)


def forget_field(library_cache, at):
    """Makes a cached description of libtorch's structures say that the field at this place was not found."""
    data = bytearray(open(library_cache, "rb").read())
    begin = next(i for i in range(16, 512, 4) if int.from_bytes(data[i - 16:i - 8], "little") == len(data) - i)
    data[begin + 4 * at + 3] = 0
    mask, value = (1 << 64) - 1, 0x9e3779b97f4a7c15 ^ (len(data) - begin)
    for i in range(begin, len(data), 8):  # as probes/cache.c has it
        value = (value ^ int.from_bytes(data[i:i + 8], "little")) * 0xff51afd7ed558ccd & mask
        value ^= value >> 29
    data[begin - 8:begin] = value.to_bytes(8, "little")
    with open(library_cache, "wb") as file:
        file.write(data)


@test(timeout=240)
def fields_that_were_not_found_are_named():
    "Without the place of strides all that does not need it is recorded, and the trace says what is missing."
    with temporary_folder() as folder:
        env = {"XDG_CACHE_HOME": folder}
        for backend in ("preload", "bpf") if can_load_bpf() else ("preload",):
            for forget in (False, True):
                if forget:
                    cached, = glob.glob(os.path.join(folder, "terra", "offsets-*"))
                    forget_field(cached, 4)
                outcome, path = trace(PYTHON, "-c", "import torch; (torch.ones(6, 7).t() * 3).relu()", folder=folder, env=env,
                                      options=["--backend", backend], timeout=120)
                assert outcome.returncode == 0, outcome.stderr
                events, _, _ = load(path)
                notes = [event["text"] for event in events if event["event"] == "note" and "not found" in event["text"]]
                told = ["not found in this libtorch, so that what needs it is marked unreadable: strides"]
                assert notes == (told if forget else []), (backend, notes)
                relu = next(event for event in events if event["event"] == "enter" and event["op"] == "aten::relu")
                tensor = relu["values"][0]["value"]
                assert tensor["ndim"] == 2 and tensor["dtype"] == 6 and tensor["storage"], tensor
                assert (tensor["sizes"], tensor["strides"]) == (([-1, -1], [-1, -1]) if forget else ([7, 6], [1, 7])), tensor
            os.unlink(cached)


@test
def exit_status_is_the_programs():
    """Exit codes and signals come through; a command that cannot be run is told as a shell would."""
    with temporary_folder() as folder:
        for command, code in (("exit 3", 3), ("kill -TERM $$", -signal.SIGTERM), ("kill -KILL $$", -signal.SIGKILL)):
            outcome, path = trace("sh", "-c", command, folder=folder)
            assert outcome.returncode == code, (command, outcome.returncode)
            assert not os.path.exists(path), "a trace of a program without PyTorch"
            assert "used no PyTorch" in outcome.stderr, outcome.stderr
        outcome, path = trace("no-such-command", folder=folder)
        assert outcome.returncode == 127 and "no-such-command" in outcome.stderr, outcome
        outcome, path = trace(folder, folder=folder)
        assert outcome.returncode == 126 and "Permission denied" in outcome.stderr, outcome
        outcome = run([tool("terra-trace"), "-o", "/no/such/folder/t.terra", "--", "true"], check=False)
        assert outcome.returncode == 125 and "/no/such/folder" in outcome.stderr, outcome


@test
def usage():
    """--help explains; mistakes in the options are told with exit code 2; the command's own options are not ours."""
    text = run([tool("terra-trace"), "--help"]).stdout
    for word in ("--backend", "--iterations", "--list-ops", "EXIT STATUS", "CAP_BPF"):
        assert word in text, word
    for arguments in ([], ["--backend", "x", "true"], ["--iterations", "0", "true"], ["--levels", "x", "true"],
                      ["--no-such"], ["--list-ops", "true"], ["-p", "1", "true"], ["-p", "0"], ["-p", "1", "--backend", "preload"],
                      ["--duration", "0", "true"], ["--max-size", "1k", "true"], ["--max-size", "3X", "true"], ["--ops", ",", "true"]):
        outcome = run([tool("terra-trace"), *arguments], check=False)
        assert outcome.returncode == 2 and "--help" in outcome.stderr, (arguments, outcome)
    with temporary_folder() as folder:
        outcome = run([tool("terra-trace"), "-q", "echo", "-o", "--help"], cwd=folder)
        assert outcome.stdout == "-o --help\n" and outcome.stderr == "" and not os.listdir(folder), outcome


def start_loop(folder, *options):
    path = os.path.join(folder, "t.terra")
    child = subprocess.Popen([tool("terra-trace"), "-o", path, *options, "--", PYTHON, "-c", LOOP], env=clean_env(),
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout.readline() == "begun\n", child.stderr.read()
    time.sleep(0.5)
    return child, path


@test
def interrupt_is_passed_on():
    """SIGINT to terra-trace reaches the program, which handles it in its own way; the trace is whole."""
    need_torch()
    with temporary_folder() as folder:
        child, path = start_loop(folder)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
        assert child.returncode == 7 and out == "interrupted\n", (child.returncode, out, err)
        events, _, end = load(path)
        assert end["clean"] and len(events) > 100, end


@test
def a_killed_tracer_harms_nobody():
    """When terra-trace is killed, the program goes on without probes, and the trace is readable up to there."""
    need_bpf()
    with temporary_folder() as folder:
        child, path = start_loop(folder, "--backend", "bpf")
        pids = run(["pgrep", "-P", str(child.pid)]).stdout.split()
        child.kill()
        child.wait(timeout=30)
        time.sleep(1)
        assert len(pids) == 1 and os.path.exists(f"/proc/{pids[0]}"), "the program went down with it"
        os.kill(int(pids[0]), signal.SIGINT)
        out, _ = child.communicate(timeout=60)
        assert out == "interrupted\n", out
        events, _, end = load(path)
        assert len(events) > 100 and not end["clean"], end


@test(timeout=240)
def iterations_end_the_recording():
    """--iterations stops and detaches while the program goes on; default name from the script."""
    need_bpf()
    with temporary_folder() as folder:
        outcome = run([tool("terra-trace"), "--backend", "bpf", "--iterations", "3", "--no-stacks", "--",
                       PYTHON, program("mlp.py"), "80"], cwd=folder, timeout=180)
        assert os.listdir(folder) == ["mlp.terra"], os.listdir(folder)
        assert len(outcome.stdout.splitlines()) == 8, outcome.stdout
        match = re.search(r"(\d+) iterations, 0 lost", outcome.stderr)
        assert match and 3 <= int(match[1]) <= 40, outcome.stderr
        events, _, end = load(os.path.join(folder, "mlp.terra"))
        assert end["clean"], end
        assert not [event for event in events if event.get("frames")], "stacks in spite of --no-stacks"
        losses = [event for event in events if event["event"] == "enter" and event["op"] == "aten::nll_loss_forward"]
        assert 3 <= len(losses) <= 60, f"{len(losses)} iterations in the trace"


MANY = """
import torch
a = torch.ones(2)
print("begun", flush=True)
input()
for i in range(5000):
    a.exp()
    a.cos().sin()
    if i % 50 == 0:
        torch.cat([a] * 900)  # in several chunks
print("ended", flush=True)
input()
a.view(2).tan()
"""


def count(events, *kinds):
    return sum(event["event"] in kinds for event in events)


@test
def losses_are_told():
    """What finds no room while the tracer is held up is counted in the trace, to the event, and no op looks raised for it."""
    need_bpf()
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        run([tool("terra-trace"), "-o", path, "--backend", "bpf", "--buffer", "512", "--", PYTHON, "-c", MANY], input="\n\n")
        events, _, end = load(path)
        assert end["lost"] == 0, end
        whole = count(events, "enter", "exit")
        command = [tool("terra-trace"), "-o", path, "--backend", "bpf", "--buffer", "1", "--", PYTHON, "-c", MANY]
        child = subprocess.Popen(command, env=clean_env(), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.PIPE)
        try:
            assert child.stdout.readline() == "begun\n"
            time.sleep(0.5)
            child.send_signal(signal.SIGSTOP)
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline() == "ended\n"
        finally:
            child.send_signal(signal.SIGCONT)
        time.sleep(0.5)
        _, err = child.communicate("\n", timeout=60)
        assert child.returncode == 0, err
        events, _, end = load(path)
        lost = sum(event["lost"] for event in events if event["event"] == "lost")
        assert end["clean"] and lost == end["lost"] > 10000, end
        # An op that was open when the loss began has an exit all the same.
        assert 0 <= lost + count(events, "enter", "exit") - whole <= 4, (lost, count(events, "enter", "exit"), whole)
        assert f"{lost:,} lost" in err, err
        assert not [event for event in events if event["event"] == "exit" and event["raised"]]


THREADS = """
import os, threading, torch
a = torch.ones(4)
def other():
    a.exp()
thread = threading.Thread(target=other)
thread.start()
thread.join()
if os.fork() == 0:
    a.sin()
    os._exit(0)
status = os.wait()[1]
a.cos()
print("status", status)
"""


@test
def threads_are_seen_and_children_are_not_where_unwanted():
    """Ops of every thread have their own stack; with --no-children a forked child runs as ever and is not recorded, as the trace says."""
    need_bpf()
    with temporary_folder() as folder:
        outcome, path = trace(PYTHON, "-c", THREADS, options=("--backend", "bpf", "--levels", "call", "--no-children"),
                              folder=folder)
        assert os.listdir(folder) == ["t.terra"], os.listdir(folder)
        assert outcome.stdout == "status 0\n", outcome
        events, about, _ = load(path)
        enters = {event["op"]: event for event in events if event["event"] == "enter"}
        assert enters["aten::exp"]["thread"] != enters["aten::cos"]["thread"] == about["pid"], enters["aten::exp"]
        assert enters["aten::exp"]["frames"][0][1] == "other", enters["aten::exp"]
        assert enters["aten::cos"]["frames"] == [["<string>", "<module>", 13]], enters["aten::cos"]
        assert "aten::sin" not in enters
        assert {event["level"] for event in enters.values()} == {0}
        assert any("child processes" in event["text"] for event in events if event["event"] == "note")


@test
def missing_rights_are_named():
    """Without CAP_BPF and CAP_PERFMON: bpf says what is missing; auto says it too and records through preload."""
    need_torch()
    if not shutil.which("capsh") or os.geteuid():
        skip("needs root and capsh")
    with temporary_folder() as folder:
        path = os.path.join(folder, "t.terra")
        program_text = "import torch; torch.ones(3).exp()"

        def dropped(capabilities, *options):
            command = [tool("terra-trace"), "-o", path, *options, "--", PYTHON, "-c", program_text]
            script = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
            return run(["capsh", f"--drop={capabilities}", "--", "-c", script], check=False)

        outcome = dropped("cap_bpf,cap_perfmon,cap_sys_admin", "--backend", "bpf")
        assert outcome.returncode == 125 and "needs CAP_BPF and CAP_PERFMON" in outcome.stderr, outcome
        if can_load_bpf():
            outcome = dropped("cap_bpf,cap_sys_admin", "--backend", "bpf")
            assert outcome.returncode == 125 and "needs CAP_BPF (or root)" in outcome.stderr, outcome
        outcome = dropped("cap_bpf,cap_perfmon,cap_sys_admin")
        assert outcome.returncode == 0 and "CAP_BPF and CAP_PERFMON" in outcome.stderr, outcome
        events, about, _ = load(path)
        assert about["backend"] == "preload" and any(event.get("op") == "aten::exp" for event in events), about


@test
def existing_preload_is_kept():
    """What LD_PRELOAD already holds stays loaded beside the recorder."""
    need_torch()
    with temporary_folder() as folder:
        text = "import os, torch; torch.ones(2).exp(); print(os.environ['LD_PRELOAD'])"
        outcome, path = trace(PYTHON, "-c", text, options=("--backend", "preload"), folder=folder, preload="libm.so.6")
        recorder, others = outcome.stdout.strip().split(":", 1)
        assert recorder.endswith("/lib/libterra_record.so") and others == "libm.so.6", outcome
        assert os.path.exists(path)


if __name__ == "__main__":
    main()
