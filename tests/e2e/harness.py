"""What the end-to-end scripts share: tests registered by decorator, one line of outcome each, child processes with time-outs.

A suite is a script, tests/e2e/test_NAME.py:

    from harness import run, skip, test, main

    @test
    def exit_code_is_the_programs_own():
        "One line that says what is promised."
        assert run([tool("terra-trace"), "--", "false"], check=False).returncode == 1

    if __name__ == "__main__":
        main()

It prints "ok - NAME", "FAIL - NAME" or "skipped - NAME (why)" per test and exits with 1 when one failed. Arguments are
patterns that choose tests by name. A line "# timeout: SECONDS" in the script tells tools/check how long all of it may
take, a line "# alone: WHY" that no other suite may run beside it, a line "# long: SECONDS" how long it takes as a rule, so that
it begins before shorter ones. A test that needs the right to load BPF programs asks for it with need_bpf(): without the right it is skipped, and
fails where TERRA_REQUIRE_BPF=1 is set.
"""
import ctypes
import fcntl
import fnmatch
import hashlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("TERRA_BUILD", os.path.join(ROOT, "build")))
PYTHON = sys.executable
REPLAY = os.path.join(BUILD, "lib", "libterra_replay.so")
RECORD = os.path.join(BUILD, "lib", "libterra_record.so")

# Whatever the caller's shell holds of these would change the program under test.
_PRIVATE = ("LD_PRELOAD", "GLIBC_TUNABLES", "THP_MEM_ALLOC_ENABLE", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_",
            "MALLOC_TOP_PAD_")
_KEPT = ("TERRA_BUILD", "TERRA_CACHE", "TERRA_REQUIRE_BPF")
_tests = []


class Skip(Exception):
    """Raised by a test that can't run here; the reason is part of its outcome."""


class _Expired(BaseException):
    """The alarm of a test: no `except Exception` in the test may swallow it."""


def test(function=None, *, timeout=120):
    """Register a test. Used bare or as @test(timeout=SECONDS). A suite that another one imports brings no tests along."""
    if function is None:
        return lambda wrapped: test(wrapped, timeout=timeout)
    if function.__module__ == "__main__":
        _tests.append((function.__name__, function, timeout))
    return function


def skip(reason):
    raise Skip(reason)


def tool(name):
    """Path of a built program such as terra-trace."""
    return os.path.join(BUILD, "bin", name)


def program(name):
    """Path of one of the programs in tests/programs."""
    return os.path.join(ROOT, "tests", "programs", name)


def clean_env(env=None, preload=None):
    """The caller's environment without allocator and Terra settings, then `env`, then the preload libraries. Trials decide by
    times: off where a test does not ask for them, so that what is counted is the same each time."""
    result = {key: value for key, value in os.environ.items()
              if key not in _PRIVATE and (key in _KEPT or not key.startswith("TERRA_"))}
    result["TERRA_TRIALS"] = "off"
    result.update(env or {})
    if preload:
        result["LD_PRELOAD"] = preload if isinstance(preload, str) else ":".join(preload)
    return result


def run(command, *, env=None, preload=None, timeout=60, check=True, input=None, cwd=None):
    """Run a child to its end and return its CompletedProcess with text output. A child that outlives `timeout` is
    ended with its whole process group. With check, an exit code other than 0 fails the test and shows the output."""
    child = subprocess.Popen([str(part) for part in command], env=clean_env(env, preload), cwd=cwd, text=True,
                             stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, errors="replace")
    try:
        out, err = child.communicate(input, timeout=timeout)
    except BaseException as error:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        out, err = child.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise AssertionError(f"no end after {timeout} s: {command}\n{_tail(out)}{_tail(err)}") from None
        raise
    if check and child.returncode != 0:
        raise AssertionError(f"exit code {child.returncode}: {command}\n{_tail(out)}{_tail(err)}")
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def python(code, *arguments, **options):
    """Run Python source text in a fresh interpreter; options as for run()."""
    return run([PYTHON, "-c", code, *arguments], **options)


def libtorch():
    """Path of the libtorch that Python loads."""
    return os.path.join(os.path.dirname(importlib.util.find_spec("torch").origin), "lib", "libtorch_cpu.so")


