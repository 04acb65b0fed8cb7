"""What is measured in time: what a user's run gains, and what the library may cost where it gains nothing."""
# timeout: 900
# alone: it compares times
import json
import os
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, REPLAY, clean_env, drive, main, make_plan, make_trace, program, run, temporary_folder, test, tool, traced
from shares import share_that_ran

STEPS = 400
THIRD_SEEDS = ("3", "15")
_folder = temporary_folder()


def path(name):
    return os.path.join(_folder.name, name)


def driven(env=None, preload=None):
    """mlp as the benchmark's driver sees it."""
    result, _ = drive(path("run.json"), "mlp", STEPS, env=env, preload=preload, timeout=60)
    result["third"], result["rest"] = result["iteration_ends"][2], result["end"] - result["iteration_ends"][2]
    return result


def best(runs, what):
    """What else the machine does only adds."""
    return min(result[what] for result in runs)


@test(timeout=400)
def mlp_as_a_user_runs_it():
    """terra-trace, terra-opt and replay without an option: eager's bits; at least 60 % of the time outside views and products is
    fused; step 3 ends a second after eager's at most; no slower, and no hungrier. Times are the best of up to three runs each."""
    trace, plan, log = make_trace(path("mlp"), traced("mlp")), path("mlp.plan"), path("log.json")
    run([tool("terra-opt"), "--quiet", "-o", plan, trace], timeout=200)
    eager, ours = [], []
    for _ in range(3):
        eager.append(driven())
        ours.append(driven({"TERRA_PLAN": plan, "TERRA_TRIALS": "on", "TERRA_LOG": "json:" + log}, REPLAY))
        for what in "losses", "parameters":
            assert ours[-1][what] == eager[-1][what], what
        if best(ours, "third") <= best(eager, "third") + 1 and best(ours, "rest") <= best(eager, "rest") / 0.98:
            break
    with open(log, encoding="utf-8") as file:
        share = share_that_ran(trace, json.load(file), STEPS)
    print(f"step 3 ends at {best(ours, 'third'):.2f} s, eager's at {best(eager, 'third'):.2f} s; then "
          f"{best(eager, 'rest') / best(ours, 'rest'):.2f} times as fast; {share:.0%} of the time outside views and products fused")
    assert best(ours, "third") <= best(eager, "third") + 1
    assert best(ours, "rest") <= best(eager, "rest") / 0.98
    assert best(ours, "peak_bytes") <= 1.1 * best(eager, "peak_bytes")
    assert share >= 0.6


class Paced:
    """A program that trains some steps whenever it is asked to."""

    def __init__(self, env, preload=None, arguments=()):
        env = clean_env({"XDG_CACHE_HOME": path("no-plans"), **env}, preload)
        self.child = subprocess.Popen([PYTHON, program("paced.py"), *arguments], env=env, stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True)

    def steps(self, n):
        """The CPU time and the time that they took, in seconds."""
        self.child.stdin.write(f"{n}\n")
        self.child.stdin.flush()
        return [int(word) / 1e9 for word in self.child.stdout.readline().split()]

    def end(self):
        self.child.communicate()
        assert self.child.returncode == 0, self.child.returncode


def in_turns(left, right, n, turn):
    """Left's time by right's. The two take short turns, and each turn is compared with those beside it: whatever else the
    machine does changes more slowly than that, and single turns that it hits do not move the median."""
    turns = [(turn(left), turn(right)) for _ in range(n)]
    left.end()
    right.end()
    return statistics.median([left / right for left, right in turns] +
                             [left / right for (left, _), (_, right) in zip(turns[1:], turns)])


def speed_without_a_plan():
    """Eager's CPU time by ours, on one thread: all of it is work."""
    eager, ours = Paced({"OMP_NUM_THREADS": "1"}), Paced({"OMP_NUM_THREADS": "1"}, REPLAY)
    eager.steps(20), ours.steps(20)
    return in_turns(eager, ours, 400, lambda paced: paced.steps(2)[0])


def turn_on_all_threads(paced):
    time.sleep(0.01)  # the other's idle threads spin that long
    return paced.steps(10)[1]


def speed_by_the_allocator_alone(seed, plan, log):
    """Of a third program with its plan: how many times as fast as with the allocator alone."""
    alone = Paced({"TERRA_MODE": "alloc"}, REPLAY, [seed])
    ours = Paced({"TERRA_PLAN": plan, "TERRA_TRIALS": "on", "TERRA_LOG": "json:" + log}, REPLAY, [seed])
    alone.steps(200), ours.steps(200)
    return in_turns(alone, ours, 80, turn_on_all_threads)


@test(timeout=900)
def a_third_program_is_as_fast_as_with_the_allocator_alone():
    """With a plan of everything that can be fused, however little that gains: these are small programs, where guarding a region can
    cost more, and what loses is left alone. Where memory lies counts here, too: up to four tries, and 3 % for noise. Without trials
    the first of them lost 7 %."""
    log = path("trials.json")
    for seed in THIRD_SEEDS:
        plan = make_plan(path("third" + seed), [program("third.py"), seed, "12"], "--disable-pass", "cost")
        speeds = []
        while len(speeds) < 4 and max(speeds, default=0) < 0.97:
            speeds.append(speed_by_the_allocator_alone(seed, plan, log))
        with open(log, encoding="utf-8") as file:
            trials = json.load(file)["trials"]
        print(f"third.py {seed}: " + ", ".join(f"{speed:.3f}x" for speed in speeds) + f", {trials}")
        assert max(speeds) >= 0.97, (seed, speeds, trials)


@test(timeout=400)
def without_a_plan_nothing_is_slower():
    "At least 0.98 times eager's speed. Where memory lies differs from process to process and counts too: five tries."
    speeds = []
    while len(speeds) < 5 and max(speeds, default=0) < 0.98:
        speeds.append(speed_without_a_plan())
    print("without a plan " + ", ".join(f"{speed:.3f}x" for speed in speeds))
    assert max(speeds) >= 0.98, speeds


if __name__ == "__main__":
    main()
