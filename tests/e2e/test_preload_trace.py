"""The preload recorder: what it records is what PyTorch's profiler sees, and the program does not notice."""
# timeout: 900
# long: 120
import glob
import json
import os
import signal
import subprocess
import time

import trace_oracle
from harness import PYTHON, RECORD, ROOT, clean_env, libtorch, main, program, run, temporary_folder, test, tool

DUMP = tool("trace_dump")
ZOO = os.path.join(ROOT, "tests", "e2e", "op_zoo.py")


def record(command, folder, *, env=None, timeout=120, check=True):
    """Runs a command under the recorder, all levels; its outcome and the path of the trace."""
    path = os.path.join(folder, "program.terra")
    result = run(command, env={"TERRA_RECORD_FILE": path, "TERRA_RECORD_LEVELS": "call,redispatch", **(env or {})}, preload=RECORD, timeout=timeout, check=check)
    return result, path


def record_python(code, folder, **options):
    return record([PYTHON, "-c", code], folder, **options)


@test
def what_is_not_seen_is_named():
    "Entry points that nothing calls through a slot, counted and each by its name; none of them is in the trace."
    with temporary_folder() as folder:
        _, path = record_python("import torch\nfor _ in range(3): torch.ones(100).add(1)", folder)
        trace = trace_oracle.Trace.read(DUMP, path)
    notes = [event["text"] for event in trace.events if event["event"] == "note"]
    count = int(next(note for note in notes if "have no call slot" in note).split()[0])
    names = [name for note in notes if note.startswith("not seen") for name in note.split(": ", 1)[1].split()]
    assert len(names) == len(set(names)) == count > 0, (count, names)
    assert all(name.endswith(("/call", "/redispatch")) for name in names), names
    seen = {f"{enter['op']}{'.' if enter['overload'] else ''}{enter['overload']}/{('call', 'redispatch')[enter['level']]}"
            for enter in trace.enters}
    assert "aten::add.Tensor/call" in seen and not seen & set(names), seen & set(names)


PROFILED = os.path.join(ROOT, "tests", "e2e", "profiled.py")
MARKER = "aten::bartlett_window"  # of profiled.py


def between_markers(names):
    """What lies between the first marker and the last; the marker's own ops with it."""
    first = names.index(MARKER)
    return names[first:len(names) - names[::-1].index(MARKER)]


def check_against_profiler(path, arguments, at_least):
    with temporary_folder() as folder:
        out = os.path.join(folder, "profiled.json")
        _, trace = record([PYTHON, PROFILED, out, path, *arguments], folder)
        with open(out, encoding="utf-8") as file:
            profiled = between_markers(json.load(file))
        calls = between_markers([enter["op"] for enter in trace_oracle.Trace.read(DUMP, trace).enters if enter["level"] == 0])
    print(f"  {len(calls)} calls, {len(profiled)} seen by the profiler")
    assert len(profiled) >= at_least, len(profiled)
    different = [i for i, (a, b) in enumerate(zip(calls, profiled)) if a != b]
    assert not different, f"from {different[0]} on: {calls[different[0]:][:9]} and {profiled[different[0]:][:9]}"
    assert len(calls) == len(profiled)


@test(timeout=240)
def the_profiler_sees_the_same_calls_of_mlp():
    "Without a mode that changes the program: every aten:: event of torch.profiler, in order."
    check_against_profiler(program("mlp.py"), ["3"], 500)


@test(timeout=240)
def the_profiler_sees_the_same_calls_of_gpt2():
    check_against_profiler(program("gpt2.py"), ["1"], 3000)


@test
def results_are_the_programs_own():
    "Output and exit code of a recorded program are its own, also where arguments are on the stack."
    plain = run([PYTHON, ZOO])
    with temporary_folder() as folder:
        recorded, path = record([PYTHON, ZOO], folder)
        assert recorded.stdout == plain.stdout and recorded.stderr == plain.stderr
        assert trace_oracle.Trace.read(DUMP, path).end["clean"]
        code = "import torch, sys; torch.ones(3); sys.stderr.write('bye'); sys.exit(7)"
        recorded, _ = record_python(code, folder, check=False)
        assert recorded.returncode == 7 and recorded.stderr.endswith("bye"), recorded


