"""Eager against replay, bit for bit, on programs that look behind the dispatcher's back or leave the traced path.

For each program of tests/programs/divergence/programs.py, at each of its sizes: the same output as eager under the plan made
from chains.py, ops deferred in the hazard's step, and the flush reason that the program names. All that leave the process as it
was run in one process first, which is quicker; what is not right there runs again alone, and counts so. Each runs once more on a
library without the guard that it names, where the output must differ or the process must fail: the test would notice its absence.
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


def by_name(out):
    """And by each program."""
    return {part.split("\n", 1)[0]: by_size(part) for part in out.split("== ")[1:]}


def eager(name):
    """All programs in one process: eager has no state that a later one could see, except what it prints."""
    if "eager" not in _state:
        _state["eager"] = by_name(run([PYTHON, SCRIPT, "--all"], timeout=300).stdout)
    return _state["eager"][name]


def replayed(library, *arguments, timeout=120):
    """How it ended; by program, what was printed at each size, and what was counted in each hazard's step."""
    counts = os.path.join(folder(), "counts.json")
    env = clean_env({"TERRA_PLAN": plan(), "TERRA_TEST_COUNTS": counts}, preload=library)
    done = subprocess.run([PYTHON, SCRIPT, *arguments], env=env, capture_output=True, text=True, timeout=timeout)
    seen = dict(map(json.loads, open(counts))) if os.path.exists(counts) else {}
    return done, by_name(done.stdout), seen


def replay(name, library, sizes):
    done, have, seen = replayed(library, name, *map(str, sizes))
    return done, have.get(name, {}), seen.get(name, [])


def together(name):
    """What the program did in one process with the others."""
    if "together" not in _state:
        _state["together"] = replayed(REPLAY, "--together", timeout=300)
    _, have, seen = _state["together"]
    return have.get(name, {}), seen.get(name, [])


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


def wrong(have, want, seen, reason, sizes):
    """What is not as it must be, "" if nothing."""
    if have != want:
        return f"replay printed\n{have}\neager\n{want}"
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
    why = "it leaves the process changed" if apart else wrong(together(name)[0], want, together(name)[1], reason, sizes)
    if why:
        print(f"{name} runs alone: {why}")
        done, have, seen = replay(name, REPLAY, sizes)
        assert done.returncode == 0, f"exit {done.returncode}: {done.stderr[-800:]}"
        why = wrong(have, want, seen, reason, sizes)
        assert not why, why
    # What several guards cover is the same at each size.
    same, seen = same_without(name, guard, sizes[:1] if "+" in guard else sizes, want)
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
        for group in [[size] for size in sizes] if apart else [sizes]:
            check(name, guard, reason, group, apart)
    each.__name__ = name
    test(each, timeout=300)


for _entry in listed():
    register(**_entry)


if __name__ == "__main__":
    main()
