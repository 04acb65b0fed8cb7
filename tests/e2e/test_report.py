"""terra-report on traces of real programs: the summary agrees with the events, and bad files get an exit code and a reason."""
# timeout: 600
import json
import os
import random
import re

from harness import PYTHON, RECORD, main, program, run, temporary_folder, test, tool

REPORT = tool("terra-report")
MLP_STEPS = 12

RAISING = """
import torch
x = torch.ones(2, 3)
for _ in range(5):
    try:
        x + torch.ones(4)
    except RuntimeError:
        pass
"""

_recorded = {}


def recorded(name, command):
    """The bytes of a program's trace, recorded once for all tests."""
    if name not in _recorded:
        with temporary_folder() as folder:
            path = os.path.join(folder, "program.terra")
            run(command, env={"TERRA_RECORD_FILE": path, "TERRA_RECORD_LEVELS": "call,redispatch"}, preload=RECORD, timeout=120)
            with open(path, "rb") as file:
                _recorded[name] = file.read()
    return _recorded[name]


def mlp():
    return recorded("mlp", [PYTHON, program("mlp.py"), str(MLP_STEPS)])


class Reported:
    """What terra-report says about the bytes of a trace."""

    def __init__(self, data, *options):
        with temporary_folder() as folder:
            path = os.path.join(folder, "program.terra")
            with open(path, "wb") as file:
                file.write(data)
            result = run([REPORT, *options, path], check=False, timeout=100)
        self.code, self.out, self.err = result.returncode, result.stdout, result.stderr

    def json(self):
        return json.loads(self.out)

    def lines(self):
        return [json.loads(line) for line in self.out.splitlines()]


def summary(data):
    reported = Reported(data, "--json")
    assert reported.code == 0, (reported.code, reported.err)
    return reported.json()


@test
def summary_agrees_with_the_events():
    "Counts, raised ops and self times of the summary are those that follow from the dump."
    report, events = summary(mlp()), Reported(mlp(), "--dump", "--json").lines()
    assert events[0]["type"] == "trace" and events[-1]["type"] == "end"
    assert events[-1]["ended_cleanly"] and report["ended_cleanly"]
    events = events[1:-1]
    assert [event["seq"] for event in events] == list(range(report["events"]))
    enters = {event["seq"]: event for event in events if event["type"] == "enter"}
    inside, total, kinds = {}, {}, {}
    for event in events:
        if event["type"] == "exit" and event["enter"] is not None:
            enter = enters[event["enter"]]
            assert (enter["op"], enter["overload"], enter["level"]) == (event["op"], event["overload"], event["level"])
            total[enter["seq"]] = event["time_ns"] - enter["time_ns"]
            inside[enter["parent"]] = inside.get(enter["parent"], 0) + total[enter["seq"]]
    for seq, enter in enters.items():
        kind = kinds.setdefault((enter["op"], enter["overload"]), {"call": 0, "redispatch": 0, "self": 0})
        kind[enter["level"]] += 1
        if seq in total:
            kind["self"] += total[seq] - inside.get(seq, 0)
    assert len(kinds) == len(report["kinds"])
    for said in report["kinds"]:
        kind = kinds[said["op"], said["overload"]]
        assert (said["calls"], said["redispatches"]) == (kind["call"], kind["redispatch"]), said
        assert said["self_ns"] == kind["self"], (said, kind)
    assert report["calls"] + report["redispatches"] == len(enters)


@test
def iterations_are_the_steps():
    "Each step of the MLP but perhaps the first, which makes the optimizer's state, is an iteration of the same ops."
    report, events = summary(mlp()), Reported(mlp(), "--dump", "--json").lines()[1:-1]
    found = report["iterations"]
    assert MLP_STEPS - 1 <= found["count"] <= MLP_STEPS, found
    assert found["same_shapes"] and found["median_ns"] > 0
    steady = found["events"][found["steady"]]
    ops = None
    for begin, end in found["events"]:
        inside = [(event["op"], event["overload"]) for event in events[begin:end] if event["type"] == "enter"]
        assert events[begin]["parent"] is None
        assert events[begin]["op"] == "aten::linear", events[begin]["op"]
        if [begin, end] == steady:
            ops = inside
            assert len(ops) == found["period"]
        assert inside.count(("aten::nll_loss_backward", "")) == 2, "a call and a redispatch each step"
    assert ops


@test
def call_sites_are_lines_of_the_program():
    "Most of the time is in sites that lead to the training loop of the program, with its file, line and function."
    report = summary(mlp())
    with open(program("mlp.py")) as file:
        source = file.read().splitlines()
    places = {}
    for site in report["sites"]:
        frame = site["caller"] or site["frame"]
        if frame["file"].endswith("mlp.py") and frame["function"] == "main":
            places[source[frame["line"] - 1].strip()] = places.get(source[frame["line"] - 1].strip(), 0) + site["calls"]
    for line in ("loss.backward()", "optimizer.step()", "loss = loss_fn(model(inputs), labels)"):
        assert places.get(line, 0) >= MLP_STEPS, (line, places)