@test
def exceptions_pass_and_are_marked():
    "A forward that raises 100 times, at several depths, is caught each time; those ops and no others are marked raised."
    code = """if True:
        import torch
        layer = torch.nn.Linear(4, 4)
        caught = 0
        for i in range(100):
            try:
                y = layer(torch.ones(2, 4))
                if i % 3 == 0: torch.mm(y, torch.ones(3, 3))
                elif i % 3 == 1: y.reshape(3, 3)
                else: torch.nn.functional.embedding(torch.tensor([9]), y)
            except (RuntimeError, IndexError) as error:
                caught += 1
            assert torch.ones(2).add(1).sum().item() == 4
        print(caught)
    """
    with temporary_folder() as folder:
        result, path = record_python(code, folder)
        assert result.stdout == "100\n", result.stdout
        trace = trace_oracle.Trace.read(DUMP, path)
        raised = [event for event in trace.exits.values() if event["raised"]]
        outermost = {enter["seq"] for enter in trace.enters if "parent" not in enter}
        assert sum(event["enter"] in outermost for event in raised) == 100
        assert {event["op"] for event in raised} <= {"aten::mm", "aten::reshape", "aten::embedding", "aten::index_select",
                                                     "aten::view", "aten::_reshape_alias"}, {e["op"] for e in raised}
        assert len(trace.exits) == len(trace.enters)
        assert all(not event["values"] for event in raised)


@test
def nesting_is_sound():
    "A parent is open on the same thread while its children run; every op has one end."
    with temporary_folder() as folder:
        _, path = record([PYTHON, program("mlp.py"), "3"], folder)
        trace = trace_oracle.Trace.read(DUMP, path)
        by_seq = {enter["seq"]: enter for enter in trace.enters}
        for enter in trace.enters:
            exit_event = trace.exit_of(enter)
            assert exit_event["seq"] > enter["seq"] and exit_event["time"] >= enter["time"]
            if "parent" in enter:
                parent = by_seq[enter["parent"]]
                assert parent["thread"] == enter["thread"] and trace.exit_of(parent)["seq"] > exit_event["seq"]
        assert all(enter["op"].startswith("aten::") for enter in trace.enters)


@test
def python_stacks_name_the_programs_lines():
    "An op has the file, function and line that called it, innermost first; without stacks there are none."
    code = "import torch\ndef inner():\n    return torch.ones(3) + 1\ndef outer():\n    return inner()\nouter()\n"
    with temporary_folder() as folder:
        script = os.path.join(folder, "lines.py")
        with open(script, "w") as file:
            file.write(code)
        _, path = record([PYTHON, script], folder)
        adds = [enter for enter in trace_oracle.Trace.read(DUMP, path).enters if enter["op"] == "aten::add"]
        assert adds
        for enter in adds:
            assert enter["frames"] == [[script, "inner", 3], [script, "outer", 5], [script, "<module>", 6]], enter["frames"]
        os.unlink(path)
        _, path = record([PYTHON, script], folder, env={"TERRA_RECORD_STACKS": "0"})
        assert all(not enter["frames"] for enter in trace_oracle.Trace.read(DUMP, path).enters)


@test
def levels_can_be_chosen():
    "TERRA_RECORD_LEVELS=call or =redispatch records that level alone."
    for number, level in enumerate(("call", "redispatch")):
        with temporary_folder() as folder:
            _, path = record_python("import torch; torch.ones(3).relu()", folder, env={"TERRA_RECORD_LEVELS": level})
            enters = trace_oracle.Trace.read(DUMP, path).enters
            assert enters and {enter["level"] for enter in enters} == {number}


@test
def ops_leave_out_what_only_calls_others():
    "TERRA_RECORD_LEVELS=ops, as by default: linear and reshape are not recorded, and what they call is."
    code = """if True:
        import torch
        torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).reshape(8).relu()
    """
    with temporary_folder() as folder:
        streams = []
        for env in ({"TERRA_RECORD_LEVELS": "ops"}, {"TERRA_RECORD_LEVELS": ""}, {"TERRA_RECORD_LEVELS": "call"}):
            _, path = record_python(code, folder, env=env)
            enters = trace_oracle.Trace.read(DUMP, path).enters
            os.unlink(path)
            assert all(enter["level"] == 0 for enter in enters)
            streams.append([enter["op"].removeprefix("aten::") for enter in enters])
        assert streams[0] == streams[1] and len(streams[0]) < len(streams[2]), streams
        assert {"addmm", "view", "relu"} <= set(streams[0]) and not {"linear", "reshape"} & set(streams[0]), streams[0]
        assert {"linear", "reshape", "addmm", "view", "relu"} <= set(streams[2]), streams[2]


