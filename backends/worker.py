"""The compile server's client: jobs run in processes of their own, so that TVM can crash, hang or eat memory there.

    with Server(jobs=2) as server:
        objects = server.run([Job("graphc.backends.objects:object_code", (tir, symbol, target), "kernel conv_7")])

One subprocess imports TVM once and then forks a child per job (graphc.backends.worker_process): milliseconds, where a
fresh import takes seconds. It starts with the first job: a build that finds everything cached never starts it.
Python's `multiprocessing` is not used: its `spawn` runs the user's `__main__` again, and its `fork` copies whatever
threads and locks the user's process holds.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from graphc.backends.frames import read_frame, write_frame
from graphc.errors import GraphcError, InternalError

JOB_SECONDS = 600.0
"""How long a job may take unless it says otherwise."""

SINGLE_THREADED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")

Watcher = Callable[[int, int, str], None]
"""Called with (finished jobs, all jobs, what is being done) whenever one of them changes."""


@dataclass(frozen=True, slots=True)
class Job:
    """A call of `function` ("package.module:name") with `arguments`, which travel as pickles, like the result."""

    function: str
    arguments: tuple[Any, ...]
    subject: str
    """What the job is about, for messages: a kernel, a node, a file."""
    seconds: float = JOB_SECONDS


class Server:
    """Runs jobs in forked children of one subprocess, `jobs` at a time (default: as many as there are processors).

    `memory_bytes` limits the address space of each child (default: the machine's memory, at least 4 GiB), `scratch` is
    where the processes put temporary files. Use as a context manager: leaving it ends every process it started. They
    end as well when this process dies.
    """

    def __init__(
        self, jobs: int | None = None, *, memory_bytes: int | None = None, scratch: Path | None = None
    ) -> None:
        self.jobs = jobs or _processors()
        self._memory = memory_bytes or max(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        self._scratch = scratch
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints: IO[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def started(self) -> bool:
        """Whether the subprocess is there."""
        return self._process is not None

    def run(self, jobs: Sequence[Job], *, progress: Watcher | None = None, return_errors: bool = False) -> list[Any]:
        """The results of all jobs, in order.

        The first job that fails ends the run and the server, and raises its error; with `return_errors` all jobs run
        and errors stand where results would. A GraphcError of the job comes as it was raised. Whatever else goes wrong
        (an exception, a signal, no answer in time, too little memory) is an InternalError that names the job's subject
        and the last `note` it wrote.
        """
        results: dict[int, Any] = {}
        with closing(self.outcomes(jobs, progress)) as outcomes:
            for index, outcome in outcomes:
                if isinstance(outcome, GraphcError) and not return_errors:
                    raise outcome
                results[index] = outcome
        return [results[index] for index in range(len(jobs))]

    def outcomes(self, jobs: Sequence[Job], progress: Watcher | None = None) -> Generator[tuple[int, Any]]:
        """(index, result or GraphcError) of each job as it finishes. Closing the iterator early ends the server."""
        finished = 0
        try:
            for index, outcome in self._outcomes(jobs, progress or (lambda finished, total, text: None)):
                finished += 1
                yield index, outcome
        finally:
            if finished < len(jobs):
                self.close()  # answers still to come belong to no later run

    def close(self) -> None:
        """End the subprocess and its children; a later `run` starts anew."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # it ends its children and itself when its requests end
        try:
            process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            process.kill()  # children die with it
            process.wait()
        process.stdout.close()
        if self._complaints:
            self._complaints.close()

    def _outcomes(self, jobs: Sequence[Job], tell: Watcher) -> Iterator[tuple[int, Any]]:
        waiting = iter(enumerate(jobs))
        finished = 0
        self._send(waiting, 2 * self.jobs)  # enough that no child waits for this process
        while finished < len(jobs):
            index, kind, payload = self._receive()
            if kind == "note":
                tell(finished, len(jobs), f"{jobs[index].subject}: {payload}")
                continue
            finished += 1
            self._send(waiting, 1)
            tell(finished, len(jobs), jobs[index].subject)
            yield index, pickle.loads(payload) if kind == "result" else _error(jobs[index], kind, payload)

    def _send(self, waiting: Iterable[tuple[int, Job]], count: int) -> None:
        for _, (index, job) in zip(range(count), waiting, strict=False):
            body = pickle.dumps((job.function, job.arguments), pickle.HIGHEST_PROTOCOL)
            requests = self._started().stdin
            assert requests is not None
            try:
                write_frame(requests, pickle.dumps((index, job.function, job.seconds)), body)
                requests.flush()
            except BrokenPipeError as error:
                raise self._lost() from error

    def _receive(self) -> tuple[int, str, Any]:
        reports = self._started().stdout
        assert reports is not None
        head = read_frame(reports)
        body = read_frame(reports)
        if head is None or body is None:
            raise self._lost()
        index, kind, details = pickle.loads(head)
        return index, kind, body if kind == "result" else details

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._complaints = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - closed by close()
            command = [sys.executable, "-P", "-m", "graphc.backends.worker_process"]
            self._process = subprocess.Popen(
                [*command, str(self.jobs), str(self._memory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=self._environment(),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends the others
            )
        return self._process

    def _environment(self) -> dict[str, str]:
        """One thread per process, the same hashes (so the same order of sets) every time, this process's imports."""
        environment = {**os.environ, **dict.fromkeys(SINGLE_THREADED, "1"), "PYTHONHASHSEED": "0"}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        if self._scratch:
            environment["TMPDIR"] = str(self._scratch)
        return environment

    def _lost(self) -> InternalError:
        """The server itself died: what it said, and how it ended."""
        assert self._process is not None and self._complaints is not None
        self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip()
        code = self._process.returncode
        self.close()
        error = InternalError(
            "compile server", f"it {_ending(code)}: {said.splitlines()[-1] if said else 'no message'}."
        )
        error.add_note(said)
        return error


_listeners: list[Callable[[str], None]] = []


def note(text: str) -> None:
    """Say what the job is at ("node conv_7"): shown as progress, and named in the error should the process die here.

    Does nothing outside a job.
    """
    for listener in _listeners:
        listener(text)


def send_notes(listener: Callable[[str], None]) -> None:
    """In a job's process: where its notes go."""
    _listeners[:] = [listener]


def _processors() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _error(job: Job, kind: str, details: Any) -> GraphcError:
    """The error that a report of the server stands for."""
    if kind == "graphc":
        cls, subject, problem, remedy = details
        return cls(subject, problem, remedy)  # type: ignore[no-any-return]
    at, said = details["note"], details["said"].strip()
    where = f" at {at}" if at else ""
    if kind == "exception":
        problem = f"{details['what']}{where}."
    elif kind == "timeout":
        problem = f"no answer after {job.seconds:g} s{where}; its process was ended."
    elif kind == "memory":
        problem = f"out of memory{where} (limit {details['limit'] / (1 << 30):.1f} GiB)."
    else:
        words = said.partition("Fatal Python error")[0].strip()  # what it printed before the stack
        problem = f"its process {_ending(details['code'])}{where}" + (f": {words.splitlines()[-1]}" if words else ".")
    error = InternalError(job.subject, problem, "This is a bug in graphc or TVM; please report it with the model.")
    if said:
        error.add_note(said)
    return error


def _ending(code: int) -> str:
    """How a process with this return code (negative: a signal) ended."""
    if code >= 0:
        return f"ended with code {code} and no result"
    return f"was ended by signal {-code} ({signal.strsignal(-code)})"
