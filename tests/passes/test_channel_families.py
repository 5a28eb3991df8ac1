"""Which families of channels are found, graph by graph; that none is wrong, test_channel_groups.py shows."""

import re

import numpy as np
import pytest

from graphc.ir.graph import Array
from graphc.passes.channel_groups import ChannelGroups, Family, channel_groups
from tests.passes.quantized import model, normal

MIXED = "(float[1,6,12] x) => (float[1,6,12] y)"
IMAGE = "(float[1,4,8,8] x) => (float[1,4,8,8] y)"


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def families(signature: str, body: str, heads: bool = False, **constants: Array) -> ChannelGroups:
    return channel_groups(model(signature, body, **constants), heads)


def sizes(found: ChannelGroups) -> list[tuple[int, int]]:
    """(groups, indices of the widest axis of one), of every family that lies on weights, largest first."""
    return sorted(((len(f.groups), max(len(i) for i in f.groups[0].values())) for f in found.families), reverse=True)


def on(found: ChannelGroups, name: str) -> Family:
    (family,) = (each for each in found.families if any(axis[0] == name for axis in each.axes))
    return family


FUSED = """
    qkv = MatMul (x, wqkv)
    parts = Reshape (qkv, shape)
    turned = Transpose <perm = [2,0,3,1,4]> (parts)
    q = Gather <axis = 0> (turned, zero)
    k = Gather <axis = 0> (turned, one)
    v = Gather <axis = 0> (turned, two)
    kt = Transpose <perm = [0,1,3,2]> (k)
    scores = MatMul (q, kt)
    p = Softmax <axis = -1> (scores)
    mixed = MatMul (p, v)
    back = Transpose <perm = [0,2,1,3]> (mixed)
    flat = Reshape (back, joined)
    y = MatMul (flat, wo)
"""


def fused(heads: bool) -> ChannelGroups:
    return families(
        MIXED, FUSED, heads, wqkv=normal(12, 36), wo=normal(12, 12), shape=whole(1, 6, 3, 3, 4), joined=whole(1, 6, 12),
        zero=np.array(0), one=np.array(1), two=np.array(2),
    )  # fmt: skip


def test_heads_of_a_fused_projection() -> None:
    """Head 1 of 3, four features each, is nine runs of the projection's 36 columns and one run of the output's rows."""
    found = fused(heads=True)
    family = on(found, "wqkv")
    assert family.heads and len(family.groups) == 3
    columns = family.groups[1]["wqkv", 1]
    np.testing.assert_array_equal(columns, [4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31])
    np.testing.assert_array_equal(family.groups[1]["wo", 0], [4, 5, 6, 7])


def test_features_of_heads_go_in_every_head() -> None:
    """Of queries and keys one does what the other does; values have features of their own, unless fused."""
    family = on(fused(heads=False), "wo")
    assert not family.heads and len(family.groups) == 4
    np.testing.assert_array_equal(family.groups[1]["wo", 0], [1, 5, 9])


def test_keys_that_several_heads_of_queries_share() -> None:
    body = """
        q = MatMul (x, wq)
        k = MatMul (x, wk)
        v = MatMul (x, wv)
        a = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, v)
        y = MatMul (a, wo)
    """
    weights = {"wq": normal(12, 16), "wk": normal(12, 8), "wv": normal(12, 8), "wo": normal(16, 12)}
    family = on(channel_groups(model(MIXED, body, 26, **weights), heads=True), "wk")
    assert len(family.groups) == 2
    np.testing.assert_array_equal(family.groups[1]["wk", 1], [4, 5, 6, 7])
    np.testing.assert_array_equal(family.groups[1]["wq", 1], range(8, 16))