@test
def threads_are_told_apart():
    "Ops of four threads are recorded without loss, each thread's in its own order."
    code = """if True:
        import threading, torch
        torch.set_num_threads(1)
        def work(size):
            for i in range(300):
                torch.ones(size).add_(i)
        threads = [threading.Thread(target=work, args=(3 + i,)) for i in range(4)]
        [t.start() for t in threads]; [t.join() for t in threads]
        """
    with temporary_folder() as folder:
        _, path = record_python(code, folder)
        trace = trace_oracle.Trace.read(DUMP, path)
        assert trace.end["clean"] and trace.end["lost"] == 0
        sizes = {}
        for enter in trace.enters:
            if enter["op"] == "aten::add_" and enter["level"] == 0:
                sizes.setdefault(enter["thread"], []).append(enter["values"][0]["value"]["sizes"][0])
        assert sorted(map(len, sizes.values())) == [300] * 4
        assert sorted(set(map(tuple, map(set, sizes.values())))) == [(3,), (4,), (5,), (6,)]
        times = {}
        for event in trace.events:
            if event["event"] in ("enter", "exit"):
                assert event["time"] >= times.get(event["thread"], 0)
                times[event["thread"]] = event["time"]


@test
def long_lists_are_whole():
    "The foreach update of 500 parameters has all of them in every list."
    code = """if True:
        import torch
        parameters = [torch.ones(i % 7 + 1, requires_grad=True) for i in range(500)]
        optimizer = torch.optim.AdamW(parameters, foreach=True)
        sum(p.sum() for p in parameters).backward()
        optimizer.step()
        """
    with temporary_folder() as folder:
        _, path = record_python(code, folder)
        lists = [value for enter in trace_oracle.Trace.read(DUMP, path).enters if enter["op"].startswith("aten::_foreach")
                 for value in enter["values"] if value["kind"] == "Tensor[]"]
        assert len(lists) > 10
        for value in lists:
            assert value["count"] == value["recorded"] == len(value["value"])
        assert any([t["sizes"] for t in value["value"]] == [[i % 7 + 1] for i in range(500)] for value in lists)


@test
def killed_programs_leave_a_readable_trace():
    "After SIGKILL everything but the last moments is there, and the reader says that the end is missing."
    code = """if True:
        import torch, time
        x = torch.ones(3)
        for i in range(2000): x.add(1)
        print('go', flush=True)
        while True: x.add(1); time.sleep(0.01)
        """
    with temporary_folder() as folder:
        path = os.path.join(folder, "killed.terra")
        child = subprocess.Popen([PYTHON, "-c", code], stdout=subprocess.PIPE,
                                 env=clean_env({"TERRA_RECORD_FILE": path}, preload=RECORD))
        assert child.stdout.readline() == b"go\n"
        time.sleep(2)
        killed = time.monotonic_ns()
        child.send_signal(signal.SIGKILL)
        child.wait(20)
        trace = trace_oracle.Trace.read(DUMP, path)
        assert not trace.end["clean"] and trace.end["lost"] == 0
        assert len(trace.enters) > 1000
        assert killed - trace.enters[-1]["time"] < 1_500_000_000, (killed - trace.enters[-1]["time"]) / 1e9


@test
def other_ways_out_end_the_trace():
    "os._exit and an uncaught exception end the trace cleanly, with the program's exit code."
    for code, status in (("import os; os._exit(5)", 5), ("raise KeyError", 1), ("import sys; sys.exit(3)", 3)):
        with temporary_folder() as folder:
            result, path = record_python("import torch\ntorch.ones(2).add(1)\n" + code, folder, check=False)
            assert result.returncode == status, result
            trace = trace_oracle.Trace.read(DUMP, path)
            assert trace.end["clean"] and any(enter["op"] == "aten::add" for enter in trace.enters)


