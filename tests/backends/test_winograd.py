"""Winograd's filtering: the algebra, the kernels against the direct sum, what it errs, when it is chosen."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser
from tvm import te, tirx

from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.compute_winograd import WinogradConvolution
from graphc.backends.schedule import scheduled
from graphc.backends.stages import stages
from graphc.backends.targets import Target, resolve
from graphc.backends.tiles import winograd_block
from graphc.backends.window import Window
from graphc.backends.winograd import ERROR, MOST_CHANNELS, POINTS, Filtering, choose
from graphc.backends.worker import Server
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner
from tests.backends.kernel_calls import Compiled, runnable

Epilogue = tuple[bool, bool]
"""Whether a residual is added, whether the sum is rectified."""


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of x (batch, *size, channels), padded by `begin` and `end` per axis."""

    size: tuple[int, int]
    channels: int
    filters: int
    begin: tuple[int, int] = (1, 1)
    end: tuple[int, int] = (1, 1)
    batch: int = 1

    @property
    def output(self) -> tuple[int, int]:
        down, across = (s + b + e - 2 for s, b, e in zip(self.size, self.begin, self.end, strict=True))
        return down, across

    def direct(self, x: Array, weights: Array) -> Array:
        """The sums in float64, channels last."""
        pads = [(0, 0), *zip(self.begin, self.end, strict=True), (0, 0)]
        padded = np.pad(x.astype(np.float64), pads)
        height, width = self.output
        taps = [
            np.tensordot(padded[:, i : i + height, j : j + width], weights[:, :, i, j].astype(np.float64), (3, 1))
            for i in range(3)
            for j in range(3)
        ]
        return np.sum(taps, axis=0)


LAYERS = (
    Layer((7, 13), 32, 64),
    Layer((13, 7), 5, 50, begin=(0, 0), end=(0, 0)),
    Layer((10, 9), 24, 33, begin=(1, 0), end=(0, 1), batch=2),
    Layer((3, 3), 40, 7),
)
EPILOGUES: tuple[Epilogue, ...] = ((False, False), (True, True))


