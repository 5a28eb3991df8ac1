"""Calibration and evaluation data: one array per model input, and labels `y`, from a source (sources.py).

Samples are streamed: memory holds one run's worth, however many there are. An array of the input's rank is cut along
its first axis into runs of the model's batch; an array of one rank more holds one whole input per row; an input without
dimensions may be given once for all runs.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path

import numpy as np

from graphc import preprocess as preprocessing
from graphc.errors import InputError
from graphc.ir import Array, TensorType
from graphc.sources import LABELS, Column, source_of
from graphc.spec.model import Calibration, Preprocess


@dataclass(frozen=True, slots=True)
class Batch:
    """What one run of the model takes, and its labels `[batch, ...]` (None where the file has none)."""

    feeds: Mapping[str, Array]
    labels: Array | None


@dataclass(frozen=True, slots=True)
class _Operand:
    """One column and how it becomes an operand: `rows` rows make one run (0: one value for every run)."""

    member: Column
    rows: int
    convert: Callable[[Array], Array]

    @property
    def runs(self) -> int:
        return self.member.shape[0] // self.rows

    def read(self, runs: Sequence[int]) -> Iterator[Array]:
        if not self.rows:
            yield from repeat(self.convert(self.member.scalar()), len(runs))
            return
        for run, block in zip(runs, self.member.read((run * self.rows for run in runs), self.rows), strict=True):
            _check_finite(self.member, block, run * self.rows)
            yield self.convert(block)


class Dataset:
    """The chosen samples of one source. Iterating reads it anew and yields one Batch per run, in its order.

    `count` samples are spread evenly over the file, so that rows sorted by class give every class.
    """

    def __init__(
        self,
        section: Calibration,
        inputs: Mapping[str, TensorType],
        preprocess: Preprocess | None = None,
        folder: Path = Path(),
    ) -> None:
        """`inputs` are the model's inputs, of fixed shape. `preprocess` is applied here unless it is part of the model.

        `folder` is the spec's, where functions are found. Raises InputError, naming file and array, for a source that
        cannot be read or does not fit the inputs.
        """
        self.is_random = section.random is not None
        self._preprocess = preprocess if preprocess is not None and not preprocess.fold else None
        self._target = preprocessing.target(self._preprocess, inputs) if self._preprocess else None
        self._source = source_of(section, {name: self._raw(name, kind) for name, kind in inputs.items()}, folder)
        stored = self._source.columns
        lone = section.path is not None and section.path.suffix == ".npy" and len(inputs) == 1
        stored = {next(iter(inputs)): next(iter(stored.values()))} if lone else stored
        self._operands = {name: self._operand(stored, name, kind) for name, kind in inputs.items()}
        available = self._available()
        self._runs = self._choose(section.count, available)
        self._labels = self._label_source(stored.get(LABELS), available) if LABELS not in inputs else None

    def __len__(self) -> int:
        """Number of runs of the model."""
        return len(self._runs)

    @property
    def rows(self) -> int:
        """Rows of the file that one run of the model takes."""
        return next((source.rows for source in self._operands.values() if source.rows), 1)

    def __iter__(self) -> Iterator[Batch]:
        """Raises InputError where the data holds NaN or infinity, or the file turns out to be damaged."""
        streams = [source.read(self._runs) for source in self._operands.values()]
        labels = self._labels.read(self._runs) if self._labels else repeat(None, len(self._runs))
        for label, *arrays in zip(labels, *streams, strict=True):
            yield Batch(dict(zip(self._operands, arrays, strict=True)), label)

    @property
    def has_labels(self) -> bool:
        """Whether the file holds an array `y`."""
        return self._labels is not None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that decides what the model is fed: the file, the choice of samples, preprocessing."""
        content = hashlib.sha256(self._source.digest().encode())
        content.update(repr((self._runs, list(self._operands))).encode())
        content.update(self._preprocess.model_dump_json().encode() if self._preprocess else b"")
        return content.hexdigest()

    @property
    def label(self) -> str:
        """Where the samples are from, to a reader."""
        return self._source.label

    def _raw(self, name: str, model: TensorType) -> TensorType:
        """What is read for an input. Raises InputError for one with open dimensions."""
        if not model.is_static:
            problem = f"the model's input {model} has open dimensions."
            raise InputError(name, problem, f"Fix them in the spec: `model: {{inputs: {{{name}: [...]}}}}`.")
        if name != self._target or self._preprocess is None:
            return model
        return preprocessing.raw_type(self._preprocess, model)

    def _operand(self, stored: Mapping[str, Column], name: str, model: TensorType) -> _Operand:
        member = stored.get(name)
        if member is None:
            problem = f"expected an array '{name}' as the model's input, got {', '.join(stored)}."
            raise InputError(self.label, problem, "Name the arrays like the model's inputs.")
        if name == self._target and self._preprocess is not None:
            options, raw = self._preprocess, self._raw(name, model)
            return _fit(member, raw, lambda block: preprocessing.apply(options, block, model))
        return _fit(member, model, lambda block: block.astype(model.dtype).reshape(model.dims))

    def _available(self) -> int:
        """Number of runs in the source. Raises InputError where its arrays disagree or are empty."""
        runs = {source.member.name: source.runs for source in self._operands.values() if source.rows}
        if len(set(runs.values())) > 1:
            found = ", ".join(f"'{name}' for {number}" for name, number in runs.items())
            raise InputError(self.label, f"expected arrays for equally many runs, got {found}.")
        available = next(iter(runs.values()), 1)
        if not available:
            raise InputError(self.label, "expected samples, got empty arrays.")
        return available

    def _choose(self, count: int | None, available: int) -> list[int]:
        """The runs to make: all, or `count` samples' worth spread evenly."""
        rows = self.rows
        wanted = available * rows if count is None else count
        if wanted > available * rows:
            problem = f"expected at least {wanted} samples, got {available * rows}."
            raise InputError(self.label, problem, "Lower `count`, or leave it out for all.")
        if wanted % rows:
            problem = f"count {wanted} is no multiple of the model's batch of {rows}."
            raise InputError(self.label, problem, f"Say `count: {max(wanted // rows, 1) * rows}`.")
        return [index * available // (wanted // rows) for index in range(wanted // rows)]

    def _label_source(self, member: Column | None, available: int) -> _Operand | None:
        if member is None:
            return None
        length = member.shape[0] if member.shape else 0
        if not length or length % available:
            raise InputError(member.subject, f"expected labels for {available} runs, got {member}.")
        if member.dtype.kind not in "biuf":
            raise InputError(member.subject, f"expected numbers as labels, got {member}.", "Save class numbers from 0.")
        return _Operand(member, length // available, lambda block: block)


def _fit(member: Column, want: TensorType, convert: Callable[[Array], Array]) -> _Operand:
    """How `member` feeds an operand of type `want`. Raises InputError where dtype or shape cannot serve."""
    if not np.can_cast(member.dtype, want.dtype, "safe"):
        problem = f"expected {want.dtype} (or what converts to it exactly), got {member.dtype}."
        raise InputError(member.subject, problem, f"Save array.astype(numpy.{want.dtype}).")
    shape, dims = member.shape, want.dims
    if not dims and not shape:
        return _Operand(member, 0, convert)
    if shape[1:] == dims and len(shape) == len(dims) + 1:
        return _Operand(member, 1, lambda block: convert(block.reshape(dims)))
    if len(shape) == len(dims) and shape[1:] == dims[1:] and dims[0]:
        if shape[0] % dims[0]:
            raise InputError(
                member.subject, f"expected a multiple of the model's batch of {dims[0]} rows, got {member}."
            )
        return _Operand(member, dims[0], convert)
    expected = f"[N, {', '.join(map(str, dims[1:]))}]" if dims[1:] else "[N]"
    raise InputError(member.subject, f"expected shape {expected} for the input {want}, got {list(shape)}.", "")


def _check_finite(member: Column, block: Array, first: int) -> None:
    if np.issubdtype(block.dtype, np.floating) and not np.isfinite(block).all():
        row = first + int(np.argwhere(~np.isfinite(block))[0][0])
        raise InputError(member.subject, f"expected finite numbers, got NaN or infinity in row {row}.", "Remove it.")
