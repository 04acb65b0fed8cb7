"""Runs a program's main() under PyTorch's own TorchDispatchMode and writes down every op that the mode sees.

    python watched.py OUT.json PROGRAM.py ARGUMENT...

The mode changes the program (gradients accumulate with `add` instead of `add_`, more `detach`es), so what it sees can
only be compared with a trace of this very process. For each op: name, the times at which the handler was entered and
left, whether it came through one of libtorch's entry points, and every argument of the schema, defaults filled in.
"""
import ctypes
import importlib.util
import itertools
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
        return {"impl": value._cdata, "sizes": list(value.size()), "strides": list(value.stride()),
                "dtype": SCALAR_TYPES[str(value.dtype).removeprefix("torch.")], "device": DEVICE_TYPES[value.device.type]}
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
    """Which at::_ops class led here, by the symbols of the C++ stack's return addresses. A saved tensor's copy asks the mode
    for a `detach` by itself: what stands further out, be it a `detach` too, did not lead here."""

    COPY = b"shallow_copy_and_detach"

    def __init__(self):
        self.libc = ctypes.CDLL(None)
        self.addresses = (ctypes.c_void_p * 128)()
        self.classes = {}

    def op_class(self, address):
        if address not in self.classes:
            info = DlInfo()
            found = self.libc.dladdr(ctypes.c_void_p(address), ctypes.byref(info)) and info.symbol or b""
            match = re.match(rb"_ZN2at4_ops(\d+)", found)
            self.classes[address] = self.COPY if self.COPY in found else \
                match and found[match.end():match.end() + int(match[1])].decode()
        return self.classes[address]

    def has(self, name):
        n = self.libc.backtrace(self.addresses, len(self.addresses))
        classes = (self.op_class(address) for address in self.addresses[:n])
        return name in itertools.takewhile(lambda found: found != self.COPY, classes)


class Watch(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ops = []
        self.stack = Stack()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        entered = time.monotonic_ns()
        kwargs = kwargs or {}
        schema = func._schema
        name = "_".join(filter(None, (schema.name.split("::")[1], schema.overload_name)))
        op = {"through_entry": self.stack.has(name), "op": schema.name, "overload": schema.overload_name, "thread": threading.get_native_id(),
              "entered": entered, "arguments": [describe(value) for value in bind(schema, args, kwargs)],
              "types": [str(argument.type) for argument in schema.arguments]}
        self.ops.append(op)
        try:
            result = func(*args, **kwargs)
            op["results"] = describe(result)
            return result
        except Exception as error:
            op["raised"] = str(error)
            raise
        finally:
            op["left"] = time.monotonic_ns()


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
        json.dump({"begin": begin, "end": end, "ops": watch.ops}, file)


if __name__ == "__main__":
    run(*sys.argv[1:])
