"""Compares a trace with what TorchDispatchMode saw in the same process (watched.py).

Which of a trace's entries is the one that the mode saw? An op passes several levels: `call`, then a `redispatch` per
layer above the backend, and the mode sits somewhere between them, for some ops behind `call`, for most behind the last
`redispatch` of autograd, and below it the mode's own handler calls the op again. But nothing enters the dispatcher
between the entry that leads to the mode and the mode's handler. So the entry is the last one that the thread made before
the handler was entered, it must still be open then, and it must be that op with those arguments.

That is so where both levels are recorded. In a trace of calls alone a layer may have called other ops in between (autocast
that casts an argument first); but those are over. So there the entry is the innermost one that is open when the handler is
entered. A trace without the ops that are only made of others (`composite=False`) has the same rule: the mode is handed
such an op in inference mode only, and those are counted apart.

An op of the mode without such an entry is a difference, and so is an argument or a result that differs, or whose memory is
shared with another argument than the mode says. Counted apart are ops of the mode that did not come through an entry point
of libtorch: watched.py tells from the C++ stack. They are ops outside of ATen, and `detach`, which the interpreter hands to
a mode itself whenever a tensor is saved for backward. So are the trace's entries that the mode did not see.
"""
import bisect
import json
import subprocess
from collections import Counter


class Trace:
    """A trace file's events, as trace_dump prints them."""

    def __init__(self, events):
        self.events = events
        self.info = next(event for event in events if event["event"] == "info")
        self.end = next((event for event in events if event["event"] == "end"), None)
        self.enters = [event for event in events if event["event"] == "enter"]
        self.by_seq = {enter["seq"]: enter for enter in self.enters}
        self.exits = {event["enter"]: event for event in events if event["event"] == "exit"}

    @staticmethod
    def read(trace_dump, path):
        text = subprocess.run([trace_dump, path], check=True, capture_output=True, text=True).stdout
        return Trace([json.loads(line) for line in text.splitlines()])

    def exit_of(self, enter):
        return self.exits.get(enter["seq"])

    def calls(self, composites=()):
        """What a trace of calls alone would hold, without the ops (name, overload) in `composites`."""
        kept = {enter["seq"] for enter in self.enters
                if enter["level"] == 0 and (enter["op"], enter["overload"]) not in composites}

        def parent(enter):
            seq = enter.get("parent")
            while seq in self.by_seq and seq not in kept:
                seq = self.by_seq[seq].get("parent")
            return {"parent": seq} if seq in kept else {}
        return Trace([{**{key: enter[key] for key in enter if key != "parent"}, **parent(enter)}
                      if enter["event"] == "enter" else enter for enter in self.events
                      if enter["event"] not in ("enter", "exit") or enter.get("enter", enter["seq"]) in kept])


def same_number(a, b):
    """Bit for bit, except that all NaN are one. The dump has those as strings."""
    if isinstance(b, float) and (b != b or b in (float("inf"), float("-inf"))):
        b = "nan" if b != b else "inf" if b > 0 else "-inf"
    return type(a) is type(b) and a == b or isinstance(a, (int, float)) and isinstance(b, (int, float)) and \
        not isinstance(a, bool) and not isinstance(b, bool) and float(a) == float(b)


def differs_number(seen, wanted):
    """A Python number that became a tensor: the mode is handed the number back. Its value is not part of a trace."""
    dtype = {bool: 11, int: 4, float: 7, dict: 10}[type(wanted)]
    if seen["ndim"] == 0 and seen["dtype"] == dtype:
        return ""
    return f"a tensor of {seen['ndim']} dimensions, dtype {seen['dtype']}, for {wanted}"


def differs_tensor(seen, wanted):
    if not isinstance(seen, dict) or not seen.get("tensor"):
        return f"{seen} for a tensor"
    device, index = seen["device"]
    found = {**{key: seen[key] for key in ("impl", "storage", "sizes", "strides", "dtype")}, "device": device}
    if not wanted["storage"]:  # a layout without one
        del found["storage"]
    wrong = [f"{key} {found[key]} for {wanted[key]}" for key in found if found[key] != wanted[key]]
    return ", ".join(wrong)


