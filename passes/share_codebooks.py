"""Weights as entries of codebooks: which entries, which of them stands for each weight, and how that is stored.

    rows [channels, depth]  ->  values [G, K, D], codes [channels, depth / D]

G codebooks serve `group` successive channels each, of K = 2^bits entries of D successive weights. Where zeros are kept,
entry 0 is zero and only zeros of the weights are sure to have it. Entries are numbered by how often they occur, so that
the high bits of codes are mostly zero (what entropy coding of bit planes lives on).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from graphc.passes.quantize_rounding import compensated
from graphc.passes.share_clusters import CHUNK, Start, centers, nearest, nearest_vectors, vector_centers

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Codes = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool]

KEPT = 0.01
"""Weights of which this share is zero were pruned: their zeros stay."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are shared: see `ShareWeights`, whose options these are."""

    bits: int
    start: Start
    group: int | None
    vector: int
    codebook: Literal["fp32", "int8"]


@dataclass(frozen=True, slots=True)
class Shared:
    """rows[n, d * D + j] ~ values[n // (channels / G), codes[n, d], j]; `scale` of int8 codebooks, else None.

    `zeros`: entry 0 of every codebook is zero, and stands for all zeros of the weights.
    """

    codes: Codes
    values: Floats
    scale: np.float32 | None
    zeros: bool

    def decoded(self, rows: slice) -> Floats:
        """Some of the weights that are stored, [channels, depth]."""
        books, entries, length = self.values.shape
        codes = self.codes[rows].astype(np.int32)
        own = np.arange(len(self.codes))[rows] // (len(self.codes) // books)
        table = self.values.reshape(books * entries, length)
        found: Floats = table[codes + entries * own[:, None]].reshape(len(codes), -1)
        return found

    def error(self, rows: Floats, weights: Doubles | None) -> float:
        """The squared error of the weights, each with its own weight, as a part of their energy."""
        energy = lost = 0.0
        step = max(CHUNK // rows.shape[1], 1)
        for part in (slice(at, at + step) for at in range(0, len(rows), step)):
            h = np.ones((1, 1)) if weights is None else np.broadcast_to(weights, rows.shape)[part]
            energy += float((h * np.square(rows[part], dtype=np.float64)).sum())
            lost += float((h * np.square(self.decoded(part) - rows[part], dtype=np.float64)).sum())
        return lost / energy if energy else 0.0


def share(rows: Floats, weights: Doubles | None, scheme: Scheme, gram: Doubles | None = None) -> Shared:
    """Rows [channels, depth] in entries of codebooks, fitted with a weight per element (broadcast to `rows`).

    `gram` [groups, depth, depth] has entries chosen as GPTQ rounds: each one's error is made up for by later ones.
    """
    zeros = bool((rows == 0).mean() >= KEPT) and scheme.vector == 1
    per_book = min(scheme.group or len(rows), len(rows))
    fitted = [_values(part, h, scheme, zeros) for part, h in _parts(rows, weights, per_book)]
    entries = max(len(book) for book in fitted)
    values = np.stack([np.pad(book, ((0, entries - len(book)), (0, 0)), mode="edge") for book in fitted])
    scale = None
    if scheme.codebook == "int8":
        scale = np.float32(np.abs(values).max() / 127) or np.float32(1)
        values = (np.rint(values / scale) * scale).astype(np.float32)
    codes = np.concatenate(
        [
            _nearest(part, h, book, zeros)
            for (part, h), book in zip(_parts(rows, weights, per_book), values, strict=True)
        ]
    )
    if gram is not None:
        codes = _compensated(rows, codes, values[..., 0], gram, zeros)
    return _numbered(Shared(codes, values.astype(np.float32), scale, zeros))


def _parts(rows: Floats, weights: Doubles | None, per_book: int) -> Iterator[tuple[Floats, Doubles | None]]:
    """The rows of each codebook, with their weights."""
    wide = None if weights is None else np.broadcast_to(weights, rows.shape)
    for at in range(0, len(rows), per_book):
        yield rows[at : at + per_book], None if wide is None else wide[at : at + per_book]


def _values(rows: Floats, weights: Doubles | None, scheme: Scheme, zeros: bool) -> Floats:
    """One codebook [K, D]."""
    count = 1 << scheme.bits
    if scheme.vector > 1:
        shape = (-1, scheme.vector)
        h = None if weights is None else weights.reshape(shape)
        return vector_centers(rows.reshape(shape), h, count, scheme.start).astype(np.float32)
    if not zeros:
        return centers(rows, weights, count, scheme.start).astype(np.float32)[:, None]
    held = rows != 0
    if not held.any():
        return np.zeros((1, 1), np.float32)
    found = centers(rows[held], None if weights is None else weights[held], count - 1, scheme.start)
    return np.concatenate([[0.0], found]).astype(np.float32)[:, None]


def _nearest(rows: Floats, weights: Doubles | None, book: Floats, zeros: bool) -> Codes:
    """The entry that stands for each weight, or vector of them, alone."""
    if book.shape[1] > 1:
        shape = (-1, book.shape[1])
        h = None if weights is None else weights.reshape(shape)
        return nearest_vectors(rows.reshape(shape), h, book.astype(np.float64)).reshape(len(rows), -1)
    if not zeros:
        order = np.argsort(book[:, 0], kind="stable")
        return order.astype(np.uint8)[nearest(rows, book[order, 0].astype(np.float64))]
    if len(book) == 1:
        return np.zeros(rows.shape, np.uint8)
    codes = nearest(rows, book[1:, 0].astype(np.float64)) + np.uint8(1)
    codes[rows == 0] = 0
    return codes


def _compensated(rows: Floats, codes: Codes, books: Floats, gram: Doubles, zeros: bool) -> Codes:
    """Entries chosen column by column as GPTQ rounds, where that lessens the error at the layer's output."""
    found = codes.copy()
    height, per_book = len(rows) // len(gram), len(rows) // len(books)
    for group, matrix in enumerate(gram):
        part = slice(group * height, (group + 1) * height)
        own = books[np.arange(len(rows))[part] // per_book]  # [channels, K]
        fixed = (rows[part] == 0) & zeros
        entry = partial(_entry, own, fixed, found[part])
        exact = rows[part].astype(np.float64)
        changed = compensated(exact, matrix, entry) - exact
        alone = np.take_along_axis(own, codes[part], axis=1) - exact
        if _error(alone, matrix) <= _error(changed, matrix):
            found[part] = codes[part]
    return found


def _entry(books: Floats, fixed: Mask, found: Codes, column: Doubles, index: int) -> Doubles:
    """The nearest entry of each channel's codebook for one column, noted in `found`; zero where `fixed`."""
    chosen = np.abs(column[:, None] - books).argmin(axis=1)
    chosen[fixed[:, index]] = 0
    found[:, index] = chosen
    return np.take_along_axis(books, chosen[:, None], axis=1)[:, 0].astype(np.float64)


def _error(change: Doubles, gram: Doubles) -> float:
    return float(np.einsum("nk,nk->", change @ gram, change))


def _numbered(shared: Shared) -> Shared:
    """The same weights with the entries of each codebook in the order of how often they occur, zero first."""
    codes, values = shared.codes.copy(), shared.values.copy()
    per_book = len(codes) // len(values)
    for book in range(len(values)):
        part = codes[book * per_book : (book + 1) * per_book]
        counts = np.bincount(part.reshape(-1), minlength=values.shape[1])
        if shared.zeros:
            counts[0] = part.size + 1
        order = np.argsort(-counts, kind="stable")
        values[book] = values[book][order]
        part[...] = np.argsort(order).astype(np.uint8)[part]
    return Shared(codes, values, shared.scale, shared.zeros)


def packed(codes: Codes, bits: int) -> npt.NDArray[np.uint8]:
    """Codes as an LSB-first stream of `bits` bits each, chunk by chunk."""
    flat = codes.reshape(-1)
    if bits == 8:
        return flat.copy()
    step = 1 << 20
    chunks = (flat[at : at + step, None] for at in range(0, len(flat), step))
    streams = [
        np.packbits(np.unpackbits(chunk, axis=1, count=bits, bitorder="little"), bitorder="little") for chunk in chunks
    ]
    return np.concatenate(streams) if streams else np.zeros(0, np.uint8)
