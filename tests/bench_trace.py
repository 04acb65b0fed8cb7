"""What tracing costs: training programs alone, under terra-trace, under PyTorch's own tracers and under py-spy, side by side.

All modes of a round run in turns, as in bench.py, and the tracer of a mode stands still while it is another's turn. The
slowdown of a mode is the median of its iterations after the third over that of the untraced run of the same round. Attaching
and detaching are timed from outside: two untraced runs take turns in pairs, one of them is attached to and left again, and
the pairs go on. What a mode can't do here is skipped, with the reason.
"""
import argparse
import json
import os
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import bench
from bench import BUILD, WARM_UP, Failed, Program, built, progress, run_process

TERRA_TRACE = os.path.join(BUILD, "bin", "terra-trace")
MODES = {
    "eager": None,
    "bpf": ["--backend", "bpf", "--no-stacks"],
    "bpf-stacks": ["--backend", "bpf"],
    "bpf-all": ["--backend", "bpf", "--no-stacks", "--levels", "all"],
    "preload": ["--backend", "preload", "--no-stacks"],
    "preload-stacks": ["--backend", "preload"],
    "profiler": None,
    "observer": None,
    "py-spy": None,
}
ATTACH = "attach"           # the mode that is no run of its own
PAIRS = 5                   # before attaching and after detaching
ATTACHES = 4                # the first with a cold cache
COUNTED = WARM_UP + 3       # iterations of the run that counts ops
SPY_RATE = 100              # Hz


def py_spy():
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    return beside if os.path.exists(beside) else shutil.which("py-spy")


def has_option(option):
    """Whether this terra-trace knows the option."""
    return option in subprocess.run([built(TERRA_TRACE), "--help"], capture_output=True, text=True, check=True).stdout


