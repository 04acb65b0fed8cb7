#!/usr/bin/env python3
"""What a trace holds beyond ops with arguments, against what PyTorch says of the same program: through both backends."""
# timeout: 300
# long: 60
import functools
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, main, need_bpf, run, temporary_folder, test, tool

ACCUMULATES = 2**64 - 1    # the number of all Nodes that add to a leaf's grad

# Prints what PyTorch knows: the Nodes of the graph, then, when asked, the ops that each Node runs.
AUTOGRAD = """
import json, sys, threading, torch
from torch.utils._python_dispatch import TorchDispatchMode
torch.manual_seed(0)
oracle = "oracle" in sys.argv
nodes, ops = {}, []

class Square(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x * x
    @staticmethod
    def backward(context, gradient):
        return gradient * 2 * context.saved_tensors[0]

class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        node = torch._C._current_autograd_node()
        if function._schema.name != "aten::detach":    # what copying a tensor object looks like to a mode, and to nothing else
            ops.append([function._schema.name, node._sequence_nr() if node else None])
        return function(*args, **(kwargs or {}))

def walk(node):
    if node and node.name() not in ("AccumulateGrad", "torch::autograd::AccumulateGrad") and node._sequence_nr() not in nodes:
        nodes[node._sequence_nr()] = node.name()
        for further, _ in node.next_functions:
            walk(further)

def step():
    y = torch.nn.functional.linear(x, w, b).relu()
    z = (y * 2.0).contiguous()            # returns its argument: makes no Node
    z.add_(1.0)
    parts = Square.apply(z).view(2, 8).unbind(0)
    loss = torch.softmax(parts[0], 0).sum() + parts[1].exp().mean()
    walk(loss.grad_fn)
    loss.backward(retain_graph=True)
    gradient, = torch.autograd.grad(loss, x, create_graph=True)
    (gradient * gradient).sum().backward()

def run():
    global x, w, b
    x, w, b = (torch.randn(*size, requires_grad=True) for size in ((4, 4), (4, 4), (4,)))
    for _ in range(3):
        step()

if oracle:
    with Watch():
        run()
else:
    run()
main = dict(nodes)
thread = threading.Thread(target=run)    # Nodes are numbered from 0 again
thread.start()
thread.join()
print(json.dumps({"nodes": main, "ops": ops, "loss": x.grad.sum().item()}))
"""


# Each line reads memory in one way; prints what is read and where.
READS = """
import io, json, numpy, torch
t = torch.arange(12.0).view(3, 4)
expected = []
def say(how, line, tensor=None):
    expected.append([how, line, None if tensor is None else [list(tensor.shape), tensor.data_ptr()]])
line = lambda: __import__("sys")._getframe(1).f_lineno
t.numpy(); say("numpy", line(), t)
numpy.asarray(t[1]); say("numpy", line(), t[1])
t[:, 2].tolist(); say("tolist", line(), t[:, 2])
torch.utils.dlpack.to_dlpack(t); say("dlpack", line(), t)
numpy.from_dlpack(t[2:]); say("dlpack", line(), t[2:])
t.data_ptr(); say("data_ptr", line())
s = t.untyped_storage(); s.data_ptr(); say("storage data_ptr", line())
s[3]; say("storage element", line())
torch.save(t, io.BytesIO()); say("file", line())
t[0, 0].item(); say("item", line())
print(json.dumps([expected, t.untyped_storage().data_ptr()]))
"""

# Ops past the typed entry points.
CALLS = """
import time, torch
a, b = torch.randn(3, requires_grad=True), torch.ones(3)
torch.ops.aten.add.Tensor(a, b)
torch.ops.aten.mul(b, b)
with torch.inference_mode():
    torch.ops.aten.sub.Tensor(b, b)
script = torch.jit.script(torch.nn.ReLU())
script(b)
library = torch.library.Library("mine", "DEF")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x * 2, "CPU")
torch.ops.mine.twice(b)
try:
    import torchvision
    torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
    print("torchvision")
except (ImportError, RuntimeError):    # or one that does not fit this PyTorch
    print("no torchvision")
time.sleep(0.6)
"""

