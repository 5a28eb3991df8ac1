"""Graphs that are quantized: bounds that saturation applies anyway go, everything else stays."""

import pytest

from tests.passes.folding import folded, operators

SCALES = """<float s = {0.02}, float wide = {0.1}, uint8 zero = {0}, uint8 ten = {10}, int8 low = {-128},
    float none = {0.0}, float six = {6.0}>"""

CASES = {
    "relu_at_the_end": ("r = Relu(x)  q = QuantizeLinear(r, s, zero)", ["QuantizeLinear"]),
    "relu_signed": ("r = Relu(x)  q = QuantizeLinear(r, s, low)", ["QuantizeLinear"]),
    "relu_inside": ("r = Relu(x)  q = QuantizeLinear(r, s, ten)", ["Relu", "QuantizeLinear"]),
    "clip_at_the_ends": ("r = Clip(x, none, six)  q = QuantizeLinear(r, s, zero)", ["QuantizeLinear"]),
    "clip_inside": ("r = Clip(x, none, six)  q = QuantizeLinear(r, wide, zero)", ["Clip", "QuantizeLinear"]),
    "quantized_twice": (
        "a = QuantizeLinear(x, s, zero)  d = DequantizeLinear(a, s, zero)  q = QuantizeLinear(d, s, zero)",
        ["QuantizeLinear"],
    ),
    "quantized_otherwise": (
        "a = QuantizeLinear(x, s, zero)  d = DequantizeLinear(a, s, zero)  q = QuantizeLinear(d, wide, zero)",
        ["QuantizeLinear", "DequantizeLinear", "QuantizeLinear"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_quantized(name: str) -> None:
    body, expected = CASES[name]
    kind = "int8" if "signed" in name else "uint8"
    graph = folded(f"g (float[2,3] x) => ({kind}[2,3] q) {SCALES} {{ {body} }}")
    assert operators(graph) == expected
