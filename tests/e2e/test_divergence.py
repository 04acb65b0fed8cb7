"""Eager against replay, bit for bit, on programs that look behind the dispatcher's back or leave the traced path.

For each program of tests/programs/divergence/programs.py: the same output as eager under the plan made from chains.py, ops
deferred in the hazard's step, and the flush reason that the program names. Programs that name a guard run once more on a
library without it, where the output must differ or the process must fail: the test would notice its absence.
"""
# timeout: 900
import json
import os
import subprocess
import sys

from harness import BUILD, PYTHON, REPLAY, clean_env, main, make_plan, program, run, temporary_folder, test

sys.path.insert(0, os.path.dirname(program("divergence/programs.py")))
SCRIPT = program("divergence/programs.py")
_state = {}
_folders = []


def folder():
    """A folder that lasts as long as the suite."""
    _folders.append(temporary_folder())
    return _folders[-1].name


def listed():
    out = subprocess.run([PYTHON, SCRIPT, "--list"], env=clean_env(), capture_output=True, text=True, check=True).stdout
    return [line.split() for line in out.splitlines()]


def plan():
    """Every region that chains.py has, small as they are: what is tested is answers, not speed."""
    if "plan" not in _state:
        _state["plan"] = make_plan(os.path.join(folder(), "chains"), [program("divergence/chains.py")], "--disable-pass",
                                   "cost")
    return _state["plan"]


def eager(name):
    """All programs in one process: eager has no state that a later one could see, except what it prints."""
    if "eager" not in _state:
        out = run([PYTHON, SCRIPT, "--all"], timeout=300).stdout
        _state["eager"] = dict(part.split("\n", 1) for part in out.split("== ")[1:])
    return _state["eager"][name]


def replay(name, library):
    counts = os.path.join(folder(), "counts.json")
    env = clean_env({"TERRA_PLAN": plan(), "TERRA_TEST_COUNTS": counts}, preload=library)
    done = subprocess.run([PYTHON, SCRIPT, name], env=env, capture_output=True, text=True, timeout=120)
    seen = json.load(open(counts)) if os.path.exists(counts) else {}
    return done, seen


def without(guard):
    return os.path.join(BUILD, "lib", "without", guard, "libterra_replay.so")


def check(name, guard, reason):
    want = eager(name)
    done, seen = replay(name, REPLAY)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-800:]}"
    assert done.stdout == want, f"replay printed\n{done.stdout}\neager\n{want}"
    assert seen["deferred"] > 0, f"nothing was deferred: {seen}"
    assert seen[reason] > 0, f"no flush by {reason}: {seen}"
    if guard != "-":
        done, seen = replay(name, without(guard))
        assert done.returncode != 0 or done.stdout != want, f"without the guard {guard} the output is the same: {seen}"


@test(timeout=600)
def libraries_without_one_guard_each():
    "The test builds that leave out a guard can be made, and release builds refuse to."
    run(["cmake", "--build", BUILD, "--target", "replay_without_guards"], timeout=580)
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    refused = run(["cmake", "-S", source, "-B", folder(), "-DCMAKE_BUILD_TYPE=Release", "-DTERRA_TEST_NO_GUARD=pages"],
                  check=False)
    assert refused.returncode != 0 and "release build" in refused.stderr


for _name, _guard, _reason in listed():
    def _check(name=_name, guard=_guard, reason=_reason):
        check(name, guard, reason)
    _check.__name__ = _name
    test(_check, timeout=300)


if __name__ == "__main__":
    main()
