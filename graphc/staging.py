"""Writing a build so that nobody ever meets half of one: everything is made beside its place, then moved in.

    with Staging(Path("build/digits")) as staging:
        ...                       # write into staging.folder
        staging.commit()          # renames only

`report.json` is taken away first and put back last: a folder without it is no finished build. Files that graphc did not
make are left where they are.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self

from graphc.errors import InputError

REPORT = "report.json"
MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"


class Staging:
    """A folder beside `place`, gone when the block ends. Raises InputError where `place` cannot be written."""

    def __init__(self, place: Path, names: Iterable[str] = ()) -> None:
        """`names` are entries that will be written: what is in their way is an error at the start, not at the end."""
        self.place = place
        self._names = tuple(names)

    def __enter__(self) -> Self:
        if self.place.exists() and not self.place.is_dir():
            raise InputError(str(self.place), "expected a folder, got a file.", "Move it away, or give another -o.")
        self._refuse_in_the_way(self._names)
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            self._beside = Path(mkdtemp(prefix=f".{self.place.name}.", dir=self.place.parent))
            self.folder, self._old = self._beside / "new", self._beside / "old"
            self.folder.mkdir()
        except OSError as error:
            problem = f"cannot be written: {error.strerror}."
            raise InputError(str(self.place), problem, "Give another folder with -o.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._beside, ignore_errors=True)

    def commit(self) -> None:
        """Put what was written in place of the last build, which goes with all its target folders."""
        self.place.mkdir(exist_ok=True)
        ours = made_by_graphc(self.place)
        self._refuse_in_the_way(path.name for path in self.folder.iterdir())
        self._old.mkdir()
        for name in sorted(ours, key=lambda name: name != REPORT):
            (self.place / name).rename(self._old / name)
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == REPORT):
            path.rename(self.place / path.name)

    def _refuse_in_the_way(self, names: Iterable[str]) -> None:
        ours = made_by_graphc(self.place)
        for name in names:
            if name not in ours and (self.place / name).exists():
                problem = "is in the way, and no build of graphc's put it there."
                raise InputError(str(self.place / name), problem, "Move it away, or give another -o.")


def made_by_graphc(build: Path) -> list[str]:
    """The entries of a build folder that its report accounts for; none where there is no report of graphc's."""
    try:
        report = json.loads((build / REPORT).read_bytes())
        targets = [str(target["id"]) for target in report["targets"]] if "graphc" in report else None
    except (OSError, ValueError, TypeError, KeyError):
        targets = None
    if targets is None:
        return []
    files = [name for name in (REPORT, MODEL, MODEL_DATA) if (build / name).is_file()]
    return files + [target for target in targets if (build / target / MANIFEST).is_file()]
