"""Module paths: each op's is what named_modules() calls the module that is being called, by both backends."""
import json
import os
from collections import Counter

import trace_oracle
from harness import PYTHON, RECORD, ROOT, main, need_bpf, run, temporary_folder, test, tool

DUMP = tool("trace_dump")
PROGRAM = os.path.join(ROOT, "tests", "programs", "modules.py")
NOT_TYPED = "aten::detach"  # the interpreter hands it to the mode itself whenever a tensor is saved for backward
HELD_BY_NOBODY = {("aten::tanh", "Net"), ("aten::_softmax", "Net")}


def record(backend, folder, command):
    path = os.path.join(folder, backend + ".terra")
    if backend == "preload":
        run(command, env={"TERRA_RECORD_FILE": path}, preload=RECORD, timeout=200)
    else:
        run([tool("terra-trace"), "--quiet", "--backend", "bpf", "-o", path, "--", *command], timeout=200)
    return path, trace_oracle.Trace.read(DUMP, path)


def check_against_mode(backend):
    """The outermost ops of the trace are those that the mode saw. A module that nobody holds has the path of the one around
    it when there was time to see that nobody does, else none."""
    with temporary_folder() as folder:
        out = os.path.join(folder, "seen.json")
        path, trace = record(backend, folder, [PYTHON, PROGRAM, out])
        with open(out, encoding="utf-8") as file:
            seen = Counter((name, path) for name, path in json.load(file) if path and name != NOT_TYPED)
        summary = json.loads(run([tool("terra-report"), "--json", path]).stdout)
    recorded = Counter((enter["op"], enter["module"]) for enter in trace.enters if "parent" not in enter and "module" in enter)
    paths = {path for _, path in seen}
    print(f"  {backend}: {sum(seen.values())} ops in {len(paths)} modules")
    assert len(paths) >= 10 and "Net.layers.1.attention.0" in paths and "Net.late" in paths and "Net" in paths, paths
    assert "Net.layers.0.shared" in paths and "Net.shared" not in paths, paths
    for key in {*seen, *recorded}:
        assert recorded[key] == seen[key] or key in HELD_BY_NOBODY and recorded[key] < seen[key], (key, seen[key], recorded[key])
    for enter in trace.enters:
        parent = trace.by_seq.get(enter.get("parent"))
        assert not parent or enter.get("module") == parent.get("module"), (enter, parent)
    check_report(trace, summary)


def check_report(trace, summary):
    """Time by module: as many outermost ops as the trace says, those of backward passes by the op that made the Node."""
    forward, backward = Counter(), Counter()
    for enter in trace.enters:
        if "parent" in enter:
            continue
        if "module" in enter:
            forward[enter["module"]] += 1
        elif "module" in trace.by_seq.get(enter.get("forward"), {}):
            backward[trace.by_seq[enter["forward"]]["module"]] += 1
    assert backward["Net.layers.2.attention.0"] > 0, backward
    reported = {module["module"]: module for module in summary["modules"]}
    assert {name: module["ops"] for name, module in reported.items() if module["ops"]} == dict(forward)
    assert {name: module["backward_ops"] for name, module in reported.items() if module["backward_ops"]} == dict(backward)


@test
def preload_knows_the_modules():
    check_against_mode("preload")


@test(timeout=300)
def bpf_knows_the_modules():
    need_bpf()
    check_against_mode("bpf")


if __name__ == "__main__":
    main()
