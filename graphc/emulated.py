"""What emulated artifacts share: a program in an emulator that reads inputs and writes outputs through pipes."""

import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from graphc import artifact
from graphc.artifact import Tensor
from graphc.runner import numpy_dtype


class Emulated:
    """An artifact in an emulator; to be called and closed as a `Runner`. A subclass starts `_process` in `_work`."""

    _process: subprocess.Popen[bytes]

    def __init__(self, path: str | Path) -> None:
        """Read what is to be run. Raises InputError where there is no artifact."""
        self.folder, self.manifest = artifact.find(path), artifact.read(path)
        self._work = tempfile.TemporaryDirectory(prefix="graphc-emulated-")

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Names, shapes, dtypes and quantization of what a call takes, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The same of what it returns."""
        return self.manifest.outputs

    def close(self) -> None:
        """End the emulator. May be called again."""
        self._process.kill()
        self._process.communicate()
        self._work.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, data: bytes) -> None:
        sent = self._process.stdin
        assert sent is not None
        try:
            sent.write(data)
            sent.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _received(self, count: int) -> bytes:
        assert self._process.stdout is not None
        data = self._process.stdout.read(count)
        if len(data) != count:
            raise self._ended()
        return data

    def _results(self) -> Any:
        """The outputs that come next, as a call returns them."""
        found = {
            tensor.name: np.frombuffer(self._received(tensor.bytes), numpy_dtype(tensor.dtype))
            .reshape(tensor.shape)
            .copy()
            for tensor in self.outputs
        }
        return found if len(found) > 1 else next(iter(found.values()))

    def _ended(self) -> Exception:
        """Why the program is not there any more."""
        raise NotImplementedError
