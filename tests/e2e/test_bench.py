#!/usr/bin/env python3
"""The drivers of benchmarks: no disturbed round is counted as a result, no other bits as the same, and a program under them runs as it
does without.
"""
# timeout: 300
# long: 80
import os
import re
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, ROOT, main, run, temporary_folder, test

sys.path.insert(0, os.path.join(ROOT, "tests"))
import bench
import bench_trace


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