# Each line of cases is one op with the tensors that it gets; prints which of its results share memory with which.
ALIASES = """
import json, torch
torch.manual_seed(0)
x, y, m = torch.randn(4, 6), torch.randn(4, 6), torch.randn(4, 6).t()
cases = [
    lambda: (x.view(6, 4), [x]),
    lambda: (x.t(), [x]),
    lambda: (x[1], [x]),
    lambda: (x + y, [x, y]),
    lambda: (x.add_(y), [x, y]),
    lambda: (x.contiguous(), [x]),
    lambda: (m.contiguous(), [m]),
    lambda: (m.reshape(24), [m]),
    lambda: (x.reshape(24), [x]),
    lambda: (x.to(torch.float32), [x]),
    lambda: (x.to(torch.float64), [x]),
    lambda: (x.detach(), [x]),
    lambda: (torch.split(x, 2), [x]),
    lambda: (torch.unbind(x), [x]),
    lambda: (torch.cat([x, x.data, y]), None),
    lambda: (torch.broadcast_tensors(x, y[:1]), None),
    lambda: (torch.max(x, 1), [x]),
    lambda: (x.expand(2, 4, 6), [x]),
    lambda: (torch.mul(x, y, out=y), [x, y, y]),
    lambda: (x.set_(y), [x, y]),
]
def how(result, argument):
    if result is argument:
        return "same"
    return "storage" if torch._C._is_alias_of(result, argument) else None
expected = []
for case in cases:
    results, arguments = case()
    results = [results] if isinstance(results, torch.Tensor) else list(results)
    if arguments:
        expected.append([case.__code__.co_firstlineno, [[how(r, a) for a in arguments] for r in results]])
print(json.dumps(expected))
"""


# Ops that raise, each followed by one that is called from deeper in the stack; prints which, and when the program had caught it.
RAISES = """
import functools, json, threading, time, torch
a, b = torch.ones(2, 3), torch.ones(2, 3, requires_grad=True)
caught = []

def fail(x):
    try:
        torch.mm(x, x)
    except RuntimeError as error:
        caught.append([time.monotonic_ns(), threading.get_native_id()])
        time.sleep(0.02)
        return str(error)

def deeper(do, n=6):    # each sort has some kilobytes of the stack
    results = []
    sorted([1], key=lambda x: results.append(deeper(do, n - 1) if n else do()) or 0)
    return results[0]

class Inside(torch.Tensor):    # an op whose kernel is Python's, where others raise and are caught
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        fail(a)
        deeper(a.asin)
        return torch.ones(3)

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()
    @staticmethod
    def backward(context, gradient):
        torch.mm(gradient, gradient)

def backward():
    try:
        Backward.apply(b).sum().backward()
    except RuntimeError as error:
        caught.append([time.monotonic_ns(), threading.get_native_id()])
        time.sleep(0.02)

def thread(do):
    one = threading.Thread(target=do)
    one.start()
    one.join()

messages = [fail(a)]
deeper(a.sin)
messages.append(fail(b))    # with the entry points behind autograd
deeper(b.cos)
deeper(lambda: (fail(a), functools.reduce(lambda x, y: deeper(a.tan), range(2))))
backward()
deeper(a.exp)
thread(lambda: (fail(a), deeper(a.cosh)))
fail(a)
deeper(a.numpy)
for i in range(3):
    fail(a)
deeper(a.sinh)
fail(a)
deeper(lambda: (fail(a), deeper(a.tanh)))
inside = torch.ones(3).as_subclass(Inside)
torch.neg(inside)
print(json.dumps([messages, caught]))
"""

