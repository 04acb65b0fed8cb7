"""terra-report --export: Perfetto's trace processor opens the timelines, Chakra's schema and a JSON Schema hold for the others, and
what is in them is what the trace holds."""
# timeout: 400
# long: 70
import glob
import json
import os
import pty
import re
import subprocess

import jsonschema
from perfetto.protos.perfetto.trace import perfetto_trace_pb2

import chakra_schema
from harness import PYTHON, ROOT, main, make_trace, need_bpf, program, run, skip, temporary_folder, test, tool
from trace_oracle import Trace
from trace_processor import Processor

REPORT = tool("terra-report")
SCHEMA = os.path.join(ROOT, "docs", "export-json.schema.json")
MLP_STEPS = 4
# What is recorded is written every quarter of a second, in a block each time.
PAUSES = """if True:
    import time, torch
    for _ in range(8):
        for _ in range(100):
            torch.nn.functional.gelu(torch.ones(3) + 1)
        time.sleep(0.3)
    """

_folder = temporary_folder()
_traces = {}


def path(name):
    return os.path.join(_folder.name, name)


def traced(name):
    """The path of a program's trace, and its events."""
    if name not in _traces:
        command = [program(name + ".py")] + ([str(MLP_STEPS)] if name == "mlp" else [])
        trace = make_trace(path(name), command, env={"GOMP_SPINCOUNT": "0"})
        _traces[name] = trace, Trace.read(tool("trace_dump"), trace)
    return _traces[name]


def export(trace, format, code=0):
    """The path of the export of a trace."""
    out = path(os.path.basename(trace) + "." + format)
    done = run([REPORT, "--export", format, "-o", out, trace], check=False, timeout=100)
    assert done.returncode == code, (done.returncode, done.stderr)
    return out


def data_of(file):
    with open(file, "rb") as opened:
        return opened.read()


def end_of(trace, enter):
    """When an op was over: at its exit, or when it is open, at the end of the trace."""
    exit_event = trace.exit_of(enter)
    return exit_event["time"] if exit_event else max(event.get("time", 0) for event in trace.events)


def nesting(trace):
    """For each op of a whole trace: seq -> (thread, depth, begin, end)."""
    depth, ops = {}, {}
    for enter in trace.enters:
        depth[enter["seq"]] = depth[enter["parent"]] + 1 if "parent" in enter else 0
        ops[enter["seq"]] = (enter["thread"], depth[enter["seq"]], enter["time"], end_of(trace, enter))
    return ops


def check_stats(processor):
    """The import found nothing wrong: trace processor keeps counts of all that it had to leave out."""
    wrong = processor.query("select name, value, severity from stats where value != 0 and severity in ('error', 'data_loss')")
    assert not wrong, wrong


def check_slices(processor, trace, prefix, start):
    """Each op is a slice on its thread's track, at its depth, from its enter to its exit; and there are no others."""
    slices = processor.query(f"""
        select s.ts, s.dur, s.depth, s.name, s.category, t.tid, extract_arg(s.arg_set_id, '{prefix}.seq') as seq,
               extract_arg(s.arg_set_id, '{prefix}.arg0') as arg0
        from slice s join thread_track tt on s.track_id = tt.id join thread t using (utid)
        where s.category not in ('recording', 'beside ops')""")
    wanted, enters = nesting(trace), {enter["seq"]: enter for enter in trace.enters}
    assert len(slices) == len(wanted) > 0, (len(slices), len(wanted))
    for one in slices:
        enter = enters.pop(int(one["seq"]))
        found = (one["tid"], one["depth"], one["ts"] + start, one["ts"] + one["dur"] + start)
        assert found == wanted[enter["seq"]], (found, wanted[enter["seq"]], enter["op"])
        name = enter["op"] + ("." + enter["overload"] if enter["overload"] else "")
        assert one["name"] == name and one["category"] == ["call", "redispatch"][enter["level"]], (one, enter["op"])
        first = enter["values"][0] if enter["values"] else None
        if first and first["kind"] == "Tensor" and first["value"]["tensor"]:
            assert one["arg0"].endswith(str(first["value"]["sizes"]).replace(" ", "")), (one, first)
    assert not enters


