"""Run an artifact for another processor under QEMU's user mode, as if it were loaded here.

artifact -> stream.c + lib<name>.a -> a static program -> qemu-<machine> -> inputs and outputs through pipes
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy.typing as npt

from graphc import artifact
from graphc.backends import toolchain
from graphc.backends.arm import emulated_as
from graphc.backends.cache import Cache
from graphc.backends.emit_stream import stream_program
from graphc.backends.targets import Target, from_description
from graphc.emulated import Emulated
from graphc.emulated_board import EmulatedBoard
from graphc.errors import ToolchainError, UnsupportedError
from graphc.runner import Runner, bound, checked, failure

MACHINES = {"aarch64": "aarch64", "armv7": "arm"}
"""The processor in a triple -> what QEMU's user mode calls it."""

MODEL_ERROR = 100
"""The stream program ends with this plus the code that the model's functions gave."""


def emulates(target: Target) -> bool:
    """Whether programs for `target` run under QEMU's user mode."""
    return target.hosted and target.triple.partition("-")[0] in MACHINES and not toolchain.is_host(target.triple)


def open_anywhere(path: str | Path, threads: int = 1) -> "Runner | EmulatedLinux | EmulatedBoard":
    """The artifact as a callable: loaded here where this machine can run it, else emulated.

    Raises as `Runner`, `EmulatedLinux` and `EmulatedBoard` do.
    """
    target = from_description(artifact.read(path).target)
    if not target.hosted:
        return EmulatedBoard(path)
    return EmulatedLinux(path, threads) if emulates(target) else Runner(path, threads)


class EmulatedLinux(Emulated):
    """An artifact for a Linux board under QEMU's user mode."""

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        """Link the artifact's library into a program and start it.

        Raises InputError where there is no artifact, ToolchainError where the compiler or the emulator is missing or
        fails, UnsupportedError for a target that QEMU's user mode does not run.
        """
        super().__init__(path)
        try:
            target = from_description(self.manifest.target)
            if not emulates(target):
                problem = f"programs for {target.id} do not run under QEMU's user mode."
                raise UnsupportedError(str(self.folder), problem)
            command = [*find_emulator(target), str(self._program(target)), str(threads)]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except BaseException:
            self._work.cleanup()
            raise

    def __call__(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Any:
        """As `Runner.__call__`. Raises ToolchainError when the emulator ends, and as a Runner does."""
        values = bound(self.folder, self.inputs, arrays, named)
        feeds = b"".join(checked(*pair).tobytes() for pair in zip(self.inputs, values, strict=True))
        self._send(feeds or b"\n")  # the end of a line is what a model that reads nothing waits for
        return self._results()

    def _program(self, target: Target) -> Path:
        """The stream program, linked with the artifact's library and the C library."""
        work, name = Path(self._work.name), self.manifest.identifier
        found = toolchain.find(target.triple, Cache().folder, compiler=target.compiler)
        tools = found.for_programs()
        for file in (f"{name}.h", f"{name}.c", f"lib{name}.a"):
            shutil.copy(self.folder / file, work / file)
        (work / "stream.c").write_text(stream_program(self.manifest), encoding="utf-8")
        sources = ["stream", *([name] if tools != found else [])]  # what is in the archive is for another C library
        for source in sources:
            tools.compile(f"{source}.c", f"{source}.o", work)
        tools.link_program([*(f"{source}.o" for source in sources), f"lib{name}.a"], "stream", work)
        return work / "stream"

    def _ended(self) -> Exception:
        """Why the program is not there any more."""
        code = self._process.wait()
        if code > MODEL_ERROR:
            return failure(self.folder, code - MODEL_ERROR)
        return ToolchainError(
            f"the emulated {self.manifest.target['id']}",
            f"its program ended with {code}{' (killed by a signal)' if code < 0 else ''}.",
            "Run `graphc verify` again; if it stays, report it as a bug in graphc.",
        )


def find_emulator(target: Target) -> tuple[str, ...]:
    """The command that runs a program for `target`: $QEMU, or Debian's names of QEMU's user mode.

    Raises ToolchainError that says what to install.
    """
    machine = MACHINES[target.triple.partition("-")[0]]
    given = os.environ.get("QEMU")
    names = [given] if given else [f"qemu-{machine}-static", f"qemu-{machine}"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise ToolchainError(
            f"target {target.id}",
            f"there is no emulator to run it in ({', '.join(names)}).",
            "Correct or unset $QEMU." if given else "Run `apt install qemu-user-static`.",
        )
    return (found, "-cpu", emulated_as(target))
