#!/usr/bin/env python3
"""The drivers of tests and benchmarks: no failure is counted as a pass, no disturbed round as a result."""
# timeout: 120
# alone: its tests wait for a time
import os
import re
import shutil
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, ROOT, main, python, run, skip, temporary_folder, test

sys.path.insert(0, os.path.join(ROOT, "tests"))
import bench
import bench_trace
import runner

HARNESS = f"import sys; sys.path.insert(0, {os.path.dirname(os.path.abspath(__file__))!r}); from harness import *\n"


def outcome(script, kind="cmocka", seconds=20):
    """What the runner makes of a shell script: passed, failed, skipped."""
    result = runner.run_suite(runner.Suite("made/up", ["sh", "-c", script], seconds, kind))
    return result.passed, len(result.failed), len(result.skipped)


def cmocka(*cases, announced=None):
    """A script that prints what cmocka prints for cases with these outcomes."""
    lines = [f"[==========] Running {announced or len(cases)} test(s)."]
    for i, word in enumerate(cases):
        lines += [f"[ RUN      ] case{i}", f"[ {word} ] case{i}"]
    return "".join(f"echo '{line}'\n" for line in lines)


OK, FAILED, SKIPPED = "      OK", " FAILED ", " SKIPPED"


@test
def cases_are_counted_one_by_one():
    assert outcome(cmocka(OK, OK, SKIPPED)) == (2, 0, 1)
    assert outcome(cmocka(OK, FAILED, SKIPPED) + "exit 1") == (1, 1, 1)
    assert outcome(cmocka(OK) + cmocka(OK, OK)) == (3, 0, 0)


@test
def a_suite_that_dies_has_failed():
    assert outcome(cmocka(OK, announced=3) + "kill -SEGV $$") == (1, 1, 0)
    assert outcome(cmocka(OK, OK) + "exit 1") == (2, 1, 0)


@test
def a_suite_that_hangs_has_failed():
    assert outcome(cmocka(OK) + "sleep 30", seconds=1) == (1, 1, 0)


def training_script(folder, start, step="", end=""):
    """A small training; `step` is done in each step and `end` behind the last."""
    path = os.path.join(folder, "steps.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write("import sys, time, torch\n"
                   f"parameter = torch.nn.Parameter({start})\n"
                   "optimizer = torch.optim.SGD([parameter], 0.1)\n"
                   "for step in range(int(sys.argv[1])):\n"
                   f"    parameter.sum().backward(); optimizer.step(); {step}\n"
                   f"{end}")
    return path


def bench_command(script, modes, *options):
    return [PYTHON, os.path.join(ROOT, "tests", "bench.py"), "--programs", script, "--modes", modes, "--iterations", "8", *options]


@test(timeout=100)
def a_stopped_bench_reports_its_complete_rounds():
    "SIGTERM in the second round: the first is printed and written, the exit code tells, no process is left."
    with temporary_folder() as folder:
        out = os.path.join(folder, "bench.json")
        script = training_script(folder, "torch.ones(4)", "time.sleep(0.02)",
                                 f"open({folder!r} + '/done', 'a').write('x')\n"
                                 f"if len(open({folder!r} + '/done').read()) == 2: time.sleep(60)\n")
        child = subprocess.Popen(bench_command(script, "eager", "--rounds", "3", "--json", out), stdout=subprocess.PIPE, text=True)
        while not os.path.exists(os.path.join(folder, "done")) or len(open(os.path.join(folder, "done")).read()) < 2:
            time.sleep(0.1)
        child.terminate()
        printed = child.communicate(timeout=30)[0]
        assert child.returncode == 1
        assert "8 iterations" in printed and "1 rounds" in printed and "stopped in round 2 of 3" in printed, printed
        with open(out, encoding="utf-8") as file:
            assert len(bench.json.load(file)["programs"]["steps"]["rounds"]) == 1


@test(timeout=100)
def a_bench_with_other_bits_fails():
    "A program that computes something else each time."
    with temporary_folder() as folder:
        script = training_script(folder, "torch.full((4,), time.time_ns() % 1e6)")
        done = run(bench_command(script, "eager,malloc", "--rounds", "1"), check=False)
        assert done.returncode == 1 and re.search(r"^malloc .* NO$", done.stdout, re.MULTILINE), done


