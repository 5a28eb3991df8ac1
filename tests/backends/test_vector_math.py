"""Every function over all of float32, at a prime stride of bit patterns, against numpy's float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import te, tirx

from graphc.backends import objects, vector_math
from graphc.backends.compute_elementwise import FUNCTIONS
from graphc.backends.schedule_generic import schedule
from graphc.backends.stages import stages
from graphc.backends.targets import Target, resolve
from graphc.ir import Node
from tests.backends.kernel_calls import LEVELS, Compiled, runnable

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the references of extremes overflow

STRIDE = 9973
"""Of the bit patterns: some 430,000 numbers, of all magnitudes alike."""
SPECIAL = (0.0, -0.0, math.inf, -math.inf, math.nan, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38, 88.72284, -103.9)
FLUSHED = -87.0
"""Below it e^x is no normal number."""


def _sigmoid(x: Doubles) -> Doubles:
    return np.exp(-np.logaddexp(0, -x))


def _softplus(x: Doubles) -> Doubles:
    return np.logaddexp(0, x)


def _erf(x: Doubles) -> Doubles:
    values: Doubles = np.vectorize(math.erf, otypes=[np.float64])(x)
    return values


def _gelu(x: Doubles) -> Doubles:
    values: Doubles = x * np.vectorize(math.erfc, otypes=[np.float64])(-x * math.sqrt(0.5)) / 2
    return values


def _gelu_tanh(x: Doubles) -> Doubles:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# (function, its reference, ulp at most, from which x on, absolute error at most below that)
RELATIVE: tuple[tuple[Callable[[Any], Any], Callable[[Doubles], Doubles], float, float, float], ...] = (
    (vector_math.exp, np.exp, 1.1, -math.inf, 0),
    (vector_math.expm1_negative, lambda x: np.expm1(np.minimum(x, 0)), 1.1, -math.inf, 0),
    (vector_math.log, np.log, 1.0, -math.inf, 0),
    (vector_math.tanh, np.tanh, 6, -math.inf, 0),
    (vector_math.erf, _erf, 6, -math.inf, 0),
    (vector_math.sigmoid, _sigmoid, 2.5, FLUSHED, 1.2e-38),
    (vector_math.softplus, _softplus, 4.5, FLUSHED, 1.2e-38),
    (vector_math.mish, lambda x: x * np.tanh(_softplus(x)), 4.5, FLUSHED, 1.1e-36),
    (vector_math.sinh, np.sinh, 2.5, -math.inf, 0),
    (vector_math.cosh, np.cosh, 2.5, -math.inf, 0),
    (vector_math.unit_clamp, lambda x: np.clip(x, 0, 1), 0, -math.inf, 0),
)
ABSOLUTE = ((vector_math.gelu, _gelu, 3e-7), (vector_math.gelu_tanh, _gelu_tanh, 2e-7))


def numbers() -> Floats:
    patterns = np.arange(0, 1 << 32, STRIDE, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return np.concatenate([patterns, np.array(SPECIAL, np.float32)])


def evaluated(function: Callable[[Any], Any], x: Floats, target: Target, folder: Path) -> Floats:
    """The function as vector code, and the last few elements as scalar code."""
    scalars = 16 - x.size % 16 + 7  # sizes that no vector divides are left to the compiler
    x = np.concatenate([x, np.zeros(scalars, np.float32)])
    whole, part = x[: x.size // 16 * 16], x[-23:]
    result = [_run(function, piece, target, folder) for piece in (whole, np.ascontiguousarray(part))]
    return np.concatenate([result[0], result[1][whole.size - x.size :]])[: x.size - scalars]


def _run(function: Callable[[Any], Any], x: Floats, target: Target, folder: Path) -> Floats:
    place = te.placeholder(x.shape, "float32", name="x")
    define = te.compute(x.shape, lambda i: vector_math.call(function, place[i]), name="y")
    (stage,) = stages(schedule(te.create_prim_func([place, define]), target))
    (folder / f"{x.size}").mkdir()
    y = np.empty_like(x)
    Compiled(stage.function, target, folder / f"{x.size}")(x, y)
    return y


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("case", RELATIVE, ids=lambda case: case[0].__name__)
def test_errors_are_as_stated(case: tuple[Any, Any, float, float, float], cpu: str, tmp_path: Path) -> None:
    function, reference, most, start, beside = case
    x = numbers()
    with np.errstate(all="ignore"):
        wanted = reference(x.astype(np.float64))
        rounded = wanted.astype(np.float32)
    found = evaluated(function, x, runnable(cpu), tmp_path)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    ulp = np.spacing(np.maximum(np.abs(rounded), np.float32(2.0**-126))).astype(np.float64)
    error = np.abs(found.astype(np.float64) - wanted)
    near = finite & (x >= start)
    assert (error[near] / ulp[near]).max() <= most
    assert error[finite & (x < start)].max(initial=0) <= beside


@pytest.mark.parametrize("cpu", LEVELS)
@pytest.mark.parametrize("case", ABSOLUTE, ids=lambda case: case[0].__name__)
def test_gelu_is_near_in_terms_of_its_argument(case: tuple[Any, Any, float], cpu: str, tmp_path: Path) -> None:
    function, reference, most = case
    x = numbers()
    with np.errstate(all="ignore"):
        wanted = reference(x.astype(np.float64))
    found = evaluated(function, x, runnable(cpu), tmp_path)
    finite = np.isfinite(x)
    error = np.abs(found[finite].astype(np.float64) - wanted[finite])
    assert (error / np.maximum(1, np.abs(x[finite].astype(np.float64)))).max() <= most
    np.testing.assert_array_equal(found[~finite], wanted.astype(np.float32)[~finite])


@pytest.mark.parametrize("cpu", LEVELS)
def test_flushed_exponential(cpu: str, tmp_path: Path) -> None:
    x = numbers()
    with np.errstate(all="ignore"):
        wanted = np.exp(x.astype(np.float64))
    found = evaluated(vector_math.exp_flushed, x, runnable(cpu), tmp_path)
    inside = (wanted >= 2.0**-126) & (wanted <= 2.0**127)
    ulp = np.spacing(wanted[inside].astype(np.float32)).astype(np.float64)
    assert (np.abs(found[inside].astype(np.float64) - wanted[inside]) / ulp).max() <= 1.1
    assert (np.abs(found[wanted < 2.0**-126]) <= 2.0**-126 * 1.001).all()
    assert (found[wanted > 2.0**127] >= 2.0**127 * 0.999).all()
    assert np.isnan(found[np.isnan(x)]).all()


@pytest.mark.parametrize("op", FUNCTIONS)
def test_code_has_no_calls(op: str) -> None:
    function = FUNCTIONS[op](Node(op, ("x",), ("y",)))
    x = te.placeholder((64,), "float32", name="x")
    (stage,) = stages(schedule(te.create_prim_func([x, te.compute((64,), lambda i: function(x[i]))]), V3))
    code = objects.assembly(objects.tir_json(stage.function), "kernel", V3)
    body = code[code.index("kernel:") : code.index(".size\tkernel")]
    assert "call" not in body
    assert "%ymm" in body


V3 = resolve({"cpu": "x86-64-v3"})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("cells", [7, 16])
def test_functions_of_functions_compile_in_no_time(cells: int, tmp_path: Path) -> None:
    """The cell of an LSTM, written out by simplifiers, would take hours."""
    target = runnable("x86-64-v3")
    gates, state = te.placeholder((4, cells), name="gates"), te.placeholder((cells,), name="state")

    def call(function: Callable[[Any], Any], x: Any) -> Any:
        return vector_math.call(function, x)

    def element(k: Any) -> Any:
        kept = call(vector_math.sigmoid, gates[2, k]) * state[k]
        new = kept + call(vector_math.sigmoid, gates[0, k]) * call(vector_math.tanh, gates[3, k])
        return call(vector_math.sigmoid, gates[1, k] + new) * call(vector_math.tanh, new)

    function = schedule(te.create_prim_func([gates, state, te.compute((cells,), element)]), target)
    (stage,) = stages(function)
    rng = np.random.default_rng(5)
    x, c, y = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, cells), cells, cells))
    Compiled(stage.function, target, tmp_path)(x, c, y)
    wide = x.astype(np.float64)
    new = _sigmoid(wide[2]) * c + _sigmoid(wide[0]) * np.tanh(wide[3])
    np.testing.assert_allclose(y, _sigmoid(wide[1] + new) * np.tanh(new), rtol=2e-6, atol=0)


def _pairs() -> tuple[Floats, Floats]:
    """Bases and exponents of all magnitudes, near 1 and whole, every pair of special ones, in whole vectors."""
    rng = np.random.default_rng(2)
    wild = rng.integers(0, 1 << 32, (2, 40_000), dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = (1 + rng.standard_normal(40_000) / 50, rng.standard_normal(40_000) * 500)
    usual = (rng.lognormal(0, 3, 40_000), rng.uniform(-9, 9, 40_000))
    whole = (rng.standard_normal(40_000) * 9, rng.integers(-30, 30, 40_000))
    special = (*SPECIAL, 1.0, -1.0, 0.5, -0.75, 3.0, -3.0, 2.0, -2.0, 16777215.0, 16777217.0)
    every = np.meshgrid(special, special)
    x, y = (np.concatenate([p.ravel() for p in place]) for place in zip(wild, near, usual, whole, every, strict=True))
    pad = -x.size % 16 + 16 * (x.size % 2)
    return (np.pad(each, (0, pad), constant_values=1).astype(np.float32) for each in (x, y))  # type: ignore[return-value]


@pytest.mark.parametrize("cpu", LEVELS)
def test_powers(cpu: str, tmp_path: Path) -> None:
    """Numpy's float64 has the special cases of C99; TVM's intrinsic takes the road of every expression."""
    x, y = _pairs()
    places = [te.placeholder(x.shape, "float32", name=name) for name in ("x", "y")]
    result = te.compute(x.shape, lambda i: tirx.pow(places[0][i], places[1][i]), name="z")
    (stage,) = stages(schedule(te.create_prim_func([*places, result]), runnable(cpu)))
    found = np.empty_like(x)
    Compiled(stage.function, runnable(cpu), tmp_path)(x, y, found)
    with np.errstate(all="ignore"):
        wanted = np.power(x.astype(np.float64), y.astype(np.float64))
        rounded = wanted.astype(np.float32)
    finite = np.isfinite(rounded)
    np.testing.assert_array_equal(found[~finite], rounded[~finite])
    np.testing.assert_array_equal(np.signbit(found[finite]), np.signbit(rounded[finite]))
    ulp = np.spacing(np.maximum(np.abs(rounded[finite]), np.float32(2.0**-126))).astype(np.float64)
    assert (np.abs(found[finite].astype(np.float64) - wanted[finite]) / ulp).max() <= 0.51
