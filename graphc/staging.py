"""Writing a build so that nobody ever meets half of one: everything is made beside its place, then moved in.

    with Staging(Path("build/digits")) as staging:
        ...                       # write into staging.folder
        staging.commit()          # renames only

`report.json` is taken away first and put back last: a folder without it is no finished build. Files that graphc did not
make are left where they are.
"""

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from graphc.errors import InputError

REPORT = "report.json"
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"


class Staging:
    """A folder beside `place`, gone when the block ends. Raises InputError where `place` cannot be written."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.folder = place.with_name(f".{place.name}.{os.getpid()}.new")
        self._old = place.with_name(f".{place.name}.{os.getpid()}.old")

    def __enter__(self) -> Self:
        if self.place.exists() and not self.place.is_dir():
            raise InputError(str(self.place), "expected a folder, got a file.", "Move it away, or give another -o.")
        try:
            self._remove()
            self.folder.mkdir(parents=True)
        except OSError as error:
            problem = f"cannot be written: {error.strerror}."
            raise InputError(str(self.place), problem, "Give another folder with -o.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def commit(self) -> None:
        """Put what was written in place of the last build, which goes with all its target folders."""
        self.place.mkdir(exist_ok=True)
        ours = made_by_graphc(self.place)
        for path in self.folder.iterdir():
            if path.name not in ours and (self.place / path.name).exists():
                raise InputError(
                    str(self.place / path.name), "is in the way, and graphc did not make it.", "Move it away."
                )
        self._old.mkdir()
        for name in sorted(ours, key=lambda name: name != REPORT):
            (self.place / name).rename(self._old / name)
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == REPORT):
            path.rename(self.place / path.name)

    def _remove(self) -> None:
        for folder in (self.folder, self._old):
            shutil.rmtree(folder, ignore_errors=True)


def made_by_graphc(build: Path) -> list[str]:
    """The entries of a build folder that builds write: the model, the report and target folders."""
    files = [name for name in (REPORT, MODEL, MODEL_DATA) if (build / name).is_file()]
    return files + [path.parent.name for path in sorted(build.glob(f"*/{MANIFEST}"))]