@test(timeout=240)
def a_signal_to_itself_ends_the_trace():
    "A program that kills itself, raises a signal or aborts dies by that signal, and its trace is whole; when it goes on, so does that."
    for way, number in (("os.kill(os.getpid(), 15)", signal.SIGTERM), ("signal.raise_signal(15)", signal.SIGTERM),
                        ("signal.raise_signal(signal.SIGHUP)", signal.SIGHUP), ("os.abort()", signal.SIGABRT),
                        ("os.kill(os.getpid(), signal.SIGABRT)", signal.SIGABRT)):
        with temporary_folder() as folder:
            # Who started us may have told us to ignore SIGHUP, as nohup does.
            code = "import os, signal, torch\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\ntorch.ones(2).add(1)\n" + way
            result, path = record_python(code, folder, check=False)
            assert result.returncode == -number, (way, result)
            trace = trace_oracle.Trace.read(DUMP, path)
            assert trace.end["clean"] and any(enter["op"] == "aten::add" for enter in trace.enters), (way, trace.end)
    code = """if True:
        import os, signal, torch
        got = []
        signal.signal(signal.SIGTERM, lambda *_: got.append(1))
        signal.raise_signal(signal.SIGTERM), os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.raise_signal(signal.SIGHUP), os.kill(os.getpid(), signal.SIGHUP), os.kill(os.getpid(), 0)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        signal.raise_signal(signal.SIGALRM), signal.raise_signal(signal.SIGCHLD), signal.raise_signal(signal.SIGWINCH)
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGKILL)
        print(len(got), os.waitpid(child, 0)[1])
        torch.ones(2).add(1)
        """
    with temporary_folder() as folder:
        result, path = record_python(code, folder)
        trace = trace_oracle.Trace.read(DUMP, path)
        assert result.stdout == "2 9\n" and trace.end["clean"] and any(enter["op"] == "aten::add" for enter in trace.enters), result


@test(timeout=240)
def a_signal_from_a_handler_is_the_end_all_the_same():
    "A handler that interrupted malloc, and raises the signal again or leaves: the program has ended soon, as it wanted to."
    source = """
    #include <signal.h>
    #include <stdlib.h>
    #include <unistd.h>
    extern void *__libc_malloc(size_t);
    static volatile int stuck;
    static void again(int number) { signal(SIGTERM, SIG_DFL); raise(SIGTERM); }
    static void leave(int number) { _exit(7); }
    /* From now on memory is never had again, as when a lock is held by who was interrupted. */
    void *malloc(size_t size) { while (stuck) ; return __libc_malloc(size); }
    void get_stuck(int leaves)
    {
        struct sigaction action = { .sa_handler = leaves ? leave : again, .sa_flags = SA_NODEFER };
        sigaction(SIGTERM, &action, 0);
        stuck = 1;
        raise(SIGTERM);
    }
    """
    code = """if True:
        import ctypes, signal, sys, torch
        stuck = ctypes.CDLL(None)
        for i in range(2000): torch.ones(2).add(1)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
        stuck.get_stuck(int(sys.argv[1]))
        """
    with temporary_folder() as folder:
        library, path = os.path.join(folder, "stuck.so"), os.path.join(folder, "t.terra")
        with open(os.path.join(folder, "stuck.c"), "w") as file:
            file.write(source)
        run(["cc", "-shared", "-fPIC", "-fno-builtin", "-o", library, file.name])
        for leaves, code_of in ((0, -signal.SIGTERM), (1, 7)):
            result = run([PYTHON, "-c", code, str(leaves)], env={"TERRA_RECORD_FILE": path}, preload=RECORD + ":" + library,
                         check=False, timeout=100)
            assert result.returncode == code_of, result
            assert trace_oracle.Trace.read(DUMP, path).enters
            os.unlink(path)


@test
def children_leave_the_trace_alone():
    "A forked child and another process with torch write files of their own; a child's exit ends nothing in its parent."
    code = """if True:
        import os, subprocess, sys, torch
        torch.ones(2).add(1)
        child = os.fork()
        if child == 0:
            torch.ones(2).mul(3)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert subprocess.run([sys.executable, '-c', 'import torch; torch.ones(2).div(5)']).returncode == 0
        assert subprocess.run(['/does/not/exist'], capture_output=True).returncode
        """.replace("        assert subprocess.run(['/does/not/exist'], capture_output=True).returncode\n", """
        try: subprocess.run(['/does/not/exist'])
        except FileNotFoundError: pass
        torch.ones(2).sub(7)
        """)
    with temporary_folder() as folder:
        _, path = record_python(code, folder)
        trace = trace_oracle.Trace.read(DUMP, path)
        ops = {enter["op"] for enter in trace.enters}
        assert trace.end["clean"] and {"aten::add", "aten::sub"} <= ops and not ops & {"aten::mul", "aten::div"}, ops
        others = [trace_oracle.Trace.read(DUMP, other) for other in glob.glob(path + ".*")]
        seen = sorted({"aten::mul", "aten::div"} & {enter["op"] for enter in other.enters} for other in others)
        assert sorted(map(str, seen)) == ["{'aten::div'}", "{'aten::mul'}"] and all(other.end["clean"] for other in others), seen


