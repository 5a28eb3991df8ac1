"""Where samples come from: arrays of a file, a folder of images, the user's own function, or random numbers.

Every source holds columns: arrays by name whose first axis is that of samples, read a few rows at a time.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from graphc import user_code
from graphc.errors import InputError, UnsupportedError
from graphc.ir import Array, TensorType
from graphc.npz import members
from graphc.spec.model import Calibration

if TYPE_CHECKING:
    from PIL.Image import Image

LABELS = "y"
SEED = 0
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {"rgb": "RGB", "bgr": "RGB", "gray": "L"}
WIDE = ("I", "F")
"""Modes of more bits than 8: Pillow cuts them off at 255 where it converts them."""
BLOCK = 1 << 24
"""Bytes that are hashed at a time."""


class Column(Protocol):
    """An array [samples, ...]. `subject` is how messages name it."""

    @property
    def name(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def dtype(self) -> np.dtype[np.generic]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self, starts: Iterable[int], rows: int) -> Iterator[Array]:
        """Blocks `[rows, *shape[1:]]` that begin at the rows `starts`, ascending; one block is in memory at a time."""

    def scalar(self) -> Array:
        """The value of an array without dimensions."""


class Source(Protocol):
    """Columns by name; `label` says where they are from, to a reader."""

    @property
    def label(self) -> str: ...
    @property
    def columns(self) -> Mapping[str, Column]: ...

    def digest(self) -> str:
        """A hash of the content."""


def source_of(section: Calibration, wanted: Mapping[str, TensorType], folder: Path) -> Source:
    """The source that a section names. `wanted`: inputs and what is read for them; `folder` is the spec's.

    Raises InputError where it is not there or cannot be read, UnsupportedError where images need Pillow.
    """
    if section.images is not None:
        return _images(section, section.images, wanted)
    if section.function is not None:
        return _computed(section.function, folder)
    if section.random is not None and section.count is not None:
        return RandomNumbers(section.random, section.count, wanted)
    assert section.path is not None
    return Stored(section.path, members(section.path))


@dataclass(frozen=True)
class Stored:
    """The arrays of an .npz, or that of an .npy."""

    path: Path
    columns: Mapping[str, Column]

    @property
    def label(self) -> str:
        return str(self.path)

    def digest(self) -> str:
        try:
            with self.path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise InputError(str(self.path), f"expected a readable file, got: {error.strerror}.") from error


@dataclass(frozen=True)
class ArrayColumn:
    """An array in memory, or mapped from a file."""

    name: str
    array: Array
    subject: str

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.array.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def read(self, starts: Iterable[int], rows: int) -> Iterator[Array]:
        return (np.asarray(self.array[start : start + rows]) for start in starts)

    def scalar(self) -> Array:
        return self.array


@dataclass(frozen=True)
class Computed:
    """What the user's function gave."""

    label: str
    columns: Mapping[str, ArrayColumn]

    def digest(self) -> str:
        content = hashlib.sha256()
        for name, column in sorted(self.columns.items()):
            content.update(f"{name} {column}".encode())
            rows = max(BLOCK // max(column.array[:1].nbytes, 1), 1) if column.shape else 0
            for start in range(0, column.shape[0], rows) if column.shape else ():
                content.update(np.ascontiguousarray(column.array[start : start + rows]).tobytes())
            content.update(b"" if column.shape else column.array.tobytes())
        return content.hexdigest()


def _computed(name: str, folder: Path) -> Computed:
    subject = f"data function {name}"
    function = user_code.find(subject, name, folder)
    try:
        found = function()
    except user_code.RAISED as error:
        raise InputError(subject, user_code.failure(error)) from error
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        remedy = "Give a dict: input name -> array of all samples (numpy.load(..., mmap_mode='r') is read in pieces)."
        raise InputError(subject, f"expected arrays by name, got {type(found).__name__}.", remedy)
    return Computed(name, {key: _array_column(key, value, f"{subject}: array '{key}'") for key, value in found.items()})


def _array_column(name: str, value: object, subject: str) -> ArrayColumn:
    try:
        array = np.asanyarray(value)
    except user_code.RAISED as error:  # lists of several lengths; what an object's own conversion raises
        raise InputError(subject, f"expected an array, got {type(value).__name__}: {error}") from error
    if array.dtype.hasobject:
        raise InputError(subject, "expected numbers, got Python objects.", "Give an array of one shape.")
    return ArrayColumn(name, array, subject)


@dataclass(frozen=True)
class ImageColumn:
    """Pictures as 8-bit [samples, height, width, channels]; decoded when they are read."""

    name: str
    folder: Path
    files: tuple[Path, ...]
    size: tuple[int, int]
    color: Literal["rgb", "bgr", "gray"]
    fit: Literal["stretch", "crop"]

    @property
    def subject(self) -> str:
        return str(self.folder)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return np.dtype(np.uint8)

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.files), *self.size, 1 if self.color == "gray" else 3

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def read(self, starts: Iterable[int], rows: int) -> Iterator[Array]:
        return (np.stack([self._picture(file) for file in self.files[start : start + rows]]) for start in starts)

    def scalar(self) -> Array:
        raise InputError(self.subject, "an input without dimensions cannot be a picture.")

    def _picture(self, file: Path) -> Array:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(file) as opened:
                if opened.mode.startswith(WIDE):
                    remedy = "Save it with 8 bits per channel."
                    raise InputError(str(file), f"expected 8 bits per channel, got Pillow's {opened.mode}.", remedy)
                pixels = np.asarray(_fitted(opened.convert(MODES[self.color]), self.size, self.fit))
        except (UnidentifiedImageError, OSError, SyntaxError) as error:  # Pillow raises the last for damaged PNG
            raise InputError(str(file), f"cannot be read as an image: {error}.", "Repair or remove it.") from error
        pixels = pixels.reshape(*self.size, -1)
        return pixels[..., ::-1] if self.color == "bgr" else pixels


