#!/usr/bin/env python3
"""Random DAGs of elementwise ops through trace, plan and replay: eager's bits, and most of their ops fused.

The DAGs are those of the commit: the seed is its hash, so that each commit tries others and each can be tried again. It
is printed. All iterations count, the first included, and there are enough of them for replay to judge where it pays to
let an op wait. TERRA_RANDOM_DAGS is how many DAGs there are, 200 by default; TERRA_RANDOM_SEED is another seed.

Two programs have half of the DAGs each and are worked on side by side, on one thread each: the DAGs are too small for
more.
"""
# timeout: 900
import concurrent.futures
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, ROOT, main, make_plan, program, run, test

DAGS = max(int(os.environ.get("TERRA_RANDOM_DAGS", "200")) // 2, 1)
FOLDER = tempfile.mkdtemp(prefix="terra-test-dags-")
ITERATIONS = 40
SHARE = 0.8
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
PARTS = (0, 1)


@functools.cache
def seed():
    """Of the commit; outside of a repository there is none, and any number does."""
    given = os.environ.get("TERRA_RANDOM_SEED")
    if given:
        return int(given)
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True)
    return int(done.stdout[:8], 16) if done.returncode == 0 else 20220101


def program_of(part, iterations):
    return [program("random_dags.py"), str(seed() + part), "--dags", str(DAGS), "--iterations", str(iterations)]


def command(part, iterations):
    return [PYTHON, *program_of(part, iterations)]


PLANS = {}


def path(part, name):
    return os.path.join(FOLDER, f"{part}.{name}")


def prepare(part):
    """A part's plan, and what it prints without us."""
    # Tensors of a few thousand elements gain little; here it is about answers.
    PLANS[part] = make_plan(os.path.join(FOLDER, str(part)), program_of(part, 3), "--disable-pass", "cost", env=ONE_THREAD)
    return run(command(part, ITERATIONS), env=ONE_THREAD, timeout=200).stdout


def side_by_side(function, *arguments):
    with concurrent.futures.ThreadPoolExecutor(len(PARTS)) as pool:
        return list(pool.map(function, *arguments))


@functools.cache
def eager():
    print(f"seed {seed()}: TERRA_RANDOM_SEED={seed()} tries the same DAGs again", flush=True)
    return side_by_side(prepare, PARTS)


def differing(part, replayed):
    """The first DAG with other bits, with its source: python random_dags.py SEED --only NUMBER runs it alone."""
    for want, have in zip(eager()[part].splitlines(), replayed.splitlines()):
        if want != have:
            dag = want.split()[1]
            source = run([*command(part, 1), "--only", dag, "--source"]).stdout
            return f"seed {seed() + part}: eager {want}, replay {have}\n{source}"
    return f"seed {seed() + part}: other lines\n{replayed}"


def same_bits(part, plan_of):
    """Eager and replay print the same. The number of elementwise ops in all iterations, and what replay counted."""
    log = path(part, "json")
    done = run(command(part, ITERATIONS), preload=REPLAY, timeout=200,
               env={"TERRA_PLAN": PLANS[plan_of], "TERRA_LOG": "json:" + log, **ONE_THREAD})
    assert done.stderr == "", done.stderr
    assert done.stdout == eager()[part], differing(part, done.stdout)
    with open(log, encoding="utf-8") as file:
        return int(done.stdout.split()[0]) * ITERATIONS, json.load(file)


@test(timeout=800)
def random_dags():
    "The same bits as eager, and at least 80 % of the elementwise ops in fused regions."
    eager()
    outcomes = side_by_side(same_bits, PARTS, PARTS)
    ops = sum(n for n, _ in outcomes)
    fused = sum(counts["ops_fused"] for _, counts in outcomes)
    print(f"seed {seed()}: {fused} of {ops} ops fused, {fused / ops:.1%}", flush=True)
    assert fused >= SHARE * ops, f"seed {seed()}: {fused} of {ops} ops fused, {fused / ops:.1%}"


@test(timeout=800)
def other_dags_under_the_same_plan():
    "What begins like a region and goes on differently is finished op by op, with the same bits."
    eager()
    for _, counts in side_by_side(same_bits, PARTS, PARTS[::-1]):
        assert counts["ops_singly"] > 0, counts


if __name__ == "__main__":
    try:
        main()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)
