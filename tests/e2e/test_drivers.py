#!/usr/bin/env python3
"""The drivers of tests: no failure is counted as a pass, and suites run as they say that they must."""
# timeout: 120
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import PYTHON, ROOT, main, python, run, skip, temporary_folder, test

sys.path.insert(0, os.path.join(ROOT, "tests"))
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
    assert runner.declared(os.path.abspath(__file__)) == (120, False)
    assert runner.declared(os.path.join(ROOT, "tests", "e2e", "test_speed.py")) == (900, True)
    alone, other = (runner.Suite("made/up", ["true"], 1, "harness", alone=value) for value in (True, False))
    assert "GOMP_SPINCOUNT" in other.env and alone.env.get("GOMP_SPINCOUNT") == os.environ.get("GOMP_SPINCOUNT")


@test
def suites_that_must_be_alone_and_long_ones_begin_first():
    "Alone: what they leave for others was traced on a quiet machine. Long: no other processor waits for them at the end."
    code = f"""
import sys
sys.path.insert(0, {os.path.join(ROOT, "tests")!r})
import runner
for suite in runner.python_suites([]):
    print(suite.name, suite.alone, runner.length(suite.command[-1]))
"""
    with temporary_folder() as folder:
        lines = [line.split() for line in python(code, env={"TERRA_BUILD": folder}).stdout.splitlines()]
    order = [(alone != "True", -int(seconds)) for _, alone, seconds in lines]
    assert order == sorted(order) and len({line[1] for line in lines}) == 2 and len({line[2] for line in lines}) > 3, lines
    assert sorted(name for name, *_ in lines) == sorted(
        "e2e/" + name[:-3] for name in os.listdir(os.path.dirname(os.path.abspath(__file__)))
        if name.startswith("test_") and name.endswith(".py")), lines


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


if __name__ == "__main__":
    main()
