#!/usr/bin/env python3
"""What a trace holds of real programs is what PyTorch's own TorchDispatchMode sees in the same process: 100 % of the ops, in
order, with all arguments, results, and which results share memory with which arguments.

One process is watched by the mode and recorded by both backends at once, each at other levels. TERRA_TEST_FULL=1 takes more
steps, has each backend record each choice of levels, and each backend alone.
"""
# timeout: 900
# long: 90
import copy
import json
import os

import trace_oracle
from harness import PYTHON, RECORD, ROOT, can_load_bpf, libtorch, main, need_bpf, program, run, temporary_folder, test, tool

DUMP = tool("trace_dump")
WATCHED = os.path.join(ROOT, "tests", "e2e", "watched.py")
ZOO = os.path.join(ROOT, "tests", "e2e", "op_zoo.py")
FULL = os.environ.get("TERRA_TEST_FULL") == "1"

# Levels that both backends can be asked for, and what the comparison has to know of them; which of them each backend
# records where it is not asked for all of them.
LEVELS = {"all": {}, "call": {"levels": ("call",)}, "ops": {"levels": ("call",), "composite": False}}
USUAL = {"bpf": "ops", "preload": "all"}

# What reaches a mode past libtorch's entry points: `detach`, which the interpreter hands to it itself; what the optimizers'
# step() asks of the profiler; and the ops of extensions.
PAST_ENTRIES = {"aten::detach"}
OPTIMIZER = {"profiler::_record_function_enter_new", "profiler::_record_function_exit"}
VISION = {"torchvision::nms", "torchvision::roi_align", "torchvision::_roi_align_backward"}


def unread(value):
    """The values that a backend may leave unread: none."""
    return False


def backends():
    if os.environ.get("TERRA_REQUIRE_BPF") == "1":
        need_bpf()
    return ["bpf", "preload"] if can_load_bpf() else ["preload"]


def watch(path, arguments, levels):
    """A program under the mode, recorded by each backend in `levels` at those levels: the traces by backend, and what the mode
    saw. Stacks are left out: they are no part of this, and most of the time."""
    with temporary_folder() as folder:
        traces = {backend: os.path.join(folder, backend + ".terra") for backend in levels}
        out = os.path.join(folder, "watched.json")
        command = [PYTHON, WATCHED, out, path, *arguments]
        if "preload" in levels:
            # By env: in the tracer's own environment it would record the tracer's children, too.
            record = {"LD_PRELOAD": RECORD, "TERRA_RECORD_FILE": traces["preload"], "TERRA_RECORD_STACKS": "0",
                      "TERRA_RECORD_LEVELS": "call,redispatch" if levels["preload"] == "all" else levels["preload"]}
            command = ["env", *(f"{name}={value}" for name, value in record.items()), *command]
        if "bpf" in levels:
            command = [tool("terra-trace"), "--quiet", "--backend", "bpf", "--levels", levels["bpf"], "--no-stacks",
                       "--library", libtorch(), "-o", traces["bpf"], "--", *command]
        run(command, timeout=300)
        with open(out, encoding="utf-8") as file:
            return {backend: trace_oracle.Trace.read(DUMP, traces[backend]) for backend in levels}, json.load(file)


def check(title, trace, watched, unread, at_least, past_entries, **about):
    """One trace against the mode."""
    comparison = trace_oracle.compare(trace, watched, unread, **about)
    assert not comparison.differences, f"{title}: {len(comparison.differences)}, " + "\n".join(comparison.differences[:20])
    assert comparison.matched >= at_least, (title, comparison.matched)
    assert set(comparison.only_mode) == past_entries, (title, comparison.only_mode)
    print(f"  {title}: {comparison.matched} ops equal, {comparison.shared} results in an argument's memory, "
          f"{sum(comparison.unreadable.values())} values unread; {len(trace.enters)} entries; "
          f"only the mode saw {sum(comparison.only_mode.values())}")
    return comparison