# All of them in one process, each under its own name. Nodes are numbered from 0: so autograd's comes first.
PROGRAMS = {"autograd": AUTOGRAD, "reads": READS, "calls": CALLS, "aliases": ALIASES, "raises": RAISES}

@functools.cache
def recording(backend):
    """Events of the programs' trace, and what each printed."""
    with temporary_folder() as folder:
        path, script = os.path.join(folder, "t.terra"), os.path.join(folder, "all.py")
        with open(script, "w") as file:
            file.write("kept = []    # code that is freed has no name in a call stack any more\n")
            for name, code in PROGRAMS.items():
                file.write(f"kept += [compile({code!r}, {name!r}, 'exec'), {{'__name__': {name!r}}}]\nexec(*kept[-2:])\n")
        outcome = run([tool("terra-trace"), "--backend", backend, "-o", path, "--", PYTHON, script],
                      timeout=110)
        lines = [json.loads(line) for line in run([tool("trace_dump"), path], timeout=110).stdout.splitlines()]
    events = lines[1:-1]
    assert lines[-1]["clean"] and not [event for event in events if event["event"] == "lost"], lines[-1]
    return events, dict(zip(PROGRAMS, outcome.stdout.splitlines()))


def plain(name):
    """MulBackward0 and aten::mul_ are both "mul"."""
    return re.sub(r"(backward\d*$)|_", "", name.split("::")[-1].lower())


@functools.cache
def autograd_oracle():
    return json.loads(run([PYTHON, "-c", AUTOGRAD, "oracle"], timeout=100).stdout)


def check_autograd(backend):
    expected = autograd_oracle()
    events, output = recording(backend)
    assert json.loads(output["autograd"])["loss"] == expected["loss"], "another run than the oracle's"
    by_seq = {event["seq"]: event for event in events}
    thread = next(event["thread"] for event in events if event["event"] == "enter")
    ops = [event for event in events if event["event"] in ("enter", "exit")]
    # forward: the op that made each Node of the graph
    made = {}
    for event in ops:
        if event["event"] == "exit" and event["thread"] == thread and "node" in event:
            assert event["node"] not in made, f"{event} and {made[event['node']]} made one Node"
            made[event["node"]] = event
    for number, name in expected["nodes"].items():
        if name.startswith("Square"):
            assert int(number) not in made, f"{name} was made by {made[int(number)]}"
            continue
        assert int(number) in made, f"nobody made {number}, {name}"
        assert plain(made[int(number)]["op"]) == plain(name), f"{made[int(number)]['op']} made {name}"
    # backward: what the mode saw at a Node is in the trace with that Node's number, and nothing else is. A sum of
    # gradients is made in place only where nobody, as the mode does, holds on to them
    seen = {}
    for event in ops:
        if event["event"] == "enter" and event["thread"] == thread and "node" in event:
            seen.setdefault(event["node"], []).append(plain(event["op"]))
    for op, number in expected["ops"]:
        assert number is None or plain(op) in seen.get(number, []), f"{op} of Node {number}: {seen.get(number)}"
    seen = {number: names for number, names in seen.items() if number <= max(map(int, expected["nodes"])) or number == ACCUMULATES}
    unknown = set(seen) - {number for _, number in expected["ops"]} - {ACCUMULATES}
    assert not unknown, f"Nodes that evaluated nothing: { {number: seen[number] for number in unknown} }"
    # the link between them
    exits = {event["enter"]: event for event in ops if event["event"] == "exit"}
    linked = {thread: 0}
    for event in ops:
        if event["event"] != "enter" or "node" not in event:
            continue
        linked.setdefault(event["thread"], 0)
        if "forward" in event:
            forward = by_seq[event["forward"]]
            assert forward["event"] == "enter" and forward["seq"] < event["seq"], (event, forward)
            assert forward["thread"] == event["thread"] and exits[forward["seq"]]["node"] == event["node"], (event, forward)
            linked[event["thread"]] += 1
        elif event["thread"] == thread:
            name = expected["nodes"].get(str(event["node"]), "")
            assert event["node"] == ACCUMULATES or event["node"] not in made, f"{event['op']} at Node {event['node']}, {name}, has no link"
    assert len(linked) >= 2 and min(linked.values()) > 100, linked


