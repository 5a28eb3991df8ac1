"""Mathematics as short arithmetic on float32 that becomes vector code: no branch, no table, no call per element.

    exp(x)      2^n e^r with n = rint(x / ln 2), |r| <= ln(2) / 2, e^r = 1 + r + r^2 p(r)
    log(x)      n ln 2 + f - f^2 / 2 + f^3 p(f) with x = 2^n (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
    tanh, erf   x p(x^2) / q(x^2) up to where they round to 1
    log1p(u)    u p(u) / q(u), 0 <= u <= 1
    pow(x, y)   2^(y log2 |x|) in float64, log2 m = 2 / ln 2 (s + s^3 / 3 + ...) with s = (m - 1) / (m + 1)
    sinh, cosh  (e^x -+ e^-x) / 2; sinh's series up to 1

The reductions are those of Cody and Waite, "Software Manual for the Elementary Functions" (1980): ln 2 in two parts,
the first of 9 bits, so that n times it is exact. The coefficients are fits of least relative error of these very forms,
by Lawson's iteration on Chebyshev nodes in float64, then rounded to float32.

Errors are the largest over all float32 numbers, against float64, whether or not a * b + c is contracted to one FMA; an
ulp is the distance of normal float32 numbers at the true result. NaN gives NaN. They are stated at each function and
tested.

TVM's passes see one call, `graphc.gelu(x)`, whose definition here takes its place after all of them: simplifiers expand
whatever an expression binds, so that definitions of definitions would take minutes. `call` makes such a call of any
float32 expression; `named` turns TVM's own intrinsics into them; `expanded` writes them out, scalar or vector.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

FLOAT, DOUBLE, INT, LONG = "float32", "float64", "int32", "int64"
MAGIC = 12582912.0
"""1.5 * 2^23: a sum with it has no bits left below 1, so adding and subtracting it rounds to a whole number."""
MAGIC_BITS = 0x4B400000
WIDE_MAGIC = 1.5 * 2.0**52
"""The same for float64."""
PURE = 1
"""TVM's CallEffectKind of functions whose result depends on their arguments alone."""
INTRINSICS = frozenset(f"tirx.{name}" for name in ("exp", "log", "tanh", "erf", "sigmoid", "pow", "sinh", "cosh"))
"""Of TVM's own; on their way to LLVM they would become calls of the C library, element by element."""
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
SQRT_HALF_BITS = 0x3F3504F3
SMALLEST_NORMAL = 2.0**-126
ONE_EXPONENT = 127
EXP_TOP, EXP_BOTTOM = 89.0, -104.0
"""Beyond these e^x is infinity, and less than half of the smallest positive number."""
TANH_TOP, ERF_TOP = 9.02, 3.93
"""From here on the functions round to 1."""

_EXP = (0.49999994, 0.166665152, 0.041668456, 0.00836941879, 0.00138131424)
_LOG = (
    *(0.333333313, -0.250008225, 0.200012267, -0.166233569),
    *(0.142017618, -0.131601945, 0.127615497, -0.0763442963),
)
_TANH_P = (1.0, 0.133797184, 0.00349403429, 2.05834785e-05, 1.33190703e-08)
_TANH_Q = (1.0, 0.467130333, 0.025871072, 0.000328309252, 7.7620183e-07)
_ERF_P = (1.12837911, 0.190783858, 0.0527902916, 0.00377961108, 0.000284808717, 2.04197158e-06)
_ERF_Q = (1.0, 0.502410531, 0.114257537, 0.0149974413, 0.0011652133, 3.80040874e-05)
_ATANH = tuple(2 / math.log(2) / (2 * k + 1) for k in range(8))
_EXP2 = tuple(math.log(2) ** k / math.factorial(k) for k in range(9))
_SINH = tuple(1 / math.factorial(2 * k + 1) for k in range(5))
_LOG1P_P = (1.0, 1.06621861, 0.238157615, 0.00341728469)
_LOG1P_Q = (1.0, 1.5662185, 0.687936425, 0.0752873197)


def exp(x: Any) -> Any:
    """e^x to 1.1 ulp, denormal results, 0 and infinity included."""

    def scaled(n: Any, r: Any) -> Any:
        half = n >> 1  # 2^n itself need not be a number of float32; the first product is exact
        return _exp_reduced(r) * _power_of_two(half) * _power_of_two(n - half)

    return _reduced(_clamp(x, EXP_BOTTOM, EXP_TOP), scaled)