def check_trace(backend, levels, trace, watched, at_least, past_entries):
    """A trace at its levels; one of all levels also as what it would be at fewer."""
    assert trace.info["backend"] == backend, trace.info
    assert trace.end["clean"] and trace.end["lost"] == 0, trace.end
    title = f"{backend}, {levels}"
    check(title, trace, watched, unread, at_least, past_entries, **LEVELS[levels])
    if levels == "all":
        check(title + ", its calls", trace.calls(), watched, unread, at_least, past_entries, levels=("call",))
        inside = sum(op["composite"] for op in watched["ops"])
        comparison = check(title + ", its calls that are no composites", trace.calls(composites_of(watched)), watched,
                           unread, at_least - inside, past_entries, levels=("call",), composite=False)
        assert sum(comparison.composite.values()) == inside


def composites_of(watched):
    return {tuple(name) for name in watched["composites"]}


def check_program(path, steps, full_steps, at_least, past_entries, inference_mode=False):
    steps = [full_steps if FULL else steps] if steps else []
    here = backends()
    rounds = [USUAL]
    if FULL:
        rounds += [{"bpf": USUAL["preload"], "preload": USUAL["bpf"]}]
        rounds += [{backend: levels} for backend in here for levels in LEVELS]
    for levels in rounds:
        levels = {backend: levels[backend] for backend in levels if backend in here}
        traces, watched = watch(path, steps, levels)
        # In inference mode, and nowhere else, a mode is handed ops that are only made of others.
        assert any(op["composite"] for op in watched["ops"]) == inference_mode
        for backend, trace in traces.items():
            check_trace(backend, levels[backend], trace, watched, at_least, PAST_ENTRIES | past_entries)


@test(timeout=600)
def mlp_is_recorded_completely():
    check_program(program("mlp.py"), 2, 20, 200, OPTIMIZER)


@test(timeout=600)
def gpt2_is_recorded_completely():
    "A transformer in training mode."
    check_program(program("gpt2.py"), 1, 2, 2000, OPTIMIZER)


@test(timeout=600)
def resnet_is_recorded_completely():
    check_program(program("resnet.py"), 1, 5, 800, OPTIMIZER)


@test(timeout=600)
def fasterrcnn_is_recorded_completely():
    "Training and detection; the ops of torchvision's own library are the only ones of a program that the trace is without."
    check_program(program("fasterrcnn.py"), 1, 3, 4000, OPTIMIZER | VISION)


@test(timeout=600)
def bert_is_recorded_completely():
    "Training, and under no_grad and inference_mode."
    check_program(program("bert.py"), 1, 5, 2400, OPTIMIZER, inference_mode=True)


@test(timeout=600)
def dcgan_is_recorded_completely():
    "Two models and two optimizers."
    check_program(program("dcgan.py"), 1, 5, 600, OPTIMIZER)


@test(timeout=600)
def every_form_of_argument_is_read():
    "Stack and vector registers, optionals, lists of all kinds, strings, scalars, tuples, out= and in-place."
    check_program(ZOO, None, None, 800, OPTIMIZER, inference_mode=True)


def altered(trace, change):
    """A copy of the trace whose enters `change` was applied to."""
    events = copy.deepcopy(trace.events)
    change(events)
    return trace_oracle.Trace(events)


def positions_of_mode(trace, watched, **about):
    """Positions in trace.events of the entries that the comparison uses."""
    comparison = trace_oracle.compare(trace, watched, **about)
    assert not comparison.differences
    return [index for index, event in enumerate(trace.events) if event["event"] == "enter" and
            event["seq"] in comparison.used]