@test(timeout=240)
def backward_ops_know_their_forward_op_preload():
    """Every Node is made by the op that PyTorch names it after, every op of a backward pass is linked to it."""
    check_autograd("preload")


@test(timeout=240)
def backward_ops_know_their_forward_op_bpf():
    """Every Node is made by the op that PyTorch names it after, every op of a backward pass is linked to it."""
    need_bpf()
    check_autograd("bpf")


def is_missing(events, what):
    return any(event["event"] == "note" and re.search(rf"not seen.*{what}", event["text"]) for event in events)


def line_of(event, name):
    """Line of the program of that name, None outside of it."""
    return next((line for file, _, line in event["frames"] if file == name), None)


def check_reads(backend):
    events, output = recording(backend)
    expected, storage = json.loads(output["reads"])
    reads = [event for event in events if event["event"] == "host_read"]
    for how, line, tensor in expected:
        here = [event for event in reads if event["how"] == how and line_of(event, "reads") == line]
        if how == "item":
            here = [event for event in events if event.get("op") == "aten::_local_scalar_dense" and line_of(event, "reads") == line]
        if not here:
            assert is_missing(events, how), f"{how} in line {line} is not in the trace, nor does it say so"
            continue
        value = here[0]["values"][0]["value"] if here[0]["values"] else {}
        if tensor:
            assert [value["sizes"], value["data"]] == tensor, (how, value, tensor)
        if how == "storage element":
            assert value["storage_data"] == storage and value["storage_bytes"] == 48, value
        if how == "file":
            sizes = [event["values"][0]["value"]["storage_bytes"] for event in here]
            assert storage in [event["values"][0]["value"]["storage_data"] for event in here] and 48 in sizes, here
    return {event["how"] for event in reads}


@test
def reads_of_memory_preload():
    """Every way in which the program gets at memory is an event with the tensor, or named as not seen."""
    assert {"numpy", "file"} <= check_reads("preload")


@test
def reads_of_memory_bpf():
    """Every way in which the program gets at memory is an event with the tensor, or named as not seen."""
    need_bpf()
    assert {"numpy", "dlpack", "file"} <= check_reads("bpf")


def check_calls(backend):
    events, output = recording(backend)
    calls = [(event["how"], event.get("op"), event.get("overload")) for event in events if event["event"] == "call"]
    by_name = [("aten::add", "Tensor"), ("aten::mul", None), ("aten::sub", "Tensor"), ("mine::twice", None)]
    if output["calls"] == "torchvision":
        by_name.append(("torchvision::nms", None))
        assert [event for event in events if event["event"] == "note" and "torchvision" in event["text"]], "not named"
    for name, overload in by_name:
        found = [call for call in calls if call[:2] == ("torch.ops", name) and (not overload or call[2] == overload)]
        assert found or is_missing(events, "torch.ops"), f"{name} is not in the trace, nor does it say so: {calls}"
    assert ("TorchScript", None, None) in calls or is_missing(events, "TorchScript"), calls
    return calls


@test
def ops_past_the_entry_points_preload():
    """torch.ops, TorchScript and custom ops are in the trace, or it says that they are missing."""
    check_calls("preload")


@test
def ops_past_the_entry_points_bpf():
    """torch.ops, TorchScript and custom ops are in the trace, or it says that they are missing."""
    need_bpf()
    check_calls("bpf")


def shared(event):
    """What each result shares with each argument that is a tensor, lists laid flat."""
    def flat(values):
        places = []
        for index, value in enumerate(values):
            tensors = value.get("value")
            if isinstance(tensors, dict) and "tensor" in tensors:
                places.append((index, 0))
            elif isinstance(tensors, list) and tensors and isinstance(tensors[0], dict):
                places += [(index, element) for element in range(len(tensors))]
        return places
    how = {((a, b), (c, d)): name for a, b, c, d, name in event["exit"]["alias"]}
    return [[how.get((result, argument)) for argument in flat(event["values"])] for result in flat(event["exit"]["values"])]


