"""bfloat16 arithmetic: every product within the bound that its rounding allows, and what stays in float32."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from graphc.artifact import Manifest
from graphc.backends import bf16_speed
from graphc.backends.bf16_speed import LEAST_GAIN, Layer, fastest
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.float_products import narrowed
from graphc.backends.layout import channels_last
from graphc.backends.narrow_bf16 import SMALLEST, bound, codes
from graphc.backends.targets import Target, resolve
from graphc.backends.worker import Server
from graphc.errors import UnsupportedError
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.runner import Runner

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,{channels},12,12] x, float[8,40,64] p, float[1,256] r)
  => (float[1,48,12,12] y, float[8,40,40] z, float[1,200] s) {{
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


def here(cpu: str) -> Target:
    """A target with bfloat16 arithmetic; skips where this processor does not run it."""
    host = resolve({"cpu": "native"})
    wanted = "avx512_bf16" if cpu == "zen4" else "amx_bf16"
    if not host.has(wanted):
        pytest.skip(f"this processor has no {wanted}")
    return resolve({"cpu": cpu, "arithmetic": "bf16"})


def model(text: str, **constants: Array) -> Graph:
    parsed = onnx.parser.parse_model(text)
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    return load(parsed)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def build(graph: Graph, target: Target, folder: Path, server: Server) -> Manifest:
    return build_target(graph, target, folder, server, Cache())


def instructions(manifest: Manifest) -> dict[str, str]:
    return {each.node: each.instruction for each in manifest.multiplied}


@pytest.mark.parametrize("channels", [32, 3])
@pytest.mark.parametrize("cpu", ["native", "zen4"])
def test_products_err_as_their_rounding_allows(cpu: str, channels: int, tmp_path: Path, server: Server) -> None:
    target = here(cpu)
    w, d, c = draw(48, channels, 3, 3), draw(200, 256), draw(48)
    manifest = build(model(MODEL.format(channels=channels), w=w, d=d, c=c), target, tmp_path / "net", server)
    by = "tdpbf16ps" if cpu == "native" else "vdpbf16ps"
    assert instructions(manifest) == {"y": by, "z": by, "s": "vdpbf16ps"}
    assert [step.work.arithmetic for step in manifest.steps if step.work.macs] == ["bf16"] * 3
    x, p, r = draw(1, channels, 12, 12), draw(8, 40, 64), draw(1, 256)
    with Runner(tmp_path / "net") as runner:
        found = runner(x, p, r)
    wide = [np.asarray(each, np.float64) for each in (x, w, p, r, d)]
    size = [np.abs(each) for each in wide]
    shift = c[:, None, None]
    for name, exact, magnitude, terms in (
        ("y", convolved(*wide[:2]) + shift, convolved(*size[:2]) + np.abs(shift), 9 * channels + 1),
        ("z", np.einsum("bik,bjk->bij", wide[2], wide[2]), np.einsum("bik,bjk->bij", size[2], size[2]), 64),
        ("s", wide[3] @ wide[4].T, size[3] @ size[4].T, 256),
    ):
        error = np.abs(found[name] - exact)
        assert np.all(error <= bound(terms) * magnitude), name
        assert error.max() > 1e-4 * np.abs(exact).max(), name  # float32 errs 1e-6


@pytest.mark.parametrize("cpu", ["native", "zen4"])
def test_tiny_numbers_count_as_zero(cpu: str, tmp_path: Path, server: Server) -> None:
    """Operands below 2^-126, products below 2^-126, and a sum that does not care."""
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[64,64] x) => (float[64,256] y) { y = MatMul(x, w) }'
    x, w = np.zeros((64, 64), np.float32), np.zeros((64, 256), np.float32)
    x[:, 0], w[0] = 2.0**-130, 2.0**10
    x[1, 1], w[1] = 2.0**-70, 2.0**-70
    x[2, 2], w[2] = 3.0, 5.0
    folder = tmp_path / "net"
    manifest = build(model(text, w=w), here(cpu), folder, server)
    assert instructions(manifest) == {"y": "tdpbf16ps" if cpu == "native" else "vdpbf16ps"}
    with Runner(folder) as runner:
        found = np.asarray(runner(x))
    exact = np.asarray(x, np.float64) @ w
    assert np.all(np.abs(found - exact) <= bound(64) * exact + SMALLEST * (64 + np.abs(x).sum() + np.abs(w).sum()))
    assert np.all(found[[0, 1, 3]] == 0) and np.all(found[2] == 15)


RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,64,16,16] x) => (float[1,64,16,16] y) {
    a = Conv(x, v)  r = Relu(a)  b = Conv(r, w)  s = Add(b, r)  t = Relu(s)  y = Conv(t, u)
}
"""


def squares(number: int) -> list[Array]:
    return [np.asarray(RNG.standard_normal((64, 64, 1, 1)) / 8, np.float32) for _ in range(number)]


def test_a_residual_is_kept_as_codes() -> None:
    v, w, u = squares(3)
    graph = channels_last(model(RESIDUAL, v=v, w=w, u=u))
    told = narrowed(graph, resolve({"cpu": "zen4", "arithmetic": "bf16"}))
    ops = [node.op for node in told.graph.nodes if node.domain == "graphc.bf16"]
    assert ops.count("Widen") == 1 and ops.count("Narrow") == 3
    added = next(node for node in told.graph.nodes if node.op == "Add")
    widened = told.graph.producers[added.inputs[1]]
    assert widened.op == "Widen" and told.graph.producers[widened.inputs[0]].op == "Narrow"
    assert len(told.told) == 3


