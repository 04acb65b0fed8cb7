#!/usr/bin/env python3
"""The plan, and nothing else, decides what is fused; and a plan that can't be used costs a line on stderr, no more."""
# timeout: 1500
# long: 300
import json
import os
import re
import shutil
import struct
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, main, make_plan, program, run, test, tool, traced

FOLDER = tempfile.mkdtemp(prefix="terra-test-plan-")
THIRD = program("third.py")
TRACED_STEPS = "12"  # as in test_speed.py, so that one plan serves both
# Between them each activation, each optimizer and both forms of the step.
SEEDS = {2: "ReLU SGD loop", 3: "Gelu AdamW loop", 12: "Tanh Adam foreach", 13: "Gelu SGD foreach",
         15: "ReLU AdamW foreach"}
# How a region's name ends that is the update of a parameter in one piece.
UPDATES = {"AdamW": "mul_ lerp_ mul_ addcmul_ sqrt div_ add_ addcdiv_", "SGD": "mul_ add_ add_",
           "Adam": "lerp_ mul_ addcmul_ sqrt div_ add_ addcdiv_"}
# Ends with an exit code of its own, so that a test sees whether it is kept.
ENDS_WITH_3 = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__'); sys.exit(3)"
# Trains and ends so, without an optimizer of PyTorch's, whose first step imports nearly as much again as PyTorch itself: where no plan
# is used.
SMALL = """
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.GELU(), torch.nn.Linear(128, 8))
x = torch.randn(32, 64)
for _ in range(4):
    loss = model(x).square().mean()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad, alpha=0.1)
            parameter.grad = None
    print(loss.item().hex())
raise SystemExit(3)
"""
# Large parameters under AdamW's foreach form; the highest resident size goes to stderr.
LARGE = """
import hashlib, resource, sys, torch
torch.manual_seed(0)
parameters = [torch.nn.Parameter(torch.randn(1024, 1024)) for _ in range(40)]
optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
for _ in range(3):
    optimizer.zero_grad()
    sum(p.square().sum() for p in parameters).backward()
    optimizer.step()
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in parameters)).hexdigest())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""
_made = {}


def once(make):
    """The function's result, made at the first call with these arguments."""
    def made(*arguments):
        key = (make.__name__, *arguments)
        if key not in _made:
            _made[key] = make(*arguments)
        return _made[key]
    return made


def path(name):
    return os.path.join(FOLDER, name)


def contents(name):
    with open(name, "rb") as file:
        return file.read()


def write(name, data):
    with open(path(name), "wb", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
        file.write(data)
    return path(name)


# ---- programs and plans ----

@once
def gpt2_plan():
    return make_plan(path("gpt2"), traced("gpt2"))


@once
def third_plan(seed):
    return make_plan(path(f"third{seed}"), [THIRD, str(seed), TRACED_STEPS], "--disable-pass", "cost")  # small as it is


def regions_of(plan):
    return json.loads(run([tool("terra-opt"), "--json", plan]).stdout)["regions"]


def replay(command, plan=None, **more):
    """The program under the library: how it ended, and what the library counted."""
    log = path("log.json")
    if os.path.exists(log):
        os.unlink(log)
    env = {"TERRA_LOG": "json:" + log, **({"TERRA_PLAN": plan} if plan else {}), **more}
    done = run([PYTHON, *command], env=env, preload=REPLAY, timeout=300)
    return done, json.loads(contents(log))


def watched(steps, name):
    """Loss of each step and hash of the final parameters, as the benchmark's driver notes them."""
    out = path("watched.json")
    return out, [program("bench_driver.py"), "--out", out, program(name), str(steps)]


def numbers(out):
    seen = json.loads(contents(out))
    return seen["losses"], seen["parameters"]


@once
def eager_numbers(name, steps):
    out, command = watched(steps, name)
    run([PYTHON, *command], timeout=300)
    return numbers(out)


def replayed_numbers(name, steps, plan):
    out, command = watched(steps, name)
    _, log = replay(command, plan)
    return numbers(out), log


@once
def eager_third(seed):
    return run([PYTHON, THIRD, str(seed)]).stdout


# ---- regions ----

def standalone(line):
    """The line as it would begin a region: values are inputs there, numbered by first use."""
    name, *tokens = line.split()
    seen = []
    for i, token in enumerate(tokens):
        if token[0] in "vib":
            if token not in seen:
                seen.append(token)
            tokens[i] = ("b" if token[0] == "b" else "i") + str(seen.index(token))
    return " ".join([name, *tokens])


def belongs_to_none_but(region, regions):
    """Whether no other region could begin with one of its ops: then nothing else takes them when it is gone."""
    begins = {other["ops"][0] for other in regions if not other["fallback"] and other["id"] != region["id"]}
    return not begins & {standalone(line) for line in region["ops"]}


# ---- files that are no plan for this ----

def crc32c(data):
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82f63b78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xffffffff
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xff]
    return crc ^ 0xffffffff