def differs_plain(seen, wanted):
    """An element or a single value."""
    if isinstance(wanted, dict) and "impl" in wanted:
        return differs_tensor(seen, wanted)
    if isinstance(seen, dict) and seen.get("tensor") and (isinstance(wanted, (bool, int, float)) or
                                                          isinstance(wanted, dict) and "complex" in wanted):
        return differs_number(seen, wanted)
    if wanted is None:  # in a list of optional tensors
        return "" if isinstance(seen, dict) and seen.get("tensor") is False else f"{seen} for None"
    if isinstance(wanted, dict) and "enum" in wanted:
        return "" if seen == wanted["enum"] else f"{seen} for {wanted['enum']}"
    if isinstance(wanted, dict) and "generator" in wanted:
        return ""
    if isinstance(wanted, dict) or isinstance(wanted, str):
        return "" if seen == wanted else f"{seen} for {wanted}"
    return "" if same_number(seen, wanted) else f"{seen} for {wanted}"


def differs_list(value, wanted):
    if value["recorded"] != len(wanted) or value["count"] != len(wanted):
        return f"{value['recorded']} of {value['count']} elements for {len(wanted)}"
    wrong = [differs_plain(seen, element) for seen, element in zip(value["value"], wanted)]
    return "; ".join(f"[{index}] {text}" for index, text in enumerate(wrong) if text)


def differs_value(value, wanted):
    """What is wrong with a recorded value, "" when nothing is. `wanted` is from watched.py."""
    if wanted is None:
        return "" if not value["present"] and value["kind"].endswith("?") or is_absent(value) else f"{value} for None"
    if not value["present"]:
        return f"not readable ({value['kind']})"
    if isinstance(value["value"], list) and not isinstance(wanted, list):  # int[2] given as one number
        wanted = [wanted] * len(value["value"])
    if isinstance(wanted, list):
        return differs_list(value, wanted)
    return differs_plain(value["value"], wanted)


def is_absent(value):
    """An undefined tensor stands for None, and an absent generator keeps its kind."""
    return not value["present"] and value["kind"] == "Generator?" or \
        value["present"] and isinstance(value["value"], dict) and value["value"].get("tensor") is False


class Comparison:
    def __init__(self):
        self.matched = 0           # ops of the mode that the trace holds, with the same arguments
        self.differences = []      # one line each
        self.shared = 0            # results that share memory with an argument
        self.unreadable = Counter()   # values that the backend could not read, by op and kind; never a difference alone
        self.only_mode = Counter()    # ops that came through no entry point of the levels recorded
        self.composite = Counter()    # ops that are only made of others, where the trace is without those
        self.used = set()             # seqs of the entries that the mode saw
        self.only_trace = Counter()   # entries with none inside them that the mode did not see


def compare_arguments(comparison, enter, op, allow_unreadable):
    name = f"{op['op']}.{op['overload']}"
    if len(enter["values"]) != len(op["arguments"]):
        return [f"{len(enter['values'])} arguments for {len(op['arguments'])}"]
    wrong = []
    for index, (value, wanted) in enumerate(zip(enter["values"], op["arguments"])):
        text = differs_value(value, wanted)
        if text.startswith("not readable") and allow_unreadable(value):
            comparison.unreadable[f"{name} argument {index}: {value['kind']}"] += 1
        elif text:
            wrong.append(f"argument {index}: {text}")
    return wrong


def compare_results(exit_event, op):
    """What the op returned, where the exit says so (an op left by an exception has no results)."""
    if exit_event is None or "results" not in op:
        return [] if exit_event and exit_event["raised"] == ("raised" in op) else ["its end is not in the trace"]
    wanted = op["results"]
    values = exit_event["values"]
    if not values:
        return [] if wanted is None or "opaque" in wanted else ["no results in the trace"]
    if len(values) == 1 and isinstance(values[0].get("value"), list):
        return [text for text in [differs_list(values[0], wanted)] if text]
    wanted = wanted if isinstance(wanted, list) else [wanted]
    if len(values) != len(wanted):
        return [f"{len(values)} results for {len(wanted)}"]
    return [f"result {index}: {text}" for index, (value, element) in enumerate(zip(values, wanted))
            for text in [differs_value(value, element)] if text]