def test_a_residual_errs_by_one_rounding(tmp_path: Path, server: Server) -> None:
    v, w, u = squares(3)
    manifest = build(model(RESIDUAL, v=v, w=w, u=u), here("native"), tmp_path / "net", server)
    assert ["narrow" in step.kernel for step in manifest.steps if step.work.macs] == [True, True, False]
    x = draw(1, 64, 16, 16)

    def rounded(array: Array) -> Array:
        return np.asarray(array.astype(np.float32).astype(ml_dtypes.bfloat16), np.float64)

    def product(x: Array, w: Array) -> Array:
        return np.asarray(np.einsum("nchw,oc->nohw", rounded(x), rounded(w[:, :, 0, 0])))

    r = np.maximum(product(x, v), 0)
    expected = product(np.maximum(product(r, w) + rounded(r), 0), u)
    with Runner(tmp_path / "net") as runner:
        found = np.asarray(runner(x))
    # sums are rounded to float32 before they are narrowed, so that a few codes differ by a step
    assert np.abs(found - expected).max() <= 2 * bound(64) * np.abs(expected).max()


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_weights_stored_in_16_bits_are_multiplied_as_codes(kind: type, tmp_path: Path, server: Server) -> None:
    head = '<ir_version: 10, opset_import: ["" : 21]> g (float[64,64] x) => (float[64,256] y)'
    text = f"{head} {{ w = Cast<to=1>(h)  y = MatMul(x, w) }}"
    h = np.asarray(RNG.standard_normal((64, 256)), np.float32).astype(kind)
    manifest = build(model(text, h=h), here("native"), tmp_path / "net", server)
    assert instructions(manifest) == {"y": "tdpbf16ps"}
    assert manifest.weights.bytes <= 2 * h.size + 64
    x = draw(64, 64)
    with Runner(tmp_path / "net") as runner:
        found = np.asarray(runner(x))
    wide = np.asarray(x, np.float64), h.astype(np.float64)
    assert np.all(np.abs(found - wide[0] @ wide[1]) <= bound(64) * (np.abs(wide[0]) @ np.abs(wide[1])))


def test_what_stays_in_float32_says_why() -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[1,8,6,6] x, float[3,7] a, float[64] v, float[4,64,1,1] k) => (float[1,8,4,4] d, float[3,9] o, float[9] l,
        float[1,8,12,12] t, float[1,4,6,6] e) {
      d = Conv<group=8>(x, w)  o = MatMul(a, b)  l = MatMul(v, m)  t = ConvTranspose<strides=[2,2]>(x, u)
      y = Tile(x, n)  e = Conv(y, k)
    }
    """
    constants = {"w": draw(8, 1, 3, 3), "b": draw(7, 9), "m": draw(64, 9), "u": draw(8, 8, 2, 2)}
    graph = model(text, **constants, n=np.array([1, 8, 1, 1]))
    found = narrowed(channels_last(graph), resolve({"cpu": "zen4", "arithmetic": "bf16"}))
    reasons = {each.node: (each.instruction, each.reason) for each in found.told}
    assert reasons == {
        "d": ("float32", "its channels are in groups, too few each"),
        "o": ("float32", "it sums an odd number of products"),
        "l": ("float32", "an operand is a vector"),
        "t": ("float32", "it is transposed"),
        "e": ("float32", "its weights are computed at run time"),
    }


WIDE, SINGLE, SQUARE = (
    Layer(1, (128,), 384, 1536),
    Layer(1, (1,), 2048, 1000),
    Layer(1, (56, 56), 64, 64, 9, 3, square=True),
)


def test_only_what_should_be_faster_is_narrowed() -> None:
    amd = resolve({"cpu": "zen4", "arithmetic": "bf16"})
    intel = replace(amd, instructions=amd.instructions - {"fast_bf16"})
    tiles = replace(intel, instructions=intel.instructions | {"amx_bf16"})

    def taken(layer: Layer, target: Target) -> str:
        dot, speed = fastest(layer, target, 0)
        return dot.kind if dot and speed >= LEAST_GAIN else ""

    assert [taken(layer, amd) for layer in (WIDE, SINGLE)] == ["dpbf16", "dpbf16"]
    assert [taken(layer, intel) for layer in (WIDE, SINGLE)] == ["", "dpbf16"]  # half the speed, half the bytes
    assert [taken(layer, tiles) for layer in (WIDE, SINGLE, SQUARE)] == ["amx_bf16", "dpbf16", "amx_bf16"]
    assert taken(SQUARE, amd) == ""  # Winograd's filtering in float32 saves more than half of the products
    assert fastest(WIDE, amd, 0)[1] > fastest(WIDE, amd, 1 << 20)[1]
    assert bf16_speed.SLOW_PACE > 2  # else vectors would gain on Intel


def test_rounding_is_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0, np.inf], np.float32)
    assert [hex(code) for code in codes(values)] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0x8000", "0x7f80"]


def test_a_target_without_the_instructions_says_so() -> None:
    with pytest.raises(UnsupportedError, match=r"x86-64-v4: it has neither amx_bf16 nor avx512_bf16"):
        resolve({"cpu": "x86-64-v4", "arithmetic": "bf16"})