@test
def programs_without_torch_are_left_alone():
    "No file, no output, for programs that never load libtorch; and nothing without TERRA_RECORD_FILE."
    with temporary_folder() as folder:
        result, path = record(["/bin/echo", "hello"], folder)
        assert result.stdout == "hello\n" and result.stderr == "" and not os.path.exists(path)
        result = run([PYTHON, "-c", "import torch; print(torch.ones(2).sum().item())"], preload=RECORD)
        assert result.stdout == "2.0\n" and result.stderr == ""


@test
def a_relative_file_is_where_the_program_began():
    "Also when the program changes its folder before it loads torch."
    with temporary_folder() as folder:
        os.mkdir(os.path.join(folder, "sub"))
        run([PYTHON, "-c", "import os; os.chdir('sub'); import torch; torch.ones(2)"], cwd=folder, preload=RECORD,
            env={"TERRA_RECORD_FILE": "here.terra"})
        assert trace_oracle.Trace.read(DUMP, os.path.join(folder, "here.terra")).end["clean"]


@test
def a_file_that_cannot_be_written_is_one_line():
    "The program runs all the same."
    result = run([PYTHON, "-c", "import torch; print(torch.ones(2).sum().item())"], preload=RECORD,
                 env={"TERRA_RECORD_FILE": "/does/not/exist/x.terra"})
    assert result.stdout == "2.0\n"
    assert result.stderr.startswith("terra: not recording: ") and result.stderr.count("\n") == 1, result.stderr


@test(timeout=240)
def recording_stops_after_some_iterations():
    "With TERRA_RECORD_ITERATIONS the trace is complete long before the program ends, and the program goes on."
    plain = run([PYTHON, program("mlp.py"), "60"], timeout=120)
    with temporary_folder() as folder:
        recorded, path = record([PYTHON, program("mlp.py"), "60"], folder, env={"TERRA_RECORD_ITERATIONS": "4"})
        assert recorded.stdout == plain.stdout
        trace = trace_oracle.Trace.read(DUMP, path)
        backwards = sum(enter["op"] == "aten::_log_softmax_backward_data" and enter["level"] == 0 for enter in trace.enters)
        assert trace.end["clean"] and 4 <= backwards < 40, backwards


@test
def libraries_loaded_later_are_recorded():
    "An extension loaded in the middle of the program has slots of its own: they are seen from the next op on."
    source = """
    void *_ZN2at4_ops4relu4callERKNS_6TensorE(void *result, const void *tensor);
    void *extension_relu(void *result, const void *tensor) { return _ZN2at4_ops4relu4callERKNS_6TensorE(result, tensor); }
    """
    code = """if True:
        import ctypes, sys, torch
        x = torch.tensor([-1.0, 2.0])
        x.add(1)
        extension = ctypes.CDLL(sys.argv[1])
        x.mul(1)
        word, result = ctypes.c_void_p(x._cdata), ctypes.c_void_p()
        extension.extension_relu.restype = ctypes.c_void_p
        extension.extension_relu(ctypes.byref(result), ctypes.byref(word))
        print(bool(result))
        x.sub(1)
        """
    library = libtorch()
    with temporary_folder() as folder:
        extension = os.path.join(folder, "extension.so")
        with open(os.path.join(folder, "extension.c"), "w") as file:
            file.write(source)
        run(["cc", "-shared", "-fPIC", "-o", extension, file.name, library, "-Wl,--allow-shlib-undefined",
             "-Wl,-rpath," + os.path.dirname(library)])
        result, path = record([PYTHON, "-c", code, extension], folder)
        assert result.stdout == "True\n"
        levels = {enter["level"] for enter in trace_oracle.Trace.read(DUMP, path).enters if enter["op"] == "aten::relu"}
        assert levels == {0, 1}, levels


if __name__ == "__main__":
    main()
