"""Results kept between builds, found by the content of what they were made from.

    cache = Cache()
    key = kernel_key(tir, symbol, target)
    code = cache.get(key)                      # None: absent, or damaged on disk
    if code is None:
        cache.put(key, code := compile(...))

One file per entry, written beside its place and renamed, so that builds may share the folder; each carries a checksum.
A folder that cannot be written costs time and nothing else: `Cache.problem` says what was wrong.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from graphc.backends.targets import Target
from graphc.version import VERSION

LIMIT = 2 << 30
"""Bytes that the folder may hold; the entries unused for longest go first."""

PARTIAL = ".partial-"  # files being written start so
ABANDONED = 3600.0  # seconds after which a partial file has no writer any more
_MAGIC = b"graphc1\n"
_DIGEST = hashlib.sha256().digest_size


class _Entry(NamedTuple):
    """A file of the cache: when it was used last, its bytes."""

    used: float
    size: int
    path: Path


def default_folder() -> Path:
    """$GRAPHC_CACHE, or `graphc` in the user's cache folder as the platform has it."""
    if given := os.environ.get("GRAPHC_CACHE"):
        return Path(given).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "graphc"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "graphc" / "cache"
    base = os.environ.get("XDG_CACHE_HOME", "")  # the specification has relative paths ignored
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "graphc"


def key(kind: str, *parts: Any) -> str:
    """The key of a result of `kind` that `parts` decide: text, bytes, or JSON-ready data.

    The code of graphc itself and the versions of what it calls are always part of it.
    """
    return _digest(kind, _code(), _versions(), *parts)


def kernel_key(tir: str, symbol: str, target: Target) -> str:
    """The key of what `graphc.backends.objects.object_code` makes of these; edits of other files leave it alone."""
    code = _code("objects.py", "c_kernel.py", "vector_math.py", "targets.py", "elf.py")
    return _digest("kernel", code, _versions(), tir, symbol, target.description())


class Cache:
    """A folder of results. Any number of processes may use it at once."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        self.folder = folder or default_folder()
        self.limit = limit
        self.problem: str | None = None
        """Why the last result could not be written."""
        self._unpruned: int | None = None  # bytes written since the last look at the size

    def get(self, key: str) -> bytes | None:
        """What was put under `key`; None where there is nothing, or where the file is not what was written."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        value = data[len(_MAGIC) + _DIGEST :]
        if data != _sealed(key, value):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # used now: what is pruned last
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`, in place of what was there."""
        path = self._path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(prefix=PARTIAL, dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_sealed(key, value))
                Path(partial).replace(path)
            except BaseException:
                Path(partial).unlink(missing_ok=True)
                raise
        except OSError as error:
            self.problem = f"{self.folder}: {error.strerror}"
            return
        self._prune_sometimes(len(value))

    def scratch(self) -> Path | None:
        """A folder for files that live for moments; None where there cannot be one."""
        folder = self.folder / "scratch"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        return folder if os.access(folder, os.W_OK) else None

    def prune(self) -> None:
        """Remove the entries unused for longest until the rest fits the limit, and what killed writers left."""
        entries = sorted(self._entries())
        excess = sum(entry.size for entry in entries) - self.limit
        for entry in entries:
            if excess <= 0:
                break
            with suppress(OSError):
                entry.path.unlink()
            excess -= entry.size
        self._unpruned = 0

    def _prune_sometimes(self, written: int) -> None:
        """At the first entry written, then whenever an eighth of the limit has been."""
        if self._unpruned is not None:
            self._unpruned += written
        if self._unpruned is None or self._unpruned > self.limit // 8:
            self.prune()

    def _entries(self) -> Iterator[_Entry]:
        for path in self.folder.glob("??/*"):
            with suppress(OSError):  # another build may remove it meanwhile
                status = path.stat()
                if not path.name.startswith(PARTIAL):
                    yield _Entry(status.st_mtime, status.st_size, path)
                elif time.time() - status.st_mtime > ABANDONED:
                    path.unlink()

    def _path(self, key: str) -> Path:
        name = hashlib.sha256(key.encode()).hexdigest()
        return self.folder / name[:2] / name


def _sealed(key: str, value: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(key.encode() + b"\0" + value).digest() + value


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        digest.update(f"{type(part).__name__} {len(data)}\n".encode() + data)
    return digest.hexdigest()


@cache
def _versions() -> dict[str, str]:
    """Of graphc and of what computes for it, read without importing any."""
    installed = {
        name: metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi", "onnx", "onnxruntime", "numpy")
    }
    return {"graphc": VERSION, **installed}


@cache
def _code(*names: str) -> str:
    """Digest of these files of `backends/`, or of all of graphc's code: its version alone says nothing of edits."""
    import graphc.passes

    here = Path(__file__).parent
    roots = [here, *map(Path, graphc.__path__), *map(Path, graphc.passes.__path__)]
    files = [here / name for name in names] or [file for root in roots for file in root.rglob("*.py")]
    return _digest(*(part for file in sorted(set(files)) for part in (file.name, file.read_bytes())))