def exp_flushed(x: Any) -> Any:
    """e^x to 1.1 ulp where that lies in 2^-126 .. 2^127; smaller results may be 0, larger ones infinity."""
    return _reduced(_clamp(x, -88.0, EXP_TOP), lambda n, r: _exp_reduced(r) * _power_of_two(n))


def expm1_negative(x: Any) -> Any:
    """e^x - 1 to 1.1 ulp for x <= 0, 0 for other numbers."""

    def sum_of_parts(n: Any, r: Any) -> Any:
        power = _power_of_two(n)
        return power * (r + r * r * _polynomial(r, _EXP)) + (power - 1.0)

    return _reduced(_clamp(x, -87.0, 0.0), sum_of_parts)


def log(x: Any) -> Any:
    """The natural logarithm to 1 ulp, denormal x included; -infinity of 0, NaN of negative numbers."""

    def finite(x: Any) -> Any:
        tiny = x < SMALLEST_NORMAL
        return _let(_bits(_choose(tiny, x * 2.0**23, x)) - SQRT_HALF_BITS, lambda bits: parts(tiny, bits))

    def parts(tiny: Any, bits: Any) -> Any:
        exponent = _whole(bits >> 23) - _choose(tiny, _spread(23.0, bits), 0.0)
        fraction = _number((bits & 0x7FFFFF) + SQRT_HALF_BITS) - 1.0
        return _let(exponent, lambda e: _let(fraction, lambda f: _log_of_parts(e, f)))

    def everywhere(x: Any) -> Any:
        beyond = _choose(tirx.EQ(x, _spread(0.0, x)), _special(-math.inf, x), _special(math.nan, x))
        infinity = _special(math.inf, x)
        return _choose(x > 0.0, _choose(x < infinity, finite(x), infinity), beyond)

    return _let(x, everywhere)


def tanh(x: Any) -> Any:
    """The hyperbolic tangent to 6 ulp."""
    return _odd_rational(x, TANH_TOP, _TANH_P, _TANH_Q)


def erf(x: Any) -> Any:
    """The error function to 6 ulp."""
    return _odd_rational(x, ERF_TOP, _ERF_P, _ERF_Q)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x) to 2.5 ulp where x > -87; below, less than 1.2e-38 off."""
    return 1.0 / (1.0 + exp_flushed(-x))


def softplus(x: Any) -> Any:
    """ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|) to 4.5 ulp where x > -87; below, less than 1.2e-38 off."""

    def whole(x: Any) -> Any:
        return _choose(x > 0.0, x, 0.0) + _log1p(exp_flushed(_choose(x > 0.0, -x, x)))

    return _let(x, whole)


def mish(x: Any) -> Any:
    """x tanh(softplus(x)) = x n / (n + 2), n = e^x (e^x + 2), to 4.5 ulp where x > -87; NaN of -infinity.

    Less than 1.1e-36 off below.
    """

    def whole(x: Any) -> Any:
        power = exp_flushed(_choose(x > 20.0, 20.0, x))
        return _let(_let(power, lambda e: e * (e + 2.0)), lambda n: x * (n / (n + 2.0)))

    return _let(x, whole)


def gelu(x: Any) -> Any:
    """x (1 + erf(x / sqrt 2)) / 2, less than 3e-7 max(1, |x|) off; NaN of -infinity."""
    return _let(x, lambda x: x * 0.5 * (1.0 + erf(x * math.sqrt(0.5))))


def gelu_tanh(x: Any) -> Any:
    """x (1 + tanh u) / 2 = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3), less than 2e-7 max(1, |x|) off.

    NaN of -infinity.
    """
    slope = -2 * math.sqrt(2 / math.pi)
    return _let(x, lambda x: x / (1.0 + exp_flushed(x * (x * x * (slope * 0.044715) + slope))))


def pow(x: Any, y: Any) -> Any:  # noqa: A001
    """x^y to 0.51 ulp, with the special cases of C99 (annex F.9.4.4)."""
    return _let(x, lambda x: _let(y, lambda y: _power(x, y)))


def sinh(x: Any) -> Any:
    """The hyperbolic sine to 2.5 ulp."""

    def whole(x: Any) -> Any:
        beyond = _let(_half_exp(_magnitude(x)), lambda half: half - 0.25 / half)
        series = _let(x * x, lambda t: x * _polynomial(t, _SINH))
        return _choose(_magnitude(x) < 1.0, series, _choose(x < 0.0, -beyond, beyond))

    return _let(x, whole)


def cosh(x: Any) -> Any:
    """The hyperbolic cosine to 2.5 ulp."""
    return _let(_half_exp(_magnitude(x)), lambda half: half + 0.25 / half)


def unit_clamp(x: Any) -> Any:
    """x between 0 and 1; NaN stays NaN."""
    return _clamp(x, 0.0, 1.0)


DEFINITIONS: Mapping[str, Callable[..., Any]] = {
    f"graphc.{function.__name__}": function
    for function in (
        *(exp, exp_flushed, expm1_negative, log, tanh, erf),
        *(sigmoid, softplus, mish, gelu, gelu_tanh, unit_clamp),
        *(pow, sinh, cosh),
    )
}
"""What stands for each function in TVM's passes -> its definition."""

