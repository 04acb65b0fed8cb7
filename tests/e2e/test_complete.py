#!/usr/bin/env python3
"""What a trace holds beyond ops with arguments, against what PyTorch says of the same program: through both backends."""
# timeout: 300
# alone: probes are the system's, and a tracer that gets no time loses events
import json
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, main, need_bpf, program, run, temporary_folder, test, tool

ACCUMULATES = 2**64 - 1    # the number of all Nodes that add to a leaf's grad

# Prints what PyTorch knows: the Nodes of the graph, then, when asked, the ops that each Node runs.
AUTOGRAD = """
import json, sys, threading, torch
from torch.utils._python_dispatch import TorchDispatchMode
torch.manual_seed(0)
oracle = len(sys.argv) > 1
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


def record(code, backend, folder, *arguments, options=()):
    """Events of a program's trace, and what it printed."""
    path = os.path.join(folder, "t.terra")
    outcome = run([tool("terra-trace"), "--backend", backend, "-o", path, *options, "--", PYTHON, "-c", code, *arguments], timeout=100)
    lines = [json.loads(line) for line in run([tool("trace_dump"), path]).stdout.splitlines()]
    events = lines[1:-1]
    assert lines[-1]["clean"] and not [event for event in events if event["event"] == "lost"], lines[-1]
    os.unlink(path)
    return events, outcome.stdout


def plain(name):
    """MulBackward0 and aten::mul_ are both "mul"."""
    return re.sub(r"(backward\d*$)|_", "", name.split("::")[-1].lower())


def check_autograd(backend):
    expected = json.loads(run([PYTHON, "-c", AUTOGRAD, "oracle"], timeout=100).stdout)
    with temporary_folder() as folder:
        events, output = record(AUTOGRAD, backend, folder)
    assert json.loads(output)["loss"] == expected["loss"], "another run than the oracle's"
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
    unknown = set(seen) - {number for _, number in expected["ops"]} - {ACCUMULATES}
    assert not unknown, f"Nodes that evaluated nothing: { {number: seen[number] for number in unknown} }"
    # the link between them
    linked = {thread: 0}
    for event in ops:
        if event["event"] != "enter" or "node" not in event:
            continue
        linked.setdefault(event["thread"], 0)
        if "forward" in event:
            forward = by_seq[event["forward"]]
            exits = [other for other in ops if other["event"] == "exit" and other["enter"] == forward["seq"]]
            assert forward["event"] == "enter" and forward["seq"] < event["seq"], (event, forward)
            assert forward["thread"] == event["thread"] and exits[0]["node"] == event["node"], (event, exits)
            linked[event["thread"]] += 1
        elif event["thread"] == thread:
            name = expected["nodes"].get(str(event["node"]), "")
            assert event["node"] == ACCUMULATES or event["node"] not in made, f"{event['op']} at Node {event['node']}, {name}, has no link"
    assert len(linked) == 2 and min(linked.values()) > 100, linked


@test
def backward_ops_know_their_forward_op_preload():
    """Every Node is made by the op that PyTorch names it after, every op of a backward pass is linked to it."""
    check_autograd("preload")


@test
def backward_ops_know_their_forward_op_bpf():
    """Every Node is made by the op that PyTorch names it after, every op of a backward pass is linked to it."""
    need_bpf()
    check_autograd("bpf")


if __name__ == "__main__":
    main()