def _fitted(image: "Image", size: tuple[int, int], fit: Literal["stretch", "crop"]) -> "Image":
    """An image of `size` (height, width): bilinear, averaging where it shrinks."""
    from PIL.Image import Resampling

    height, width = size
    if fit == "stretch":
        return image.resize((width, height), Resampling.BILINEAR)
    factor = max(width / image.width, height / image.height)
    shown = width / factor, height / factor
    left, top = (image.width - shown[0]) / 2, (image.height - shown[1]) / 2
    return image.resize((width, height), Resampling.BILINEAR, (left, top, left + shown[0], top + shown[1]))


@dataclass(frozen=True)
class Images:
    """A folder of pictures, and where there are folders in it, their numbers as labels."""

    column: ImageColumn
    labels: ArrayColumn | None

    @property
    def label(self) -> str:
        return str(self.column.folder)

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        return {self.column.name: self.column, **({LABELS: self.labels} if self.labels is not None else {})}

    def digest(self) -> str:
        content = hashlib.sha256(repr((self.column.size, self.column.color, self.column.fit)).encode())
        for file in self.column.files:
            content.update(str(file.relative_to(self.column.folder)).encode())
            try:
                content.update(file.read_bytes())
            except OSError as error:
                raise InputError(str(file), f"expected a readable file, got: {error.strerror}.") from error
        return content.hexdigest()


def _images(section: Calibration, folder: Path, wanted: Mapping[str, TensorType]) -> Images:
    try:
        import PIL  # noqa: F401  # asked for here so that a build does not fail half way
    except ImportError as error:
        raise UnsupportedError("data.images", "needs Pillow.", "Install graphc with the extra `images`.") from error
    color, fit = section.color, section.fit
    assert color is not None and fit is not None
    if len(wanted) != 1:
        raise InputError(str(folder), f"expected a model with one input, got {', '.join(wanted)}.", "Use a `function`.")
    ((name, kind),) = wanted.items()
    channels = 1 if color == "gray" else 3
    if len(kind.dims) != 4 or kind.dims[3] != channels:
        remedy = "Say `preprocess: {layout: nhwc, ...}` where the model takes NCHW, and the `color` that it takes."
        raise InputError(str(folder), f"expected an input [N, height, width, {channels}], got {kind}.", remedy)
    files = tuple(file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(str(folder), f"holds no images ({', '.join(sorted(SUFFIXES))}).")
    column = ImageColumn(name, folder, files, (kind.dims[1], kind.dims[2]), color, fit)
    return Images(column, _classes(folder, files))


def _classes(folder: Path, files: tuple[Path, ...]) -> ArrayColumn | None:
    """The number of each picture's folder; None where some picture lies in none."""
    names = [file.relative_to(folder).parts[0] for file in files]
    if any(len(file.relative_to(folder).parts) < 2 for file in files):
        return None
    numbers = np.unique(names, return_inverse=True)[1]
    return ArrayColumn(LABELS, numbers.astype(np.int64), f"{folder}: folders")


@dataclass(frozen=True)
class RandomColumn:
    """Random numbers, the same for the same row every time."""

    name: str
    kind: TensorType
    count: int
    distribution: Literal["normal", "uniform"]

    @property
    def subject(self) -> str:
        return f"random data for '{self.name}'"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.kind.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self.kind.dims)

    def read(self, starts: Iterable[int], rows: int) -> Iterator[Array]:
        return (np.stack([self._row(row) for row in range(start, start + rows)]) for start in starts)

    def scalar(self) -> Array:
        return self._row(0)

    def _row(self, row: int) -> Array:
        rng = np.random.default_rng([SEED, row, *self.name.encode()])
        return random_array(rng, self.kind, self.distribution)


@dataclass(frozen=True)
class RandomNumbers:
    """No data: each input random, as its element type has it."""

    distribution: Literal["normal", "uniform"]
    count: int
    wanted: Mapping[str, TensorType]

    @property
    def label(self) -> str:
        return f"random numbers ({self.distribution}, seed {SEED})"

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        return {name: RandomColumn(name, kind, self.count, self.distribution) for name, kind in self.wanted.items()}

    def digest(self) -> str:
        return hashlib.sha256(repr((self.distribution, self.count, SEED)).encode()).hexdigest()


def random_array(
    rng: np.random.Generator, kind: TensorType, distribution: Literal["normal", "uniform"] = "normal"
) -> Array:
    """Floats of mean 0 and deviation 1 (or in 0..1), all integers of 8 and 16 bits, 0 or 1 for longer ones."""
    dtype = kind.dtype
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        info = np.iinfo(dtype.name)
        return rng.integers(info.min, info.max, kind.dims, dtype, endpoint=True)
    if dtype.kind in "iub":  # shapes, indices, lengths: small numbers are most likely to mean something
        return rng.integers(0, 2, kind.dims).astype(dtype)
    found = rng.standard_normal(kind.dims) if distribution == "normal" else rng.random(kind.dims)
    return found.astype(dtype)
