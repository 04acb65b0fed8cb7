"""Eager against replay, bit for bit, on programs that look behind the dispatcher's back or leave the traced path.

For each program of tests/programs/divergence/programs.py, at each of its sizes: the same output as eager under the plan made
from chains.py, ops deferred in the hazard's step, and the flush reason that the program names. All that leave the process as it
was run in one process first, which is quicker; what was not deferred there, or flushed for another reason, runs again alone. Each
runs once more on a library without the guard that it names, where the output must differ or the process must fail: the test would
notice its absence.
"""
# timeout: 900
import json
import os
import subprocess
import sys

from harness import (PYTHON, REPLAY, clean_env, main, make_plan, make_without_guards, program, run, temporary_folder,
                     test, without_guard)

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


def by_name(out):
    """And by each program."""
    return {part.split("\n", 1)[0]: by_size(part) for part in out.split("== ")[1:]}


def eager(name):
    """All programs in one process: eager has no state that a later one could see, except what it prints."""
    if "eager" not in _state:
        _state["eager"] = by_name(run([PYTHON, SCRIPT, "--all"], timeout=300).stdout)
    return _state["eager"][name]


def replayed(library, *arguments, timeout=120, **more):
    """How it ended; by program, what was printed at each size, and what was counted in each hazard's step."""
    counts = os.path.join(folder(), "counts.json")
    env = clean_env({"TERRA_PLAN": plan(), "TERRA_TEST_COUNTS": counts, **more}, preload=library)
    done = subprocess.run([PYTHON, SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=timeout)
    seen = dict(map(json.loads, open(counts))) if os.path.exists(counts) else {}
    return done, by_name(done.stdout), seen


def replay(name, library, sizes):
    done, have, seen = replayed(library, name, *map(str, sizes))
    return done, have.get(name, {}), seen.get(name, [])


def together(**env):
    """What the programs did in one process: how it ended, and by program what was printed and counted."""
    key = str(env)
    if key not in _state:
        _state[key] = (None, {}, {})
        _state[key] = replayed(REPLAY, "--together", timeout=200, **env)
    return _state[key]


def same_without(name, guard, sizes, want):
    """The sizes at which a library without the guard prints the same, and what it said. Tried up to five times: a guard may be
    one against a race, which is not always lost, and a run in which nothing was deferred (seen once) says nothing of it."""
    for _ in range(5):
        done, have, seen = replay(name, without_guard(guard), sizes)
        same = [size for size in sizes if done.returncode == 0 and have.get(size) == want[size]]
        if not same:
            break
        print(f"{name}: the same without {guard}: {seen}\n{done.stderr[-800:]}")
    return same, seen


def same_as_eager(have, name):
    want = eager(name)
    assert all(have[size] == want[size] for size in have), f"{name}: replay printed\n{have}\neager\n{want}"


def wrong(seen, reason, sizes):
    """What was not counted as it must be, "" if nothing."""
    if len(seen) != len(sizes):
        return f"counts of {len(seen)} runs"
    for size, counts in zip(sizes, seen):
        if counts["deferred"] == 0:
            return f"size {size}: nothing was deferred: {counts}"
        for each in reason.split():
            if counts[each] == 0:
                return f"size {size}: no flush by {each}: {counts}"
            if size > 1 and each in IN_PARALLEL and counts["parallel"] == 0:
                return f"size {size}: on one thread: {counts}"
    return ""


def check(name, guard, reason, sizes, apart):
    want = {size: eager(name)[size] for size in sizes}
    _, have, seen = together()
    same_as_eager(have.get(name, {}), name)
    why = "nothing of it is left to others" if apart else wrong(seen.get(name, []), reason, sizes)
    if why:
        print(f"{name} runs alone: {why}")
        done, have, seen = replay(name, REPLAY, sizes)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-800:]}"
        assert have == want, f"replay printed\n{have}\neager\n{want}"
        why = wrong(seen, reason, sizes)
        assert not why, why
    # What several guards cover is the same at each size.
    same, seen = same_without(name, guard, sizes[:1] if "+" in guard else sizes, want)
    assert not same, f"without the guard {guard} the output is the same at size {same}: {seen}"


@test(timeout=600)
def libraries_without_one_guard_each():
    "The test builds that leave out a guard can be made, and release builds refuse to."
    make_without_guards()
    source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    configure = ["cmake", "-S", source, "-DTERRA_TEST_NO_GUARD=pages"]
    for kind in ["-DCMAKE_BUILD_TYPE=Release"], ["-DCMAKE_BUILD_TYPE=release"], ["-DCMAKE_BUILD_TYPE=MinSizeRel"], ["-DTERRA_TESTS=OFF"]:
        refused = run([*configure, "-B", os.path.join(folder(), kind[0]), *kind], check=False)
        assert refused.returncode != 0 and "release build" in refused.stderr, kind
    unsafe = os.path.join(folder(), "unsafe")
    run([*configure, "-B", unsafe, "-DCMAKE_BUILD_TYPE=Debug"], timeout=200)
    refused = run(["cmake", "-P", os.path.join(unsafe, "replay", "cmake_install.cmake")], check=False)
    assert refused.returncode != 0 and "not installed" in refused.stderr, refused


@test(timeout=300)
def all_together():
    "With and without trials, which leave alone now this, now that."
    for env in {}, {"TERRA_TRIALS": "on"}:
        done, have, _ = together(**env)
        assert done is not None and done.returncode == 0, done and f"exit {done.returncode}: {done.stderr[-800:]}"
        assert len(have) > 80
        for name in have:
            same_as_eager(have[name], name)


def register(name, guard, reason, sizes, apart):
    def each():
        for group in [[size] for size in sizes] if apart else [sizes]:
            check(name, guard, reason, group, apart)
    each.__name__ = name
    test(each, timeout=300)


for _entry in listed():
    register(**_entry)


if __name__ == "__main__":
    main()
