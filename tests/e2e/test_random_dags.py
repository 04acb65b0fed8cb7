#!/usr/bin/env python3
"""Random DAGs of elementwise ops through trace, plan and replay: eager's bits, and most of their ops fused.

The DAGs are those of the commit: the seed is its hash, so that each commit tries others and each can be tried again.
All iterations count, the first included. TERRA_RANDOM_DAGS is how many DAGs there are, 200 by default;
TERRA_RANDOM_SEED is another seed.
"""
# timeout: 1200
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, ROOT, main, program, run, test, tool

DAGS = os.environ.get("TERRA_RANDOM_DAGS", "200")
SEED = os.environ.get("TERRA_RANDOM_SEED")
FOLDER = tempfile.mkdtemp(prefix="terra-test-dags-")
ITERATIONS = 10
SHARE = 0.8


def seed():
    """Of the commit; outside of a repository there is none, and any number does."""
    if SEED:
        return SEED
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return str(int(done.stdout[:8], 16)) if done.returncode == 0 else "20220101"


def command(iterations, after=0):
    number = str(int(seed()) + after)
    return [PYTHON, program("random_dags.py"), number, "--dags", DAGS, "--iterations", str(iterations)]


@functools.cache
def plan():
    trace, path = os.path.join(FOLDER, "dags.terra"), os.path.join(FOLDER, "dags.plan")
    run([tool("terra-trace"), "--quiet", "--backend", "preload", "-o", trace, "--", *command(3)], timeout=300)
    # Tensors of a few thousand elements gain little; here it is about answers. Threads that spin while they wait for
    # each other make the check take ten times as long on a busy machine.
    run([tool("terra-opt"), "--quiet", "--no-measure", "--disable-pass", "cost", "-o", path, trace],
        env={"GOMP_SPINCOUNT": "0"}, timeout=900)
    return path


def differing(eager, replayed, after):
    """The first DAG with other bits, with its source: python random_dags.py SEED --only NUMBER runs it alone."""
    number = command(1, after)[2]
    for want, have in zip(eager.splitlines(), replayed.splitlines()):
        if want != have:
            dag = want.split()[1]
            source = run([PYTHON, program("random_dags.py"), number, "--only", dag, "--source"]).stdout
            return f"seed {number}: eager {want}, replay {have}\n{source}"
    return f"seed {number}: other lines\n{replayed}"


def same_bits(iterations, after=0):
    """Eager and replay print the same. The number of elementwise ops in all iterations, and what replay counted."""
    log = os.path.join(FOLDER, "log.json")
    eager = run(command(iterations, after), timeout=300).stdout
    done = run(command(iterations, after), env={"TERRA_PLAN": plan(), "TERRA_LOG": "json:" + log}, preload=REPLAY,
               timeout=300)
    assert done.stderr == "", done.stderr
    assert done.stdout == eager, differing(eager, done.stdout, after)
    with open(log, encoding="utf-8") as file:
        return int(eager.split()[0]) * iterations, json.load(file)


@test(timeout=1200)
def random_dags():
    "The same bits as eager, and at least 80 % of the elementwise ops in fused regions."
    ops, counts = same_bits(ITERATIONS)
    share = counts["ops_fused"] / ops
    assert share >= SHARE, f"seed {seed()}: {counts['ops_fused']} of {ops} ops fused, {share:.1%}"


@test(timeout=600)
def other_dags_under_the_same_plan():
    "What begins like a region and goes on differently is finished op by op, with the same bits."
    for after in (1, 2):
        _, counts = same_bits(3, after)
        assert counts["ops_singly"] > 0, counts


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
