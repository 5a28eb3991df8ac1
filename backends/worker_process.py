"""The compile server: reads jobs from standard input, forks a child for each, writes reports to standard output.

    python -m graphc.backends.worker_process JOBS MEMORY_BYTES        (started by graphc.backends.worker.Server)

Single-threaded on purpose, so that forking is safe. It never blocks on a write: the client may be writing itself.
Requests are pairs of frames, (index, function, seconds) and the pickled call; reports are pairs as well,
(index, kind, details) and the pickled result. Frames of a child: kind, then its payload.
"""

import ctypes
import faulthandler
import gc
import importlib
import os
import pickle
import resource
import selectors
import signal
import sys
import tempfile
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Any, NoReturn

from graphc.backends import worker
from graphc.backends.frames import Frames, frame
from graphc.errors import GraphcError

PIECE = 1 << 20  # bytes per read
SAID = 4000  # characters kept of what a failed child printed
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """A running job."""

    index: int
    pid: int
    pipe: int
    deadline: float
    output: IO[bytes]
    frames: Frames = field(default_factory=Frames)
    note: str = ""
    timed_out: bool = False
    head: bytes | None = None


class Process:
    """The server's loop."""

    def __init__(self, jobs: int, memory: int, requests: int, reports: int) -> None:
        self.jobs, self.memory = jobs, memory
        self.requests, self.reports = requests, reports
        self.queue: deque[tuple[int, float, bytes]] = deque()
        self.children: dict[int, Child] = {}  # by pipe
        self.incoming, self.head = Frames(), b""
        self.outgoing = bytearray()
        self.selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until the requests end."""
        os.set_blocking(self.reports, False)
        self.selector.register(self.requests, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select(self._patience()):
                if key.fd == self.requests and not self._take_requests():
                    return
                if key.fd == self.reports:
                    self._write()
                elif key.fd in self.children:
                    self._listen(self.children[key.fd])
            self._end_the_late()
            while self.queue and len(self.children) < self.jobs:
                self._start(*self.queue.popleft())

    def _patience(self) -> float | None:
        deadlines = [child.deadline for child in self.children.values() if not child.timed_out]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _take_requests(self) -> bool:
        """False where there will be no more."""
        piece = os.read(self.requests, PIECE)
        for payload in self.incoming.feed(piece):
            if not self.head:
                self.head = payload
                continue
            index, function, seconds = pickle.loads(self.head)
            self.head = b""
            self._prepare(function.partition(":")[0])
            self.queue.append((index, seconds, payload))
        return bool(piece)

    def _prepare(self, module: str) -> None:
        """Import what the job needs here, once; what is loaded stays shared with the children."""
        if module not in sys.modules:
            importlib.import_module(module)
            gc.freeze()

    def _start(self, index: int, seconds: float, call: bytes) -> None:
        reading, writing = os.pipe()
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._leave_server()
            run_child(call, writing, output.fileno(), self.memory)
        with suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # the child does the same; whoever is first
        os.close(writing)
        os.set_blocking(reading, False)
        child = Child(index, pid, reading, time.monotonic() + seconds, output)
        self.children[reading] = child
        self.selector.register(reading, selectors.EVENT_READ)

    def _leave_server(self) -> None:
        """In a child: nothing of the server's pipes stays open, or their ends would go unnoticed."""
        self.selector.close()
        for each in (self.requests, self.reports, *self.children):
            os.close(each)

    def _listen(self, child: Child) -> None:
        piece = os.read(child.pipe, PIECE)
        for payload in child.frames.feed(piece):
            if child.head is None:
                child.head = payload
                continue
            kind, child.head = child.head, None
            if kind == b"note":
                child.note = pickle.loads(payload)
                self._report(child.index, "note", child.note)
            else:
                self._finish(child, kind.decode(), payload)
                return
        if not piece:
            self._finish(child, "", b"")

    def _finish(self, child: Child, kind: str, payload: bytes) -> None:
        """Report how `child` ended; without a message of its own (`kind` empty) it died."""
        self.selector.unregister(child.pipe)
        del self.children[child.pipe]
        os.close(child.pipe)
        _kill(child)  # and whatever it started; how it ended by itself stays known
        _, status = os.waitpid(child.pid, 0)
        details = {"note": child.note, "said": _said(child.output), "limit": self.memory}
        if kind == "result":
            self._report(child.index, kind, None, payload)
        elif kind == "graphc":
            self._report(child.index, kind, pickle.loads(payload))
        elif kind:
            self._report(child.index, kind, {**details, **pickle.loads(payload)})
        elif child.timed_out:
            self._report(child.index, "timeout", details)
        else:
            self._report(child.index, "died", {**details, "code": os.waitstatus_to_exitcode(status)})

    def _end_the_late(self) -> None:
        for child in self.children.values():
            if not child.timed_out and time.monotonic() >= child.deadline:
                child.timed_out = True
                _kill(child)

    def _report(self, index: int, kind: str, details: Any, payload: bytes = b"") -> None:
        if not self.outgoing:
            self.selector.register(self.reports, selectors.EVENT_WRITE)
        self.outgoing += frame(pickle.dumps((index, kind, details)), payload)

    def _write(self) -> None:
        del self.outgoing[: os.write(self.reports, memoryview(self.outgoing)[:PIECE])]
        if not self.outgoing:
            self.selector.unregister(self.reports)


def _kill(child: Child) -> None:
    """End a child that was not waited for yet, and all that it started: it leads a process group."""
    with suppress(PermissionError, ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _said(output: IO[bytes]) -> str:
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - SAID))
    with output:
        return output.read().decode(errors="replace")


class Reporter:
    """Sends how a job went: leaving the context by whatever exception ends in a report, and nothing passes it."""

    def __init__(self, pipe: int) -> None:
        self.pipe = pipe

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, GraphcError):
            self.send("graphc", (type(error), error.subject, error.problem, error.remedy))
        elif isinstance(error, MemoryError):
            self.send("memory", {})
        elif error is not None:
            traceback.print_exception(error)
            sys.stderr.flush()
            lines = str(error).strip().splitlines()
            self.send("exception", {"what": f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"})
        return True

    def send(self, kind: str, value: Any) -> None:
        """One message to the server: its kind and the pickled value."""
        data = memoryview(frame(kind.encode(), pickle.dumps(value, pickle.HIGHEST_PROTOCOL)))
        while data:
            data = data[os.write(self.pipe, data) :]


def run_child(call: bytes, pipe: int, output: int, memory: int) -> NoReturn:
    """In a child: the call of one job, its result or error to `pipe`, everything printed to `output`."""
    with Reporter(pipe) as reporter:
        os.setpgid(0, 0)
        _die_with_the_server()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(output, 1)
        os.dup2(output, 2)
        faulthandler.enable()
        worker.send_notes(lambda text: reporter.send("note", text))
        function, arguments = pickle.loads(call)
        module, _, name = function.partition(":")
        reporter.send("result", getattr(importlib.import_module(module), name)(*arguments))
    os._exit(0)


def _die_with_the_server() -> None:
    """Linux only: elsewhere a child outlives a server that was killed, until its job ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(jobs: int, memory: int) -> None:
    """Serve until standard input ends; printing goes to standard error, because standard output is the protocol's."""
    requests, reports = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    process = Process(jobs, memory, requests, reports)
    process.serve()
    for child in process.children.values():
        _kill(child)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
