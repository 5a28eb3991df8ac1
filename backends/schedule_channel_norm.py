"""Normalizations over all positions of a channel, or of neighbouring ones, channels last: channels are the vectors.

for task = piece of an image's positions:
  for run of channels:
    mean[run] = sum over p of x[p, run] / count                          in registers
    squares[run] = sum over p of (x[p, run] - mean[run])^2
for task = image:
  mean[c], squares[c] = those of all pieces                              then of all channels of a group
  centre[c] = mean of the group; scale[c] = gamma[c] / sqrt(variance of the group + epsilon)
for task = piece of an image's positions:
  for p, run of channels:  y[p, run] = epilogue((x[p, run] - centre[run]) * scale[run] + beta[run])

Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979: sets of
n elements each with means m[i] and squares s[i] have the mean M of all m[i], and squares sum of s[i] + n (m[i] - M)^2.
"""

from collections.abc import Callable
from math import prod
from typing import Any

from tvm import tirx

from graphc.backends.anchor import Anchor
from graphc.backends.row import Row
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector, vectorized
from graphc.backends.targets import Target

MOST_PIECES = 32
"""Pieces of an image at most, so that threads have something to share, and a piece stays in the second-level cache."""
FEWEST = 16
"""Positions of a piece at least."""
RUN = 8
"""Vectors of sums side by side: enough that additions do not wait for each other."""


def schedule(anchor: Anchor, target: Target) -> Any:
    """The kernel of a normalization of channels, None for anything else."""
    if anchor.info["kind"] != "channel_norm" or target.lanes(32) < 2:
        return None
    return _Normalization(anchor, target).build()