CASES: dict[str, tuple[str, dict[str, Array], list[tuple[int, int]]]] = {
    "a chain": (
        "a = Conv (x, w) r = Relu (a) y = Conv (r, v)",
        {"w": normal(6, 4, 1, 1), "v": normal(4, 6, 1, 1)},
        [(6, 1)],
    ),
    "a sum ties": (
        "a = Conv (x, w) b = Conv (x, u) s = Add (a, b) y = Conv (s, v)",
        {"w": normal(6, 4, 1, 1), "u": normal(6, 4, 1, 1), "v": normal(4, 6, 1, 1)},
        [(6, 1)],
    ),
    "a concat does not": (
        "a = Conv (x, w) b = Conv (x, u) s = Concat <axis = 1> (a, b) y = Conv (s, v)",
        {"w": normal(6, 4, 1, 1), "u": normal(2, 4, 1, 1), "v": normal(4, 8, 1, 1)},
        [(6, 1), (2, 1)],
    ),
    "depthwise with two results each": (
        "a = Conv (x, w) d = Conv <group = 3> (a, u) y = Conv (d, v)",
        {"w": normal(3, 4, 1, 1), "u": normal(6, 1, 1, 1), "v": normal(4, 6, 1, 1)},
        [(3, 2)],
    ),
    "groups stay equal": (
        "a = Conv (x, w) d = Conv <group = 2> (a, u) y = Conv (d, v)",
        {"w": normal(8, 4, 1, 1), "u": normal(6, 4, 1, 1), "v": normal(4, 6, 1, 1)},
        [(4, 2), (3, 2)],
    ),
    "group normalization": (
        "a = Conv (x, w) n = GroupNormalization <num_groups = 3> (a, s, s) y = Conv (n, v)",
        {"w": normal(12, 4, 1, 1), "s": normal(12), "v": normal(4, 12, 1, 1)},
        [(3, 4)],
    ),
    "pixel shuffle": (
        "a = Conv (x, w) d = DepthToSpace <blocksize = 2> (a) y = Conv <strides = [2,2]> (d, v)",
        {"w": normal(12, 4, 1, 1), "v": normal(4, 3, 1, 1)},
        [(3, 4)],
    ),
    "squeeze and excite": (
        "a = Conv (x, w) g = GlobalAveragePool (a) e = Conv (g, p) r = Relu (e) f = Conv (r, q) s = Sigmoid (f) "
        "m = Mul (a, s) y = Conv (m, v)",
        {"w": normal(6, 4, 1, 1), "p": normal(2, 6, 1, 1), "q": normal(6, 2, 1, 1), "v": normal(4, 6, 1, 1)},
        [(6, 1), (2, 1)],
    ),
    "one weight twice": (
        "a = Conv (x, u) b = Conv (a, w) c = Conv (b, w) y = Conv (c, v)",
        {"u": normal(6, 4, 1, 1), "w": normal(6, 6, 1, 1), "v": normal(4, 6, 1, 1)},
        [(6, 1)],
    ),
    "channels that are shuffled": (
        "a = Conv (x, w) p = Reshape (a, s) q = Transpose <perm = [0,2,1,3,4]> (p) t = Reshape (q, b) y = Conv (t, v)",
        {"w": normal(8, 4, 1, 1), "s": whole(1, 2, 4, 8, 8), "b": whole(1, 8, 8, 8), "v": normal(4, 8, 1, 1)},
        [(4, 2)],
    ),
    "padding goes without weights before it": (
        "a = Conv (x, w) p = Pad (a, k) b = Conv (x, u) s = Add (p, b) y = Conv (s, v)",
        {"w": normal(6, 4, 1, 1), "k": whole(0, 1, 0, 0, 0, 1, 0, 0), "u": normal(8, 4, 1, 1), "v": normal(4, 8, 1, 1)},
        [(6, 1), (2, 1)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_families(name: str) -> None:
    body, constants, expected = CASES[name]
    assert sizes(families(IMAGE, body, **constants)) == expected


def test_flattened_channels_are_runs() -> None:
    body = "a = Conv (x, w) f = Flatten (a) y = Gemm (f, v)"
    found = families("(float[1,4,3,3] x) => (float[1,5] y)", body, w=normal(6, 4, 1, 1), v=normal(54, 5))
    np.testing.assert_array_equal(on(found, "v").groups[2]["v", 0], range(18, 27))


@pytest.mark.parametrize(
    ("body", "value", "reason"),
    [
        ("a = Conv (x, w) y = Softmax <axis = 1> (a)", "a", "works along axis 1 of 'a'"),
        ("a = Conv (x, w) n = LayerNormalization <axis = 1> (a, s) y = Conv (n, w)", "a", "LayerNormalization"),
        ("a = Conv (x, w) t, i = TopK <axis = 1> (a, four) y = Conv (t, w)", "a", "TopK .* has no rule"),
        ("a = Conv (x, w) b = Add (a, x) y = Conv (b, v)", "a", "'x' is an input of the graph"),
        ("a = Conv (x, w) m = ReduceMax (a, one) y = Add (m, x)", "a", "ReduceMax .* works along axis 1 of 'a'"),
    ],
)
def test_why_channels_stay(body: str, value: str, reason: str) -> None:
    constants = {
        "w": normal(4, 4, 1, 1),
        "v": normal(4, 4, 1, 1),
        "s": normal(4, 8, 8),
        "four": whole(4),
        "one": whole(1),
    }
    used = {name: array for name, array in constants.items() if f"{name})" in body or f"{name}," in body}
    found = families(IMAGE, body, **used)
    assert value not in {name for family in found.families for name, _ in family.axes}
    assert re.search(reason, found.reasons[value, 1])


def test_the_hidden_size_of_a_recurrence_stays() -> None:
    body = """
        a = MatMul (x, u)
        h, last = LSTM <hidden_size = 5> (a, w, r)
        y = Squeeze (h, one)
    """
    signature = "(float[6,1,12] x) => (float[6,1,5] y)"
    arrays = {"u": normal(12, 8), "w": normal(1, 20, 8), "r": normal(1, 20, 5), "one": whole(1)}
    found = families(signature, body, **arrays)
    assert len(on(found, "w").groups) == 8  # the features that it reads
    assert "LSTM" in found.reasons["w", 1] and "works along axis 1 of 'w'" in found.reasons["w", 1]
