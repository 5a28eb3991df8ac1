"""Entropy coding of bytes, each value by how often it occurs: what runtime_coded.c decodes.

    stored   the bytes
    huffman  canonical codes of at most 15 bits (D. Huffman, 1952); 128 bytes of code lengths in front
    rans     range asymmetric numeral systems (J. Duda, 2013), frequencies in 4096ths; 32 + 2 bytes per value in front

rANS is encoded backwards, one step of all blocks of BLOCK values at a time, so that numpy does the work.
"""

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]
Method = Literal["stored", "huffman", "rans"]

METHODS: tuple[Method, ...] = ("stored", "huffman", "rans")
"""In the order of the numbers that the C knows them by."""

LONGEST = 15
SHARES_BITS, SHARES = 12, 1 << 12
BLOCK = 1 << 11
LOW = 1 << 16
TOGETHER = 1 << 13
"""Blocks that are encoded at a time."""


@dataclass(frozen=True, slots=True)
class Stream:
    """`data` decodes to `count` bytes by `method`."""

    method: Method
    count: int
    data: Bytes


def counted(values: Bytes) -> Counts:
    """How often each byte value occurs."""
    found = np.zeros(256, np.int64)
    for at in range(0, len(values), 1 << 20):  # numpy counts in copies of eight times the size
        found += np.bincount(values[at : at + (1 << 20)], minlength=256)
    return found


def entropy_bytes(counts: Counts) -> float:
    """Shannon's bound: what no code for single values goes below, n sum p log2(1 / p) / 8."""
    held = counts[counts > 0]
    return float((held * np.log2(counts.sum() / held)).sum() / 8)


def smallest(counts: Counts) -> tuple[float, Method]:
    """The method that takes the fewest bytes for values that occur so often, and how many, nearly."""
    sizes = {"stored": float(counts.sum()), "huffman": _huffman_size(counts), "rans": _rans_size(counts)}
    return min((sizes[method], method) for method in METHODS)


def encoded(values: Bytes) -> Stream:
    """The smallest stream of a row of bytes."""
    _, method = smallest(counted(values))
    return Stream(method, len(values), encode(values, method))


def encode(values: Bytes, method: Method) -> Bytes:
    """A row of bytes by one method."""
    if method == "stored" or not len(values):
        return values.copy() if method == "stored" else _header_only(method)
    return huffman(values) if method == "huffman" else rans(values)


def _header_only(method: Method) -> Bytes:
    return np.zeros(128, np.uint8) if method == "huffman" else _rans_header(_shares(np.eye(1, 256, dtype=np.int64)[0]))


def huffman(values: Bytes) -> Bytes:
    """Code lengths, then the codes, highest bit first."""
    lengths = code_lengths(counted(values))
    codes = _canonical(lengths)
    header = lengths[0::2] | lengths[1::2] << 4
    parts, rest = [header.astype(np.uint8)], np.zeros(0, np.uint8)
    for at in range(0, len(values), 1 << 20):
        bits = np.concatenate([rest, _bits(values[at : at + (1 << 20)], lengths, codes)])
        whole = len(bits) // 8 * 8
        parts.append(np.packbits(bits[:whole]))
        rest = bits[whole:]
    return np.concatenate([*parts, np.packbits(rest)])


