"""The roofline: what bounds a step, what work a program's calls have, and that the peaks are this machine's."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import graphc
from graphc import artifact
from graphc.artifact import Work
from graphc.backends.cache import Cache
from graphc.backends.targets import resolve
from graphc.ir.cost import cost
from graphc.roofline import Roofline, rooflines

LIMIT = Roofline(1, {"float32": {"fma": 100e9}, "int8": {"amx": 2e12, "vnni": 300e9}}, ((1000, 1e9), (9000, 5e8)))


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(macs=200, arithmetic="float32", weights=1), 2e-9),  # arithmetic and memory take the same
        (Work(macs=10**12, arithmetic="int8", data=100), 0.5),  # the faster of the two instructions
        (Work(weights=500, data=1000), 500 / 5e8 + 1000 / 1e9),  # weights come from as far as the model is large
        (Work(data=10**6), 10**6 / 5e8),  # beyond what was measured: the largest
    ],
)
def test_the_slower_of_arithmetic_and_memory_bounds_a_step(work: Work, seconds: float) -> None:
    assert LIMIT.seconds(work, 5000) == pytest.approx(seconds, rel=1e-12)


def test_a_type_that_was_not_measured_has_no_bound() -> None:
    assert LIMIT.seconds(Work(macs=1, arithmetic="float64"), 10) is None


def test_every_product_counts_once(tmp_path: Path) -> None:
    """Winograd's two stages name the same nodes; an operand of two activations is packed first."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[1,32,16,16] x) => (float[1,32,16,16] z, float[1,32,16,16] y)
        <float[32,32,3,3] w> { y = Conv<pads=[1,1,1,1]>(x, w)  r = Relu(y)  z = MatMul(r, x) }
    """)
    values = np.random.default_rng(0).standard_normal((32, 32, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    folders = {}
    for winograd in (True, False):
        spec = {"passes": [{"kind": "fold"}], "targets": [{"cpu": "x86-64-v3", "winograd": winograd}]}
        folders[winograd] = graphc.compile(model, spec, out=tmp_path / str(winograd)).artifact("x86-64-v3")
    graph = graphc.load(model)
    product = 32 * 16 * 16 * 16
    direct = [step.work for step in artifact.read(folders[False]).steps]
    assert sum(work.macs for work in direct) == cost(graph).macs == 32 * 32 * 9 * 16 * 16 + product
    filtered = [step.work.macs for step in artifact.read(folders[True]).steps if step.work.macs]
    assert sorted(filtered) == sorted([product, 36 * 4 * 4 * 32 * 32])  # F(4x4): 36 points of 16 tiles
    assert any(work.weights >= values.nbytes for work in direct)


def test_the_peaks_are_measured(tmp_path: Path) -> None:
    """Orders of magnitude only: a processor of this century, and caches no slower than memory by much."""
    limit, both = rooflines((1, 2), Cache(tmp_path))
    target = resolve({"cpu": "native"})
    assert (limit.threads, both.threads) == (1, 2)
    assert 1e9 < limit.peaks["float32"]["fma"] < 1e12
    assert ("amx" in limit.peaks["int8"]) == target.has("amx_int8")
    assert all(speed > 1e9 for kind in ("int8", "bf16") for speed in limit.peaks.get(kind, {}).values())
    kinds = {"amx_bf16": "amx_bf16", "dpbf16": "avx512_bf16"}
    assert limit.peaks.get("bf16", {}).keys() == {kind for kind, name in kinds.items() if target.has(name)}
    sizes = [size for size, _ in limit.bandwidth]
    assert sizes == sorted(sizes) and len(sizes) >= 5
    assert all(1e8 < speed < 1e13 for _, speed in limit.bandwidth)
