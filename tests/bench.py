"""Times training programs as users start them, under other allocators, and with Terra, side by side.

Each run is a process of its own. Within a round they are started one after the other, in an order that shifts from round to
round, and stop after their first iterations; then they take turns of a few iterations each, while the others stand still, so
that a slow minute of the machine is all modes' minute. With --turn 0 each runs to its end before the next is started. A round
in which any mode took over twice that mode's own median is discarded, and counted.
"""
import argparse
import glob
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(os.environ.get("TERRA_BUILD", os.path.join(ROOT, "build")))
DRIVER = os.path.join(ROOT, "tests", "programs", "bench_driver.py")
REPLAY = os.path.join(BUILD, "lib", "libterra_replay.so")

ITERATIONS = {"mlp": 400, "gpt2": 30}
OTHER_ITERATIONS = 100
WARM_UP = 3                 # iterations before the steady ones
TRACED = 8                  # iterations of the run that the plan is made from
TURNS = {"mlp": 20}         # iterations of a turn where --turn asks for none; 1 for others
SETTLE = 0.01               # seconds between turns: idle workers of OpenMP spin that long
BUSY = 0.05                 # share of the processors used by others from which on times are not to be trusted

RETAIN = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "268435456"}
HUGE = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
MODES = ("eager", "malloc", "malloc-thp", "tcmalloc", "alloc", "replay", "compile")
FOREIGN_ALLOCATORS = ("malloc", "malloc-thp", "tcmalloc")


class Failed(Exception):
    """A run or a preparation that did not work, with what to tell the user."""


class Program:
    """A training script, its number of iterations, and its plan once made."""

    def __init__(self, name, iterations, turn):
        path = os.path.join(ROOT, "tests", "programs", name + ".py")
        self.path = path if os.path.exists(path) else name
        if not os.path.exists(self.path):
            raise Failed(f"no such program: {name}")
        self.name = os.path.splitext(os.path.basename(self.path))[0]
        self.iterations = iterations or ITERATIONS.get(self.name, OTHER_ITERATIONS)
        self.turn = TURNS.get(self.name, 1) if turn is None else turn
        self.plan = None


def find_tcmalloc():
    found = sorted(glob.glob("/usr/lib/*/libtcmalloc_minimal.so.4"))
    if not found:
        raise Failed("libtcmalloc-minimal4 is not installed")
    return found[0]


def built(path):
    if not os.path.exists(path):
        raise Failed(f"{path} is missing; run tools/build")
    return path