class _Normalization:
    def __init__(self, anchor: Anchor, target: Target) -> None:
        info = anchor.info
        self.anchor, self.lanes = anchor, target.lanes(32)
        self.batch, *self.size, self.channels = info["input"]
        self.groups, self.epsilon = int(info["groups"]), float(info["epsilon"])
        self.gamma, self.beta = (each for each in anchor.weights if any(each.same_as(p) for p in anchor.parameters))
        self.positions = prod(self.size)
        fits = [n for n in range(1, MOST_PIECES + 1) if self.positions % n == 0 and self.positions // n >= FEWEST]
        self.pieces = max(fits, default=1)
        self.count = self.positions // self.pieces
        self.row = Row(self.channels, self.lanes)
        self.means, self.squares = (self._buffer(name, self.batch * self.pieces) for name in ("means", "squares"))
        self.centre, self.scale = (self._buffer(name, self.batch) for name in ("centre", "scale"))

    def _buffer(self, name: str, rows: int) -> Any:
        return tirx.decl_buffer((rows, self.channels), "float32", name)

    def build(self) -> Any:
        pieces = self.batch * self.pieces
        nests = [tasks(pieces, self._summed), tasks(self.batch, self._combined), tasks(pieces, self._normalized)]
        shared = [self.means, self.squares, self.centre, self.scale]
        return function(self.anchor.parameters, self.anchor.attributes, nests, shared)

    def _position(self, task: Any, p: Any, channel: Any) -> list[Any]:
        """Of the p-th position of a piece in x."""
        at, places = task % self.pieces * self.count + p, []
        for extent in reversed(self.size[1:]):
            places.append(at % extent)
            at = at // extent
        return [task // self.pieces, at, *reversed(places), channel]

    def _summed(self, task: Any) -> Any:
        """Mean and squares of every channel of a piece."""
        whole, left = divmod(self.channels, self.lanes)
        runs, rest = divmod(whole, RUN)
        parts = (
            [loop("run", 0, runs, lambda n: self._run(task, n * RUN * self.lanes, [self.lanes] * RUN))] if runs else []
        )
        widths = [self.lanes] * rest + ([left] if left else [])
        parts += [self._run(task, const(runs * RUN * self.lanes), widths)] if widths else []
        return sequence(parts)

    def _run(self, task: Any, first: Any, widths: list[int]) -> Any:
        """The same for some vectors of channels, the last of which may be shorter."""
        together = next(n for n in (4, 2, 1) if n == 1 or (n * len(widths) <= RUN and self.count % n == 0))
        total, mean = (
            tirx.decl_buffer((size * len(widths) * self.lanes,), "float32", name, scope="local")
            for size, name in ((together, "total"), (1, "mean"))
        )

        def at(v: int, width: int, side: int = 0) -> Any:
            return vector(const((side * len(widths) + v) * self.lanes), width)

        def summed(term: Callable[[Any, int, int], Any]) -> list[Any]:
            """total[v] = the sum over p of term(x, v, width)"""

            def step(n: Any) -> Any:
                return sequence(
                    [
                        tirx.BufferStore(
                            total,
                            total[at(v, width, side)]
                            + term(self._x(task, n * together + side, first, v, width), v, width),
                            [at(v, width, side)],
                        )
                        for side in range(together)
                        for v, width in enumerate(widths)
                    ]
                )

            zeros = [
                tirx.BufferStore(total, spread(const(0.0, "float32"), width), [at(v, width, side)])
                for side in range(together)
                for v, width in enumerate(widths)
            ]
            folds = [
                tirx.BufferStore(total, total[at(v, width)] + total[at(v, width, side)], [at(v, width)])
                for side in range(1, together)
                for v, width in enumerate(widths)
            ]
            return [*zeros, loop("p", 0, self.count // together, step), *folds]

        def stored(into: Any, value: Any, v: int, width: int) -> Any:
            return tirx.BufferStore(into, value, [task, vector(first + v * self.lanes, width)])

        def away(x: Any, v: int, width: int) -> Any:
            return x - mean[at(v, width)]

        share = const(1.0 / self.count, "float32")
        parts = [tirx.AllocBuffer(total), tirx.AllocBuffer(mean), *summed(lambda x, v, width: x)]
        for v, width in enumerate(widths):
            parts.append(tirx.BufferStore(mean, total[at(v, width)] * spread(share, width), [at(v, width)]))
            parts.append(stored(self.means, mean[at(v, width)], v, width))
        parts += summed(lambda x, v, width: away(x, v, width) * away(x, v, width))
        return sequence([*parts, *(stored(self.squares, total[at(v, w)], v, w) for v, w in enumerate(widths))])

    def _x(self, task: Any, p: Any, first: Any, v: int, width: int) -> Any:
        return self.anchor.x[tuple(self._position(task, p, vector(first + v * self.lanes, width)))]

    def _combined(self, image: Any) -> Any:
        """centre and scale of every channel of an image, by way of the mean and squares of each."""
        each = self.row.each(lambda c, width: self._of_all_pieces(image, c, width))
        if self.groups == self.channels:
            return sequence([each, self.row.each(lambda c, width: self._scaled(image, c, width, self.positions))])
        width = self.channels // self.groups
        return sequence([each, loop("group", 0, self.groups, lambda g: self._of_group(image, g * width, width))])

    def _of_all_pieces(self, image: Any, c: Any, width: int) -> Any:
        at, (mean, squares) = vector(const(0), width), self._locals(width)
        channels = vector(c, width)

        def over(body: Callable[[Any], Any]) -> Any:
            return loop("piece", 0, self.pieces, lambda n: body(image * self.pieces + n))

        def add_squares(piece: Any) -> Any:
            away = self.means[piece, channels] - mean[at]
            apart = away * away * spread(const(float(self.count), "float32"), width)
            return tirx.BufferStore(squares, squares[at] + (self.squares[piece, channels] + apart), [at])

        zero = spread(const(0.0, "float32"), width)
        share = spread(const(1.0 / self.pieces, "float32"), width)
        return sequence(
            [
                *map(tirx.AllocBuffer, (mean, squares)),
                *(tirx.BufferStore(buffer, zero, [at]) for buffer in (mean, squares)),
                over(lambda piece: tirx.BufferStore(mean, mean[at] + self.means[piece, channels], [at])),
                tirx.BufferStore(mean, mean[at] * share, [at]),
                over(add_squares),
                tirx.BufferStore(self.centre, mean[at], [image, channels]),
                tirx.BufferStore(self.scale, squares[at], [image, channels]),
            ]
        )

    def _locals(self, width: int) -> tuple[Any, Any]:
        mean, squares = (tirx.decl_buffer((width,), "float32", name, scope="local") for name in ("mean", "squares"))
        return mean, squares

    def _of_group(self, image: Any, first: Any, width: int) -> Any:
        """One mean and one variance for the channels of a group."""
        zero, (mean, squares) = const(0), self._locals(1)

        def over(body: Callable[[Any], Any]) -> Any:
            return loop("c", 0, width, lambda c: body(first + c))

        def add_squares(c: Any) -> Any:
            away = self.centre[image, c] - mean[zero]
            apart = away * away * const(float(self.positions), "float32")
            return tirx.BufferStore(squares, squares[zero] + (self.scale[image, c] + apart), [zero])

        def finish(c: Any) -> Any:
            return sequence(
                [
                    tirx.BufferStore(self.centre, mean[zero], [image, c]),
                    tirx.BufferStore(self.scale, self._factor(squares[zero], c, 1, self.positions * width), [image, c]),
                ]
            )

        return sequence(
            [
                *map(tirx.AllocBuffer, (mean, squares)),
                *(tirx.BufferStore(buffer, const(0.0, "float32"), [zero]) for buffer in (mean, squares)),
                over(lambda c: tirx.BufferStore(mean, mean[zero] + self.centre[image, c], [zero])),
                tirx.BufferStore(mean, mean[zero] * const(1.0 / width, "float32"), [zero]),
                over(add_squares),
                over(finish),
            ]
        )

    def _scaled(self, image: Any, c: Any, width: int, members: int) -> Any:
        """scale = gamma / sqrt(squares / members + epsilon)"""
        at = [image, vector(c, width)]
        return tirx.BufferStore(self.scale, self._factor(self.scale[tuple(at)], c, width, members), at)

    def _factor(self, squares: Any, c: Any, width: int, members: int) -> Any:
        share, epsilon, one = (spread(const(value, "float32"), width) for value in (1.0 / members, self.epsilon, 1.0))
        return one / tirx.sqrt(squares * share + epsilon) * self.gamma[vector(c, width)]

    def _normalized(self, task: Any) -> Any:
        image = task // self.pieces

        def element(p: Any, channel: Any) -> Any:
            place = self._position(task, p, channel)
            value = (self.anchor.x[tuple(place)] - self.centre[image, channel]) * self.scale[image, channel]
            return self.anchor.epilogue(place, value + self.beta[channel])

        def position(p: Any) -> Any:
            return self.row.each(lambda c, width: vectorized(width, lambda lane: element(p, c + lane)))

        return loop("p", 0, self.count, position)
