"""Kernels that skip blocks of zeros equal the dense evaluation of the same weights, on every x86-64 level."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc import artifact
from graphc.backends import targets
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.cycles import Contraction
from graphc.backends.decompose import decompose
from graphc.backends.integer import integerize
from graphc.backends.reference import Reference
from graphc.backends.sparse import best_run, sparse, speed
from graphc.backends.worker import Server
from graphc.calibrate import calibrate
from graphc.execute import Session
from graphc.ir import Array, Graph
from graphc.passes.protocol import Context
from graphc.passes.quantize import Quantize
from graphc.runner import Runner
from tests.backends.kernel_calls import LEVELS, runnable
from tests.passes.quantized import feeds_of, model

RANDOM = np.random.default_rng(5)
V4 = targets.resolve({"cpu": "x86-64-v4"})


def zeroed(*shape: int, share: float = 0.8, block: tuple[int, int] = (16, 4)) -> Array:
    """Weights (O, I, *K) of which blocks of outputs x inputs are zero."""
    outputs, inputs, *kernel = shape
    tiles = (-(-outputs // block[0]), -(-inputs // block[1]), *kernel)
    kept = (RANDOM.random(tiles) >= share).repeat(block[0], 0).repeat(block[1], 1)[:outputs, :inputs]
    return (RANDOM.standard_normal(shape) * kept).astype(np.float32)


@pytest.mark.parametrize(("run", "integer"), [(1, False), (4, False), (4, True)])
def test_every_weight_is_stored_once_where_the_tables_say(run: int, integer: bool) -> None:
    weights = zeroed(50, 10, 9)
    made = sparse(weights, 16, run, integer)
    back = np.zeros((64, 12, 9), np.float32)
    for vector in range(4):
        for tap in range(9):
            for at in range(made.starts[vector, tap], made.starts[vector, tap + 1]):
                values = made.values[at] if integer else made.values[at].T
                first = made.index[at] * run
                back[vector * 16 : vector * 16 + 16, first : first + run, tap] = values
    np.testing.assert_array_equal(back[:50, :10], weights)
    assert made.layout.count == len(made.values) - 1 == made.starts[-1, -1]
    assert made.values[:-1].reshape(made.layout.count, -1).any(axis=1).all(), "no block of zeros is stored"


def test_runs_of_inputs_are_seen() -> None:
    assert best_run(zeroed(64, 64, 1), 16) == 4
    assert best_run(zeroed(64, 64, 1, block=(16, 1)), 16) == 1


def test_the_model_of_cycles_takes_blocks_and_refuses_single_zeros() -> None:
    work = Contraction(1, 784, 128, 128)
    blocks, singles = (zeroed(128, 128, 1, share=share, block=b) for share, b in ((0.75, (16, 4)), (0.5, (1, 1))))
    faster, slower = (speed(sparse(w, 16, 4, integer=False), work, V4) for w in (blocks, singles))
    assert faster > 2
    assert slower < 1


NETWORK = """
    [stem] a = Conv <pads = [1,1,1,1], strides = [1,1]> (x, w0, b0)
    [relu] r = Relu (a)
    [narrow] n = Conv (r, w1)
    [wide] w = Conv <pads = [1,1,1,1], strides = [2,2]> (n, w2, b2)
    [small] s = Conv <pads = [2,2,2,2], dilations = [2,2]> (w, w3)
    [sum] t = Add (s, w)
    [pool] p = GlobalAveragePool (t)
    [flat] f = Flatten (p)
    [head] y = Gemm <transB = 1> (f, w4, b4)
"""


def network() -> Graph:
    """Convolutions of every form, a residual, and a product."""
    return model(
        "(float[1,16,11,13] x) => (float[1,40] y)",
        NETWORK,
        w0=zeroed(50, 16, 3, 3), b0=RANDOM.standard_normal(50).astype(np.float32),
        w1=zeroed(48, 50, 1, 1, block=(16, 1)),
        w2=zeroed(64, 48, 3, 3), b2=RANDOM.standard_normal(64).astype(np.float32), w3=zeroed(64, 64, 3, 3),
        w4=zeroed(40, 64), b4=RANDOM.standard_normal(40).astype(np.float32),
    )  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def run(
    graph: Graph, target: targets.Target, folder: Path, server: Server, feeds: dict[str, Any]
) -> tuple[Array, set[str]]:
    """The artifact's result, and the nodes whose kernels skip zeros."""
    build_target(graph, target, folder / "built", server, Cache(folder / "cache"))
    with Runner(folder / "built") as runner:
        result = np.array(runner(**feeds))
    decisions = artifact.read(folder / "built").decisions
    return result, {each.node for each in decisions if each.kernel == "sparse"}


@pytest.mark.parametrize("level", LEVELS)
def test_floats(level: str, tmp_path: Path, server: Server) -> None:
    graph, target = network(), runnable(level)
    feeds = feeds_of(graph, 1)[0]
    found, skipping = run(graph, target, tmp_path, server, feeds)
    expected = Session(graph).run(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    assert {"stem", "narrow", "wide", "small"} <= skipping


@pytest.mark.parametrize("multiplies", ["avx2", "avx512_vnni", "amx_int8"])
def test_integers_are_exact(multiplies: str, tmp_path: Path, server: Server) -> None:
    native, graph = runnable("native"), network()
    better = {"avx2": {"avx512_vnni", "amx_int8"}, "avx512_vnni": {"amx_int8"}}.get(multiplies, set[str]())
    target = replace(native, instructions=native.instructions - better)
    if not target.has(multiplies):
        pytest.skip(f"this machine has no {multiplies}")
    step = Quantize.model_validate({"weights": "int8", "activations": "uint8", "calibrate": "minmax", "io": "int8"})
    quantized = step.apply(graph, Context(calibrate(graph, step.observes(graph), feeds_of(graph))))
    feeds = {"x": RANDOM.integers(-128, 128, (1, 16, 11, 13)).astype(np.int8)}
    found, skipping = run(quantized, target, tmp_path, server, feeds)
    np.testing.assert_array_equal(found, Reference(integerize(decompose(quantized))).run(feeds)["y"])
    assert multiplies == "amx_int8" or len(skipping) >= 3