def right_is_missing():
    """What terra-trace says when the bpf backend can't be used here; empty when it can."""
    with tempfile.TemporaryDirectory(prefix="terra-bench-") as folder:
        done = subprocess.run([built(TERRA_TRACE), "--backend", "bpf", "-o", os.path.join(folder, "t"), "--", "true"],
                              capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stderr.strip()


def obstacle(mode):
    """Why a mode can't be had here; empty when it can."""
    if mode == "py-spy":
        return "" if py_spy() else "py-spy is not installed"
    if mode == ATTACH and not has_option("--pid"):
        return "this terra-trace can't attach to a process that runs"
    return right_is_missing() if mode == ATTACH or mode.startswith("bpf") else ""


def read_summary(text):
    """Events, events lost and, where it is said, traps: the numbers of terra-trace's last line."""
    lines = [line for line in text.splitlines() if line.startswith("terra-trace: ") and " lost" in line]
    if not lines:
        raise Failed(f"terra-trace gave no summary: {text[-500:]}")
    found = {name: int(number.replace(",", "")) for number, name in re.findall(r"([\d,]+) (events|traps|lost)", lines[-1])}
    return found["events"], found["lost"], found.get("traps")


def cpu_of_the_dead(pid):
    """Processor seconds of a child that has ended and was not waited for; those of its own children are not in it."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run(bench.Run):
    """A run under a tracer. Where that is a process of its own, it is the child here, and the program is the child's."""

    def environment(self):
        return bench.base_environment()

    def mode_arguments(self):
        if self.mode in ("profiler", "observer"):
            return ["--" + self.mode, self.file("trace")]
        return []

    def starter(self):
        if self.mode == "py-spy":
            return [py_spy(), "record", "--rate", str(SPY_RATE), "--format", "raw", "--output", self.file("trace"), "--"]
        if MODES.get(self.mode):
            return [built(TERRA_TRACE), *MODES[self.mode], "-o", self.file("trace"), "--"]
        return []

    def turn_ends(self):
        """The tracer must not take time from the others: what it has left to do is done in this run's turns."""
        goes_on = super().turn_ends()
        if goes_on and self.starter():
            self.child.send_signal(signal.SIGSTOP)
        return goes_on

    def turn(self):
        if self.starter():
            self.child.send_signal(signal.SIGCONT)
        return super().turn()

    def wait(self):
        os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        self.tracer_cpu = cpu_of_the_dead(self.child.pid) if self.starter() else None
        return super().wait()

    def measured(self):
        run = super().measured()
        ends = run["iteration_ends"]
        times = [end - start for start, end in zip(ends[WARM_UP - 1:], ends[WARM_UP:])]
        events = lost = traps = None
        if MODES.get(self.mode):
            events, lost, traps = read_summary(self.text("err"))
        size = os.path.getsize(self.file("trace")) if os.path.exists(self.file("trace")) else None
        run.update(iteration=statistics.median(times), tracer_cpu=self.tracer_cpu, bytes=size, events=events, lost=lost,
                   traps=traps)
        del run["printed"]
        return run


def count_ops(program, folder, seconds):
    """How many ops a TorchDispatchMode sees in a run, and in an iteration of it."""
    out = os.path.join(folder, "ops.json")
    run_process(bench.driver_command(program, COUNTED, out, "--count-ops"), bench.base_environment(), seconds)
    with open(out, encoding="utf-8") as file:
        counts = json.load(file)["ops"]
    each = statistics.median(after - before for before, after in zip(counts[WARM_UP - 1:-2], counts[WARM_UP:-1]))
    return counts[-1] + each * (program.iterations - COUNTED), each


class Attachment:
    """terra-trace on a process that runs."""

    def __init__(self, pid, folder, cache, timeout):
        self.timeout = timeout
        command = [built(TERRA_TRACE), "--backend", "bpf", "--no-stacks", "-o", os.path.join(folder, "attached.terra"),
                   "-p", str(pid)]
        started = time.monotonic()
        self.tracer = subprocess.Popen(command, env={**bench.base_environment(), "XDG_CACHE_HOME": cache},
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.told = b""
        while b"attached" not in self.told:
            in_time = select.select([self.tracer.stderr], [], [], timeout)[0]
            text = os.read(self.tracer.stderr.fileno(), 4096) if in_time else b""
            if not text:
                self.tracer.kill()
                self.tracer.wait()
                raise Failed(f"terra-trace did not attach: {self.told.decode(errors='replace')}")
            self.told += text
        self.seconds = time.monotonic() - started

    def detach(self):
        """Seconds, events lost."""
        started = time.monotonic()
        self.tracer.send_signal(signal.SIGINT)
        self.told += self.tracer.communicate(timeout=self.timeout)[1]
        if self.tracer.returncode != 0:
            raise Failed(f"terra-trace left with {self.tracer.returncode}: {self.told.decode(errors='replace')}")
        return time.monotonic() - started, read_summary(self.told.decode(errors="replace"))[1]


def paired_turns(alone, other):
    """For each of some pairs the time of a turn of `other` over that of `alone`, in an order that changes."""
    ratios = []
    for number in range(PAIRS):
        seconds = {}
        for run in (alone, other) if number % 2 == 0 else (other, alone):
            time.sleep(bench.SETTLE)
            started = time.monotonic()
            if not run.turn():
                raise Failed("the program ended before it was measured")
            seconds[run] = time.monotonic() - started
        ratios.append(seconds[other] / seconds[alone])
    return ratios


def run_to_the_end(run):
    while run.turn():
        pass
    return run.measured()


def measure_attaching(program, folder, options):
    """Times of attaching and detaching, and a program's speed before and after, as a dict."""
    program.turn = program.turn or 1
    program.iterations = WARM_UP + program.turn * (2 * PAIRS + ATTACHES + 1)
    runs, attachments, lost = [], [], 0
    try:
        for name in ("alone", "attached"):
            os.makedirs(os.path.join(folder, name), exist_ok=True)
            runs.append(Run(program, "eager", os.path.join(folder, name), options))
            runs[-1].turn_ends()
        before = paired_turns(*runs)
        for _ in range(ATTACHES):
            attachment = Attachment(runs[1].child.pid, folder, os.path.join(folder, "cache"), options.timeout)
            try:
                runs[1].turn()
            finally:
                seconds, lost_here = attachment.detach()
            attachments.append((attachment.seconds, seconds))
            lost += lost_here
        after = paired_turns(*runs)
        ended = [run_to_the_end(run) for run in runs]
    finally:
        for run in runs:
            run.end()
    same = all(ended[0][key] == ended[1][key] for key in ("losses", "parameters"))
    return {"before": before, "after": after, "attach_cold": attachments[0][0], "lost": lost, "same_bits": same,
            "attach": statistics.median(seconds for seconds, _ in attachments[1:]),
            "detach": statistics.median(seconds for _, seconds in attachments)}


def summarise(results, ops):
    """Per mode: iterations, slowdowns round by round, and what the tracer took, wrote and lost."""
    summary, reference = {}, next(iter(results[0].values()))
    for mode in results[0]:
        runs = [result[mode] for result in results]
        ratios = [result[mode]["iteration"] / result["eager"]["iteration"] for result in results if "eager" in result]
        cpu = [run["tracer_cpu"] for run in runs if run["tracer_cpu"] is not None]
        summary[mode] = {
            "iteration": statistics.median(run["iteration"] for run in runs),
            "slowdown": statistics.median(ratios) if ratios else None,
            "lowest": min(ratios, default=None), "highest": max(ratios, default=None),
            "bytes_per_op": runs[-1]["bytes"] / ops if runs[-1]["bytes"] and mode != "py-spy" else None,
            "traps_per_op": (runs[-1]["traps"] or runs[-1]["events"]) / ops if mode.startswith("bpf") else None,
            "tracer_cpu": statistics.median(cpu) if cpu else None,
            "program_cpu": statistics.median(run["cpu"] for run in runs),
            "writing": statistics.median(run["writing"] for run in runs) if mode in ("profiler", "observer") else None,
            "lost": sum(run["lost"] for run in runs) if runs[0]["lost"] is not None else None,
            "same_bits": all(run[key] == reference[key] for run in runs for key in ("losses", "parameters")),
        }
    return summary


def cell(value, form):
    return "-" if value is None else format(value, form)


def print_table(program, summary, ops, kept, discarded):
    print(f"\n{program.name}: {program.iterations} iterations in turns of {program.turn}, {kept} rounds"
          f"{f', and {discarded} discarded' if discarded else ''}; a TorchDispatchMode sees {ops[1]:.0f} ops in an iteration\n")
    print("| mode | iteration ms | x eager | lowest - highest | bytes/op | traps/op | tracer CPU s | program CPU s | writing s "
          "| lost | same bits |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|")
    for mode, line in summary.items():
        spread = f"{line['lowest']:.3f} - {line['highest']:.3f}" if line["slowdown"] else "-"
        print(f"| {mode} | {1e3 * line['iteration']:.2f} | {cell(line['slowdown'], '.3f')} | {spread} | "
              f"{cell(line['bytes_per_op'], '.1f')} | {cell(line['traps_per_op'], '.2f')} | "
              f"{cell(line['tracer_cpu'], '.2f')} | {line['program_cpu']:.1f} | {cell(line['writing'], '.2f')} | {cell(line['lost'], 'd')} | "
              f"{'yes' if line['same_bits'] else 'NO'} |")


def print_attaching(attaching):
    def spread(ratios):
        return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} - {max(ratios):.3f})"
    print(f"\nattached in {attaching['attach']:.3f} s ({attaching['attach_cold']:.3f} s with nothing cached), detached in "
          f"{attaching['detach']:.3f} s, {attaching['lost']} events lost; {PAIRS} pairs of turns beside a run that was left "
          f"alone: x {spread(attaching['before'])} before, {spread(attaching['after'])} after; "
          f"{'same bits' if attaching['same_bits'] else 'OTHER BITS'}")


