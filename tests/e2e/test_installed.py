"""An installed Terra, from the program to fused execution, without the build folder."""
# timeout: 900
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from harness import BUILD, PYTHON, libtorch, main, program, run, temporary_folder, test

_folder = temporary_folder()
PREFIX = os.path.join(_folder.name, "prefix")


def installed(*words):
    """A path in the installation, which is made at the first use."""
    if not os.path.exists(PREFIX):
        run(["cmake", "--install", BUILD, "--prefix", PREFIX], timeout=120)
    return os.path.join(PREFIX, *words)


def tool(name):
    return installed("bin", name)


@test(timeout=300)
def the_four_commands():
    "Trace, report, optimise and install the plan; then the program finds it itself, and computes what it did without."
    script, env = program("mlp.py"), {"XDG_CACHE_HOME": os.path.join(_folder.name, "cache")}
    trace, log = os.path.join(_folder.name, "mlp.terra"), os.path.join(_folder.name, "log.json")
    for backend in ("preload", "auto"):
        run([tool("terra-trace"), "--quiet", "--backend", backend, "-o", trace, "--", PYTHON, script, "12"],
            timeout=120)
        assert "aten::addmm" in run([tool("terra-report"), trace]).stdout
    run([tool("terra-opt"), "-q", "--no-measure", "--install", trace], env=env, timeout=200)
    plain = run([PYTHON, script, "60"])
    ours = run([PYTHON, script, "60"], env={**env, "TERRA_LOG": "json:" + log}, preload=installed("lib", "libterra_replay.so"))
    assert (ours.stdout, ours.stderr) == (plain.stdout, plain.stderr)
    with open(log, encoding="utf-8") as file:
        assert json.load(file)["ops_fused"] > 20 * 60


@test
def nothing_is_looked_for_in_the_build_folder():
    for name in ("bin/terra-trace", "bin/terra-opt", "bin/terra-report", "lib/libterra_replay.so", "lib/libterra_record.so"):
        dynamic = run(["readelf", "-d", installed(name)]).stdout
        assert "NEEDED" in dynamic and "RPATH" not in dynamic and BUILD not in dynamic, dynamic


@test
def ops_are_listed():
    "As JSON and as text, of the libtorch that Python would load and of one that is named."
    library = libtorch()
    listed = json.loads(run([tool("terra-trace"), "--list-ops", "--json", "--library", library]).stdout)
    assert len(listed["ops"]) > 3000 and listed["complete"] > 0.9 * len(listed["ops"]), listed["complete"]
    add = next(op for op in listed["ops"] if (op["name"], op["overload"], op["level"]) == ("aten::add", "Tensor", "call"))
    assert [(argument["name"], argument["kind"]) for argument in add["arguments"]] == \
        [("self", "Tensor"), ("other", "Tensor"), ("alpha", "Scalar")], add
    text = run([tool("terra-trace"), "--list-ops", "--library", library]).stdout
    assert "aten::add.Tensor" in text, text[:400]
    refused = run([tool("terra-trace"), "--list-ops", "--library", "/bin/true"], check=False)
    assert refused.returncode != 0 and "/bin/true" in refused.stderr, refused


if __name__ == "__main__":
    main()
