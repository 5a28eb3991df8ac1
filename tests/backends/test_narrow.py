"""bfloat16 arithmetic: every product within the bound that its rounding allows, and what stays in float32."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphc import artifact
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.narrow import bound, codes
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.errors import UnsupportedError
from graphc.importer import load
from graphc.ir import Array
from graphc.runner import Runner

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,{channels},12,12] x, float[2,20,32] p, float[1,64] r)
  => (float[1,48,12,12] y, float[2,20,20] z, float[1,40] s) {{
    y = Conv<pads=[1,1,1,1]>(x, w, c)  q = Transpose<perm=[0,2,1]>(p)  z = MatMul(p, q)  s = Gemm<transB=1>(r, d)
}}
"""
RNG = np.random.default_rng(3)


def draw(*shape: int) -> Array:
    """Magnitudes over many octaves."""
    return np.asarray(RNG.standard_normal(shape) * np.exp2(RNG.integers(-6, 6, shape)), np.float32)


def convolved(x: Array, w: Array) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    taps = [(i, j) for i in range(3) for j in range(3)]
    parts = [np.einsum("nchw,oc->nohw", x[:, :, i : i + 12, j : j + 12], w[:, :, i, j]) for i, j in taps]
    return np.asarray(sum(parts))


@pytest.mark.parametrize("channels", [32, 3])
def test_products_err_as_their_rounding_allows(channels: int, tmp_path: Path) -> None:
    if not resolve({"cpu": "native"}).has("amx_bf16"):
        pytest.skip("this processor has no tiles of bfloat16")
    target = resolve({"cpu": "native", "arithmetic": "bf16"})
    model = onnx.parser.parse_model(MODEL.format(channels=channels))
    w, d, c = draw(48, channels, 3, 3), draw(40, 64), draw(48)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in {"w": w, "d": d, "c": c}.items())
    with Server() as server:
        build_target(load(model), target, tmp_path / "net", server, Cache())
    x, p, r = draw(1, channels, 12, 12), draw(2, 20, 32), draw(1, 64)
    with Runner(tmp_path / "net") as runner:
        found = runner(x, p, r)
    work = [step.work for step in artifact.read(tmp_path / "net").steps if step.work.macs]
    assert sorted(each.arithmetic for each in work) == ["bf16", "bf16", "float32"]
    wide = [np.asarray(each, np.float64) for each in (x, w, p, r, d)]
    size = [np.abs(each) for each in wide]
    shift = c[:, None, None]
    for name, exact, magnitude, terms in (
        ("y", convolved(*wide[:2]) + shift, convolved(*size[:2]) + np.abs(shift), 9 * channels + 1),
        ("z", np.einsum("bik,bjk->bij", wide[2], wide[2]), np.einsum("bik,bjk->bij", size[2], size[2]), 32),
        ("s", wide[3] @ wide[4].T, size[3] @ size[4].T, 64),
    ):
        error = np.abs(found[name] - exact)
        assert np.all(error <= bound(terms) * magnitude), name
        assert (error.max() > 1e-4 * np.abs(exact).max()) == (name != "s"), name  # float32 errs 1e-6: a single row is


def test_rounding_is_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, np.inf], np.float32)
    assert [hex(code) for code in codes(values)] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x8000", "0x7f80"]


def test_a_target_without_the_instructions_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"x86-64-v4: it has no matrix tiles of bfloat16"):
        resolve({"cpu": "x86-64-v4", "arithmetic": "bf16"})
