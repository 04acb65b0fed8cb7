"""How much of a step's time a plan touches."""
import json

from harness import run, tool


def convertible(trace):
    """What terra-report says can be converted."""
    return json.loads(run([tool("terra-report"), "--json", trace], timeout=60).stdout)["convertible"]


def share_in_regions(name, trace):
    """Of the traced time of ops that are neither views nor products: the share in regions and in bernoulli_, which has a
    kernel of its own. Tracing adds to each op, small ones above all."""
    report = convertible(trace)
    share = (report["in_regions_ns"] + report["replaced_ns"]) / report["others_ns"]
    print(f"{name}: {share:.0%} of {report['others_ns'] / 1e6:.1f} ms")
    return share


def share_that_ran(trace, counts, steps):
    """The same of what a run under replay fused in fact, by its counts: each run of a region for its part of the traced time. What
    has a kernel of its own is not counted."""
    report, traced = convertible(trace), {}
    for region in report["regions"]:
        ns, count = traced.get(region["name"], (0, 0))
        traced[region["name"]] = ns + region["traced_ns"], count + region["count"]
    runs = {}
    for region in counts["regions"]:
        runs[region["name"]] = runs.get(region["name"], 0) + region["runs"]
    fused = sum(traced[name][0] * n / (steps * traced[name][1]) for name, n in runs.items() if name in traced)
    return fused / report["others_ns"]
