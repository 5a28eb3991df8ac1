"""Reading .npz and .npy files a few rows at a time, packed or not: memory does not grow with the file. No pickles."""

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from graphc.errors import InputError
from graphc.ir import Array

SUFFIX = ".npy"
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""What zipfile and numpy raise for a file that is cut short, altered, encrypted or packed in a way they do not know."""


@dataclass(frozen=True, slots=True)
class Member:
    """One array of an .npz: its type, and where its data begins inside the archive's entry."""

    path: Path
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int

    @property
    def subject(self) -> str:
        """How messages name this array."""
        return f"{self.path}: array '{self.name}'"

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def read(self, starts: Iterable[int], rows: int) -> Iterator[Array]:
        """Blocks `[rows, *shape[1:]]` that begin at the rows `starts`, ascending; one block is in memory at a time."""
        row_bytes = prod(self.shape[1:]) * self.dtype.itemsize
        try:
            with _opened(self.path, self.name) as stream:
                for start in starts:
                    stream.seek(self.offset + start * row_bytes)
                    yield np.frombuffer(_exactly(stream, rows * row_bytes), self.dtype).reshape(rows, *self.shape[1:])
        except OSError as error:
            raise InputError(str(self.path), f"expected a readable file, got: {error.strerror}.") from error
        except _DAMAGE as error:
            raise InputError(
                self.subject, f"cannot be read: {error}.", "The file is damaged; write it again."
            ) from error

    def scalar(self) -> Array:
        """The value of an array without dimensions."""
        return next(Member(self.path, self.name, self.dtype, (1,), self.offset).read([0], 1)).reshape(())


@contextmanager
def _opened(path: Path, name: str) -> Iterator[IO[bytes]]:
    """The bytes of one array, as an .npy file has them."""
    if path.suffix == SUFFIX:
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive, archive.open(name + SUFFIX) as stream:
        yield stream


def members(path: Path) -> Mapping[str, Member]:
    """The arrays of an .npz by name, or that of an .npy by the file's; only headers are read.

    Raises InputError for what is neither, an array that is cut short, and one in Fortran order.
    """
    if path.suffix == SUFFIX:
        return {path.stem: _single(path)}
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(SUFFIX)]
            found = [_member(path, archive, entry) for entry in entries]
    except OSError as error:
        raise InputError(str(path), f"expected a readable file, got: {error.strerror}.", "Check the path.") from error
    except _DAMAGE as error:
        remedy = "Write it with numpy.savez(path, name=array, ...)."
        raise InputError(str(path), f"expected an .npz file, got: {error}.", remedy) from error
    if not found:
        raise InputError(str(path), "expected an .npz file, got an archive without arrays.")
    return {member.name: member for member in found}


def _single(path: Path) -> Member:
    """The array of an .npy file."""
    try:
        with path.open("rb") as stream:
            return _checked(path, path.stem, stream, path.stat().st_size)
    except OSError as error:
        raise InputError(str(path), f"expected a readable file, got: {error.strerror}.", "Check the path.") from error
    except _DAMAGE as error:
        remedy = "Write it with numpy.save(path, array)."
        raise InputError(str(path), f"expected an .npy file, got: {error}.", remedy) from error


def _member(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Member:
    with archive.open(entry) as stream:
        return _checked(path, entry.filename.removesuffix(SUFFIX), stream, entry.file_size)


def _checked(path: Path, name: str, stream: IO[bytes], size: int) -> Member:
    """The member whose header `stream` begins with, `size` bytes in all."""
    shape, fortran, dtype = _header(stream)
    member = Member(path, name, dtype, shape, stream.tell())
    if fortran and len(shape) > 1:
        raise InputError(member.subject, "is in Fortran order.", "Save numpy.ascontiguousarray(array).")
    if dtype.hasobject:
        remedy = "Save it as an array of numbers of one shape."
        raise InputError(member.subject, f"expected numbers, got Python objects of shape {list(shape)}.", remedy)
    expected = member.offset + prod(shape) * dtype.itemsize
    if size != expected:
        problem = f"expected {expected} bytes for {member}, got {size}."
        raise InputError(member.subject, problem, "The file is damaged; write it again.")
    return member


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, Fortran order, dtype). Raises ValueError for what is no array of numpy's."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(int(dim) for dim in shape), bool(fortran), dtype


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = io.BytesIO()
    while content.tell() < size:
        piece = stream.read(size - content.tell())
        if not piece:
            raise EOFError("its data ends early")
        content.write(piece)
    return content.getvalue()
