"""float16 arithmetic: every product within the bound of its rounding, under QEMU, and what stays in float32."""

import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from graphc import artifact
from graphc.backends import objects
from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.lower import lower
from graphc.backends.narrow_fp16 import MOST_TERMS, bound
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.emulator import EmulatedLinux
from graphc.errors import UnsupportedError
from graphc.importer import load
from graphc.ir import Array
from tests.backends.test_arm import innermost

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,3,24,24] x, float[2,20,200] p) => (float[1,20,12,12] y, float[2,20,24] z, float[20,40] s) {
    a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, first)  y = Conv<pads=[1,1,1,1]>(a, w, c)
    z = MatMul(p, m)  q = ReduceSum<keepdims=0>(p, axes)  s = Gemm<transB=1>(q, d)
}
"""
RNG = np.random.default_rng(3)


def draw(*shape: int) -> Array:
    """Magnitudes over many octaves, within float16's normal numbers."""
    return np.asarray(RNG.standard_normal(shape) * np.exp2(RNG.integers(-5, 3, shape)), np.float32)


def convolved(x: Array, w: Array, stride: int = 1) -> Array:
    x = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    size = (x.shape[2] - 2) // stride * stride
    taps = [(x[:, :, i : i + size : stride, j : j + size : stride], w[:, :, i, j]) for i in range(3) for j in range(3)]
    return np.asarray(sum(np.einsum("nchw,oc->nohw", *tap) for tap in taps))


@pytest.mark.skipif(not shutil.which("qemu-aarch64-static"), reason="no QEMU user mode (apt install qemu-user-static)")
def test_products_err_as_their_rounding_allows(tmp_path: Path) -> None:
    """Sums of one part, of one a row of taps, and of several a tap; the first layer has too few channels."""
    constants = {
        "first": draw(72, 3, 3, 3),
        "w": draw(20, 72, 3, 3),
        "c": draw(20),
        "m": draw(200, 24),
        "d": draw(40, 200),
    }
    model = onnx.parser.parse_model(MODEL)
    arrays = {**constants, "axes": np.zeros(1, np.int64)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    target = resolve({"cpu": "cortex-a76", "arithmetic": "fp16"})
    with Server() as server:
        build_target(load(model), target, tmp_path / "net", server, Cache())
    x, p = draw(1, 3, 24, 24), draw(2, 20, 200)
    with EmulatedLinux(tmp_path / "net", threads=2) as emulator:
        found = emulator(x, p)
    work = [step.work for step in artifact.read(tmp_path / "net").steps if step.work.macs]
    assert sorted(each.arithmetic for each in work) == ["float32", "fp16", "fp16", "fp16"]
    first, w, c, m, d = (np.asarray(each, np.float64) for each in constants.values())
    a, shift = convolved(np.float64(x), first, 2), c[:, None, None]
    q = np.float64(p).sum(axis=0)
    for name, exact, magnitude, terms in (
        ("y", convolved(a, w) + shift, convolved(abs(a), abs(w)) + abs(shift), 9 * 72 + 1),
        ("z", p @ m, abs(p) @ abs(m), 200),
        ("s", q @ d.T, abs(q) @ abs(d.T), 200),
    ):
        error = np.abs(found[name] - exact)
        assert np.all(error <= bound(terms) * magnitude), name
        assert error.max() > 1e-4 * np.abs(exact).max(), f"{name} is not float16's"


def test_the_bound_is_that_of_short_sums() -> None:
    assert bound(MOST_TERMS) < 0.017 and bound(100 * MOST_TERMS) < bound(MOST_TERMS) + 2e-5


@pytest.mark.parametrize("core", ["cortex-a55", "cortex-a76", "neoverse-n1"])
def test_the_inner_loop_multiplies_eight_at_once_by_lane(core: str) -> None:
    text = "g (float[1,128,14,14] x) => (float[1,64,14,14] y) { y = Conv(x, w) }"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(draw(64, 128, 1, 1), "w"))
    target = resolve({"cpu": core, "arithmetic": "fp16"})
    (conv,) = (k for name, k in lower(load(model), target).kernels.items() if name.startswith("conv_half"))
    text = objects.assembly(conv.tir, "kernel", target)
    loop = innermost(text[text.index("kernel:") : text.index(".size\tkernel")], "fmla")
    instructions = re.findall(r"^\t([a-z]\S*)", loop, re.MULTILINE)
    products = re.findall(r"\tfmla\tv\d+\.8h, v\d+\.8h, v\d+\.h\[\d\]", loop)
    assert len(products) >= 40 and len(products) >= 0.7 * len(instructions)
    assert "[sp" not in loop and "fcvt" not in loop


@pytest.mark.parametrize("entry", [{"cpu": "cortex-a72"}, {"board": "raspberry-pi-4"}, {"cpu": "x86-64-v4"}])
def test_a_target_without_float16_says_so(entry: dict[str, str]) -> None:
    with pytest.raises(UnsupportedError, match=r"has no arithmetic of float16 .*cortex-a55"):
        resolve({**entry, "arithmetic": "fp16"})
