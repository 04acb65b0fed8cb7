"""GPU activity where there is no GPU: an unmodified PyTorch on doubles of CUDA's runtime and of CUPTI. Its launches are recorded, not
executed. What it computes means nothing; what the trace says of its launches is checked. tests/gpu/run asks a real GPU.
"""
# timeout: 600
import glob
import json
import os
import signal
import subprocess
from collections import Counter

import jsonschema

import chakra_schema
from harness import BUILD, PYTHON, ROOT, main, need_bpf, python, run, skip, temporary_folder, test, tool
from trace_processor import Processor

INJECTED = os.path.join(BUILD, "lib", "libterra_cupti.so")
DOUBLE_CUPTI = os.path.join(BUILD, "lib", "libdouble_cupti.so")
DOUBLE_CUDART = os.path.join(BUILD, "lib", "libdouble_cudart.a")
_folder = temporary_folder()

# Forward, backward on autograd's own thread for the device, copies both ways, a fill, and, behind an op that raises, a launch that no op
# makes.
PROGRAM = """
import ctypes, os, signal, sys
import torch
def step(x):
    y = (x * 3).relu()
    (y + x).sum().backward()
    return torch.nn.functional.layer_norm(y, (4,))
x = torch.ones(3, 4).cuda().requires_grad_()
for _ in range(3):
    z = step(x)
try:
    list(map(lambda n: x + torch.zeros(n, device="cuda"), [7]))  # its frames are deeper than those of what follows
except RuntimeError:
    pass
ctypes.CDLL("libcudart.so.13").cudaMemsetAsync(ctypes.c_void_p(z.data_ptr()), 0, ctypes.c_size_t(16), None)
print(torch.zeros(5, device="cuda").cpu().tolist(), z.shape, x.grad.shape, flush=True)
if sys.argv[1] == "kill":
    ctypes.CDLL(os.environ["TERRA_GPU_CUPTI"]).double_deliver()
    step(x)
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "raise":
    signal.raise_signal(signal.SIGTERM)
if sys.argv[1] == "leave":
    os._exit(7)
"""


def path(name):
    return os.path.join(_folder.name, name)


def imports(library):
    """The functions of CUDA's runtime that a library of PyTorch's wants."""
    names = (line.split()[-1].split("@")[0] for line in run(["nm", "-D", "--undefined-only", library]).stdout.splitlines())
    return {name for name in names if name.startswith("__cuda") or (name.startswith("cuda") and name[4:5].isupper())}


def doubles():
    """The libraries to preload: a runtime with all that this PyTorch imports, and a driver with what it looks up."""
    libraries = [path("libcudart.so.13"), path("libcuda.so.1")]
    if os.path.exists(libraries[1]):
        return libraries
    if not os.path.exists(DOUBLE_CUPTI) or not os.path.exists(DOUBLE_CUDART):
        skip("no CUDA toolkit: the doubles were not built")
    folder = python("import os, torch; print(os.path.join(torch.__path__[0], 'lib'))", timeout=120).stdout.strip()
    wanted = set().union(*(imports(each) for each in glob.glob(os.path.join(folder, "lib*.so"))))
    if not wanted:
        skip("a PyTorch without CUDA")
    have = {line.split()[-1] for line in run(["nm", "--defined-only", DOUBLE_CUDART]).stdout.splitlines() if " T " in line}
    rest = "#include <stdio.h>\n" + "".join(
        f'int {name}(void) {{ fprintf(stderr, "double: {name}\\n"); return 801; }}\n' for name in sorted(wanted - have))
    with open(path("versions"), "w", encoding="ascii") as file:
        file.write("libcudart.so.13 { global: *; };\n")
    compile_library(libraries[0], rest, "-Wl,--version-script," + path("versions"), "-Wl,--whole-archive", DOUBLE_CUDART,
                    "-Wl,--no-whole-archive", "-ldl", "-lpthread")
    compile_library(libraries[1], "int cuDevicePrimaryCtxGetState(int d, unsigned *f, int *a) { *f = 0; *a = 1; return d; }\n")
    return libraries


def compile_library(library, source, *words):
    run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-w", "-Wl,-soname," + os.path.basename(library), "-o", library, "-x", "c", "-",
         "-x", "none", *words], input=source)


def traced(name, *options, how="run", check=True):
    """The program under terra-trace, on the doubles: its trace and what it did."""
    file = path(name + ".terra")
    done = run([tool("terra-trace"), "-o", file, *options, "--", PYTHON, "-c", PROGRAM, how], preload=doubles(), timeout=240,
               check=check, env={"TERRA_GPU_CUPTI": DOUBLE_CUPTI, "GOMP_SPINCOUNT": "0"})
    return file, done