def storages(value):
    """The memory of each tensor in a value or in lists of them, as watched.py or the dump describe it; 0: it has none."""
    if isinstance(value, list):
        return [storage for item in value for storage in storages(item)]
    return [value["storage"]] if isinstance(value, dict) and "storage" in value else []


def sharing(results, arguments):
    """For each tensor among the results: the arguments that it shares memory with."""
    owned = [set(storages(argument)) - {0} for argument in arguments]
    return [[index for index, memory in enumerate(owned) if storage in memory] for storage in storages(results)]


def compare_sharing(comparison, enter, exit_event, op):
    """Which results share memory with which arguments."""
    if exit_event is None or not exit_event["values"] or "results" not in op:
        return []
    seen = sharing([value.get("value") for value in exit_event["values"]], [value.get("value") for value in enter["values"]])
    wanted = sharing(op["results"], op["arguments"])
    if seen == wanted:
        comparison.shared += sum(map(bool, wanted))
        return []
    return [f"results share memory with arguments {seen} for {wanted}"]


def compare_op(comparison, enter, trace, op, allow_unreadable):
    if enter is None:
        return ["no entry before it"]
    if (enter["op"], enter["overload"]) != (op["op"], op["overload"]):
        return [f"the trace has {enter['op']}.{enter['overload']}"]
    exit_event = trace.exit_of(enter)
    if exit_event and exit_event["time"] < op["entered"]:
        return ["the trace's entry is over before the mode sees it"]
    return compare_arguments(comparison, enter, op, allow_unreadable) + compare_results(exit_event, op) + \
        compare_sharing(comparison, enter, exit_event, op)


def innermost_open(trace, enter, time):
    """The entry itself or the first around it that is not over at that time."""
    while enter is not None and (exit_event := trace.exit_of(enter)) and exit_event["time"] < time:
        enter = trace.by_seq.get(enter.get("parent"))
    return enter


def compare(trace, watched, allow_unreadable=lambda value: False, *, levels=("call", "redispatch"), composite=True):
    """`allow_unreadable` says which values (as dumped) the backend may leave unread; they are counted. `levels` are those that
    the trace holds, `composite` whether it holds the ops that are only made of others."""
    comparison = Comparison()
    by_thread = {}
    for enter in trace.enters:
        by_thread.setdefault(enter["thread"], []).append(enter)
    times = {thread: [enter["time"] for enter in enters] for thread, enters in by_thread.items()}
    used = comparison.used
    for number, op in enumerate(watched["ops"]):
        if not set(levels) & set(op["through"]):
            comparison.only_mode[op["op"]] += 1
            continue
        if op["composite"] and not composite:
            comparison.composite[op["op"]] += 1
            continue
        enters = by_thread.get(op["thread"], [])
        at = bisect.bisect_right(times.get(op["thread"], []), op["entered"]) - 1
        enter = enters[at] if at >= 0 else None
        if "redispatch" not in levels:
            enter = innermost_open(trace, enter, op["entered"])
        wrong = compare_op(comparison, enter, trace, op, allow_unreadable)
        if enter is not None and enter["seq"] in used:
            wrong.append("its entry belongs to the op before it")
        if enter is not None:
            used.add(enter["seq"])
        if wrong:
            comparison.differences.append(f"op {number}, {op['op']}.{op['overload']}: " + "; ".join(wrong))
        else:
            comparison.matched += 1
    for exit_event in trace.exits.values():
        if exit_event["enter"] not in trace.by_seq:
            comparison.differences.append(f"{exit_event['op']}.{exit_event['overload']} ends without a beginning")
    count_unseen(comparison, trace, watched, used)
    return comparison


def count_unseen(comparison, trace, watched, used):
    """Entries outside of the mode's handlers that lead to no further entry and to no op of the mode."""
    inside = sorted((op["entered"], op["left"]) for op in watched["ops"] if not op["composite"])
    begins = [begin for begin, _ in inside]
    parents = {enter.get("parent") for enter in trace.enters}
    for enter in trace.enters:
        if not watched["begin"] <= enter["time"] <= watched["end"] or enter["seq"] in used or enter["seq"] in parents:
            continue
        at = bisect.bisect_right(begins, enter["time"]) - 1
        if at < 0 or not inside[at][0] <= enter["time"] <= inside[at][1]:
            comparison.only_trace[f"{enter['op']}.{enter['overload']}"] += 1
