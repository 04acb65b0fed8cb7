"""Runs a program as it is and tells what its memory did: JSON in the file that TERRA_TEST_MEASURE names.

    python measured.py program.py [argument...]

After every optimizer step the minor faults so far are noted; at the end the largest and the present resident size.
"""
import gc
import json
import os
import resource
import runpy
import sys

from torch.optim.optimizer import register_optimizer_step_post_hook


def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident():
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()


def virtual_peak():
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmPeak"))


def main():
    steps = []
    register_optimizer_step_post_hook(lambda *_: steps.append(faults()))
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
    gc.collect()
    result = {"faults": [after - before for before, after in zip(steps, steps[1:])], "resident": resident(),
              "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "virtual_peak": virtual_peak()}
    with open(os.environ["TERRA_TEST_MEASURE"], "w", encoding="ascii") as out:
        json.dump(result, out)


main()