def events(file):
    done = run([tool("terra-report"), "--dump", "--json", file], check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


def launches(trace):
    """Of each device activity in the order of its call: what it is, and the op that launched it with those around it."""
    enters = {event["seq"]: event for event in trace if event["type"] == "enter"}
    result = []
    for event in sorted((e for e in trace if e["type"] == "gpu" and e["kind"] in ("kernel", "memcpy", "memset")),
                        key=lambda e: e["correlation"]):
        ops, seq = [], event["op"]
        while seq is not None:
            ops.append(enters[seq]["op"] + "." + enters[seq]["level"])
            seq = enters[seq]["parent"]
        result.append((event["kind"], event["name"], tuple(ops)))
    return result


def by_call(found):
    """Without the ops' levels: the backends agree on `call`, each misses other redispatches."""
    return [(kind, name, next((op for op in ops if op.endswith(".call")), None)) for kind, name, ops in found]


made = {}


def launches_by(backend):
    if backend not in made:
        file, done = traced(backend, "--backend", backend)
        made[backend] = events(file), done.stdout
    return made[backend]


@test(timeout=300)
def launches_have_their_ops():
    "PyTorch's launches, copies and sets are in the trace with the op that made each, the backward's too; by external id."
    trace, out = launches_by("preload")
    assert out.startswith("[0.0, 0.0, 0.0, 0.0, 0.0] torch.Size([3, 4])"), out
    found = launches(trace)
    kinds = Counter(kind for kind, _, _ in found)
    assert kinds["kernel"] >= 3 * 7 and kinds["memcpy"] == 2 and kinds["memset"] == 1, kinds
    without = [each for each in found if not each[2]]
    assert [kind for kind, _, _ in without] == ["memset"], without  # the one that no op makes
    assert {event["linked_by"] for event in trace if event["type"] == "gpu" and event["op"] is not None} == {"id"}
    for word, op in (("layer_norm", "aten::native_layer_norm"), ("CUDAFunctor_add", "aten::add"), ("FillFunctor", "aten::fill_")):
        ops = [ops for _, name, ops in found if name and word in name]
        assert ops and all(each[0].startswith(op) for each in ops), (word, ops)
    assert len({event["thread"] for event in trace if event["type"] == "gpu" and event["kind"] == "runtime"}) == 2
    notes = [event["text"] for event in trace if event["type"] == "note"]
    assert any("1 not" in note and "found by external id" in note for note in notes), notes
    assert not any("name different ops" in note for note in notes), notes


@test(timeout=300)
def timelines_draw_what_was_launched():
    "Trace processor has each timed activity as a slice on its stream, each call on its thread, and an arrow between them."
    trace, _ = launches_by("preload")
    gpu = [event for event in trace if event["type"] == "gpu" and event["timed"] and event["kind"] != "link"]
    calls = {event["correlation"] for event in gpu if event["kind"] in ("runtime", "driver")}
    work = [event for event in gpu if event["kind"] in ("kernel", "memcpy", "memset")]
    with Processor() as processor:
        for format, prefix in (("perfetto", "debug"), ("chrome", "args")):
            run([tool("terra-report"), "--export", format, "-o", path("out." + format), path("preload.terra")])
            processor.load(path("out." + format))
            wrong = processor.query("select name from stats where value != 0 and severity in ('error', 'data_loss')")
            assert not wrong, wrong
            rows = processor.query(f"""select category, dur, extract_arg(arg_set_id, '{prefix}.seq') as seq, depth,
                extract_arg(arg_set_id, '{prefix}.op') as op from slice where category in ('kernel', 'memcpy', 'memset', 'runtime',
                'driver', 'overhead')""")
            found = sorted((int(row["seq"]), row["category"], row["dur"], row["depth"], row["op"] and int(row["op"])) for row in rows)
            assert found == sorted((event["seq"], event["kind"], event["duration_ns"], 0, event["op"]) for event in gpu), found[:5]
            arrows = processor.query("""select a.category as a, b.category as b from flow f join slice a on f.slice_out = a.id
                join slice b on f.slice_in = b.id where b.category in ('kernel', 'memcpy', 'memset')""")
            assert len(arrows) == sum(event["correlation"] in calls for event in work) > 20, (len(arrows), len(work))
            assert {row["a"] for row in arrows} <= {"runtime", "driver"}, arrows[:5]


@test(timeout=300)
def exports_have_what_was_launched():
    "Chakra has each activity as a node behind the outermost op that launched it; JSON has all, valid by its schema."
    trace, _ = launches_by("preload")
    enters = {event["seq"]: event for event in trace if event["type"] == "enter"}

    def outermost(seq):
        while seq is not None and enters[seq]["parent"] is not None:
            seq = enters[seq]["parent"]
        return [] if seq is None else [seq]

    work = {event["seq"]: event for event in trace if event["type"] == "gpu" and event["kind"] in ("kernel", "memcpy", "memset")}
    run([tool("terra-report"), "--export", "chakra", "-o", path("out.et"), path("preload.terra")])
    with open(path("out.et"), "rb") as file:
        _, nodes = chakra_schema.read(file.read())
    found = {node.id: list(node.ctrl_deps) for node in nodes if not chakra_schema.attributes(node).get("is_cpu_op", True)}
    assert found == {seq: outermost(event["op"]) for seq, event in work.items()} and len(found) > 20, found
    assert any(event["op"] is not None and [event["op"]] != found[seq] for seq, event in work.items()), "no op inside another launched"
    lines = [json.loads(line) for line in run([tool("terra-report"), "--export", "json", path("preload.terra")]).stdout.splitlines()]
    gpu = [line for line in lines if line["type"] == "gpu"]
    with open(os.path.join(ROOT, "docs", "export-json.schema.json"), encoding="utf-8") as file:
        validator = jsonschema.Draft202012Validator(json.load(file))
    for line in gpu:
        validator.validate(line)
    assert [line["id"] for line in gpu] == [event["seq"] for event in trace if event["type"] == "gpu"]
    assert lines[-1]["events_unknown"] == 0


@test(timeout=300)
def both_backends_name_the_same_ops():
    "By thread and time (bpf) as by external id (preload)."
    need_bpf()
    trace, out = launches_by("bpf")
    assert out == launches_by("preload")[1]
    assert {event["linked_by"] for event in trace if event["type"] == "gpu" and event["op"] is not None} == {"time"}
    assert by_call(launches(trace)) == by_call(launches(launches_by("preload")[0]))


@test(timeout=300)
def kill_leaves_what_was_delivered():
    file, done = traced("kill", "--backend", "preload", how="kill", check=False)
    assert done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), done.returncode
    trace = events(file)
    assert not trace[-1]["ended_cleanly"]
    delivered = [event for event in launches(launches_by("preload")[0])]
    assert [each[:2] for each in launches(trace)] == [each[:2] for each in delivered]
    assert any("GPU activity ends abnormally" in event["text"] for event in trace if event["type"] == "note")
    assert not glob.glob(path("kill.terra.gpu.*"))