def bench_attaching(program, options, folder, part):
    try:
        progress(f"{program.name}: attaching")
        copy = Program(program.path, 0, program.turn)
        part["attach"] = measure_attaching(copy, folder, options)
        progress("")
        print_attaching(part["attach"])
    except Failed as reason:
        part["not_run"][ATTACH] = str(reason)


def bench_program(program, modes, options, folder):
    """One program in all modes; its part of the report."""
    progress(f"{program.name}: counting ops")
    ops = count_ops(program, folder, options.timeout)
    part = {"path": os.path.relpath(program.path, bench.ROOT), "iterations": program.iterations, "turn": program.turn,
            "ops": ops[0], "ops_per_iteration": ops[1], "not_run": {}}
    runs = [mode for mode in modes if mode != ATTACH]
    results, part["not_run"] = bench.run_rounds(program, runs, folder, options, Run) if runs else ([], {})
    if results and results[0]:
        kept, discarded = bench.keep_quiet_rounds(results)
        kept, discarded = (kept, discarded) if kept else (results, 0)
        summary = summarise(kept, ops[0])
        part.update(modes={mode: summary[mode] for mode in MODES if mode in summary}, kept_rounds=len(kept),
                    discarded_rounds=discarded, rounds=results)
        print_table(program, part["modes"], ops, len(kept), discarded)
    if ATTACH in modes and "stopped" not in part["not_run"]:
        bench_attaching(program, options, folder, part)
    for mode, reason in part["not_run"].items():
        print(f"{program.name}: {bench.not_run(mode, reason)}")
    return part