@test(timeout=100)
def the_trace_bench_measures_beside_an_untraced_run():
    "A mode of ours and one of PyTorch's: the trace's size, what was lost, the same bits, in the table and as JSON."
    with temporary_folder() as folder:
        out = os.path.join(folder, "bench.json")
        command = [PYTHON, os.path.join(ROOT, "tests", "bench_trace.py"), "--programs", training_script(folder, "torch.ones(4)"),
                   "--modes", "eager,preload,observer", "--iterations", "8", "--turn", "2", "--rounds", "1", "--json", out]
        done = run(command, timeout=90)
        with open(out, encoding="utf-8") as file:
            part = bench.json.load(file)["programs"]["steps"]
    modes = part["modes"]
    assert list(modes) == ["eager", "preload", "observer"] and not part["not_run"], part
    assert all(f"\n| {mode} |" in done.stdout for mode in modes), done.stdout
    assert part["ops_per_iteration"] > 5 and modes["eager"]["slowdown"] == 1, part
    assert modes["preload"]["lost"] == 0 and modes["preload"]["bytes_per_op"] > 1, modes
    assert modes["observer"]["bytes_per_op"] > 1 and modes["observer"]["lost"] is None, modes
    assert all(line["same_bits"] for line in modes.values())


@test
def the_tracers_summary_is_read():
    line = "terra-trace: /tmp/t.terra: 1,234 events{}, 5 lost, 0.1 MB\n"
    assert bench_trace.read_summary("of the program\n" + line.format("")) == (1234, 5, None)
    assert bench_trace.read_summary(line.format(", 20 iterations, 12,345 traps")) == (1234, 5, 12345)
    try:
        bench_trace.read_summary("terra-trace: no trace: the command itself used no PyTorch\n")
    except bench.Failed as reason:
        assert "no trace" in str(reason)
    else:
        raise AssertionError("not noticed")


@test
def a_traced_run_is_compared_with_its_own_round():
    def run_of(iteration, **other):
        return {"iteration": iteration, "tracer_cpu": None, "cpu": 1.0, "writing": 0.0, "bytes": None, "events": None, "lost": None,
                "traps": None, "losses": ["00"], "parameters": "aa", **other}
    traced = {"tracer_cpu": 0.5, "bytes": 900, "events": 40, "lost": 2, "traps": 30}
    rounds = [{"eager": run_of(1.0), "bpf": run_of(2.0, **traced)}, {"eager": run_of(2.0), "bpf": run_of(3.0, **traced)}]
    summary = bench_trace.summarise(rounds, 10)["bpf"]
    assert (summary["slowdown"], summary["lowest"], summary["highest"]) == (1.75, 1.5, 2.0), summary
    assert (summary["bytes_per_op"], summary["traps_per_op"], summary["lost"], summary["same_bits"]) == (90, 3, 4, True)
    rounds[1]["bpf"]["parameters"] = "ab"
    part = {"not_run": {}, "modes": bench_trace.summarise(rounds, 10)}
    assert not part["modes"]["bpf"]["same_bits"] and not bench_trace.went_well(part)


@test
def processor_time_of_a_child_is_its_own():
    "Read when it has ended, without what its children took."
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'for i in range(20_000_000): pass'])"
    child = subprocess.Popen([PYTHON, "-S", "-c", code])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    seconds = bench_trace.cpu_of_the_dead(child.pid)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    assert 0 <= seconds < 0.5 * (usage.ru_utime + usage.ru_stime), (seconds, usage)


@test
def a_suite_without_a_case_has_failed():
    assert outcome("true") == (0, 1, 0)
    assert outcome("true", kind="harness") == (0, 1, 0)


@test
def python_suites_are_counted_by_their_lines():
    assert outcome("echo 'ok - a (0.1 s)'; echo 'skipped - b (why)'; echo 'FAIL - c'; exit 1", kind="harness") == (1, 1, 1)
    assert outcome("echo 'ok - a'; exit 3", kind="harness") == (1, 1, 0)


@test
def suites_that_must_be_alone_are():
    "What a script declares is found, and only beside others do waiting threads sleep."
    assert runner.declared(os.path.abspath(__file__)) == (120, True)
    assert not runner.declared(os.path.join(ROOT, "tests", "e2e", "test_report.py"))[1]
    alone, other = (runner.Suite("made/up", ["true"], 1, "harness", alone=value) for value in (True, False))
    assert "GOMP_SPINCOUNT" in other.env and alone.env.get("GOMP_SPINCOUNT") == os.environ.get("GOMP_SPINCOUNT")


@test
def what_suites_share_is_made_once():
    "One file for the same words, whatever the stem; without a folder to share, each makes its own; a failure leaves none."
    code = HARNESS + """
import harness
made = []
def make(path):
    made.append(path)
    open(path, 'w').write('x')
def fail(path):
    make(path)
    raise OSError
try: harness._made('a', 'plan', ['other'], fail)
except OSError: pass
paths = [harness._made(stem, 'plan', ['words'], make) for stem in 'ab'] + [harness._made('c', 'plan', ['other'], make)]
print(len(made), len(set(paths)), all(map(os.path.exists, paths)))
"""
    with temporary_folder() as folder:
        assert python(code, env={"TERRA_TEST_PLANS": folder}, cwd=folder).stdout == "3 2 True\n"
        assert python(code, cwd=folder).stdout == "4 3 True\n"


