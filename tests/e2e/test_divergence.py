"""Eager against replay, bit for bit, on programs that look behind the dispatcher's back or leave the traced path.

For each program of tests/programs/divergence/programs.py, at each of its sizes: the same output as eager under the plan made
from chains.py, ops deferred in the hazard's step, and the flush reason that the program names. Programs that name a guard run
once more on a library without it, where the output must differ or the process must fail: the test would notice its absence.
"""
# timeout: 900
import json
import os
import subprocess
import sys

from harness import BUILD, PYTHON, REPLAY, clean_env, main, make_plan, program, run, temporary_folder, test

sys.path.insert(0, os.path.dirname(program("divergence/programs.py")))
SCRIPT = program("divergence/programs.py")
IN_PARALLEL = ("op", "syscall", "fork")  # flushes for these reasons may use all threads, where there is enough to do
_state = {}
_folders = []


def folder():
    """A folder that lasts as long as the suite."""
    _folders.append(temporary_folder())
    return _folders[-1].name


def listed():
    out = subprocess.run([PYTHON, SCRIPT, "--list"], env=clean_env(), capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in out.splitlines()]


def plan():
    """Every region that chains.py has, small as they are: what is tested is answers, not speed."""
    if "plan" not in _state:
        _state["plan"] = make_plan(os.path.join(folder(), "chains"), [program("divergence/chains.py")], "--disable-pass",
                                   "cost")
    return _state["plan"]


def by_size(out):
    """What was printed at each size."""
    parts = [part.split("\n", 1) for part in out.split("-- size ")[1:]]
    return {int(size): printed for size, printed in parts}


def eager(name):
    """All programs in one process: eager has no state that a later one could see, except what it prints."""
    if "eager" not in _state:
        out = run([PYTHON, SCRIPT, "--all"], timeout=300).stdout
        _state["eager"] = {part.split("\n", 1)[0]: by_size(part) for part in out.split("== ")[1:]}
    return _state["eager"][name]


def replay(name, library, sizes):
    """How it ended, what was printed at each size, and what was counted in each hazard's step."""
    counts = os.path.join(folder(), "counts.json")
    env = clean_env({"TERRA_PLAN": plan(), "TERRA_TEST_COUNTS": counts}, preload=library)
    done = subprocess.run([PYTHON, SCRIPT, name, *map(str, sizes)], env=env, capture_output=True, text=True, timeout=120)
    seen = json.load(open(counts)) if os.path.exists(counts) else []
    return done, by_size(done.stdout), seen


def without(guard):
    return os.path.join(BUILD, "lib", "without", guard, "libterra_replay.so")


def same_without(name, guard, sizes, want):
    """The sizes at which a library without the guard prints the same, and what it said. Tried up to five times: a guard may be
    one against a race, which is not always lost, and a run in which nothing was deferred (seen once) says nothing of it."""
    for _ in range(5):
        done, have, seen = replay(name, without(guard), sizes)
        same = [size for size in sizes if done.returncode == 0 and have.get(size) == want[size]]
        if not same:
            break
        print(f"{name}: the same without {guard}: {seen}\n{done.stderr[-800:]}")
    return same, seen


def check(name, guard, reason, sizes):
    want = {size: eager(name)[size] for size in sizes}
    done, have, seen = replay(name, REPLAY, sizes)
    assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-800:]}"
    assert have == want, f"replay printed\n{have}\neager\n{want}"
    assert len(seen) == len(sizes), seen
    for size, counts in zip(sizes, seen):
        assert counts["deferred"] > 0, f"size {size}: nothing was deferred: {counts}"
        for each in reason.split():
            assert counts[each] > 0, f"size {size}: no flush by {each}: {counts}"
            assert size == 1 or each not in IN_PARALLEL or counts["parallel"] > 0, f"size {size}: on one thread: {counts}"
    if guard:
        same, seen = same_without(name, guard, sizes, want)
        assert not same, f"without the guard {guard} the output is the same at size {same}: {seen}"


@test(timeout=600)
def libraries_without_one_guard_each():
    "The test builds that leave out a guard can be made, and release builds refuse to."
    run(["cmake", "--build", BUILD, "--target", "replay_without_guards"], timeout=580)
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    refused = run(["cmake", "-S", source, "-B", folder(), "-DCMAKE_BUILD_TYPE=Release", "-DTERRA_TEST_NO_GUARD=pages"],
                  check=False)
    assert refused.returncode != 0 and "release build" in refused.stderr


def register(name, guard, reason, sizes, apart):
    def each():
        for together in [[size] for size in sizes] if apart else [sizes]:
            check(name, guard, reason, together)
    each.__name__ = name
    test(each, timeout=300)


for _entry in listed():
    register(**_entry)


if __name__ == "__main__":
    main()
