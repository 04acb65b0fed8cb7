"""Builds the tree and runs its tests: the C programs that ctest knows, the same under sanitizers, the Python suites.

Outcomes are counted case by case: from cmocka's lines on standard output, and from the lines of tests/e2e/harness.py. A
suite that crashes, hangs, prints no outcome, or exits with an error though no case failed counts as one failure.
"""
import argparse
import concurrent.futures
import fnmatch
import glob
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUILD = os.path.abspath(os.environ.get("TERRA_BUILD", os.path.join(ROOT, "build")))
UNIT_SECONDS, SANITIZED_SECONDS, SUITE_SECONDS, BUILD_SECONDS = 120, 300, 300, 900
QUICK_SECONDS = 120

# OpenMP's threads spin while they wait, so that two programs at once would each be many times slower. Where they sleep
# instead, as many threads as ever do the same parts of the work: the bits are the same.
BESIDE_OTHERS = {"GOMP_SPINCOUNT": "0"}

# Leak reports end a test; undefined behaviour is fatal by the build's own flags and should say where it happened.
SANITIZER_ENV = {"ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1:detect_stack_use_after_return=1",
                 "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1"}

CMOCKA_START = re.compile(r"\[==========\] (?:\S+: )?Running (\d+) test")
CMOCKA_CASE = re.compile(r"\[ ( +OK| FAILED | SKIPPED) \] (.*)")
CMOCKA_NOISE = re.compile(r"\[ +(RUN|OK) +\]|\[==========\]")
HARNESS_CASE = re.compile(r"(ok|FAIL|skipped) - (.*)")


class Suite:
    """One program to run: its name as printed, its command, the seconds it may take, whether nothing may run beside it."""

    def __init__(self, name, command, seconds, kind, cwd=ROOT, env=None, alone=False):
        self.name, self.command, self.seconds, self.kind, self.cwd = name, command, seconds, kind, cwd
        self.alone = alone
        self.env = {**os.environ, "TERRA_BUILD": BUILD, **({} if alone else BESIDE_OTHERS), **(env or {})}


class Result:
    """What a suite came to. `failed` and `skipped` hold names with reasons."""

    def __init__(self):
        self.passed, self.failed, self.skipped, self.seconds, self.output = 0, [], [], 0.0, ""


def run_child(command, seconds, cwd, env):
    """Exit code (None when the time was up and the process group was ended), standard output, standard error."""
    child = subprocess.Popen(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True)
    try:
        out, err = child.communicate(timeout=seconds)
        return child.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate()
        return None, out, err
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        raise


def count_cmocka(result, out):
    announced = outcomes = 0
    for line in out.splitlines():
        if start := CMOCKA_START.search(line):
            announced += int(start[1])
        elif case := CMOCKA_CASE.search(line):
            outcomes += 1
            word, name = case[1].strip(), case[2]
            if word == "OK":
                result.passed += 1
            else:
                (result.failed if word == "FAILED" else result.skipped).append(name)
    if announced > outcomes and not result.failed:
        result.failed.append(f"{announced - outcomes} of {announced} cases never ended")


def count_harness(result, out):
    for line in out.splitlines():
        if case := HARNESS_CASE.match(line):
            if case[1] == "ok":
                result.passed += 1
            else:
                (result.failed if case[1] == "FAIL" else result.skipped).append(case[2])


def run_suite(suite):
    result = Result()
    start = time.monotonic()
    code, out, err = run_child(suite.command, suite.seconds, suite.cwd, suite.env)
    result.seconds = time.monotonic() - start
    result.output = out + err
    if suite.kind == "program":
        result.passed = int(code == 0)
    else:
        (count_harness if suite.kind == "harness" else count_cmocka)(result, out)
    if code is None:
        result.failed.append(f"no end after {suite.seconds} s")
    elif code != 0 and not result.failed:
        result.failed.append(f"exit code {code}")
    elif not (result.passed or result.failed or result.skipped):
        result.failed.append("no test ran")
    return result