def code_lengths(counts: Counts) -> Counts:
    """The length of each value's code, 0 where it never occurs. Counts are halved until no code is too long."""
    while True:
        lengths = np.zeros(256, np.int64)
        heap = [(int(count), value, [value]) for value, count in enumerate(counts) if count]
        if len(heap) == 1:
            lengths[heap[0][1]] = 1
            return lengths
        heapq.heapify(heap)
        while len(heap) > 1:
            (few, _, left), (more, order, right) = heapq.heappop(heap), heapq.heappop(heap)
            lengths[left + right] += 1
            heapq.heappush(heap, (few + more, order, left + right))
        if lengths.max() <= LONGEST:
            return lengths
        counts = np.where(counts > 0, counts // 2 + 1, 0)


def _canonical(lengths: Counts) -> Counts:
    """Codes in the order of (length, value): each is the one before plus one, shifted to its length."""
    codes, code, before = np.zeros(256, np.int64), -1, 0
    for value in sorted(np.flatnonzero(lengths), key=lambda value: (lengths[value], value)):
        code = (code + 1) << int(lengths[value] - before)
        codes[value], before = code, int(lengths[value])
    return codes


def _bits(values: Bytes, lengths: Counts, codes: Counts) -> Bytes:
    """The codes of some values as a byte per bit."""
    own, code = lengths[values], codes[values]
    ends = np.cumsum(own)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for place in range(int(own.max())):
        held = own > place
        bits[ends[held] - 1 - place] = code[held] >> place & 1
    return bits


def _huffman_size(counts: Counts) -> float:
    return 128 + float((counts * code_lengths(counts)).sum()) / 8 if counts.any() else 128


def rans(values: Bytes) -> Bytes:
    """Frequencies, then blocks: a state, and the words that decoding takes in."""
    shares = _shares(counted(values))
    step = BLOCK * TOGETHER
    blocks = [_rans_blocks(values[at : at + step], shares) for at in range(0, len(values), step)]
    return np.concatenate([_rans_header(shares), *blocks])


def _shares(counts: Counts) -> Counts:
    """Frequencies that add up to SHARES, at least 1 for a value that occurs; those that it costs least give way."""
    held = counts > 0
    shares = np.where(held, np.maximum(np.rint(counts * (SHARES / counts.sum())), 1), 0).astype(np.int64)
    while (apart := int(SHARES - shares.sum())) != 0:
        change = 1 if apart > 0 else -1
        may = held & (shares + change > 0)
        cost = np.full(256, np.inf)
        cost[may] = counts[may] * np.log2(shares[may] / (shares[may] + change))
        shares[cost.argmin()] += change
    return shares


def _rans_header(shares: Counts) -> Bytes:
    held = shares > 0
    return np.concatenate([np.packbits(held, bitorder="little"), shares[held].astype("<u2").view(np.uint8)])


def _rans_size(counts: Counts) -> float:
    if not counts.any():
        return 34
    shares, held = _shares(counts), counts > 0
    bits = float((counts[held] * np.log2(SHARES / shares[held])).sum())
    return 32 + 2 * int(held.sum()) + 4 * -(-int(counts.sum()) // BLOCK) + bits / 8


def _rans_blocks(values: Bytes, shares: Counts) -> Bytes:
    """Blocks of up to BLOCK values, each encoded from its last value to its first, side by side.

    A state takes 32 bits. Its quotient by a frequency of 12 bits is exact in float64, which divides faster.
    """
    count = -(-len(values) // BLOCK)
    padded = np.zeros(count * BLOCK, np.uint8)
    padded[: len(values)] = values
    by_step = np.ascontiguousarray(padded.reshape(count, BLOCK).T)
    last = len(values) - (count - 1) * BLOCK
    steps = BLOCK if count > 1 else last
    share, start = shares.astype(np.uint32), (np.cumsum(shares) - shares).astype(np.uint32)
    words, taken = np.zeros((steps, count), np.uint16), np.zeros((steps, count), bool)
    state = np.full(count, LOW, np.uint32)
    for step in range(steps - 1, -1, -1):
        live = count if step < last else count - 1  # the last block may be shorter
        x, value = state[:live], by_step[step, :live]
        own = share[value]
        full = x >> np.uint32(32 - SHARES_BITS) >= own
        words[step, :live], taken[step, :live] = x, full  # the lowest 16 bits
        x = np.where(full, x >> np.uint32(16), x)
        quotient = (x / own.astype(np.float64)).astype(np.uint32)
        state[:live] = (quotient << np.uint32(SHARES_BITS)) + (x - quotient * own) + start[value]
    return _rans_joined(state, words, taken)


def _rans_joined(state: npt.NDArray[np.uint32], words: npt.NDArray[np.uint16], taken: npt.NDArray[np.bool]) -> Bytes:
    """Block after block: its state, then those of its words [steps, blocks] that were taken."""
    begins = np.cumsum([0, *(2 + taken.sum(axis=0))])
    joined, of_words = np.empty(begins[-1], "<u2"), np.ones(begins[-1], bool)
    for half in (0, 1):
        joined[begins[:-1] + half] = state >> np.uint32(16 * half) & np.uint32(0xFFFF)
        of_words[begins[:-1] + half] = False
    joined[of_words] = np.ascontiguousarray(words.T)[np.ascontiguousarray(taken.T)]
    return joined.view(np.uint8)