@test
def without_the_right_to_load_bpf_a_test_says_so():
    "It is skipped by name, and fails where that right is required."
    if not shutil.which("capsh") or os.geteuid():
        skip("needs root and capsh")
    code = HARNESS + "@test\ndef probes(): need_bpf()\nmain()"
    command = ["capsh", "--drop=cap_bpf,cap_perfmon,cap_sys_admin", "--", "-c", 'exec "$0" -c "$1"', PYTHON, code]
    done = run(command, env={"TERRA_REQUIRE_BPF": "0"}, check=False)
    assert done.returncode == 0 and "skipped - probes (needs CAP_BPF and CAP_PERFMON)" in done.stdout, done
    done = run(command, env={"TERRA_REQUIRE_BPF": "1"}, check=False)
    assert done.returncode == 1 and "FAIL - probes" in done.stdout, done


@test
def a_failing_test_of_the_harness_fails_its_script():
    code = HARNESS + "@test\ndef good(): pass\n@test\ndef bad(): assert 1 == 2\n@test\ndef no(): skip('why')\nmain()"
    result = python(code, check=False)
    assert result.returncode == 1
    words = [line.split(" (")[0] for line in result.stdout.splitlines() if " - " in line]
    assert words == ["ok - good", "FAIL - bad", "skipped - no"], words


@test
def a_hanging_test_of_the_harness_fails():
    result = python(HARNESS + "@test(timeout=1)\ndef slow():\n  try: run(['sleep', '30'])\n  except Exception: pass\nmain()",
                    check=False)
    assert result.returncode == 1 and "FAIL - slow" in result.stdout, result.stdout


@test
def a_child_that_fails_fails_its_test():
    try:
        run(["sh", "-c", "echo told >&2; exit 3"])
    except AssertionError as error:
        assert "exit code 3" in str(error) and "told" in str(error)
    else:
        raise AssertionError("not noticed")


@test
def disturbed_rounds_are_discarded():
    def result(eager, replay):
        return {"eager": {"total": eager}, "replay": {"total": replay}}
    rounds = [result(1.0, 0.5), result(1.1, 0.5), result(1.0, 1.2), result(2.3, 0.5), result(1.0, 0.6)]
    kept, discarded = bench.keep_quiet_rounds(rounds)
    assert discarded == 2 and kept == [rounds[0], rounds[1], rounds[4]]


@test
def steady_speed_is_found_after_a_slow_start():
    ends = [5.0, 8.0, 9.0, 9.5] + [9.5 + 0.1 * i for i in range(1, 20)]
    assert abs(bench.steady_from(ends) - 9.6) < 1e-9
    assert bench.steady_from([1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@test
def one_other_bit_is_seen():
    run_of = {"losses": ["00", "01"], "parameters": "aa", "printed": "x\n"}
    assert bench.same_bits([dict(run_of)], run_of)
    for key, other in (("losses", ["00", "02"]), ("losses", ["00"]), ("parameters", "ab"), ("printed", "y\n")):
        assert not bench.same_bits([dict(run_of), {**run_of, key: other}], run_of)


@test(timeout=110)
def the_bench_driver_leaves_a_script_as_it_is():
    script = """
import sys, torch
torch.manual_seed(int(sys.argv[1]))
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(5):
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).square().sum()
    loss.backward()
    optimizer.step()
print(__name__, loss.item(), model.weight.sum().item())
"""
    with temporary_folder() as folder:
        path, out = os.path.join(folder, "script.py"), os.path.join(folder, "out.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(script)

        def driven(seed):
            printed = run([PYTHON, bench.DRIVER, "--out", out, path, seed]).stdout
            with open(out, encoding="utf-8") as file:
                return printed, bench.json.load(file)
        plain = run([PYTHON, path, "1"]).stdout
        printed, first = driven("1")
        _, again = driven("1")
        _, other = driven("2")
    assert printed == plain and plain.startswith("__main__ ")
    assert len(first["iteration_ends"]) == len(first["losses"]) == 5
    assert first["iteration_ends"] == sorted(first["iteration_ends"]) and first["end"] >= first["iteration_ends"][-1]
    assert (first["losses"], first["parameters"]) == (again["losses"], again["parameters"])
    assert first["losses"] != other["losses"] and first["parameters"] != other["parameters"]


if __name__ == "__main__":
    main()