class Kernels:
    """A layer's two stages, compiled, with bias and epilogue."""

    def __init__(self, layer: Layer, filtering: Filtering, epilogue: Epilogue, target: Target, folder: Path) -> None:
        self.layer, self.epilogue = layer, epilogue
        window = Window((3, 3), (1, 1), (1, 1), layer.begin, layer.end, layer.output)
        block = winograd_block(target, layer.filters)
        self.made = WinogradConvolution(
            filtering, window, layer.batch, layer.size, layer.channels, layer.filters, block
        )
        self.stages = stages(scheduled(self._definition(), target))
        self.compiled = []
        for index, stage in enumerate(self.stages):
            (folder / f"{index}").mkdir(parents=True)
            self.compiled.append(Compiled(stage.function, target, folder / f"{index}"))

    def _definition(self) -> tirx.PrimFunc:
        layer, block = self.layer, self.made.block
        size, points = self.made.filtering.size, self.made.filtering.points
        x = te.placeholder((layer.batch, *layer.size, layer.channels), name="x")
        w = te.placeholder((self.made.blocks, points, layer.channels, block), name="w")
        b, a = te.placeholder((size, size), name="b"), te.placeholder((self.made.filtering.m, size), name="a")
        bias = te.placeholder((layer.filters,), name="bias")
        shape = (layer.batch, *layer.output, layer.filters)
        residual = te.placeholder(shape, name="residual")
        acc = self.made.accumulate(x, w, b, a)
        add, rectify = self.epilogue

        def element(*i: Any) -> Any:
            value = acc[(*i[:-1], i[-1] // block, i[-1] % block)] + bias[i[-1]]
            value = value + residual[i] if add else value
            return tirx.max(value, 0.0) if rectify else value

        return te.create_prim_func([x, w, b, a, bias, residual, te.compute(shape, element, name="out")])

    def run(self, x: Array, weights: Array, bias: Array, residual: Array, parts: int) -> Array:
        """The result; each stage's tasks are called in `parts` ranges, the last ones first."""
        y = np.full((self.layer.batch, *self.layer.output, self.layer.filters), np.nan, np.float32)
        arrays = {"x": x, "w": self.made.pack(weights), "bias": bias, "residual": residual, "out": y}
        for stage, kernel in zip(self.stages, self.compiled, strict=True):
            for buffer in stage.buffers:
                arrays.setdefault(str(buffer.name), np.full([int(d) for d in buffer.shape], np.nan, np.float32))
            bounds = [kernel.tasks * part // parts for part in range(parts + 1)]
            for begin, end in reversed(list(pairwise(bounds))):
                kernel(*(arrays[str(buffer.name)] for buffer in stage.buffers), tasks=(begin, end))
        return y


def data(layer: Layer, seed: int) -> tuple[Array, Array, Array, Array]:
    """x, weights that keep the variance, bias, residual."""
    rng = np.random.default_rng(seed)
    shapes = ((layer.batch, *layer.size, layer.channels), (layer.filters, layer.channels, 3, 3), (layer.filters,))
    x, weights, bias, residual = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (*shapes, (layer.batch, *layer.output, layer.filters))
    )
    return x, weights / np.float32(np.sqrt(9 * layer.channels)), bias, residual


@pytest.mark.parametrize("m", POINTS)
def test_the_algebra_is_a_correlation(m: int) -> None:
    rng = np.random.default_rng(m)
    filtering = Filtering(m)
    taps, inputs = rng.standard_normal(3), rng.standard_normal(filtering.size)
    found = filtering.outputs @ ((filtering.weights @ taps) * (filtering.inputs @ inputs))
    assert np.allclose(found, np.correlate(inputs, taps), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("m", POINTS)
def test_the_matrices_in_the_code_are_exact(m: int) -> None:
    for matrix in (Filtering(m).inputs, Filtering(m).outputs):
        assert (matrix.astype(np.float32) == matrix).all()


@pytest.mark.parametrize("cpu", ("x86-64-v3", "x86-64-v4"))
@pytest.mark.parametrize("m", POINTS)
def test_layers(m: int, cpu: str, tmp_path: Path) -> None:
    target = runnable(cpu)
    for index, layer in enumerate(LAYERS):
        epilogue = EPILOGUES[index % 2]
        kernels = Kernels(layer, Filtering(m), epilogue, target, tmp_path / f"{index}")
        x, weights, bias, residual = data(layer, index)
        expected = layer.direct(x, weights) + bias + residual * epilogue[0]
        expected = np.maximum(expected, 0) if epilogue[1] else expected
        for parts in (1, 2, 3):
            found = kernels.run(x, weights, bias, residual, parts)
            assert abs(found - expected).max() <= 2e-6 * abs(expected).max(), (layer, parts)


@pytest.mark.parametrize("m", POINTS)
def test_the_error_stays_within_its_bound(m: int, tmp_path: Path) -> None:
    """Normal and rectified inputs: the largest error over the largest result."""
    target = runnable("x86-64-v3")
    layer = Layer((16, 16), MOST_CHANNELS, 16)
    kernels = Kernels(layer, Filtering(m), (False, False), target, tmp_path)
    for seed in range(3):
        x, weights, bias, residual = data(layer, seed)
        for given in (x, np.maximum(x, 0)):
            expected = layer.direct(given, weights)
            found = kernels.run(given, weights, np.zeros_like(bias), residual, 1)
            assert abs(found - expected).max() <= ERROR[m] * abs(expected).max(), seed


def test_large_images_take_large_tiles_and_few_positions_none() -> None:
    target = resolve({"cpu": "x86-64-v4"})
    assert choose(target, 1, (56, 56), 64, 64) == Filtering(4)
    assert choose(target, 1, (14, 14), 256, 256) == Filtering(2)
    assert choose(target, 1, (7, 7), 512, 512) is None  # its transformed weights take longer to read
    assert choose(target, 1, (112, 112), 3, 32) is None
    assert choose(target, 1, (56, 56), 2048, 64) is None  # beyond what the bound on the error covers


def network(weights: Array, channels: int) -> Graph:
    proto = parser.parse_graph(
        f"g (float[1,{channels},24,24] x) => (float[1,{len(weights)},24,24] y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"
    )
    proto.initializer.append(numpy_helper.from_array(weights, "w"))
    assert proto.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    return load(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))


def test_off(tmp_path: Path) -> None:
    """With the option off no filtering is chosen: one kernel less, other bits, a manifest that says so."""
    layer = Layer((24, 24), 64, 64)
    x, weights, _, _ = data(layer, 0)
    expected, found = layer.direct(x, weights), {}
    with Server(1) as server:
        for on in (True, False):
            target = resolve({"cpu": "x86-64-v3", "winograd": on})
            build_target(network(weights, 64), target, tmp_path / f"{on}", server, Cache(tmp_path / "cache"))
            with Runner(tmp_path / f"{on}", 2) as runner:
                found[on] = runner(x.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
                assert runner.manifest.target["winograd"] is on
                assert len(runner.manifest.steps) == (4 if on else 3)  # conversions of the layout on either side
    assert choose(resolve({"cpu": "x86-64-v3", "winograd": False}), 1, (24, 24), 64, 64) is None
    assert abs(found[False] - expected).max() < abs(found[True] - expected).max() <= ERROR[4] * abs(expected).max()