def mode_environment(mode, program, folder):
    """What a mode adds to the environment."""
    if mode == "malloc":
        return RETAIN
    if mode == "malloc-thp":
        return {**RETAIN, **HUGE}
    if mode == "tcmalloc":
        return {"LD_PRELOAD": find_tcmalloc()}
    if mode == "alloc":
        return {"LD_PRELOAD": built(REPLAY), "TERRA_MODE": "alloc"}
    if mode == "replay":
        return {"LD_PRELOAD": built(REPLAY), "TERRA_MODE": "replay", "TERRA_PLAN": program.plan,
                "TERRA_LOG": "json:" + os.path.join(folder, "replay.json")}
    if mode == "compile":
        return {"TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, f"inductor-{program.name}")}
    return {}


def base_environment():
    """The caller's environment without whatever a mode may set."""
    private = {"LD_PRELOAD", "TORCHINDUCTOR_CACHE_DIR", *RETAIN, *HUGE}
    return {key: value for key, value in os.environ.items() if key not in private and not key.startswith("TERRA_")}


def no_end(command, seconds):
    return Failed(f"no end after {seconds} s: {' '.join(command)}")


def bad_exit(command, code, err):
    return Failed(f"exit code {code}: {' '.join(command)}\n{err[-2000:]}")


def kill(child):
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def run_process(command, environment, seconds):
    """A command that must exit with 0 within the time."""
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                             stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    try:
        _, err = child.communicate(timeout=seconds)
    except BaseException as error:
        kill(child)
        if isinstance(error, subprocess.TimeoutExpired):
            raise no_end(command, seconds) from None
        raise
    if child.returncode != 0:
        raise bad_exit(command, child.returncode, err)


def progress(text):
    """What is going on, on one line that is written over; nothing where standard error is a file."""
    if sys.stderr.isatty():
        print(f"\r{text:60}\r{text}", end="", file=sys.stderr, flush=True)


def driver_command(program, iterations, out, *options):
    return [sys.executable, DRIVER, *options, "--out", out, program.path, str(iterations)]


def make_plan(program, folder, seconds):
    """Trace a short run and optimise it: what a user does once before the fast runs."""
    trace, plan = (os.path.join(folder, program.name + suffix) for suffix in (".terra", ".plan"))
    run_process([built(os.path.join(BUILD, "bin", "terra-trace")), "-q", "-o", trace, "--",
                 *driver_command(program, TRACED, os.path.join(folder, "traced.json"))], base_environment(), seconds)
    run_process([built(os.path.join(BUILD, "bin", "terra-opt")), trace, "-o", plan], base_environment(), seconds)
    return plan


def steady_from(ends):
    """When steady speed was reached: the end of the first iteration that, with the two after it, took at most 1.2 times
    the median of the second half."""
    times = [end - start for start, end in zip(ends, ends[1:])]
    limit = 1.2 * statistics.median(times[len(times) // 2:])
    for i in range(len(times)):
        if max(times[i:i + 3]) <= limit:
            return ends[i + 1]
    return ends[-1]


class Run:
    """One run of one mode. With turns it stands still until it is given one, and again after it."""

    def __init__(self, program, mode, folder, options):
        self.program, self.mode, self.timeout = program, mode, options.timeout
        self.folder = os.path.join(folder, "run-" + mode)
        os.makedirs(self.folder, exist_ok=True)
        arguments = self.mode_arguments()
        go_here, self.go = os.pipe()
        self.done, done_here = os.pipe()
        if program.turn:
            arguments += ["--turns", f"{go_here},{done_here},{WARM_UP},{program.turn}"]
        arguments += ["--started", str(time.monotonic_ns())]
        self.command = self.starter() + driver_command(program, program.iterations, self.file("run.json"), *arguments)
        with open(self.file("out"), "wb") as out, open(self.file("err"), "wb") as err:
            self.child = subprocess.Popen(self.command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                                          start_new_session=True, pass_fds=(go_here, done_here))
        os.close(go_here)
        os.close(done_here)

    def environment(self):
        return {**base_environment(), **mode_environment(self.mode, self.program, self.folder)}

    def mode_arguments(self):
        """What a mode asks of the driver."""
        return ["--compile"] if self.mode == "compile" else []

    def starter(self):
        """The command that starts the driver, where a mode has one."""
        return []

    def wait(self):
        """Waits for the end; the exit code."""
        return self.child.wait()

    def file(self, name):
        return os.path.join(self.folder, name)

    def text(self, name):
        with open(self.file(name), encoding="utf-8", errors="replace") as file:
            return file.read()

    def turn_ends(self):
        """Waits for the end of a turn. False at the end of the run."""
        if not select.select([self.done], [], [], self.timeout)[0]:
            raise no_end(self.command, self.timeout)
        if os.read(self.done, 1):
            return True
        if self.wait() != 0:
            raise bad_exit(self.command, self.child.returncode, self.text("err"))
        return False

    def turn(self):
        os.write(self.go, b".")
        return self.turn_ends()

    def end(self):
        """Stops what runs, and forgets it."""
        if self.child.poll() is None:
            kill(self.child)
        os.close(self.go)
        os.close(self.done)

    def measured(self):
        """Of a run that has ended: a dict."""
        run = json.loads(self.text("run.json"))
        ends = run["iteration_ends"]
        if len(ends) <= WARM_UP + 2:
            raise Failed(f"{self.program.path} made {len(ends)} optimizer steps, too few to time")
        faults = run.pop("page_faults")
        run.update(total=run["end"] - ends[WARM_UP - 1], third=ends[WARM_UP - 1], steady=steady_from(ends),
                   page_faults=(faults[-1] - faults[WARM_UP - 1]) / (len(ends) - WARM_UP), printed=self.text("out"))
        if self.mode == "replay" and os.path.exists(self.file("replay.json")):
            run["replay_log"] = json.loads(self.text("replay.json"))
            os.unlink(self.file("replay.json"))
        return run


class Round:
    """All modes once: one after the other, or in turns. A mode that fails is given up, with its reason in `gone`."""

    def __init__(self, program, folder, options, gone, name, make_run=Run):
        self.program, self.folder, self.options, self.gone, self.name = program, folder, options, gone, name
        self.make_run = make_run
        self.waiting, self.results = [], {}

    def step(self, mode, run, turn):
        """Lets a run have a turn (or its first steps); what it measured is in `results` when it has ended."""
        try:
            if turn():
                return
            self.results[mode] = run.measured()
        except Failed as reason:
            self.gone[mode] = str(reason)
        self.waiting.remove(run)
        run.end()

    def make(self, order):
        try:
            for mode in order:
                if mode in self.gone:
                    continue
                progress(f"{self.program.name}: {self.name}, {mode}")
                run = self.make_run(self.program, mode, self.folder, self.options)
                self.waiting.append(run)
                self.step(mode, run, run.turn_ends)
            while self.waiting:
                for run in list(self.waiting):
                    time.sleep(SETTLE)
                    self.step(run.mode, run, run.turn)
                self.waiting = self.waiting[1:] + self.waiting[:1]
            return self.results
        finally:
            for run in self.waiting:
                run.end()


def run_rounds(program, modes, folder, options, make_run=Run):
    """All rounds: a dict of runs per round. When stopped, the rounds that are complete."""
    gone, results = {}, []
    try:
        for number in range(options.rounds):
            order = modes[number % len(modes):] + modes[:number % len(modes)]
            name = f"round {number + 1} of {options.rounds}"
            results.append(Round(program, folder, options, gone, name, make_run).make(order))
    except KeyboardInterrupt:
        gone["stopped"] = f"in round {len(results) + 1} of {options.rounds}"
    progress("")
    return [{mode: run for mode, run in result.items() if mode not in gone} for result in results], gone


def keep_quiet_rounds(results):
    """The rounds in which no mode took over twice its own median, and how many the others are."""
    medians = {mode: statistics.median(result[mode]["total"] for result in results) for mode in results[0]}
    kept = [result for result in results if all(run["total"] <= 2 * medians[mode] for mode, run in result.items())]
    return kept, len(results) - len(kept)


def same_bits(runs, reference):
    return all(run["losses"] == reference["losses"] and run["parameters"] == reference["parameters"] and
               run["printed"] == reference["printed"] for run in runs)


def summarise(results, reference):
    """Per mode: median and spread of the total time, ratios, start-up times, memory, page faults an iteration, and whether the
    bits are eager's."""
    totals = {mode: [result[mode]["total"] for result in results] for mode in results[0]}
    medians = {mode: statistics.median(times) for mode, times in totals.items()}
    allocators = [medians[mode] for mode in ("malloc", "tcmalloc") if mode in medians]
    summary = {}
    for mode, times in totals.items():
        runs = [result[mode] for result in results]
        summary[mode] = {
            "median": medians[mode], "lowest": min(times), "highest": max(times),
            "to_eager": medians["eager"] / medians[mode] if "eager" in medians else None,
            "to_allocator": min(allocators) / medians[mode] if allocators else None,
            "third": statistics.median(run["third"] for run in runs),
            "steady": statistics.median(run["steady"] for run in runs),
            "peak_bytes": max(run["peak_bytes"] for run in runs),
            "page_faults": statistics.median(run["page_faults"] for run in runs),
            "same_bits": same_bits(runs, reference) if reference else None,
        }
    return summary


def cell(value, form, width):
    return format("-" if value is None else format(value, form), f">{width}")


def not_run(mode, reason):
    return f"stopped {reason}" if mode == "stopped" else f"{mode:10} did not run: {reason}"


def print_table(program, summary, kept, discarded, gone):
    print(f"{program.name}: {program.iterations} iterations, of which the first {WARM_UP} are not timed; "
          f"{kept} rounds{f', and {discarded} discarded' if discarded else ''}"
          f"{f'; turns of {program.turn}' if program.turn else ''}")
    print(f"{'':11}{'total s':>9}{'lowest - highest':>20}{'x eager':>9}{'x malloc':>10}{'iter 3 at':>11}"
          f"{'steady at':>11}{'peak MB':>9}{'faults':>8}  same bits")
    for mode, line in summary.items():
        spread = f"{line['lowest']:.3f} - {line['highest']:.3f}"
        answer = {True: "yes", False: "NO", None: "-"}[line["same_bits"]]
        print(f"{mode:11}{line['median']:9.3f}{spread:>20}{cell(line['to_eager'], '.2f', 9)}"
              f"{cell(line['to_allocator'], '.2f', 10)}{line['third']:9.2f} s{line['steady']:9.2f} s"
              f"{line['peak_bytes'] / 1e6:9.0f}{line['page_faults']:8.0f}  {answer}")
    for mode, reason in gone.items():
        print(not_run(mode, reason))


def print_notes(results, summary):
    if "compile" in summary:
        print(f"compile, first round, with nothing cached: iteration 3 at {results[0]['compile']['third']:.1f} s; its "
              "operations are other ones, so other bits are no error")
    log = results[-1].get("replay", {}).get("replay_log")
    if log and log.get("ops_seen"):
        print(f"replay: {log['ops_seen']} ops seen, {log.get('ops_deferred', 0)} deferred, {log.get('ops_fused', 0)} fused")
    if "alloc" in summary:
        for mode in FOREIGN_ALLOCATORS:
            if mode in summary and summary[mode]["median"] < summary["alloc"]["median"]:
                share = summary["alloc"]["median"] / summary[mode]["median"] - 1
                print(f"{mode} beats our allocator by {100 * share:.1f} %")
    print()


def busy_share():
    """Share of all processors that others used during half a second."""
    def read():
        with open("/proc/stat", encoding="utf-8") as file:
            numbers = [int(word) for word in file.readline().split()[1:9]]
        return sum(numbers), numbers[3] + numbers[4]
    total, idle = read()
    time.sleep(0.5)
    total, idle = (after - before for after, before in zip(read(), (total, idle)))
    return 1 - idle / total if total else 0.0


def describe_machine(busy):
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"processor": model, "processors": os.cpu_count(), "kernel": platform.release(),
            "python": platform.python_version(), "commit": commit, "busy_share_before": round(busy, 3)}


def bench_program(program, modes, options, folder):
    """Bench one program; returns its part of the JSON report."""
    gone = {}
    if "replay" in modes:
        try:
            progress(f"{program.name}: tracing and optimising")
            program.plan = options.plan or make_plan(program, folder, options.timeout)
        except Failed as reason:
            gone["replay"] = str(reason)
    modes = [mode for mode in modes if mode not in gone]
    results, failures = run_rounds(program, modes, folder, options)
    gone.update(failures)
    if not results or not results[0]:
        for mode, reason in gone.items():
            print(f"{program.name}: {not_run(mode, reason)}")
        return {"not_run": gone}
    reference = results[0].get("eager")
    kept, discarded = keep_quiet_rounds(results)
    if not kept:
        print(f"{program.name}: every round was disturbed; all are shown")
        kept, discarded = results, 0
    summary = summarise(kept, reference)
    summary = {mode: summary[mode] for mode in MODES if mode in summary}
    print_table(program, summary, len(kept), discarded, gone)
    print_notes(results, summary)
    return {"path": os.path.relpath(program.path, ROOT), "iterations": program.iterations, "kept_rounds": len(kept),
            "discarded_rounds": discarded, "modes": summary, "not_run": gone, "rounds": results}


def went_well(part):
    """Whether all modes of a program ran, and gave eager's bits where the operations are eager's."""
    return not part["not_run"] and all(line["same_bits"] is not False for mode, line in part["modes"].items() if mode != "compile")


def choice_list(text):
    chosen = [word for word in text.split(",") if word]
    unknown = [word for word in chosen if word not in MODES]
    if unknown or not chosen:
        raise argparse.ArgumentTypeError(f"unknown mode: {', '.join(unknown)}; there are {', '.join(MODES)}")
    return list(dict.fromkeys(chosen))


def parse_arguments():
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--programs", default="mlp,gpt2", metavar="NAME,...",
                        help="mlp, gpt2, or paths of scripts that take a number of steps (default: %(default)s)")
    parser.add_argument("--modes", type=choice_list, default=list(MODES), metavar="MODE,...",
                        help=f"some of {','.join(MODES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--iterations", type=int, default=0, metavar="N",
                        help="steps of each run (default: 400 for mlp, 30 for gpt2, 100 for others)")
    parser.add_argument("--turn", type=int, metavar="N",
                        help="within a round the modes take turns of N steps each; 0: one run after the other "
                             "(default: 20 for mlp, 1 for others)")
    parser.add_argument("--plan", metavar="FILE", help="replay with this plan instead of making one")
    parser.add_argument("--timeout", type=int, default=900, metavar="SECONDS", help="of one run (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all runs and results to FILE")
    options = parser.parse_args()
    if options.rounds < 1 or options.iterations < 0 or (options.turn or 0) < 0:
        parser.error("--rounds, --iterations and --turn must be positive")
    if 0 < options.iterations <= WARM_UP + 2:
        parser.error(f"--iterations must be more than {WARM_UP + 2}")
    return options


def main():
    options = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as ^C: what is complete is reported
    try:
        programs = [Program(name, options.iterations, options.turn) for name in options.programs.split(",")]
    except Failed as reason:
        sys.exit(f"bench: {reason}")
    busy = busy_share()
    if busy > BUSY:
        print(f"bench: other programs use {100 * busy:.0f} % of the processors; the times will not be true",
              file=sys.stderr)
    report = {"machine": describe_machine(busy), "programs": {}}
    with tempfile.TemporaryDirectory(prefix="terra-bench-") as folder:
        for program in programs:
            part = report["programs"][program.name] = bench_program(program, options.modes, options, folder)
            if "stopped" in part["not_run"]:
                break
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
    sys.exit(0 if all(went_well(part) for part in report["programs"].values()) else 1)


if __name__ == "__main__":
    main()
