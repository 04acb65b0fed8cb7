"""Eager against replay, bit for bit, on programs that look behind the dispatcher's back or leave the traced path.

For each program of tests/programs/divergence/programs.py, at each of its sizes: the same output as eager under the plan made
from chains.py, ops deferred in the hazard's step, and the flush reason that the program names. All that leave the process as it
was run in one process first, which is quicker; what was not deferred there, or flushed for another reason, runs again alone. Each
runs once more on a library without the guard that it names, where the output must differ or the process must fail: the test would
notice its absence. All that name the same guard are forked by one process that has imported PyTorch; what prints the same there runs
again alone.
"""
# timeout: 900
# long: 150
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
    """How it ended, and by program what was counted in each hazard's step."""
    counts = os.path.join(folder(), "counts.json")
    env = {"TERRA_PLAN": plan(), "TERRA_TEST_COUNTS": counts, **more}
    done = run([PYTHON, SCRIPT, *arguments], env=env, preload=library, timeout=timeout, check=False)
    seen = dict(map(json.loads, open(counts))) if os.path.exists(counts) else {}
    return done, seen


def replay(name, library, sizes):
    done, seen = replayed(library, name, *map(str, sizes))
    return done, by_name(done.stdout).get(name, {}), seen.get(name, [])


def together(**env):
    """What the programs did in one process: how it ended, and by program what was printed and counted."""
    key = str(env)
    if key not in _state:
        _state[key] = (None, {}, {})
        done, seen = replayed(REPLAY, "--together", timeout=200, **env)
        _state[key] = done, by_name(done.stdout), seen
    return _state[key]


def forked(library, programs):
    """Programs, each with sizes, in children of one process, which go on with replay: how each ended, what it printed at each size,
    and what was counted."""
    symbols = run(["nm", library]).stdout.splitlines()
    flag, = (line.split()[0] for line in symbols if line.endswith(" replay_disabled"))
    done, seen = replayed(library, "--forked", json.dumps(programs), timeout=250, TERRA_TEST_DISABLED_AT=flag)
    ended = {}
    for name, sizes, code, out in map(json.loads, done.stdout.splitlines()):
        assert name in by_name(out), f"{name} never began: {done.stderr[-800:]}"
        ended[name, *sizes] = code, by_name(out)[name]
    return done, ended, seen


def groups(sizes, apart):
    """The sizes that run in one process."""
    return [[size] for size in sizes] if apart else [sizes]


def without_its_guard(guard, sizes):
    """What several guards cover is the same at each size."""
    return sizes[:1] if "+" in guard else sizes


def all_without(guard):
    """How all programs that name the guard end without it."""
    if guard not in _state:
        _state[guard] = {}
        programs = [[entry["name"], without_its_guard(guard, sizes)] for entry in _listed if entry["guard"] == guard
                    for sizes in groups(entry["sizes"], entry["apart"])]
        _state[guard] = forked(without_guard(guard), programs)[1]
    return _state[guard]


def same_without(name, guard, sizes, want):
    """The sizes at which a library without the guard prints the same, and what it said. Tried up to five times more, alone: a guard
    may be one against a race, which is not always lost, and a run in which nothing was deferred (seen once) says nothing of it."""
    if (name, *sizes) in all_without(guard):
        code, have = all_without(guard)[name, *sizes]
        if code != 0 or all(have.get(size) != want[size] for size in sizes):
            return [], {}
        print(f"{name} runs alone without {guard}: the same when forked")
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
    same, seen = same_without(name, guard, without_its_guard(guard, sizes), want)
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


def idle_when_forked(programs):
    """Those of which nothing was deferred; all print what eager does."""
    done, ended, seen = forked(REPLAY, programs)
    assert done.returncode == 0 and len(ended) == len(programs), done.stderr[-800:]
    for (name, *sizes), (code, have) in ended.items():
        assert code == 0 and have == {size: eager(name)[size] for size in sizes}, f"{name}: exit {code}, {have}"
    return [name for name in seen if not all(counts["deferred"] for counts in seen[name])]


@test(timeout=300)
def a_forked_program_is_like_one_alone():
    "In a child that goes on with replay each program is deferred and prints what eager does: what differs there is the guard's."
    programs = [[entry["name"], sizes] for entry in _listed for sizes in groups(entry["sizes"], entry["apart"])]
    idle = idle_when_forked(programs)
    if idle:  # once in some hundred runs, wherever a program runs
        idle = idle_when_forked([[name, sizes] for name, sizes in programs if name in idle])
    assert not idle, f"nothing was deferred, twice: {idle}"


def register(name, guard, reason, sizes, apart):
    def each():
        for group in groups(sizes, apart):
            check(name, guard, reason, group, apart)
    each.__name__ = name
    test(each, timeout=300)


_listed = listed()
for _entry in _listed:
    register(**_entry)


if __name__ == "__main__":
    main()
