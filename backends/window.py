"""The sliding window of convolutions and pools: kernel, strides, dilations and explicit pads of a node (no TVM)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphc.ir import Node


@dataclass(frozen=True, slots=True)
class Window:
    """Per spatial axis: kernel size, stride, dilation, pads before and after, and the output's size."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def reaches_out(self) -> bool:
        """Whether some window lies partly outside the input."""
        return any(pad > 0 for pad in (*self.begin, *self.end))

    def padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Of an input of `size` with its padding."""
        return tuple(n + b + max(e, 0) for n, b, e in zip(size, self.begin, self.end, strict=True))

    def without_padding(self) -> "Window":
        """The window over an input that has its padding around it."""
        return replace(self, begin=(0,) * len(self.begin), end=tuple(min(e, 0) for e in self.end))


def window(node: Node, size: Sequence[int], output: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of `node` over spatial axes of `size`, producing `output`; `auto_pad` and `ceil_mode` become pads.

    `end` is what the last window needs beyond the input; it may differ from the node's pads where windows do not
    divide the axis (negative: elements at the end that no window reads).
    """
    rank = len(size)
    strides = node.get_ints("strides", (1,) * rank)
    dilations = node.get_ints("dilations", (1,) * rank)
    reach = [(o - 1) * s + (k - 1) * d + 1 for o, s, k, d in zip(output, strides, kernel, dilations, strict=True)]
    mode = node.get_str("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        total = [max(0, r - n) for r, n in zip(reach, size, strict=True)]
        begin = tuple(t // 2 if mode == "SAME_UPPER" else t - t // 2 for t in total)
    elif mode == "VALID":
        begin = (0,) * rank
    else:
        begin = node.get_ints("pads", (0,) * (2 * rank))[:rank]
    end = tuple(r - n - b for r, n, b in zip(reach, size, begin, strict=True))
    return Window(tuple(kernel), strides, dilations, tuple(begin), end, tuple(output))
