"""Run a bare-metal artifact on an emulated board, as if it were loaded here, and count what it takes.

artifact -> start.c, main.c, board.ld (graphc.backends.device) + lib<name>.a -> program.elf -> qemu-system-arm

Inputs and outputs go through semihosting and the emulator's own standard input and output. With `-icount shift=0` an
instruction takes one nanosecond of the board's time, so that its clock counts instructions, the same in every run.
"""

import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from graphc.backends import device, toolchain
from graphc.backends.boards import BOARDS, Board
from graphc.backends.cache import Cache
from graphc.backends.targets import Target, from_description
from graphc.emulated import Emulated
from graphc.errors import InternalError, ToolchainError, UnsupportedError
from graphc.runner import bound, checked, failure

EMULATOR = "qemu-system-arm"
NANOSECONDS = 1_000_000_000
PROGRAM = "program.elf"
SUPERSETS = {"cortex-m0plus": "cortex-m3"}
"""Processor -> one that runs all its instructions, where QEMU has no board with it and enough memory."""


def board_for(target: Target) -> Board:
    """The emulated board to run code for `target` on: its own, else one with the same processor.

    Raises UnsupportedError where QEMU has none.
    """
    if target.board is not None and target.board.emulator:
        return target.board
    cpu = SUPERSETS.get(target.cpu, target.cpu)
    for board in BOARDS.values():
        if board.emulator and board.cpu == cpu:
            return board
    known = sorted({board.cpu for board in BOARDS.values() if board.emulator})
    problem = f"QEMU has no board with a {target.cpu}; it has some with {', '.join(known)}."
    raise UnsupportedError(f"target {target.id}", problem, "Verify on the board itself.")


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions of the last profiled run by entry of `manifest.steps`; most bytes of stack of any other call."""

    steps: tuple[int, ...]
    stack: int


class EmulatedBoard(Emulated):
    """A bare-metal artifact on an emulated board."""

    def __init__(self, path: str | Path) -> None:
        """Link the artifact's library into a program and start it.

        Raises InputError where there is no artifact, ToolchainError where the compiler or the emulator is missing or
        fails, UnsupportedError for a processor that QEMU has no board with, BudgetError for a model that no memory of
        the emulated board holds.
        """
        super().__init__(path)
        self.counts = Counts((), 0)
        try:
            target = from_description(self.manifest.target)
            self.board = board_for(target)
            emulator = find_emulator()
            self._link(target)
            command = [emulator, "-M", self.board.emulator, "-display", "none", "-serial", "none", "-monitor", "none"]
            command += ["-semihosting-config", "enable=on,target=native", "-icount", "shift=0", "-kernel", PROGRAM]
            pipe = subprocess.PIPE
            self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
            self._process = subprocess.Popen(command, cwd=self._work.name, stdin=pipe, stdout=pipe, stderr=self._said)
        except BaseException:
            self._work.cleanup()
            raise

    def __call__(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Any:
        """As `Runner.__call__`; `counts` says what stack it took. Raises ToolchainError when the emulator ends."""
        return self._request(b"r", bound(self.folder, self.inputs, arrays, named))

    def profile(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> list[int]:
        """Run once and return the instructions of each entry of `manifest.steps`, to one tick of the board's clock."""
        self._request(b"p", bound(self.folder, self.inputs, arrays, named))
        return list(self.counts.steps)

    @property
    def tick(self) -> float:
        """Instructions per tick of the board's clock: what counts are exact to."""
        return NANOSECONDS / self.board.clock_hz

    def close(self) -> None:
        """End the emulator. May be called again."""
        super().close()
        self._said.close()

    def _request(self, kind: bytes, values: list[npt.ArrayLike]) -> Any:
        self._send(kind + b"".join(checked(*pair).tobytes() for pair in zip(self.inputs, values, strict=True)))
        code, stack = struct.unpack("<iI", self._received(8))
        profiled = len(self.manifest.steps) if kind == b"p" else 0
        steps = struct.unpack(f"<{profiled}Q", self._received(8 * profiled))
        results = self._results()
        self.counts = Counts(tuple(round(each * self.tick) for each in steps) or self.counts.steps, stack)
        if code != 0:
            raise failure(self.folder, code)
        self._check_stack()
        return results

    def _check_stack(self) -> None:
        """The bound that the build stated must hold."""
        stated = self.manifest.footprint
        if stated is not None and self.counts.stack > stated.stack:
            problem = f"a run took {self.counts.stack} bytes of stack, the build stated {stated.stack} at most."
            raise InternalError(str(self.folder), problem)

    def _link(self, target: Target) -> None:
        """The program of `graphc.backends.device`, linked with the artifact's library for the emulated board."""
        work, name = Path(self._work.name), self.manifest.identifier
        tools = toolchain.find_for(target, Cache().folder)
        for file in (self.manifest.files.header, self.manifest.files.archive):
            shutil.copy(self.folder / file, work / file)
        sources = {"start.c": device.start(), "main.c": device.verify_main(self.manifest)}
        sources["board.ld"] = device.linker_script(self.manifest, self.board)
        for file, text in sources.items():
            (work / file).write_text(text, encoding="utf-8")
        for source in ("start", "main"):
            tools.compile(f"{source}.c", f"{source}.o", work, toolchain.FREESTANDING)
        tools.link_device(["start.o", "main.o", f"lib{name}.a"], "board.ld", PROGRAM, work)

    def _ended(self) -> Exception:
        """Why the program is not there any more."""
        code = self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip()
        problem = f"the program ended ({code}){': ' + said if said else ''}."
        remedy = "If the emulator is sound, report this as a bug in graphc."
        return ToolchainError(f"{self.manifest.name} on the emulated {self.board.name}", problem, remedy)


def find_emulator() -> str:
    """The emulator's path. Raises ToolchainError that says what to install."""
    found = shutil.which(EMULATOR)
    if found is None:
        problem = f"there is no emulator to run it in ({EMULATOR})."
        raise ToolchainError("bare-metal artifacts", problem, "Run `apt install qemu-system-arm`.")
    return found
