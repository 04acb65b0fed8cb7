#!/usr/bin/env python3
"""Beside other preloaded libraries: an allocator that puts itself in front of the memory calls changes nothing of ours."""
import json
import os
import sys

from harness import PYTHON, REPLAY, ROOT, main, make_plan, program, run, skip, temporary_folder, test, traced

sys.path.insert(0, os.path.join(ROOT, "tests"))
import bench

PROGRAM = [program("mlp.py"), "30"]
_folder = temporary_folder()


def trained(*libraries, **env):
    return run([PYTHON, *PROGRAM], preload=libraries, env=env).stdout


def trained_with_plan(*libraries):
    """What training printed, and how many of its ops were fused."""
    log = os.path.join(_folder.name, "log.json")
    plan = make_plan(os.path.join(_folder.name, "mlp"), traced("mlp"))
    out = trained(*libraries, TERRA_PLAN=plan, TERRA_LOG="json:" + log)
    with open(log, encoding="ascii") as file:
        return out, json.load(file)["ops_fused"]


@test
def tcmalloc_in_front_and_behind():
    "Its mmap goes by way of `syscall`, which we wrap: it once came back to us while we held the arena's lock."
    try:
        tcmalloc = bench.find_tcmalloc()
    except bench.Failed as reason:
        skip(str(reason))
    eager = trained()
    for libraries in ((REPLAY, tcmalloc), (tcmalloc, REPLAY)):
        out, fused = trained_with_plan(*libraries)
        assert out == eager, f"{libraries}:\n{out}\n{eager}"
        assert fused > 0, libraries


if __name__ == "__main__":
    main()
