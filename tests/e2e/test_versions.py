#!/usr/bin/env python3
"""Other releases of PyTorch than the one that all suites run on: what is derived from the libraries holds for theirs too.

The releases are those that tools/setup --versions fetches; no other suite needs them.
"""
# timeout: 900
import json
import os
import re

import trace_oracle
from harness import PYTHON, RECORD, REPLAY, ROOT, can_load_bpf, main, program, run, skip, temporary_folder, test, tool
from test_bpf_trace import first_difference, op_stream

CACHE = os.environ.get("TERRA_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "terra")
ZOO = os.path.join(ROOT, "tests", "e2e", "op_zoo.py")
WATCHED = os.path.join(ROOT, "tests", "e2e", "watched.py")
MLP = [program("mlp.py"), "12"]
FUSED_IN_A_STEP = 40  # AdamW's eight ops for five of mlp's six parameters

with open(os.path.join(ROOT, "tools", "setup"), encoding="utf-8") as setup:
    RELEASES = re.search(r'^RELEASES="(.*)"', setup.read(), re.MULTILINE)[1].split()


def folder_of(release):
    folder = os.path.join(CACHE, "torch-" + release)
    if not os.path.isdir(folder):
        skip(f"no PyTorch {release} here: tools/setup --versions fetches it")
    return folder


def env_of(release, **env):
    """The environment's Python with that release before its own. The release comes with its own CUDA libraries."""
    return {"PYTHONPATH": folder_of(release), "LD_LIBRARY_PATH": "", **env}


def library(release):
    return os.path.join(folder_of(release), "torch", "lib", "libtorch_cpu.so")


def unit_test(name, release):
    """A C test on that release's library."""
    out = run([tool(name)], env={"TERRA_LIBTORCH": library(release), "LD_LIBRARY_PATH": ""}, timeout=300).stdout
    assert "SKIPPED" not in out and "skipped" not in out, out


def tables_and_offsets(release):
    """Op table against the release's headers and by calls through it, offsets, exits."""
    for name in ("test_optable_torch", "test_offsets", "test_sites"):
        unit_test(name, release)


def holds_every_op(release):
    """Every form of argument, in one process with TorchDispatchMode."""
    with temporary_folder() as folder:
        out, path = os.path.join(folder, "watched.json"), os.path.join(folder, "zoo.terra")
        run([PYTHON, WATCHED, out, ZOO], env=env_of(release, TERRA_RECORD_FILE=path, TERRA_RECORD_LEVELS="call,redispatch"),
            preload=RECORD, timeout=300)
        trace = trace_oracle.Trace.read(tool("trace_dump"), path)
        with open(out, encoding="utf-8") as file:
            comparison = trace_oracle.compare(trace, json.load(file))
    assert trace.info["library"] == library(release), trace.info
    assert not comparison.differences, "\n".join(comparison.differences[:20])
    assert comparison.matched >= 800, comparison.matched
    assert {name for name in comparison.only_mode if name.startswith("aten::")} <= {"aten::detach"}, comparison.only_mode
    assert trace.end["clean"] and trace.end["lost"] == 0, trace.end
    print(f"  PyTorch {release}: {comparison.matched} ops equal")


def traced(release, backend, folder):
    path = os.path.join(folder, backend + ".terra")
    done = run([tool("terra-trace"), "--quiet", "--backend", backend, "-o", path, "--", PYTHON, *MLP], env=env_of(release),
               timeout=300)
    return path, done.stdout


def replay_keeps_the_bits(release):
    """Both backends' traces are one; from the trace to fused execution, with the program's output."""
    with temporary_folder() as folder:
        path, out = traced(release, "preload", folder)
        events = trace_oracle.Trace.read(tool("trace_dump"), path).events
        if can_load_bpf():
            of_bpf = trace_oracle.Trace.read(tool("trace_dump"), traced(release, "bpf", folder)[0]).events
            difference = first_difference(op_stream(of_bpf), op_stream(events))
            assert difference is None, difference
        plan, log = os.path.join(folder, "mlp.plan"), os.path.join(folder, "log.json")
        run([tool("terra-opt"), "--quiet", "--no-measure", "-o", plan, path], env=env_of(release, GOMP_SPINCOUNT="0"), timeout=300)
        done = run([PYTHON, *MLP], env=env_of(release, TERRA_PLAN=plan, TERRA_LOG="json:" + log), preload=REPLAY, timeout=120)
        with open(log, encoding="utf-8") as file:
            fused = json.load(file)["ops_fused"]
    assert done.stdout == out and out.startswith("step 0 loss "), f"{done.stdout}\n{out}\n{done.stderr}"
    assert fused >= FUSED_IN_A_STEP * 11, fused
    print(f"  PyTorch {release}: {fused} ops fused in 12 steps")


def register(check, release):
    """One test for one release, each with an outcome of its own."""
    def run_check():
        check(release)
    run_check.__name__ = f"{check.__name__}_of_{release.replace('.', '_')}"
    run_check.__doc__ = check.__doc__
    test(timeout=600)(run_check)


for each in RELEASES:
    for function in (tables_and_offsets, holds_every_op, replay_keeps_the_bits):
        register(function, each)


if __name__ == "__main__":
    main()
