"""Runs a program under torch.profiler, and notes the operators that it saw, in order.

    profiled.py OUT PROGRAM [ARGUMENT]...

A marker, an operator that no program here uses, is the first thing and the last.
"""
import json
import runpy
import sys

import torch
from torch.profiler import ProfilerActivity, profile


def main():
    out, path = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.bartlett_window(3)
        runpy.run_path(path, run_name="__main__")
        torch.bartlett_window(3)
    events = [(event.start_ns(), -event.duration_ns(), event.name()) for event in profiler.profiler.kineto_results.events()
              if event.name().startswith("aten::")]
    with open(out, "w", encoding="utf-8") as file:
        json.dump([name for _, _, name in sorted(events)], file)


if __name__ == "__main__":
    main()