def _made(stem, ending, words, make):
    """The file that make(path) writes: STEM.ENDING, or in the folder TERRA_TEST_PLANS, where each of the suites that need
    the same finds it, as `words` say what it is made of."""
    folder = os.environ.get("TERRA_TEST_PLANS")
    if not folder:
        make(f"{stem}.{ending}")
        return f"{stem}.{ending}"
    path = os.path.join(folder, hashlib.sha256(repr(words).encode()).hexdigest()[:16] + "." + ending)
    with open(path + ".lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(path):
            make(path + ".new")
            os.rename(path + ".new", path)
    return path


def traced(name):
    """A program that several suites trace or plan, with as many steps for all of them: then one trace and one plan serve."""
    return [program(name + ".py"), {"mlp": "100", "gpt2": "8"}[name]]


def make_trace(stem, command, *, env=None, again=False):
    """Traces a Python program; the path of the trace. `again` makes another one, for this suite alone."""
    def make(path):
        run([tool("terra-trace"), "--quiet", "--backend", "preload", "-o", path, "--", PYTHON,
             *command], env=env, timeout=300)
    if again:
        make(stem + ".again.terra")
        return stem + ".again.terra"
    return _made(stem, "terra", [command, env], make)


def make_plan(stem, command, *options, env=None):
    """Traces a Python program and plans it without taking times: what suites test with a plan is answers, not speed. The
    path of the plan; `env` is for both."""
    def make(path):
        # Threads that spin while they wait make the check of a busy machine take minutes.
        run([tool("terra-opt"), "--quiet", "--no-measure", *options, "-o", path, make_trace(stem, command, env=env)],
            env={"GOMP_SPINCOUNT": "0", **(env or {})}, timeout=600)
    return _made(stem, "plan", [command, options, env], make)


def drive(out, name, steps, *, env=None, preload=None, timeout=600):
    """Runs one of tests/programs under the benchmark's driver, which writes to the file `out`: what it computed and when, and how
    it ended."""
    done = run([PYTHON, program("bench_driver.py"), "--started", time.monotonic_ns(), "--out", out, program(name + ".py"), steps],
               env=env, preload=preload, timeout=timeout)
    with open(out, encoding="utf-8") as file:
        return json.load(file), done


def make_without_guards():
    """All test builds of the library that leave guards out. One suite at a time, as all others that need them wait."""
    with open(os.path.join(BUILD, "guards.lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run(["cmake", "--build", BUILD, "--target", "replay_without_guards"], timeout=580)


def without_guard(guard):
    """The library without that guard, or without several, joined by "+"."""
    return os.path.join(BUILD, "lib", "without", guard, "libterra_replay.so")


def temporary_folder():
    return tempfile.TemporaryDirectory(prefix="terra-test-")


def can_load_bpf():
    """Whether this process may load a BPF program: tried with the smallest one (r0 = 0; exit)."""
    code = ctypes.create_string_buffer(bytes([0xb7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0]), 16)
    text = ctypes.create_string_buffer(b"GPL")
    attr = ctypes.create_string_buffer(128)
    # struct bpf_attr of BPF_PROG_LOAD: prog_type (2 = kprobe), insn_cnt, insns, license.
    ctypes.memmove(attr, (2).to_bytes(4, "little") + (2).to_bytes(4, "little") +
                   ctypes.addressof(code).to_bytes(8, "little") + ctypes.addressof(text).to_bytes(8, "little"), 24)
    number = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)
    if number is None:
        return False
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, 5, attr, 128)
    if descriptor < 0:
        return False
    os.close(descriptor)
    return True


def need_bpf():
    """Skip the test without the right to load BPF programs; fail it where TERRA_REQUIRE_BPF=1 is set."""
    if can_load_bpf():
        return
    if os.environ.get("TERRA_REQUIRE_BPF") == "1":
        raise AssertionError("TERRA_REQUIRE_BPF=1, but BPF programs can't be loaded here")
    skip("needs CAP_BPF and CAP_PERFMON")


def _tail(text, lines=30):
    return "".join(f"  | {line}\n" for line in (text or "").splitlines()[-lines:])


def _expire(signum, frame):
    raise _Expired()


def processor_seconds():
    """What this process and its ended children used: on a machine that others use, too, the time that says what a test costs."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _outcome(function, timeout):
    """Run one test: the word of its outcome, and what to say of it."""
    signal.alarm(timeout)
    try:
        function()
        return "ok", ""
    except Skip as reason:
        return "skipped", str(reason)
    except _Expired:
        return "FAIL", f"no end after {timeout} s"
    except Exception as error:
        return "FAIL", "".join(traceback.format_exception(error)).rstrip()
    finally:
        signal.alarm(0)


def main():
    """Run the registered tests that the arguments choose, print an outcome for each, exit with 1 if any failed."""
    # A shell that runs the suite in the background has SIGINT ignored, and the programs under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    patterns = sys.argv[1:]
    if patterns == ["--list"]:
        print("\n".join(name for name, _, _ in _tests))
        sys.exit(0)
    chosen = [entry for entry in _tests
              if not patterns or any(fnmatch.fnmatch(entry[0], f"*{pattern}*") for pattern in patterns)]
    if not chosen:
        sys.exit("no test has such a name")
    signal.signal(signal.SIGALRM, _expire)
    failed = 0
    for name, function, timeout in chosen:
        start, used = time.monotonic(), processor_seconds()
        word, text = _outcome(function, timeout)
        if word == "FAIL":
            failed += 1
            print(_tail(text), end="")
        times = f"{time.monotonic() - start:.1f} s, {processor_seconds() - used:.1f} s of processor time"
        note = f" ({text if word == 'skipped' else times})"
        print(f"{word} - {name}{note}", flush=True)
    sys.exit(1 if failed else 0)