def amount(result):
    parts = [f"{result.passed} passed"]
    if result.failed:
        parts.append(f"{len(result.failed)} FAILED")
    if result.skipped:
        parts.append(f"{len(result.skipped)} skipped")
    return ", ".join(parts)


def show(suite, result):
    folder = os.path.join(BUILD, "check")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, suite.name.replace("/", "-") + ".log"), "w", encoding="utf-8") as log:
        log.write(result.output)
    print(f"{suite.name:44} {amount(result):32} {result.seconds:7.1f} s")
    for name in result.skipped:
        print(f"    skipped: {name}")
    for name in result.failed:
        print(f"    FAILED: {name}")
    if result.failed:
        told = [line for line in result.output.splitlines() if not CMOCKA_NOISE.match(line)]
        print("".join(f"    | {line}\n" for line in told[-40:]), end="")


def build(what, arguments):
    """Build one configuration; returns whether that worked."""
    print(f"check: building {what} ", end="")
    start = time.monotonic()
    command = [os.path.join(ROOT, "tools", "build"), "--no-setup", *arguments]
    code, out, err = run_child(command, BUILD_SECONDS, ROOT, {**os.environ, "TERRA_BUILD": BUILD})
    print(f"{time.monotonic() - start:.1f} s{'' if code == 0 else ': FAILED'}")
    if code != 0:
        told = [line for line in (out + err).splitlines() if not line.startswith("[")]
        print("".join(f"    | {line}\n" for line in told[-40:]), end="")
    return code == 0


def ctest_programs(folder):
    """(name, command, labels) of each test that ctest knows in a build folder."""
    listing = subprocess.run(["ctest", "--show-only=json-v1"], cwd=folder, capture_output=True, text=True, check=True)
    programs = []
    for entry in json.loads(listing.stdout)["tests"]:
        properties = {each["name"]: each["value"] for each in entry.get("properties", [])}
        programs.append((entry["name"], entry.get("command", []), properties.get("LABELS", [])))
    return programs


def chosen(name, patterns):
    return not patterns or any(fnmatch.fnmatch(name, f"*{pattern}*") for pattern in patterns)


def declared(path):
    """The seconds that a script says it may take, and whether it says that it must run alone."""
    with open(path, encoding="utf-8") as script:
        text = script.read()
    seconds = re.search(r"^# timeout: (\d+)", text, re.MULTILINE)
    return int(seconds[1]) if seconds else SUITE_SECONDS, re.search(r"^# alone: ", text, re.MULTILINE) is not None


def length(path):
    """The seconds that a long script says it usually takes beside others. They tell where it begins, no more."""
    with open(path, encoding="utf-8") as script:
        seconds = re.search(r"^# long: (\d+)", script.read(), re.MULTILINE)
    return int(seconds[1]) if seconds else 0


def shared_plans():
    """An empty folder for the traces and plans that several suites use."""
    folder = os.path.join(BUILD, "check", "plans")
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return {"TERRA_TEST_PLANS": folder}


def python_suites(patterns):
    """Those that must run alone first: what they leave for others was traced on a quiet machine. The others by their length, so that
    no long one is left for the end."""
    suites, env = [], shared_plans()
    for path in sorted(glob.glob(os.path.join(ROOT, "tests", "e2e", "test_*.py")), key=lambda path: (-length(path), path)):
        name = "e2e/" + os.path.basename(path)[:-3]
        if chosen(name, patterns):
            seconds, alone = declared(path)
            suites.append(Suite(name, [sys.executable, "-u", path], seconds, "harness", env=env, alone=alone))
    return sorted(suites, key=lambda suite: not suite.alone)


