#!/usr/bin/env python3
"""terra-opt from a recorded program to a plan: what it finds, what it says, and what it leaves behind."""
# timeout: 900
# alone: it measures regions
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, clean_env, main, program, run, test, tool

FOLDER = tempfile.mkdtemp(prefix="terra-test-opt-")
TRACE = os.path.join(FOLDER, "mlp.terra")
PLAN = os.path.join(FOLDER, "mlp.plan")
OPT = tool("terra-opt")
ADAMW = ["mul_", "lerp_", "mul_", "addcmul_", "sqrt", "div", "add_", "addcdiv_"]


def recorded():
    """A trace of mlp.py, made once."""
    if not os.path.exists(TRACE):
        run([tool("terra-trace"), "--quiet", "--backend", "preload", "-o", TRACE, "--", PYTHON,
             program("mlp.py"), "8"], timeout=120)
    return TRACE


def planned():
    """Its plan with measurements, made once."""
    if not os.path.exists(PLAN):
        run([OPT, "-q", recorded()], timeout=400)
    return PLAN


def as_json(plan, *options):
    return json.loads(run([OPT, "--json", *options, plan]).stdout)


def short(line):
    return line.split()[0].split("::")[1].split(".")[0]


def fused(plan):
    return [region for region in plan["regions"] if not region["fallback"]]


@test
def graph_has_the_optimizer_as_one_region():
    text = run([OPT, "--dump-after", "cost", recorded()]).stdout
    regions = [block.splitlines() for block in text.split("\nregion ")[1:]]
    adamw = [block for block in regions if [short(line) for line in block[1:] if "\tat " not in line] == ADAMW]
    assert len(adamw) == 1, text[-3000:]
    instances = [line for line in adamw[0] if line.startswith("\tat ")]
    assert len(instances) == 5, instances  # six parameters, of which one has 10 elements
    assert adamw[0][0].startswith('"adam'), adamw[0][0]  # named after the place in the optimizer


@test
def text_form_goes_through_the_passes_alike():
    built = os.path.join(FOLDER, "built.tg")
    with open(built, "w", encoding="utf-8") as out:
        out.write(run([OPT, "--dump-after", "build", recorded()]).stdout)
    assert run([OPT, "--dump-after", "cost", built]).stdout == run([OPT, "--dump-after", "cost", recorded()]).stdout


@test
def passes_can_be_left_out():
    text = run([OPT, "--dump-after", "regions", "--disable-pass", "inplace", recorded()]).stdout
    assert "addcdiv_ i" not in text.split("\nstop")[-1]
    passes = dict(line.split()[:2] for line in run([OPT, "--passes"]).stdout.splitlines())
    assert [*passes] == ["values", "liveness", "kinds", "inplace", "passive", "small", "regions", "cost"]
    base = [name for name, sort in passes.items() if sort == "base"]
    assert base == ["values", "kinds", "regions"]
    for name in base:
        plan = os.path.join(FOLDER, "without.plan")
        run([OPT, "-q", "-o", plan, "--no-measure", "--disable-pass", name, recorded()])
        assert as_json(plan)["regions"] == [], name
    refused = run([OPT, "--disable-pass", "nothing", recorded()], check=False)
    assert refused.returncode == 2 and "no such pass" in refused.stderr


@test(timeout=450)
def plan_has_measured_regions():
    plan = as_json(planned())
    regions = fused(plan)
    assert [short(line) for line in regions[0]["ops"]] == ADAMW, regions
    for region in regions:
        assert region["gain"] >= 1.05 and region["eager_ns"] > region["fused_ns"] > 0, region
    assert "capability=" in plan["cpu"] and plan["cpu_vendor"] and plan["code_bytes"] > 0
    assert "aten::view" in plan["passive"] and "aten::mm" not in plan["passive"]
    singles = {short(region["ops"][0]) for region in plan["regions"] if region["fallback"]}
    assert singles == set(ADAMW), singles
    assert os.stat(PLAN).st_mode & 0o777 == 0o600


@test(timeout=450)
def regions_can_be_dropped():
    plan = as_json(planned())
    first = fused(plan)[0]
    for wanted in (str(first["id"]), first["name"][:8]):
        less = os.path.join(FOLDER, "less.plan")
        run([OPT, "-q", "--drop-region", wanted, "-o", less, PLAN])
        left = as_json(less)
        assert first["id"] not in [region["id"] for region in left["regions"]]
        kept = {line for region in fused(left) for line in region["ops"]}
        assert all(region["fallback"] is False or kept for region in left["regions"])
    unknown = run([OPT, "--drop-region", "nothing of this name", "-o", less, PLAN], check=False)
    assert unknown.returncode == 1 and "no region" in unknown.stderr
    assert as_json(PLAN) == plan


@test(timeout=450)
def install_puts_it_where_replay_looks():
    cache = os.path.join(FOLDER, "cache")
    run([OPT, "-q", "--install", planned()], env={"XDG_CACHE_HOME": cache})
    files = os.listdir(os.path.join(cache, "terra", "plans"))
    assert len(files) == 1 and files[0].endswith(".plan") and len(files[0]) == 21, files
    with open(os.path.join(cache, "terra", "plans", files[0]), "rb") as ours, open(PLAN, "rb") as theirs:
        assert ours.read() == theirs.read()
    other = os.path.join(FOLDER, "other.py")
    shutil.copy(program("mlp.py"), other)
    run([OPT, "-q", "--install", "--script", other, PLAN], env={"XDG_CACHE_HOME": cache})
    assert len(os.listdir(os.path.join(cache, "terra", "plans"))) == 2


@test
def bad_input_gives_a_line_and_an_exit_code():
    damaged = os.path.join(FOLDER, "damaged.plan")
    with open(recorded(), "rb") as trace:
        whole = trace.read()
    cases = {"missing": None, "empty": b"", "text": b"hello\n", "cut": whole[:200], "plan": b"TERRAPLN" + bytes(90),
             "graph": b"terra-graph 1 after build\nwhat"}
    for name, content in cases.items():
        path = os.path.join(FOLDER, "bad-" + name)
        if content is not None:
            with open(path, "wb") as out:
                out.write(content)
        done = run([OPT, "-o", damaged, path], check=False)
        assert done.returncode == 1, (name, done)
        assert done.stderr.startswith("terra-opt: ") and done.stderr.count("\n") == 1, (name, done.stderr)
        assert not os.path.exists(damaged)
    for arguments in ([], ["a", "b"], ["--nonsense", "a"], ["--dump-after", "nothing", "a"]):
        assert run([OPT, *arguments], check=False).returncode == 2, arguments


@test
def help_is_a_page():
    text = run([OPT, "--help"]).stdout
    for word in ("NAME", "SYNOPSIS", "OPTIONS", "EXIT STATUS", "--drop-region", "--install"):
        assert word in text


@test(timeout=200)
def interrupt_leaves_nothing():
    recorded()
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "x.plan")
        for wait in (0.05, 0.4, 3):
            child = subprocess.Popen([OPT, "-o", out, TRACE], env=clean_env({"TMPDIR": scratch}),
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            time.sleep(wait)
            os.killpg(child.pid, signal.SIGINT)
            code = child.wait(120)
            assert code == -signal.SIGINT or (code == 0 and wait == 3), (wait, code)
            assert os.listdir(scratch) == [], (wait, os.listdir(scratch))
            assert os.listdir(folder) in ([], ["x.plan"]), (wait, os.listdir(folder))


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