def with_other_text(plan, old, new):
    """A whole and valid plan in which the text section says something else of the same length."""
    header, rest = bytearray(plan[:64]), bytearray(plan[64:])
    size = struct.unpack_from("<Q", header, 16)[0]
    text = bytes(rest[:size])
    assert text.count(old) == 1 and len(old) == len(new)
    rest[:size] = text.replace(old, new)
    struct.pack_into("<I", header, 32, crc32c(rest[:size]))
    struct.pack_into("<I", header, 60, crc32c(header[:60]))
    return bytes(header + rest)


def build_id_line(plan):
    return next(line for line in plan.split(b"\n") if line.startswith(b"build-id "))


def flipped(plan, at):
    return plan[:at] + bytes([plan[at] ^ 0x10]) + plan[at + 1:]


@once
def eager_small():
    return run([PYTHON, "-c", SMALL], check=False).stdout


def ends_as(want, done):
    """Eager's output and exit code; what was said on standard error."""
    assert want and done.stdout == want, f"printed\n{done.stdout}\neager\n{want}"
    assert done.returncode == 3, done
    return done.stderr.splitlines()


def third_says(**env):
    return ends_as(eager_third(3), run([PYTHON, "-c", ENDS_WITH_3, THIRD, "3"], env=env, preload=REPLAY, check=False))


def small_says(**env):
    return ends_as(eager_small(), run([PYTHON, "-c", SMALL], env=env, preload=REPLAY, check=False))


def is_refused(name, why):
    """Eager's output and exit code, and one line that says why."""
    lines = small_says(TERRA_PLAN=path(name))
    assert len(lines) == 1 and lines[0].startswith("terra: ") and why in lines[0], (name, lines)


# ---- the plan decides ----

@test(timeout=900)
def gpt2s_plan_serves_mlp():
    "mlp runs under another program's plan: what both share is fused, and every loss and parameter is eager's."
    want = eager_numbers("mlp.py", 30)
    have, log = replayed_numbers("mlp.py", 30, gpt2_plan())
    assert have == want
    assert log["ops_fused"] > 0, log
    used = [region["name"] for region in log["regions"] if region["runs"]]
    assert used and len(used) < len(log["regions"]), "gpt2 has regions that mlp has no ops for"