for _name in DEFINITIONS:
    tvm.ir.register_op_attr(_name, "TCallEffectKind", PURE)
    tvm.ir.register_op_attr(_name, "TVectorizable", True)


def call(function: Callable[[Any], Any], x: Any, lanes: int = 1) -> Any:
    """One of the functions above, of a float32 expression of so many lanes, as an intrinsic of TVM's."""
    return tirx.call_intrin(f"{FLOAT}x{lanes}" if lanes > 1 else FLOAT, f"graphc.{function.__name__}", x)


def named(function: Any) -> Any:
    """The PrimFunc with TVM's float32 intrinsics (`tirx.exp`, ...) replaced by those defined here."""

    def ours(call: Any) -> Any:
        name = _name_of(call)
        own = f"graphc.{name.removeprefix('tirx.')}"
        single = name in INTRINSICS and str(call.ty.dtype).startswith(FLOAT)
        return tirx.call_intrin(str(call.ty.dtype), own, *call.args) if single else call

    return function.with_body(tvm_ffi.structural_map(function.body, (tvm.ir.Call, ours)))


def expanded(function: Any) -> Any:
    """The PrimFunc with every call of `DEFINITIONS` written out."""

    def definition(call: Any) -> Any:
        found = DEFINITIONS.get(_name_of(call))
        return found(*call.args) if found else call

    body = tvm_ffi.structural_map(function.body, (tirx.BufferStore, _one_at_a_time))
    return function.with_body(tvm_ffi.structural_map(body, (tvm.ir.Call, definition)))


def _one_at_a_time(store: Any) -> Any:
    """y = tanh(sigmoid(x) * c)   ->   t = sigmoid(x) * c; y = tanh(t)

    In memory, which LLVM makes a register of: for what is bound to a name, TVM's code generator simplifies every
    definition in terms of those before it, which takes minutes for a function of a function of a function. An argument
    that must not be computed everywhere (`if_then_else`) stays where it is.
    """
    before: list[Any] = []

    def in_memory(value: Any) -> Any:
        if not _calls(value, DEFINITIONS):
            return value
        lanes = _lanes(value)
        place = tirx.Ramp(tirx.const(0, INT), tirx.const(1, INT), lanes) if lanes > 1 else tirx.const(0, INT)
        held = tirx.decl_buffer((lanes,), FLOAT, "held", scope="local")
        before.extend([tirx.AllocBuffer(held), tirx.BufferStore(held, value, [place])])
        return held[place]

    def apart(call: Any) -> Any:
        if _name_of(call) not in DEFINITIONS:
            return call
        return tirx.call_intrin(str(call.ty.dtype), _name_of(call), *map(in_memory, call.args))

    if _calls(store.value, ("tirx.if_then_else",)):
        return store
    value = tvm_ffi.structural_map(store.value, (tvm.ir.Call, apart))
    return tirx.SeqStmt([*before, tirx.BufferStore(store.buffer, value, store.indices)]) if before else store


