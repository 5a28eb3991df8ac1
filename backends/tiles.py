"""Tile sizes from a target's description: vectors, registers and caches decide, in one place."""

from math import gcd

from graphc.backends.targets import Target

WIDEST = 2
"""Most vectors of output channels that one register tile spans: the fewer, the more columns share a read of weights."""


def channel_block(target: Target, channels: int, widest: int = WIDEST, bits: int = 32) -> int:
    """Output channels that lie next to each other in packed weights: whole vectors, at most `widest`, little waste.

    Each is summed in `bits` bits.
    """
    width = max(1, target.lanes(bits))
    vectors = -(-channels // width)
    return width * next(n for n in (4, 2, 1) if n == 1 or (n <= widest and vectors % n == 0))


SMALL = 64
"""Outputs of at most this many positions are one run of columns over the padded input: their rows are too short for
register tiles."""

WIDEST_AT_EDGES = 16
"""Taps across up to which tiles at the input's edges have those inside written out; wider kernels read a padded copy:
that much code would take LLVM minutes."""

WIDEST_WINDOW = 8
"""Most output columns in a register tile of a window kernel: taps are written out, so more is more code."""


def window_tile(columns: int) -> int:
    """How many output columns a tile of a depthwise convolution or pool spans: few tiles, none of them nearly empty."""
    return min(
        range(1, min(WIDEST_WINDOW, columns) + 1),
        key=lambda width: (-(-columns // width), width * -(-columns // width) - columns, -width),
    )


MOST_CHUNKS = 32
"""Pieces that a row of columns is cut into at most, so that threads have something to share."""


SET_SPAN = 4096
"""Bytes after which lines share a set of the level-1 cache: a page, where virtual addresses index the sets."""
SPARE_WAYS = 2
"""Ways of a set that are left to weights and results."""


def columns_in_cache(target: Target, pitch: int) -> int:
    """Most output columns, `pitch` bytes apart in the input, whose lines the level-1 cache holds at once."""
    ways = max(1, target.l1_bytes // SET_SPAN - SPARE_WAYS)
    return ways * (SET_SPAN // gcd(SET_SPAN, pitch))


def widest_tile(target: Target, vectors: int, held: int = 0) -> int:
    """Output columns whose accumulators, `vectors` each, fit the registers beside `held` of weights (0: one row of
    vectors) and a broadcast.
    """
    return max(1, (target.vector_registers - (held or vectors) - 1) // vectors)


STEP = 0.75
"""Cycles that a step of depth takes beside its arithmetic: the loop, and weights that come from the second-level cache.
On 128 x 384 x 1536 floats tiles of 4 x 2 vectors take 1.11 times as long as tiles of 10 x 2 (x86; not measured
elsewhere)."""


def tile_cycles(
    target: Target, columns: int, block: int, most: int | None = None, *, held: int = 0
) -> tuple[float, int]:
    """(cycles for one depth step of a row of `columns`, the tile width that costs least).

    Accumulators, `held` registers of weights (0: one vector row) and a broadcast must fit the registers. A pair of
    multiply-add units retires two vectors a cycle, two loads a cycle feed it, and with fewer than eight accumulators
    latency (4 cycles) shows. `most`: columns of a tile at most.
    """
    vectors = max(1, block // max(1, target.lanes(32)))
    widest = widest_tile(target, vectors, held)
    beside = STEP if target.family == "x86" else 0.0

    def cycles(width: int) -> float:
        return beside + max(width * vectors / 2, (width + vectors) / 2, 4.0)

    def total(width: int) -> float:
        whole, rest = divmod(columns, width)
        return whole * cycles(width) + (cycles(rest) if rest else 0.0)

    best = min(range(1, min(widest, columns, most or columns) + 1), key=lambda width: (total(width), -width))
    return total(best), best


def columns_in_tile(target: Target, columns: int, block: int, held: int = 0) -> int:
    """How many output columns a register tile spans."""
    return tile_cycles(target, columns, block, held=held)[1]


def chosen_columns(target: Target, columns: int, block: int, chosen: int | None, held: int = 0) -> int:
    """`columns_in_tile`, or what was chosen instead, as far as there are columns."""
    return min(chosen, columns) if chosen else columns_in_tile(target, columns, block, held)


def chunks(target: Target, columns: int, block: int, chosen: int | None, held: int = 0) -> int:
    """Into how many equal pieces a long row of columns is cut: as many as cost nothing in tiles that fit worse; none is
    shorter than a tile that was chosen.
    """
    if chosen:
        return max(n for n in range(1, MOST_CHUNKS + 1) if n == 1 or (columns % n == 0 and columns // n >= chosen))
    whole = tile_cycles(target, columns, block, held=held)[0]
    good = [
        n
        for n in range(1, MOST_CHUNKS + 1)
        if columns % n == 0 and n * tile_cycles(target, columns // n, block, held=held)[0] <= 1.02 * whole
    ]
    return max(good)


TILE_LOSS = 1.05
"""How much more than the fewest cycles a cut into single tiles may cost."""


def single_tiles(target: Target, columns: int, block: int, most: int) -> int:
    """Into how many equal pieces a long row is cut so that each is one tile, or nearly: its input then stays in the
    level-1 cache while all blocks of weights pass by."""
    whole = tile_cycles(target, columns, block, most)[0]
    good = [
        n
        for n in range(1, columns + 1)
        if columns % n == 0 and n * tile_cycles(target, columns // n, block, most)[0] <= TILE_LOSS * whole
    ]
    return max(good)


LEAST_PIECES = 8
"""Pieces that a long run is cut into at least where it has that many pairs of tiles: work for threads to share."""

AMX_CHANNELS = 16
"""Output channels in one matrix tile of sums."""
AMX_ROWS, AMX_BYTES = 16, 64
"""Rows of a matrix tile, and bytes in each (Intel SDM volume 1, chapter 18)."""


def amx_depth(depth: int) -> int:
    """Bytes of depth in one tile of activations: the most that divide `depth`, in steps of four."""
    return max((size for size in range(4, AMX_BYTES + 1, 4) if depth % size == 0), default=0)


def amx_rows(columns: int) -> tuple[int, int]:
    """(tiles, rows of each) that cover `columns` output positions; the last tile may overlap the one before."""
    tiles = -(-columns // AMX_ROWS)
    return tiles, -(-columns // tiles)


def amx_chunks(columns: int) -> int:
    """Into how many equal pieces a run of columns is cut for tiles: as many as leave them about as full."""

    def rows(pieces: int) -> int:
        tiles, height = amx_rows(columns // pieces)
        return pieces * (tiles + tiles % 2) * max(height, AMX_ROWS // 2)

    return max(n for n in range(1, MOST_CHUNKS + 1) if columns % n == 0 and rows(n) <= 1.1 * rows(1))


def amx_pieces(columns: int) -> tuple[int, int]:
    """(pieces, columns of each) that cover a run: pairs of full tiles; the last piece may overlap the one before."""
    pairs = columns // (2 * AMX_ROWS)
    if pairs == 0:
        return 1, columns
    together = -(-pairs // LEAST_PIECES)
    pieces = -(-columns // (2 * AMX_ROWS * together))
    return pieces, 2 * AMX_ROWS * together


WINOGRAD_BYTES = 64 << 10
"""Most bytes of products that a task of Winograd's filtering keeps on the stack."""


def winograd_block(target: Target, filters: int) -> int:
    """Output channels in a run of transformed weights: two vectors leave room for the most tiles per weight read."""
    width = max(1, target.lanes(32))
    return width * min(2, -(-filters // width))


def winograd_group(target: Target, tiles: int, block: int, points: int) -> int:
    """How many tiles a task takes: whole register tiles, as many as fit."""
    most = min(tiles, max(1, WINOGRAD_BYTES // (4 * points * block)))
    tile = columns_in_tile(target, most, block)
    return most // tile * tile


PANEL_BYTES, SUMS_BYTES = 16 << 10, 32 << 10
"""Decoded weights that wait in the level-1 cache, and sums of the positions that share them, on the stack."""


def panel_depth(block: int, depth: int, run: int) -> int:
    """Input channels of a block in one panel of decoded weights, in whole runs of `run`."""
    return min(depth, max(run, PANEL_BYTES // (4 * block) // run * run))


def panel_positions(block: int) -> int:
    """Output positions that share a panel at most."""
    return SUMS_BYTES // (4 * block)


def panel_rows(block: int, rows: int, columns: int) -> int:
    """How many rows of `columns` positions share a panel: a divisor of `rows`."""
    most = max(1, panel_positions(block) // columns)
    return max(n for n in range(1, min(rows, most) + 1) if rows % n == 0)


def panel_pieces(target: Target, columns: int, block: int) -> int:
    """Into how many equal pieces a long row is cut so that one panel serves each; 1 where it does not divide well."""
    whole, most = tile_cycles(target, columns, block)[0], panel_positions(block)
    fit = [n for n in range(-(-columns // most), 4 * -(-columns // most)) if columns % n == 0]
    good = [n for n in fit if n * tile_cycles(target, columns // n, block)[0] <= 1.1 * whole]
    return min(good, default=1)


COLUMNS_TILES = {"smlad": ((4, 1), (1, 3)), "vmladava": ((1, 4), (1, 4)), "mla": ((2, 2), (1, 4))}
"""(output positions, output channels) of a Cortex-M's register tile: where there are several positions, for one alone.

A sum per pair, the words of an input or of a channel's weights, and addresses must fit thirteen registers.
"""


def columns_tile(dot: str, positions: int, filters: int) -> tuple[int, int]:
    """(positions, channels) in a register tile of a kernel that gathers its columns."""
    columns, block = COLUMNS_TILES[dot][0 if positions >= COLUMNS_TILES[dot][0][0] else 1]
    return columns, min(block, filters)


UNROLLED_STEPS = {"smlad": 2, "vmladava": 2, "mla": 4}


def columns_unroll(dot: str, steps: int) -> int:
    """How many steps of depth are written out in the innermost loop."""
    return max(n for n in range(1, UNROLLED_STEPS[dot] + 1) if steps % n == 0)