def check_that_changes_are_found(trace, watched, every, **about):
    """Of the ops, one in `every` is dropped and swapped."""
    used = positions_of_mode(trace, watched, **about)

    def differences(change):
        return trace_oracle.compare(altered(trace, change), watched, **about).differences

    def tensor_at(events):
        index = next(i for i in used if any(v["kind"] == "Tensor" and v["value"]["ndim"] == 2
                                            for v in events[i]["values"]))
        return next(v["value"] for v in events[index]["values"] if v["kind"] == "Tensor" and v["value"]["ndim"] == 2)

    def swap(events, a, b):
        for key in ("op", "overload", "values"):
            events[a][key], events[b][key] = events[b][key], events[a][key]

    def scalar_at(events):
        return next(v for i in used for v in events[i]["values"] if v["present"] and v["kind"] == "Scalar")

    def double_at(events):
        return next(v for i in used for v in events[i]["values"] if v["present"] and v["kind"] == "float")

    def result_at(events):
        return next(e for e in events if e["event"] == "exit" and e["enter"] == events[used[3]]["seq"])["values"][0]["value"]

    def view_at(events):
        """The argument and the result of a view: one memory in both worlds, then another in both of the trace's."""
        enter = next(events[i] for i in used if events[i]["op"] == "aten::t")
        leave = next(e for e in events if e["event"] == "exit" and e["enter"] == enter["seq"])
        return enter["values"][0]["value"], leave["values"][0]["value"]

    def drop(events, index):
        """All levels of an op: its innermost entry with those of the same op around it, and their ends."""
        gone, seq = set(), events[index]["seq"]
        by_seq = {event["seq"]: event for event in events if event["event"] == "enter"}
        while seq in by_seq and by_seq[seq]["op"] == events[index]["op"]:
            gone.add(seq)
            seq = by_seq[seq].get("parent")
        events[:] = [e for e in events if e.get("seq") not in gone and e.get("enter") not in gone]

    assert differences(lambda events: None) == []
    for position in range(0, len(used), every):
        assert differences(lambda events: drop(events, used[position])), f"drop {position}"
        assert differences(lambda events: events.pop(used[position])), f"drop one level of {position}"
    for position in range(0, len(used) - 1, every):
        a, b = used[position], used[position + 1]
        if trace.events[a]["op"] != trace.events[b]["op"]:
            assert differences(lambda events: swap(events, a, b)), f"swap {position}"
    assert differences(lambda events: tensor_at(events)["strides"].reverse())
    assert differences(lambda events: tensor_at(events)["sizes"].append(1))
    assert differences(lambda events: tensor_at(events).update(dtype=7))
    assert differences(lambda events: tensor_at(events).update(storage=1))
    assert differences(lambda events: scalar_at(events).update(value=scalar_at(events)["value"] + 1e-12))
    assert differences(lambda events: double_at(events).update(value=double_at(events)["value"] * (1 + 1e-15)))
    assert differences(lambda events: double_at(events).update(present=False))
    assert differences(lambda events: result_at(events).update(impl=1))
    assert any("share memory" in text for text in differences(lambda events: view_at(events)[1].update(storage=1)))


@test(timeout=300)
def the_comparison_finds_what_is_wrong():
    "One op dropped, two swapped, a stride, size, dtype, memory, scalar or result changed: each is a difference, at all levels."
    traces, watched = watch(program("mlp.py"), ["1"], {"preload": "all"})
    trace = traces["preload"]
    check_that_changes_are_found(trace, watched, 7)
    check_that_changes_are_found(trace.calls(), watched, 29, levels=("call",))
    check_that_changes_are_found(trace.calls(composites_of(watched)), watched, 29, levels=("call",), composite=False)


@test
def sharing_of_memory_is_told_apart():
    "A result in the memory of the first argument, of the second, of both, of none, or without memory."
    def tensor(storage):
        return {"storage": storage}
    arguments = [tensor(1), [tensor(2), tensor(0)], 3, None, [tensor(1), 5]]
    assert trace_oracle.sharing([tensor(1), tensor(2), tensor(9), tensor(0)], arguments) == [[0, 4], [1], [], []]
    assert trace_oracle.sharing(tensor(2), arguments) == [[1]]
    assert trace_oracle.sharing([[tensor(2)], None, 4], arguments) == [[1]]


if __name__ == "__main__":
    main()