def _calls(expression: Any, names: Container[str]) -> bool:
    """Whether an expression calls one of the functions named."""
    found: list[Any] = []
    tvm_ffi.structural_walk(expression, (tvm.ir.Call, found.append))
    return any(_name_of(call) in names for call in found)


def _name_of(call: Any) -> str:
    return str(call.op.name) if isinstance(call.op, tvm.ir.Op) else ""


def _reduced(x: Any, function: Callable[[Any, Any], Any]) -> Any:
    """function(n, r) with x = n ln 2 + r, n whole."""

    def parts(x: Any) -> Any:
        def rest(shifted: Any) -> Any:
            remainder = _let(shifted - MAGIC, lambda n: (x - n * LN2_HIGH) - n * LN2_LOW)
            whole = _bits(shifted) - MAGIC_BITS
            return _let(whole, lambda n: _let(remainder, lambda r: function(n, r)))

        return _let(x * (1 / math.log(2)) + MAGIC, rest)

    return _let(x, parts)


def _half_exp(x: Any) -> Any:
    """e^x / 2 for x >= 0, infinity from where that is."""

    def scaled(n: Any, r: Any) -> Any:
        half = n >> 1
        return _exp_reduced(r) * _power_of_two(half) * _power_of_two(n - half - 1)

    return _reduced(_clamp(x, 0.0, EXP_TOP + 1), scaled)


def _power(x: Any, y: Any) -> Any:
    """|x|^y, with a sign where x is negative and y odd; NaN where x is negative and y no whole number."""
    infinity = _special(math.inf, x)
    whole = _let(_nearest(_wide(y)), lambda n: _parity(y, n))

    def signed(size: Any) -> Any:
        def by_parity(parity: Any) -> Any:
            odd = _choose(parity > 0.0, -size, size)
            negative = _choose(tirx.all(parity < 0.0, x < 0.0, x > -infinity), _special(math.nan, x), odd)
            return _choose(_bits(x) < 0, negative, size)

        return _let(whole, by_parity)

    one = tirx.any((_bits(_magnitude(x)) ^ ONE_EXPONENT << 23) < 1, _bits(_magnitude(y)) < 1)  # |x| is 1, or y is 0
    size = _let(_wide(y) * _log2(_magnitude(x)), _exp2)
    return _let(_choose(one, 1.0, size), signed)


def _parity(y: Any, n: Any) -> Any:
    """1 where y is odd, 0 where it is even, -1 where it is no whole number; n is the whole number next to it."""
    odd = tirx.Cast(_typed(FLOAT, y), n & 1)
    return _choose(_magnitude(y) >= 2.0**24, 0.0, _choose(tirx.EQ(_whole(n), y), odd, -1.0))


def _log2(x: Any) -> Any:
    """The logarithm to base 2 of x >= 0 in float64, to 2^-40; -infinity of 0."""

    def finite(x: Any) -> Any:
        tiny = x < SMALLEST_NORMAL
        return _let(_bits(_choose(tiny, x * 2.0**23, x)) - SQRT_HALF_BITS, lambda bits: parts(tiny, bits))

    def parts(tiny: Any, bits: Any) -> Any:
        exponent = _wide(_whole(bits >> 23) - _choose(tiny, _spread(23.0, bits), 0.0))
        fraction = _wide(_number((bits & 0x7FFFFF) + SQRT_HALF_BITS))
        s = _let(fraction, lambda m: (m - 1.0) / (m + 1.0))
        return _let(exponent, lambda e: _let(s, lambda s: e + s * _let(s * s, lambda t: _polynomial(t, _ATANH))))

    infinity = _special(math.inf, x)
    ends = _choose(tirx.EQ(x, _spread(0.0, x)), -infinity, x)  # infinity and NaN are their own
    return tirx.Select(tirx.all(x > 0.0, x < infinity), finite(x), _wide(ends))


def _exp2(z: Any) -> Any:
    """2^z of float64 as float32."""

    def scaled(n: Any, z: Any) -> Any:
        power = (tirx.Cast(_typed(LONG, n), n) + 1023) << 52
        fraction = _let(z - _wide(n), lambda r: _polynomial(r, _EXP2))
        return tirx.Cast(_typed(FLOAT, n), fraction * tirx.reinterpret(_typed(DOUBLE, n), power))

    return _let(_clamp(z, -160.0, 130.0), lambda z: _let(_nearest(z), lambda n: scaled(n, z)))