@test(timeout=900)
def a_region_less_is_its_ops_less():
    "Without one region its ops run by themselves, and everything else is fused as before."
    plan, less = gpt2_plan(), path("less.plan")
    want = eager_numbers("gpt2.py", 3)
    have, before = replayed_numbers("gpt2.py", 3, plan)
    assert have == want
    regions = {region["id"]: region for region in regions_of(plan)}
    own = [region for region in before["regions"]
           if region["runs"] and belongs_to_none_but(regions[region["id"]], regions.values())]
    assert own, "every region shares its ops with another"
    gone = max(own, key=lambda region: region["runs"] * region["ops"])
    run([tool("terra-opt"), "--quiet", "--drop-region", str(gone["id"]), "-o", less, plan])
    have, after = replayed_numbers("gpt2.py", 3, less)
    assert have == want
    assert before["ops_fused"] - after["ops_fused"] == gone["runs"] * gone["ops"], (gone, before, after)
    runs = {region["name"]: region["runs"] for region in before["regions"] if region["id"] != gone["id"]}
    assert {region["name"]: region["runs"] for region in after["regions"]} == runs


def converts(seed, drawn):
    want = eager_third(seed)
    assert drawn in want.splitlines()[0], want
    done, log = replay([THIRD, str(seed)], third_plan(seed))
    assert done.stdout == want, f"replay printed\n{done.stdout}\neager\n{want}"
    assert done.stderr == "", done.stderr
    assert log["ops_fused"] > 0, log
    if "foreach" in drawn:
        updates = [region for region in log["regions"] if region["runs"] and region["name"].endswith(UPDATES[drawn.split()[1]])]
        assert updates, f"no parameter's update is fused: {log['regions']}"


for _seed, _drawn in SEEDS.items():
    def _converts(seed=_seed, drawn=_drawn):
        converts(seed, drawn)
    _converts.__name__ = "a_third_program_converts_" + _drawn.replace(" ", "_").lower()
    test(_converts, timeout=400)


@test(timeout=400)
def lists_are_fused_and_not_hungrier():
    "All updates wait until the last list is through; the roots are never written, and no more memory is used than in eager."
    eager = [run([PYTHON, "-c", LARGE], timeout=200) for _ in range(3)]
    done, log = replay(["-c", LARGE], third_plan(15))
    assert {done.stdout} == {each.stdout for each in eager}
    fused, = [region for region in log["regions"] if region["name"].endswith(UPDATES["AdamW"])]
    assert fused["runs"] >= 2 * 40 and log["ops_singly"] == 0, log
    assert fused["dead_results"] == 5 * fused["runs"], log
    peaks = [int(each.stderr) for each in eager]  # 1.5 % apart from run to run, where replay's is the same each time
    assert int(done.stderr) <= 1.1 * max(peaks), (done.stderr, peaks)


@test(timeout=400)
def without_a_pass_less_is_fused_and_nothing_differs():
    "Each pass that can be left out, with the trace of a third program."
    fused = {}
    for name in (None, "liveness", "inplace", "passive", "small"):
        options = ["--disable-pass", "cost", *(["--disable-pass", name] if name else [])]
        done, log = replay([THIRD, "3"], make_plan(path(f"without-{name}"), [THIRD, "3", TRACED_STEPS], *options))
        assert done.stdout == eager_third(3), f"without {name}"
        fused[name] = log["ops_fused"]
    print(f"ops fused without each pass: {fused}")
    assert 0 < min(fused.values()) and fused["inplace"] < fused[None] == max(fused.values()), fused


# ---- plans that are not for this program or machine, or no plans ----

@test(timeout=400)
def without_a_plan_one_line_is_said():
    line, = small_says(XDG_CACHE_HOME=path("empty"))
    assert line.startswith("terra: running without a plan: none is installed") and "TERRA_PLAN" in line, line
    assert small_says(XDG_CACHE_HOME=path("empty"), TERRA_MODE="alloc") == []