def check_aliases(backend):
    events, output = recording(backend)
    exits = {event["enter"]: event for event in events if event["event"] == "exit"}
    outermost = {}
    for event in events:
        if event["event"] == "enter" and event["level"] == 0 and "parent" not in event:
            outermost.setdefault(line_of(event, "aliases"), {**event, "exit": exits[event["seq"]]})
    for line, expected in json.loads(output["aliases"]):
        if line not in outermost:
            assert expected == [["same"]], f"no op of line {line}"
            continue
        assert shared(outermost[line]) == expected, f"{outermost[line]['op']}: {shared(outermost[line])}, not {expected}"


@test
def results_that_share_memory_preload():
    """What each result shares with each argument is what PyTorch says."""
    check_aliases("preload")


@test
def results_that_share_memory_bpf():
    """What each result shares with each argument is what PyTorch says."""
    need_bpf()
    check_aliases("bpf")


def ancestors(event, by_seq):
    """Ops around an event, innermost first."""
    found = []
    while "parent" in event:
        event = by_seq[event["parent"]]
        found.append(event)
    return found


def check_raises(backend):
    events, output = recording(backend)
    messages, caught = json.loads(output["raises"])
    assert len(set(messages)) == 1 and "cannot be multiplied" in messages[0], messages
    by_seq = {event["seq"]: event for event in events}
    exits = {event["enter"]: event for event in events if event["event"] == "exit"}
    ours = [event for event in events if event["event"] in ("enter", "host_read") and line_of(event, "raises")]
    fails = [event for event in ours if event.get("op") == "aten::mm"]
    # each is over by the time at which the program has its exception
    assert len(fails) == len(caught) > 10, (len(fails), len(caught))
    for enter, (time_ns, thread) in zip(fails, caught):
        end = exits[enter["seq"]]
        assert end["raised"] and enter["thread"] == thread, (enter, end)
        assert enter["time"] <= end["time"] < time_ns, f"ends {(end['time'] - time_ns) / 1e6} ms after it was caught"
    # and what comes next is not inside it, however deep in the stack
    after = {event.get("op", event.get("how")): event for event in ours}
    for name in ("aten::sin", "aten::cos", "aten::tan", "aten::exp", "aten::cosh", "aten::sinh", "aten::tanh", "numpy"):
        around = ancestors(after[name], by_seq)
        assert not around, f"{name} is inside {[event['op'] for event in around]}"
    # what is caught inside an op leaves the ops around it open
    outer = after["aten::neg"]
    assert not exits[outer["seq"]]["raised"], exits[outer["seq"]]
    for event in (fails[-1], after["aten::asin"]):
        assert [around["op"] for around in ancestors(event, by_seq)][-1] == "aten::neg", ancestors(event, by_seq)
    assert not {"aten::mm"} & {around["op"] for around in ancestors(after["aten::asin"], by_seq)}
    assert exits[outer["seq"]]["seq"] > exits[after["aten::asin"]["seq"]]["seq"] > exits[fails[-1]["seq"]]["seq"]
    raised = {by_seq[end["enter"]]["op"] for end in exits.values() if end["raised"] and line_of(by_seq[end["enter"]], "raises")}
    assert raised == {"aten::mm"}, raised


@test
def ops_that_raise_preload():
    """An op that raises ends where its exception is caught: not at what comes next, nor is that inside it."""
    check_raises("preload")


@test
def ops_that_raise_bpf():
    """An op that raises ends where its exception is caught: not at what comes next, nor is that inside it."""
    need_bpf()
    check_raises("bpf")


if __name__ == "__main__":
    main()
