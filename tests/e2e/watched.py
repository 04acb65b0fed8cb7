"""Runs a program's main() under PyTorch's own TorchDispatchMode and writes down every op that the mode sees.

    python watched.py OUT.json PROGRAM.py ARGUMENT...

The mode changes the program (gradients accumulate with `add` instead of `add_`, more `detach`es), so what it sees can
only be compared with a trace of this very process. For each op: name, the times at which the handler was entered and
left, through which of libtorch's entry points it came, every argument of the schema, defaults filled in, and the results.
In inference mode a mode is handed the ops that are only made of others, too: those are taken apart under the mode, so that
it sees the others there as it does elsewhere.
"""
import ctypes
import importlib.util
import json
import re
import sys
import threading
import time

import torch
from torch.utils._python_dispatch import TorchDispatchMode

SCALAR_TYPES = {name: code for code, name in enumerate(
    ["uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32", "complex64", "complex128",
     "bool", "qint8", "quint8", "qint32", "bfloat16"])}
LAYOUTS = {torch.strided: 0, torch.sparse_coo: 1}
MEMORY_FORMATS = {torch.contiguous_format: 0, torch.preserve_format: 1, torch.channels_last: 2, torch.channels_last_3d: 3}
DEVICE_TYPES = {"cpu": 0, "cuda": 1, "meta": 14}


def describe(value):
    """An argument as JSON. Nothing here may run an op."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.Tensor):
        return {"impl": value._cdata, "storage": value.untyped_storage()._cdata if value.layout == torch.strided else 0,
                "sizes": list(value.size()), "strides": list(value.stride()), "device": DEVICE_TYPES[value.device.type],
                "dtype": SCALAR_TYPES[str(value.dtype).removeprefix("torch.")]}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, torch.dtype):
        return {"enum": SCALAR_TYPES[str(value).removeprefix("torch.")]}
    if isinstance(value, torch.layout):
        return {"enum": LAYOUTS[value]}
    if isinstance(value, torch.memory_format):
        return {"enum": MEMORY_FORMATS[value]}
    if isinstance(value, torch.device):
        return {"enum": DEVICE_TYPES[value.type] << 8 | (-1 if value.index is None else value.index) & 0xff}
    if isinstance(value, torch.Generator):
        return {"generator": True}
    return {"opaque": type(value).__name__}


def bind(schema, args, kwargs):
    """Every argument of the schema in order."""
    values = []
    for index, argument in enumerate(schema.arguments):
        if index < len(args):
            values.append(args[index])
        elif argument.name in kwargs:
            values.append(kwargs[argument.name])
        else:
            values.append(argument.default_value)
    return values


class DlInfo(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p), ("symbol", ctypes.c_char_p),
                ("address", ctypes.c_void_p)]


class Stack:
    """Which of libtorch's entry points led here, by the symbols of the C++ stack's return addresses. A saved tensor's copy asks
    the mode for a `detach` by itself: what stands further out, be it a `detach` too, did not lead here."""

    COPY = ("shallow_copy_and_detach", None)

    def __init__(self):
        self.libc = ctypes.CDLL(None)
        self.addresses = (ctypes.c_void_p * 128)()
        self.entries = {}

    def entry(self, address):
        """The class in at::_ops and the level ("call" or "redispatch") that the address lies in, or None."""
        if address not in self.entries:
            info = DlInfo()
            found = self.libc.dladdr(ctypes.c_void_p(address), ctypes.byref(info)) and info.symbol or b""
            if b"shallow_copy_and_detach" in found:
                self.entries[address] = self.COPY
                return self.COPY
            match = re.match(rb"_ZN2at4_ops(\d+)", found)
            end = match and match.end() + int(match[1])
            level = match and re.match(rb"\d+(call|redispatch)", found[end:])
            self.entries[address] = level and (found[match.end():end].decode(), level[1].decode())
        return self.entries[address]

    def levels(self, name):
        """The levels at which the innermost op on the stack was entered; none when it isn't the op of this class."""
        n = self.libc.backtrace(self.addresses, len(self.addresses))
        levels = []
        for entry in filter(None, map(self.entry, self.addresses[:n])):
            if entry[0] != name:
                break
            levels.append(entry[1])
        return sorted(set(levels))


def find_composites():
    """The (name, overload) of each op that has no kernel on the CPU but one that calls others."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {tuple((name + ".").split(".")[:2]) for name in torch._C._dispatch_get_all_op_names()
            if has(name, "CompositeImplicitAutograd") and not has(name, "CPU")}


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []
        self.stack = Stack()
        self.composites = find_composites()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        entered = time.monotonic_ns()
        kwargs = kwargs or {}
        schema = func._schema
        name = "_".join(filter(None, (schema.name.split("::")[1], schema.overload_name)))
        op = {"through": self.stack.levels(name), "op": schema.name, "overload": schema.overload_name,
              "composite": (schema.name, schema.overload_name) in self.composites,
              "thread": threading.get_native_id(), "entered": entered,
              "arguments": [describe(value) for value in bind(schema, args, kwargs)],
              "types": [str(argument.type) for argument in schema.arguments]}
        self.ops.append(op)
        try:
            result = self.run(func, args, kwargs, op["composite"])
            op["results"] = describe(result)
            return result
        except Exception as error:
            op["raised"] = str(error)
            raise
        finally:
            op["left"] = time.monotonic_ns()

    def run(self, func, args, kwargs, composite):
        if not composite:
            return func(*args, **kwargs)
        with self:
            return func.decompose(*args, **kwargs)


def load(path):
    spec = importlib.util.spec_from_file_location("program", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(out, path, *arguments):
    program = load(path)
    watch = Watch()
    begin = time.monotonic_ns()
    with watch:
        program.main(*[int(argument) for argument in arguments])
    end = time.monotonic_ns()
    with open(out, "w") as file:
        json.dump({"begin": begin, "end": end, "ops": watch.ops, "composites": sorted(watch.composites)}, file)


if __name__ == "__main__":
    run(*sys.argv[1:])