@test(timeout=300)
def leaving_without_exit_handlers_is_whole():
    "os._exit, and a signal that the program sends to itself: the recorder tells the other library."
    for how, codes in (("leave", (7,)), ("raise", (-signal.SIGTERM, 128 + signal.SIGTERM))):
        file, done = traced(how, "--backend", "preload", "--gpu", "kernels,runtime", how=how, check=False)
        assert done.returncode in codes, done
        trace = events(file)
        assert trace[-1]["ended_cleanly"] and not any("abnormally" in e["text"] for e in trace if e["type"] == "note"), how
        assert {event["kind"] for event in trace if event["type"] == "gpu"} == {"kernel", "runtime"}
        assert Counter(launches(trace)).keys() <= Counter(launches(launches_by("preload")[0])).keys()


@test(timeout=300)
def program_without_cuda_is_left_alone():
    "CUDA_INJECTION64_PATH and our variables have no effect where no driver is."
    if not os.path.exists(INJECTED):
        skip("CUPTI's headers were not found: the library was not built")
    code = """
import torch
torch.manual_seed(0)
x = torch.randn(64, 64, requires_grad=True)
(x @ x).relu().sum().backward()
print(x.grad.sum().item().hex(), torch.cuda.is_available())
print(any("libterra_cupti" in line for line in open("/proc/self/maps")))
"""
    settings = {"CUDA_INJECTION64_PATH": INJECTED, "TERRA_GPU_FILE": path("none.gpu")}
    plain, injected = python(code, timeout=120), python(code, timeout=120, env=settings)
    assert (plain.stdout, plain.stderr) == (injected.stdout, injected.stderr)
    if plain.stdout.split()[1] == "False":
        assert not glob.glob(path("none.gpu*")) and plain.stdout.split()[2] == "False"


@test
def kinds_are_chosen_on_the_command_line():
    "What --gpu sets for the command; wrong words end it."
    if not os.path.exists(INJECTED):
        skip("CUPTI's headers were not found: the library was not built")

    def seen(*options, env=None):
        done = run([tool("terra-trace"), "--backend", "preload", "-o", path("env.terra"), *options, "--", "env"], check=False, env=env)
        return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line), done

    variables, _ = seen()
    assert os.path.samefile(variables["CUDA_INJECTION64_PATH"], INJECTED)
    assert variables["TERRA_GPU_FILE"] == path("env.terra.gpu")
    assert seen("--gpu", "kernels,memcpy")[0]["TERRA_GPU_KINDS"] == "kernels,memcpy"
    assert "TERRA_GPU_FILE" not in seen("--gpu", "none")[0]
    _, done = seen("--gpu", "kernels,fast")
    assert done.returncode == 2 and "no such kind of GPU activity: fast" in done.stderr, done.stderr
    variables, done = seen(env={"CUDA_INJECTION64_PATH": "/opt/other.so"})
    assert variables["CUDA_INJECTION64_PATH"] == "/opt/other.so" and "is set already, to /opt/other.so" in done.stderr


if __name__ == "__main__":
    main()
