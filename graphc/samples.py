"""Inputs to run an artifact on: the data it was built with where that is still there, else seeded random numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphc.ir import Array, TensorType

SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Feeds for the model, and a sentence that says what they are."""

    feeds: tuple[Mapping[str, Array], ...]
    source: str


def seeded(inputs: Mapping[str, TensorType], count: int) -> Inputs:
    """Random inputs, the same every time: normal floats, all integers of 8 and 16 bits, 0 or 1 for longer ones."""
    rng = np.random.default_rng(SEED)
    feeds = tuple({name: _random(rng, kind) for name, kind in inputs.items()} for _ in range(count))
    return Inputs(feeds, f"{count} random inputs (seed {SEED})")


def _random(rng: np.random.Generator, kind: TensorType) -> Array:
    dtype = kind.dtype
    if dtype.kind in "iu" and dtype.itemsize <= 2:
        info = np.iinfo(dtype.name)
        return rng.integers(info.min, info.max, kind.dims, dtype, endpoint=True)
    if dtype.kind in "iub":  # shapes, indices, lengths: small numbers are most likely to mean something
        return rng.integers(0, 2, kind.dims).astype(dtype)
    return rng.standard_normal(kind.dims).astype(dtype)