def libtorch():
    """Path of the libtorch beside the Python that runs this: the C tests that need a real one take it from TERRA_LIBTORCH."""
    found = glob.glob(os.path.join(sys.prefix, "lib", "python3*", "site-packages", "torch", "lib", "libtorch_cpu.so"))
    return {"TERRA_LIBTORCH": found[0]} if found else {}


def c_suites(prefix, folder, seconds, patterns, env=None, accept=lambda name, labels: True):
    """The C programs of a build folder that the patterns and `accept` choose."""
    env = {**libtorch(), **(env or {})}
    # The fuzz targets' runs over their corpus are one case each.
    return [Suite(f"{prefix}/{name}", command, seconds, "program" if name.startswith("regression_") else "cmocka",
                  cwd=folder, env=env)
            for name, command, labels in ctest_programs(folder)
            if chosen(f"{prefix}/{name}", patterns) and accept(name, labels)]


def run_all(suites, workers, totals):
    """Run suites, `workers` at a time, and print each as soon as it and all before it are done."""
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for suite, result in zip(suites, pool.map(run_suite, suites)):
            show(suite, result)
            totals[0] += result.passed
            totals[1] += len(result.failed)
            totals[2] += len(result.skipped)


def sanitized_suites(options, totals):
    """The C programs again under ASan and UBSan, and those about threads under TSan; built here, no more than they need."""
    suites = []
    for prefix, flag, accept in (("sanitize", "address", lambda name, labels: "no-sanitize" not in labels),
                                 ("tsan", "thread", lambda name, labels: name.endswith("_threads"))):
        targets = [part for suite in c_suites(prefix, BUILD, 0, options.only, accept=accept)
                   for part in ("--target", os.path.basename(suite.command[0]))]
        if not targets:
            continue
        folder = os.path.join(BUILD, f"sanitize-{flag}")
        if build(f"with -fsanitize={flag}", [f"--sanitize={flag}", "--build-dir", folder, *targets]):
            suites += c_suites(prefix, folder, SANITIZED_SECONDS, options.only, SANITIZER_ENV, accept)
        else:
            totals[1] += 1
    return suites


def quick_enough(suite, totals):
    if suite.seconds <= QUICK_SECONDS:
        return True
    print(f"{suite.name:44} skipped: takes up to {suite.seconds} s, --quick")
    totals[2] += 1
    return False


def close(start, totals):
    minutes, seconds = divmod(int(time.monotonic() - start), 60)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"check: {minutes} min {seconds} s, {(used.ru_utime + used.ru_stime) / 60:.1f} min of processor time, "
          f"full output in {os.path.join(BUILD, 'check')}")
    print(f"{totals[0]} passed, {totals[1]} failed, {totals[2]} skipped", flush=True)
    sys.exit(1 if totals[1] else 0)


def main():
    parser = argparse.ArgumentParser(prog="tools/check", description="Set-up, build, and every test.")
    parser.add_argument("--quick", action="store_true",
                        help=f"no sanitizer builds, and no Python suite that may take over {QUICK_SECONDS} s")
    parser.add_argument("--only", metavar="PATTERN", action="append", default=[],
                        help="only suites whose name (unit/..., sanitize/..., tsan/..., e2e/...) contains PATTERN; may be "
                        "repeated")
    options = parser.parse_args()
    start = time.monotonic()
    totals = [0, 0, 0]
    if not build("everything", []):
        totals[1] += 1
        close(start, totals)
    suites = c_suites("unit", BUILD, UNIT_SECONDS, options.only)
    if not options.quick:
        suites += sanitized_suites(options, totals)
    run_all(suites, os.cpu_count(), totals)
    suites = [suite for suite in python_suites(options.only) if not options.quick or quick_enough(suite, totals)]
    run_all([suite for suite in suites if suite.alone], 1, totals)
    run_all([suite for suite in suites if not suite.alone], os.cpu_count(), totals)
    if not any(totals):
        print("check: no suite has such a name")
        totals[1] += 1
    close(start, totals)


if __name__ == "__main__":
    main()