@test
def text_says_what_json_says():
    "The text names program, backend, counts and the slowest op of the JSON report."
    report, text = summary(mlp()), Reported(mlp(), "--top", "3").out
    slowest = report["kinds"][0]
    for word in (report["command"], report["backend"], report["build_id"], f"{report['calls']} calls",
                 f"{report['iterations']['count']} of {report['iterations']['period']} ops", slowest["op"], "clean",
                 f"--top {len(report['kinds'])} shows all"):
        assert word in text, (word, text)
    names = re.findall(r"^ +[\d.]+ +[\d.]+ +[\d.]+ +\d+ +\d+  (\S+)$", text, re.M)
    assert len(names) == 3, names


@test
def convertible_regions_are_named():
    "The optimizer's update is among the convertible regions, with source lines and expected gain; matmuls block."
    convertible = summary(mlp())["convertible"]
    assert convertible["error"] is None, convertible["error"]
    region = next(region for region in convertible["regions"] if any("addcdiv_" in op["op"] for op in region["ops"]))
    assert region["expected_gain"] > 1 and region["count"] >= 1
    assert all(op["file"] and op["line"] > 0 for op in region["ops"])
    assert any(blocker["op"] in ("aten::mm", "aten::addmm") and blocker["reason"] for blocker in convertible["blockers"])


@test
def ops_left_by_an_exception_are_counted():
    "Five failing additions are five raised calls."
    report = summary(recorded("raising", [PYTHON, "-c", RAISING]))
    raised = {(kind["op"], kind["overload"]): kind["raised"] for kind in report["kinds"] if kind["raised"]}
    assert raised.get(("aten::add", "Tensor"), 0) >= 5, raised
    assert report["raised"] == sum(raised.values())


@test
def a_trace_that_stops_early_is_reported():
    "Half a trace: exit code 1, and what is there, without a word that is not true."
    data, whole = mlp(), summary(mlp())
    reported = Reported(data[:len(data) // 2], "--json")
    part = reported.json()
    assert reported.code == 1, (reported.code, reported.err)
    assert not part["ended_cleanly"] and part["damaged_places"] == 0 and 0 < part["events"] < whole["events"]
    assert "ended abnormally" in Reported(data[:len(data) // 2]).out


@test
def a_damaged_block_costs_itself():
    "A flipped bit: exit code 1, the number of missing events, and all others."
    data, whole = bytearray(mlp()), summary(mlp())
    data[len(data) // 2] ^= 4
    reported = Reported(data, "--json")
    part = reported.json()
    assert reported.code == 1 and part["damaged_places"] == 1 and part["ended_cleanly"]
    assert part["missing"] > 0 and part["events"] + part["missing"] == whole["events"]


@test
def files_that_are_no_traces_are_refused():
    "Exit code 2 and a message that says what to do."
    for data, word in ((b"", "empty"), (b"\x7fELF" + bytes(1000), "terra-trace"), (mlp()[:30], "record it again"),
                       (mlp()[:8] + b"\x09\0\0\0" + mlp()[12:], "version 9")):
        reported = Reported(data)
        assert reported.code == 2 and word in reported.err and reported.out == "", (word, reported.err)
    for arguments, word in (([], "no trace given"), (["--top", "0", "x"], "--top"), (["--bogus"], "--help"),
                            (["a", "b"], "more than one"), (["/no/such/file"], "No such file")):
        result = run([REPORT, *arguments], check=False)
        assert result.returncode == 2 and word in result.stderr, (arguments, result.stderr)


@test(timeout=300)
def mutated_traces_never_end_it_by_a_signal():
    "Eighty cut, flipped and spliced traces of a real program: an exit code, never a crash."
    data, rng, codes = mlp(), random.Random(5), set()
    for round in range(80):
        mutated = bytearray(data)
        if round % 3 == 0:
            del mutated[rng.randrange(len(data)):]
        elif round % 3 == 1:
            for _ in range(rng.randrange(1, 6)):
                mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
        else:
            begin, end = sorted(rng.randrange(len(data)) for _ in range(2))
            mutated[begin:end] = mutated[:rng.randrange(1000)]
        reported = Reported(mutated, *(["--json"] if round % 2 else []))
        assert reported.code in (0, 1, 2), (round, reported.code, reported.err)
        assert reported.out or reported.err, round
        codes.add(reported.code)
    assert codes >= {1}, codes


@test
def help_explains():
    "--help has the sections of a manual page; a report that cannot be written is an error."
    text = run([REPORT, "--help"]).stdout
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES"):
        assert f"\n{section}\n" in "\n" + text, section
    with temporary_folder() as folder:
        path = os.path.join(folder, "program.terra")
        with open(path, "wb") as file:
            file.write(mlp())
        result = run(["sh", "-c", f"{REPORT} --dump {path} > /dev/full"], check=False)
    assert result.returncode == 2 and "cannot write" in result.stderr, result


if __name__ == "__main__":
    main()