def check_flows(processor, lines, prefix):
    """Arrows end at the outermost ops that a Node's evaluation ran, and come from the op that made the Node."""
    ops = {line["id"]: line for line in map(json.loads, data_of(lines).splitlines()) if line["type"] == "op"}
    wanted, last = set(), {}
    for id in sorted(ops):
        forward, parent = (ops[id].get("backward") or {}).get("forward"), ops.get(ops[id]["parent"], {})
        if forward is not None and (parent.get("backward") or {}).get("forward") != forward:
            wanted.add((last.get(forward, forward), id))
            last[forward] = id if prefix == "debug" else forward  # Perfetto's lead on from op to op
    found = processor.query(f"""select extract_arg(a.arg_set_id, '{prefix}.seq') as a, extract_arg(b.arg_set_id, '{prefix}.seq') as b
        from flow f join slice a on f.slice_out = a.id join slice b on f.slice_in = b.id""")
    assert {(int(row["a"]), int(row["b"])) for row in found} == wanted and len(found) == len(wanted), (len(found), len(wanted))
    return len(wanted)


@test(timeout=200)
def perfetto_opens_the_timelines():
    "Trace processor imports both without an error: every op a slice of the right track, depth, name and nanosecond."
    with Processor() as processor:
        for name in ("mlp", "dataflow"):
            file, trace = traced(name)
            for format, prefix in (("perfetto", "debug"), ("chrome", "args")):
                processor.load(export(file, format))
                check_stats(processor)
                start = 0
                if format == "chrome":
                    with open(export(file, "json"), encoding="utf-8") as lines:
                        start = json.loads(lines.readline())["start_ns"]
                check_slices(processor, trace, prefix, start)
                notes = processor.query("select name from slice where category = 'recording'")
                assert len(notes) == sum(event["event"] == "note" for event in trace.events), notes
                flows = check_flows(processor, export(file, "json"), prefix)
                assert flows > 20 or name != "mlp", flows
        ends = processor.query("select name, extract_arg(arg_set_id, 'args.end') as end from slice")
        ends = {row["end"] for row in ends if row["name"] == "aten::add.Tensor"}
        assert ends == {"left by an exception", "not over when the trace ends"}, ends
        threads = processor.query("select tid from thread join process using (upid) where pid > 0")
        assert {row["tid"] for row in threads} == {enter["thread"] for enter in trace.enters} and len(threads) == 2, threads