@test(timeout=400)
def programs_that_a_program_starts_say_nothing():
    "With a plan, and without: then the line is the outermost PyTorch program's, also when a wrapper starts that."
    code = """
import subprocess, sys, torch
torch.ones(1000)
for code in ("import torch; print(torch.ones(1000).sum().item())", "print(1)"):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    print(done.stdout, done.stderr)
"""
    done = run([PYTHON, "-c", code], env={"TERRA_PLAN": third_plan(3)}, preload=REPLAY)
    assert (done.stdout, done.stderr) == ("1000.0\n \n1\n \n", ""), done
    done = run(["timeout", "100", PYTHON, "-c", code], env={"XDG_CACHE_HOME": path("empty")}, preload=REPLAY)
    assert done.stdout == "1000.0\n \n1\n \n", done
    assert len(done.stderr.splitlines()) == 1 and "running without a plan" in done.stderr, done.stderr
    done = run(["timeout", "100", PYTHON, "-c", "import torch; torch.ones(1000)"], env={"TERRA_PLAN": third_plan(3)},
               preload=REPLAY)
    assert done.stderr == "", done.stderr


@test(timeout=400)
def without_torch():
    plan = third_plan(3)
    done = run([PYTHON, "-c", "print('text'); raise SystemExit(3)"], env={"TERRA_PLAN": plan}, preload=REPLAY, check=False)
    assert (done.stdout, done.returncode) == ("text\n", 3), done
    assert done.stderr == f"terra: this program used no PyTorch, and no plan: {plan}\n", done.stderr
    for env in ({"XDG_CACHE_HOME": path("empty")}, {"TERRA_MODE": "replay", "XDG_CACHE_HOME": path("empty")}):
        done = run([PYTHON, "-c", "print('no libtorch'); raise SystemExit(3)"], env=env, preload=REPLAY, check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("no libtorch\n", "", 3), done


@test(timeout=400)
def the_log_tells_what_was_done():
    "The same numbers for people and for scripts."
    done, log = replay([THIRD, "3"], third_plan(3))
    lines = run([PYTHON, THIRD, "3"], env={"TERRA_PLAN": third_plan(3), "TERRA_LOG": "summary"}, preload=REPLAY).stderr.splitlines()
    assert all(line.startswith("terra: ") for line in lines), lines
    text = "\n".join(lines)
    ops = re.search(r"mode replay: (\d+) ops seen, (\d+) deferred, (\d+) fused in (\d+) runs, (\d+) singly, (\d+) replaced", text)
    runs = sum(region["runs"] for region in log["regions"])
    assert [int(number) for number in ops.groups()] == [log["ops_seen"], log["ops_deferred"], log["ops_fused"], runs, log["ops_singly"],
                                                        log["ops_replaced"]], (text, log)
    regions = re.search(r"regions: (\d+) of the plan's (\d+) ran; (\d+) times none began", text)
    used = sum(region["runs"] > 0 for region in log["regions"])
    assert [int(number) for number in regions.groups()] == [used, len(log["regions"]), log["left_alone"]], (text, log)
    flushes = {reason: int(n) for reason, n in re.findall(r" (\w+) (\d+)", re.search(r"flushes:(.*)", text)[1])}
    assert flushes == {reason: n for reason, n in log["flushes"].items() if n}, (text, log)
    peak = float(re.search(r"memory: peak (\d+) MB", text)[1]) * 1e6
    assert used > 0 and sum(flushes.values()) > 0 and 0.9 * peak < log["peak_bytes"] < 1.1 * peak, (text, log)


@test(timeout=400)
def a_good_plan_is_not_mentioned():
    assert third_says(TERRA_PLAN=third_plan(3)) == []


@test(timeout=400)
def missing_plan():
    is_refused("nowhere.plan", "nowhere.plan: No such file")


@test(timeout=400)
def truncated_plan():
    plan = contents(third_plan(3))
    for name, size, why in (("empty.plan", 0, "not a plan file"), ("header.plan", 40, "cut off"),
                            ("half.plan", len(plan) // 2, "cut off")):
        write(name, plan[:size])
        is_refused(name, why)


@test(timeout=400)
def flipped_bits():
    plan = contents(third_plan(3))
    text = struct.unpack_from("<Q", plan, 16)[0]
    for name, at in (("flip-header.plan", 18), ("flip-text.plan", 64 + text // 2), ("flip-code.plan", len(plan) - 999)):
        write(name, flipped(plan, at))
        is_refused(name, "damaged")


@test(timeout=400)
def foreign_file():
    shutil.copy(PYTHON, path("foreign.plan"))
    os.chmod(path("foreign.plan"), 0o600)
    is_refused("foreign.plan", "not a plan file")


@test(timeout=400)
def plan_for_another_libtorch():
    plan = contents(third_plan(3))
    line = build_id_line(plan)
    other = line[:-1] + (b"0" if line[-1:] != b"0" else b"1")
    write("other-id.plan", with_other_text(plan, line + b"\n", other + b"\n"))
    is_refused("other-id.plan", "another build of libtorch")
    # The edit itself is not what is refused.
    write("same-id.plan", with_other_text(plan, line + b"\n", line + b"\n"))
    assert contents(path("same-id.plan")) == plan


@test(timeout=400)
def plan_that_others_can_write():
    write("shared.plan", contents(third_plan(3)))
    os.chmod(path("shared.plan"), 0o660)
    is_refused("shared.plan", "others can write it")


# ---- where the plan comes from, and how much is done ----

@test(timeout=400)
def installed_plan_is_found():
    "LD_PRELOAD is enough once the plan is installed; another program doesn't find it."
    cache = path("cache")
    run([tool("terra-opt"), "--quiet", "--install", third_plan(3)], env={"XDG_CACHE_HOME": cache})
    done, log = replay([THIRD, "3"], XDG_CACHE_HOME=cache)
    assert (done.stdout, done.stderr) == (eager_third(3), "")
    assert log["ops_fused"] > 0, log
    other = path("other.py")
    shutil.copy(THIRD, other)
    done, log = replay([other, "3"], XDG_CACHE_HOME=cache)
    assert done.stdout == eager_third(3) and "none is installed for this program" in done.stderr, done.stderr
    assert log["ops_fused"] == 0, log


@test(timeout=400)
def installed_plan_that_is_damaged():
    cache = path("damaged-cache")
    run([tool("terra-opt"), "--quiet", "--install", third_plan(3)], env={"XDG_CACHE_HOME": cache})
    folder = os.path.join(cache, "terra", "plans")
    name, = os.listdir(folder)
    plan = contents(os.path.join(folder, name))
    with open(os.path.join(folder, name), "r+b") as file:
        file.write(flipped(plan, len(plan) // 2))
    done = run([PYTHON, THIRD, "3"], env={"XDG_CACHE_HOME": cache}, preload=REPLAY)
    assert done.stdout == eager_third(3)
    assert done.stderr.startswith("terra: ") and done.stderr.count("\n") == 1 and "damaged" in done.stderr, done.stderr


@test(timeout=400)
def every_level_has_eagers_output():
    for mode in ("off", "alloc", "observe"):
        assert third_says(TERRA_PLAN=third_plan(3), TERRA_MODE=mode) == [], mode
    done, log = replay([THIRD, "3"], third_plan(3), TERRA_MODE="observe")
    assert log["mode"] == "observe" and log["ops_seen"] > 0 and log["ops_deferred"] == log["ops_fused"] == 0, log
    done, log = replay([THIRD, "3"], third_plan(3), TERRA_MODE="alloc")
    assert log["mode"] == "alloc" and log["ops_seen"] == log["ops_fused"] == 0 and log["arena_peak_bytes"] > 0, log


@test(timeout=400)
def unknown_level():
    lines = third_says(TERRA_PLAN=third_plan(3), TERRA_TRIALS="perhaps")
    assert len(lines) == 1 and "TERRA_TRIALS=perhaps" in lines[0], lines
    lines = third_says(TERRA_PLAN=third_plan(3), TERRA_MODE="fastest")
    assert len(lines) == 1 and lines[0].startswith("terra: ") and "fastest" in lines[0], lines


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
