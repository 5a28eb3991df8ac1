"""Coded weights as expressions: one number, or a vector of them side by side in registers (imports TVM).

    code   = field of plane 0 | field of plane 1 << bits of plane 0 | ...     a field: (word >> shift) & mask
    value  = (table[code] or code - zero) * scale

The same expression defines an anchor (with one lane) and fills the vectors of its register tile.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm import tirx

from graphc.backends.coded_layout import WORD, Layout
from graphc.backends.lookup_x86 import gathered, looked_up
from graphc.backends.statements import const, loop, sequence, spread, vector
from graphc.backends.targets import Target


class Decoder:
    """Reads the weights that `operands`, in the order of `Layout.operands`, hold."""

    def __init__(self, layout: Layout, operands: Sequence[Any], target: Target) -> None:
        self.layout, self.target = layout, target
        self.operands: Mapping[str, Any] = dict(zip(layout.operands, operands, strict=True))

    @property
    def width(self) -> int:
        """Outputs in a block."""
        return int(self.operands["plane0"].shape[2])

    @property
    def scaled_once(self) -> bool:
        """Whether one scale is for all of an output's weights, so that a sum can be scaled instead."""
        return self.layout.group == self.layout.channels * self.layout.taps

    def scale(self, block: Any, lanes: int) -> Any:
        """float32 x lanes: the one scale of each output of a block."""
        return self._at("scale", block, const(0), const(0), lanes)

    def __call__(self, block: Any, tap: Any, channel: Any, lane: Any, lanes: int = 1, scaled: bool = True) -> Any:
        """float32 x lanes: weights of outputs lane, lane + 1, ... of a block for one input channel at one tap."""
        layout = self.layout
        floats = f"float32x{lanes}" if lanes > 1 else "float32"
        code = self._code(block, tap * layout.channels + channel, lane, lanes)
        value = self._looked_up(code, block, lane, lanes) if layout.entries else tirx.Cast(floats, code)
        group = (channel * layout.taps + tap) // max(1, layout.group)
        if layout.zeros:
            value = value - tirx.Cast(floats, self._at("zero", block, group, lane, lanes))
        return value * self._at("scale", block, group, lane, lanes) if layout.group and scaled else value

    def over_depth(self, channels: int, body: Callable[[Any], Any]) -> Any:
        """body(i) for i < `channels` from the start of a word on; those of one word are written out."""
        words, rest = divmod(channels, self.layout.run)

        def written_out(first: Any, count: int) -> Any:
            return sequence([body(first + i) for i in range(count)])

        whole = [loop("word", 0, words, lambda w: written_out(w * self.layout.run, self.layout.run))] if words else []
        return sequence([*whole, *([written_out(const(words * self.layout.run), rest)] if rest else [])])

    def _at(self, name: str, block: Any, row: Any, lane: Any, lanes: int) -> Any:
        return self.operands[name][block, row, vector(lane, lanes)]

    def _looked_up(self, code: Any, block: Any, lane: Any, lanes: int) -> Any:
        layout, table = self.layout, self.operands["table"]
        bits, width = sum(layout.planes), self.width
        entry = code & spread(const((1 << bits) - 1), lanes)
        if not layout.sharing:
            return looked_up(table, bits, code, lanes, self.target) if lanes > 1 else table[entry]
        output = block * width + lane
        if lanes == 1:
            return table[output // layout.sharing * layout.entries + entry]
        if layout.sharing % lanes == width % lanes == 0:  # a vector's outputs share a codebook
            return looked_up(table, bits, code, lanes, self.target, output // layout.sharing * layout.entries)
        books = vector(output, lanes) // spread(const(layout.sharing), lanes)
        return gathered(table, books * spread(const(layout.entries), lanes) + entry, lanes, self.target)

    def _code(self, block: Any, depth: Any, lane: Any, lanes: int) -> Any:
        """int32 x lanes; behind a table, only its lowest bits count where there is one plane."""
        planes, wide = self.layout.planes, f"int32x{lanes}" if lanes > 1 else "int32"
        if planes[0] >= 8:
            return tirx.Cast(wide, self._at("plane0", block, depth, lane, lanes))
        code, low = None, 0
        for n, bits in enumerate(planes):
            field = self._field(n, bits, block, depth, lane, lanes, masked=not self.layout.entries or len(planes) > 1)
            code = field if code is None else code | (field << spread(const(low), lanes))
            low += bits
        return code

    def _field(self, plane: int, bits: int, block: Any, depth: Any, lane: Any, lanes: int, masked: bool) -> Any:
        per = WORD // bits
        word = self._at(f"plane{plane}", block, depth // per, lane, lanes)
        shift = depth % per * bits
        if self.layout.signed and lanes > 1:
            return (word << spread(WORD - bits - shift, lanes)) >> spread(const(WORD - bits), lanes)
        field = word >> spread(shift, lanes)
        if self.layout.signed:  # TVM widens the integers of a definition, so their sign is not where a shift puts it
            sign = const(1 << (bits - 1))
            return ((field & const((1 << bits) - 1)) ^ sign) - sign
        return field & spread(const((1 << bits) - 1), lanes) if masked else field