def _nearest(z: Any) -> Any:
    """The whole number next to z of float64, where int32 has it: the lowest bits of a sum that has none below 1.

    Not as that sum less `WIDE_MAGIC`: TVM's simplifier takes the difference for z.
    """
    return tirx.Cast(_typed(INT, z), tirx.reinterpret(_typed(LONG, z), z + WIDE_MAGIC))


def _exp_reduced(r: Any) -> Any:
    return 1.0 + (r + r * r * _polynomial(r, _EXP))


def _power_of_two(n: Any) -> Any:
    """2^n for -126 <= n <= 127; 0 for -127, infinity for 128."""
    return _number((n + ONE_EXPONENT) << 23)


def _log_of_parts(exponent: Any, f: Any) -> Any:
    square = f * f
    low = f * square * _polynomial(f, _LOG) + exponent * LN2_LOW
    return (f + (low - square * 0.5)) + exponent * LN2_HIGH


def _log1p(u: Any) -> Any:
    return _let(u, lambda u: u * _polynomial(u, _LOG1P_P) / _polynomial(u, _LOG1P_Q))


def _odd_rational(x: Any, top: float, p: Sequence[float], q: Sequence[float]) -> Any:
    """x p(x^2) / q(x^2) between -1 and 1, of x between -top and top."""

    def quotient(x: Any) -> Any:
        return _let(x * x, lambda t: x * _polynomial(t, p) / _polynomial(t, q))

    return _clamp(_let(_clamp(x, -top, top), quotient), -1.0, 1.0)


def _polynomial(x: Any, coefficients: Sequence[float]) -> Any:
    """c0 + c1 x + c2 x^2 + ... by Horner's rule."""
    *rest, last = coefficients
    total = _spread(last, x)
    for coefficient in reversed(rest):
        total = total * x + coefficient
    return total


def _clamp(x: Any, low: float, high: float) -> Any:
    """x between two numbers; NaN stays NaN, which `tirx.max` and `tirx.min` do not promise."""

    def between(x: Any) -> Any:
        return _let(_choose(x < low, low, x), lambda y: _choose(y > high, high, y))

    return _let(x, between)


def _let(value: Any, body: Callable[[Any], Any]) -> Any:
    """body(value), the value computed once."""
    if isinstance(value, tirx.Var):
        return body(value)
    variable = tirx.Var("t", value.ty)
    return tirx.Let(variable, value, body(variable))


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    """Lane by lane; one of the two may be a number."""
    return tirx.Select(condition, _spread(yes, no), _spread(no, yes))


def _spread(value: Any, like: Any) -> Any:
    """A number in as many lanes as `like` has, in float32 unless that is float64."""
    if not isinstance(value, float):
        return value
    lanes = _lanes(like)
    scalar = tirx.const(value, DOUBLE if str(like.ty.dtype).startswith(DOUBLE) else FLOAT)
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def _lanes(x: Any) -> int:
    return int(tvm.DataType(str(x.ty.dtype)).lanes)


def _typed(kind: str, like: Any) -> str:
    lanes = _lanes(like)
    return f"{kind}x{lanes}" if lanes > 1 else kind


def _special(value: float, like: Any) -> Any:
    """Infinity or NaN in as many lanes as `like` has."""
    bits = {math.inf: 0x7F800000, -math.inf: -0x00800000}.get(value, 0x7FC00000)
    lanes = _lanes(like)
    scalar = _number(tirx.const(bits, INT))
    return tirx.Broadcast(scalar, lanes) if lanes > 1 else scalar


def _bits(x: Any) -> Any:
    return tirx.reinterpret(_typed(INT, x), x)


def _number(bits: Any) -> Any:
    return tirx.reinterpret(_typed(FLOAT, bits), bits)


def _magnitude(x: Any) -> Any:
    return _number(_bits(x) & 0x7FFFFFFF)


def _wide(x: Any) -> Any:
    """As float64."""
    return tirx.Cast(_typed(DOUBLE, x), x)


def _whole(n: Any) -> Any:
    """A whole number as float32."""
    return tirx.Cast(_typed(FLOAT, n), n)