def went_well(part):
    return not part["not_run"] and all(line["same_bits"] for line in part.get("modes", {}).values()) and \
        part.get("attach", {}).get("same_bits", True)


def choice_list(text):
    chosen = list(dict.fromkeys(word for word in text.split(",") if word))
    unknown = [word for word in chosen if word not in MODES and word != ATTACH]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"unknown mode: {', '.join(unknown)}; there are {', '.join(MODES)}, {ATTACH}")
    return chosen


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tools/bench-trace", description=__doc__.splitlines()[0])
    parser.add_argument("--programs", default="mlp,gpt2", metavar="NAME,...",
                        help="names in tests/programs, or paths of scripts that take a number of steps (default: %(default)s)")
    parser.add_argument("--modes", type=choice_list, default=[*MODES, ATTACH], metavar="MODE,...",
                        help=f"some of {','.join(MODES)},{ATTACH} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--iterations", type=int, default=0, metavar="N",
                        help="steps of each run (default: 400 for mlp, 30 for gpt2, 100 for others)")
    parser.add_argument("--turn", type=int, metavar="N", help="steps of a turn (default: 20 for mlp, 1 for others)")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS", help="of one run (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all runs and results to FILE")
    options = parser.parse_args()
    if options.rounds < 1 or options.turn == 0 or (options.turn or 1) < 0:
        parser.error("--rounds and --turn must be positive")
    if options.iterations < 0 or 0 < options.iterations <= WARM_UP + 2:
        parser.error(f"--iterations must be more than {WARM_UP + 2}")
    return options


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: what is complete is reported
    report = {"skipped": {}, "programs": {}}
    try:
        programs = [Program(name, options.iterations, options.turn) for name in options.programs.split(",")]
        report["skipped"] = {mode: reason for mode in options.modes if (reason := obstacle(mode))}
    except Failed as reason:
        sys.exit(f"bench-trace: {reason}")
    busy = bench.busy_share()
    if busy > bench.BUSY:
        print(f"bench-trace: other programs use {100 * busy:.0f} % of the processors; the times will not be true",
              file=sys.stderr)
    report["machine"] = bench.describe_machine(busy)
    for mode, reason in report["skipped"].items():
        print(f"{mode} is skipped: {reason}")
    with tempfile.TemporaryDirectory(prefix="terra-bench-") as folder:
        for program in programs:
            try:
                modes = [mode for mode in options.modes if mode not in report["skipped"]]
                part = report["programs"][program.name] = bench_program(program, modes, options, folder)
            except Failed as reason:
                part = report["programs"][program.name] = {"not_run": {"all": str(reason)}}
                print(f"{program.name}: {reason}")
            if "stopped" in part["not_run"]:
                break
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    sys.exit(0 if all(went_well(part) for part in report["programs"].values()) else 1)


if __name__ == "__main__":
    main()