@test(timeout=200)
def perfetto_opens_what_is_left_of_a_damaged_trace():
    "Of a trace with a damaged block and no end, what is intact is exported, nested, and the rest is said: exit code 1."
    file = make_trace(path("pauses"), ["-c", PAUSES])
    data, trace = data_of(file), Trace.read(tool("trace_dump"), file)
    blocks = [at for at in range(len(data)) if data.startswith(b"TerraBlk", at)] + [len(data)]
    middle = len(blocks) // 2
    assert middle > 3, blocks  # events before it and behind it
    with open(path("cut.terra"), "wb") as opened:
        opened.write(data[:(blocks[middle] + blocks[middle + 1]) // 2])
    with open(path("damaged.terra"), "wb") as opened:
        at = (blocks[middle - 1] + blocks[middle]) // 2
        opened.write(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:-20])
    with Processor() as processor:
        for name in ("cut.terra", "damaged.terra"):
            left = [json.loads(line) for line in data_of(export(path(name), "json", 1)).splitlines()]
            ops = [line for line in left if line["type"] == "op"]
            assert 0 < len(ops) < len(trace.enters), name
            assert name == "cut.terra" or any(line["type"] == "damage" for line in left)
            for format in ("perfetto", "chrome"):
                processor.load(export(path(name), format, 1))
                check_stats(processor)
                slices = processor.query("select count(*) as n, min(dur) as least from slice"
                                         " where category not in ('recording', 'beside ops')")
                assert slices[0]["n"] == len(ops) and slices[0]["least"] >= 0, (slices, len(ops))


@test
def perfetto_names_only_what_its_protos_have():
    "Every packet decodes by the protos of Perfetto's package, with no field that they do not know."
    decoded = perfetto_trace_pb2.Trace.FromString(data_of(export(traced("dataflow")[0], "perfetto")))
    known = perfetto_trace_pb2.Trace()
    known.CopyFrom(decoded)
    known.DiscardUnknownFields()
    assert known.ByteSize() == decoded.ByteSize() and len(decoded.packet) > 20
    events = [packet.track_event.type for packet in decoded.packet if packet.HasField("track_event")]
    assert events.count(1) == events.count(2) == len(traced("dataflow")[1].enters)


# Chakra


def tensors_of(values):
    found = []
    for value in values:
        payload = value.get("value")
        found += [one for one in (payload if isinstance(payload, list) else [payload])
                  if isinstance(one, dict) and one.get("tensor")]
    return found


def in_place(op):
    name = op.split("::")[1]
    return name.endswith("_") and (not name.endswith("__") or name.startswith("__i"))


class Storages:
    """Last writers, worked out from a dump by themselves: address of the storage -> (its bytes, seq of the writer)."""

    def __init__(self):
        self.at = {}

    def producer(self, tensor):
        size, writer = self.at.get(tensor["storage"], (None, None))
        return writer if size == tensor["storage_bytes"] else None

    def write(self, tensor, writer):
        self.at[tensor["storage"]] = (tensor["storage_bytes"], writer)

    def leave(self, enter, exit_event, writer):
        """An op, outermost or not, has come to its end."""
        arguments, results = tensors_of(enter["values"]), tensors_of(exit_event["values"])
        storages = {tensor["storage"] for tensor in arguments}
        impls = [tensor["impl"] for tensor in arguments]
        last = [tensor["impl"] for tensor in results]
        out = len(last) and impls[1:] and impls[-len(last):] == last and len(impls) > len(last)
        for tensor in results:
            if tensor["storage"] not in storages or (in_place(enter["op"]) or out) and tensor["impl"] in impls:
                self.write(tensor, writer)
        if in_place(enter["op"]) and not results:
            for tensor in arguments if enter["op"].startswith("aten::_fused_") else tensors_of(enter["values"][:1]):
                self.write(tensor, writer)


def data_dependencies(trace):
    """For each outermost op of a whole trace: seq -> the set of ops that made what it gets."""
    outermost, dependencies, storages = {}, {}, Storages()
    enters = {enter["seq"]: enter for enter in trace.enters}
    for event in trace.events:
        if event["event"] == "enter":
            outermost[event["seq"]] = outermost[event["parent"]] if "parent" in event else event["seq"]
            if "parent" not in event:
                made = {storages.producer(tensor) for tensor in tensors_of(event["values"])}
                dependencies[event["seq"]] = made - {None}
        elif event["event"] == "exit":
            storages.leave(enters[event["enter"]], event, outermost[event["enter"]])
    return dependencies


def chakra_nodes(name):
    metadata, nodes = chakra_schema.read(data_of(export(traced(name)[0], "chakra")))
    assert chakra_schema.attributes(metadata)["pid"] == traced(name)[1].info["pid"]
    return nodes


def proto_of_the_table():
    """The table as a proto3 file, with what such a file may have beside."""
    text = 'syntax = "proto3"; // a comment { }\npackage any.of_them;\n'
    for name, values in chakra_schema.ENUMS.items():
        text += f"enum {name} {{" + "".join(f" {value} = {number};" for value, number in values.items()) + " }\n"
    for name, fields in chakra_schema.MESSAGES.items():
        text += f"message {name} {{ reserved 90, 91; float other = 99 [deprecated = true]; oneof one {{ bool more = 98; }}\n"
        plain = [field for field in fields if field[2][0] != "|"]
        chosen = [field for field in fields if field[2][0] == "|"]
        text += "".join(f"  {kind.replace('*', 'repeated ')} {field} = {number};\n" for field, number, kind in plain)
        text += "  /* one\n of */ oneof value {" + "".join(f" {kind[1:]} {field} = {number};" for field, number, kind in chosen)
        text += " }\n}\n"
    return text


@test
def chakra_schema_differences_are_seen():
    "The comparison of the table with an et_def.proto tells each field and value that differs, and what it does not understand."
    text = proto_of_the_table()
    assert chakra_schema.differences(text) == []
    for old, new, told in (("uint64 duration_micros = 7", "uint64 duration_micros = 17", "Node.duration_micros"),
                           ("uint64 duration_micros", "int64 duration_micros", "Node.duration_micros"),
                           ("duration_micros", "duration", "Node.duration_micros"),
                           ("repeated uint64 data_deps", "uint64 data_deps", "Node.data_deps"),
                           ("oneof value { int64", "oneof number { int64", "AttributeProto.int64_val"),
                           ("COMP_NODE = 4", "COMP_NODE = 3", "NodeType.COMP_NODE"),
                           ("BARRIER = 9", "BARRIER_1 = 9", "CollectiveCommType.BARRIER"),
                           ("message IOInfo", "message Info", "IOInfo.values")):
        assert old in text, old
        found = chakra_schema.differences(text.replace(old, new))
        assert found and found[0].startswith(told + ":"), (new, found)
    for broken in (text.replace("float other", "map<int32, float> other"), text + "service S { }", text + "message Cut {"):
        try:
            chakra_schema.differences(broken)
        except AssertionError as error:
            assert "not understood" in str(error), error
        else:
            raise AssertionError("what is not understood was passed over")


@test
def chakra_schema_is_chakras():
    "The table of fields that the tests below read by is that of Chakra's own et_def.proto, named by TERRA_CHAKRA_SCHEMA."
    named = os.environ.get("TERRA_CHAKRA_SCHEMA")
    if not named:
        skip("not compared: no et_def.proto of Chakra is here, TERRA_CHAKRA_SCHEMA names one")
    found = chakra_schema.differences(data_of(named).decode())
    assert not found, found


@test
def chakra_numbers_are_those_of_the_schema():
    "Every value of an enum that the exporter may write, used by a trace here or not, is the schema's."
    source = data_of(os.path.join(ROOT, "collector", "export_chakra.c")).decode()
    for name, values in (("node_type", chakra_schema.NODE_TYPES), ("collective", chakra_schema.COLLECTIVES)):
        body = re.search(r"enum %s \{(.*?)\}" % name, source, re.DOTALL)[1]
        ours = {value: int(number) for value, number in re.findall(r"(\w+) = (\d+)", body)}
        assert ours and ours == {value: values.get(value) for value in ours}, (name, ours)


@test
def chakra_nodes_are_the_outermost_ops():
    "Each outermost op is a node of Chakra's schema, after all nodes that it depends on; losses and notes are metadata."
    for name in ("mlp", "dataflow"):
        trace, seen, last = traced(name)[1], set(), {}
        outermost = {enter["seq"]: enter for enter in trace.enters if "parent" not in enter}
        notes = sum(event["event"] == "note" for event in trace.events)
        beside = ("terra::host_read", "terra::call")
        for node in chakra_nodes(name):
            assert node.id not in seen and all(dep in seen and dep < node.id for dep in [*node.ctrl_deps, *node.data_deps]), node
            seen.add(node.id)
            if node.type == chakra_schema.NODE_TYPES["METADATA_NODE"]:
                notes -= node.name not in beside
                continue
            enter, exit_event = outermost[node.id], trace.exit_of(outermost.pop(node.id))
            assert node.type == chakra_schema.NODE_TYPES["COMP_NODE"] and node.name == enter["op"], node
            assert list(node.ctrl_deps) == [last[enter["thread"]]] if enter["thread"] in last else not node.ctrl_deps, node
            last[enter["thread"]] = node.id
            assert node.start_time_micros == enter["time"] // 1000
            assert node.duration_micros == (end_of(trace, enter) - enter["time"]) // 1000
            check_io(node.inputs, enter)
            check_io(node.outputs, exit_event or {"values": []})
        assert not outermost and notes == 0


def check_io(io, event):
    values, shapes, types = json.loads(io.values or "[]"), json.loads(io.shapes or "[]"), json.loads(io.types or "[]")
    assert len(values) == len(shapes) == len(types) == len(event["values"]), io
    for value, shape, kind, wanted in zip(values, shapes, types, event["values"]):
        if wanted["kind"] == "Tensor" and wanted["present"] and wanted["value"]["tensor"]:
            wanted = wanted["value"]
            assert value[2:4] == [wanted["offset"], wanted["numel"]] and value[5] == "cpu", (value, wanted)
            assert shape == wanted["sizes"] and kind.startswith("Tensor("), (shape, kind, wanted)


@test
def chakra_data_dependencies_are_the_traces():
    "Who made what a node reads is what follows from the events, worked out once more."
    for name in ("mlp", "dataflow"):
        wanted = data_dependencies(traced(name)[1])
        found = {node.id: set(node.data_deps) for node in chakra_nodes(name) if node.id in wanted}
        assert found == wanted, [(seq, found[seq], wanted[seq]) for seq in wanted if found.get(seq) != wanted[seq]][:5]
        assert sum(map(len, wanted.values())) > 10


@test
def chakra_data_flows_as_the_program_says():
    "Views, in-place and out variants, lists and addresses that come again: each op reads from the ops that the source names."
    nodes = [node for node in chakra_nodes("dataflow") if node.type == chakra_schema.NODE_TYPES["COMP_NODE"]]
    names = {node.id: node.name.split("::")[1] for node in nodes}
    found = [(names[node.id], sorted(names[dep] for dep in node.data_deps)) for node in nodes]
    for wanted in [("t", ["randn"]), ("add_", ["randn"]), ("mul", ["add_"]), ("add", ["add_", "empty", "mul"]), ("sum", ["add"]),
                   ("sub", ["ones"]), ("_foreach_mul_", ["add", "ones"]), ("maximum", ["_foreach_mul_"]),
                   ("copy_", ["add_", "maximum"]), ("relu", ["copy_"]), ("add", ["ones", "relu"]), ("mul_", ["zeros"])]:
        assert wanted in found, (wanted, found)
    storages = [json.loads(node.outputs.values)[0][1] for node in nodes if names[node.id] in ("mul", "ones")]
    assert len(set(storages)) == len(storages), "a value at an address that came again has a number of its own"


@test
def chakra_has_autograds_numbers():
    "Of a forward op that made a Node and of the ops that its evaluation ran, seq_id is the Node's number."
    with open(export(traced("mlp")[0], "json"), encoding="utf-8") as lines:
        ops = [op for op in map(json.loads, lines) if op["type"] == "op" and op["parent"] is None]
    wanted = {op["id"]: op["backward"]["node"] if "backward" in op else op.get("node") for op in ops}
    found = {node.id: chakra_schema.attributes(node).get("seq_id") for node in chakra_nodes("mlp") if node.id in wanted}
    assert found == wanted, [(seq, found[seq], wanted[seq]) for seq in wanted if found[seq] != wanted[seq]][:5]
    assert any(op["backward"]["node"] is not None for op in ops if "backward" in op) and any(op.get("node") for op in ops)


COLLECTIVES = {op: chakra_schema.COLLECTIVES[kind] for op, kind in (
    ("c10d::allreduce_", "ALL_REDUCE"), ("c10d::allgather_", "ALL_GATHER"), ("c10d::broadcast_", "BROADCAST"))}


@test(timeout=200)
def chakra_knows_the_collectives_of_two_ranks():
    "DistributedDataParallel on two ranks: each collective is a COMM_COLL_NODE with its type and bytes, the same on both."
    need_bpf()
    run([tool("terra-trace"), "--quiet", "--backend", "bpf", "-o", path("ddp.terra"), "--", PYTHON, "-m", "torch.distributed.run",
         "--nproc-per-node", "2", program("ddp.py"), "2"], env={"GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}, timeout=180)
    ranks = []
    for file in sorted(glob.glob(path("ddp.terra.[0-9]*"))):
        _, nodes = chakra_schema.read(data_of(export(file, "chakra")))
        collectives = [node for node in nodes if node.type == chakra_schema.NODE_TYPES["COMM_COLL_NODE"]]
        of = {node.id: chakra_schema.attributes(node) for node in collectives}
        for node in collectives:
            assert of[node.id]["comm_type"] == COLLECTIVES[node.name], node
        found = [(node.name, of[node.id]["comm_size"]) for node in collectives]
        if found:
            ranks.append(found)
        read = {node.name for node in collectives if any(node.id in other.data_deps for other in nodes)}
        assert read == ({"c10d::allreduce_", "c10d::broadcast_"} if collectives else set()), "allgather_ writes a list of lists"
    assert len(ranks) == 2 and ranks[0] == ranks[1], ranks
    gradients = 4 * (32 * 64 + 64 + 64 * 4 + 4)
    assert ranks[0].count(("c10d::allreduce_", gradients)) == 2, ranks  # one bucket a step
    assert ("c10d::allreduce_", 4) in ranks[0] and ("c10d::broadcast_", gradients) in ranks[0], ranks
    assert any(name == "c10d::allgather_" and size for name, size in ranks[0]), ranks


# JSON


@test(timeout=200)
def json_holds_everything_by_its_schema():
    "Each line is valid by docs/export-json.schema.json; the ops are the trace's, with arguments, results and stacks."
    with open(SCHEMA, encoding="utf-8") as opened:
        schema = json.load(opened)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for name, every in (("mlp", 20), ("dataflow", 1)):  # validating is slow
        file, trace = traced(name)
        lines = [json.loads(line) for line in data_of(export(file, "json")).splitlines()]
        for line in lines[::every]:
            validator.validate(line)
        assert lines[0]["type"] == "trace" and lines[-1]["type"] == "end" and lines[-1]["ended_cleanly"]
        ids = {line["id"] for line in lines if "id" in line}
        assert ids >= {event["seq"] for event in trace.events if "seq" in event and event["event"] != "exit"}, "an event has no line"
        check_json_ops(trace, {line["id"]: line for line in lines if line["type"] == "op"})
        dependencies = data_dependencies(trace)
        assert all(set(line["data_deps"]) == dependencies[line["id"]] for line in lines
                   if line["type"] == "op" and line["parent"] is None)
    assert not validator.is_valid({"type": "op"}) and not validator.is_valid({"type": "other"})


def check_json_ops(trace, ops):
    assert len(ops) == len(trace.enters)
    for enter in trace.enters:
        op, exit_event = ops[enter["seq"]], trace.exit_of(enter)
        assert (op["op"], op["overload"], op["thread"], op["parent"]) == \
            (enter["op"], enter["overload"], enter["thread"], enter.get("parent")), op
        assert (op["start_ns"], op["end_ns"]) == (enter["time"], end_of(trace, enter))
        assert op["end"] == ("open" if not exit_event else "raised" if exit_event["raised"] else "returned")
        assert [value["kind"] for value in op["args"]] == [value["kind"] for value in enter["values"]]
        for values, events in ((op["args"], enter), (op["results"] or [], exit_event or {"values": []})):
            sizes = [value["value"]["size"] for value in values if value["kind"] == "Tensor" and value["value"]]
            assert sizes == [value["value"]["sizes"] for value in events["values"]
                             if value["kind"] == "Tensor" and value["present"] and value["value"]["tensor"]], op
        assert [[frame["file"], frame["function"], frame["line"]] for frame in op["stack"]] == enter["frames"]


# The command


@test
def command_line():
    "Output goes where it is told to, never over the trace or into a terminal; what goes wrong has exit code 2 and a reason."
    file = traced("dataflow")[0]
    before = data_of(file)
    to_stdout = subprocess.run([REPORT, "--export", "chakra", file], capture_output=True, check=True, timeout=60)
    assert to_stdout.stdout == data_of(export(file, "chakra")) and not to_stdout.stderr
    with open(path("none.index"), "w", encoding="utf-8") as index:
        index.write('{"terra_index":1,"traces":[]}\n')
    for options, reason in ((["--export", "svg", file], "not svg"), (["--export", "json", index.name], "not the index"), (["--export", "json", "-o", file, file], "is the trace itself"),
                            (["-o", path("x"), file], "-o goes with"), (["--export", "json", "--dump", file], "give one"),
                            (["--export", "json", "-o", path("no/such"), file], "No such file"),
                            (["--export", "chrome", "-o", "/dev/full", file], "No space left")):
        done = run([REPORT, *options], check=False)
        assert done.returncode == 2 and reason in done.stderr, (options, done.returncode, done.stderr)
    assert data_of(file) == before
    master, terminal = pty.openpty()
    try:
        done = subprocess.run([REPORT, "--export", "perfetto", file], stdout=terminal, stderr=subprocess.PIPE, text=True,
                              timeout=60, check=False)
    finally:
        os.close(terminal)
        os.close(master)
    assert done.returncode == 2 and "terminal" in done.stderr, done


if __name__ == "__main__":
    main()
