"""Values with their unit in the text: `512KiB`, `20ms`, `1/255`, `12M`. One parser, one table per quantity.

In Python a plain number is taken as bytes, seconds or a count. The YAML reader validates JSON, where it needs a unit.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, PlainSerializer, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

BYTES: Mapping[str, Fraction] = {
    "B": Fraction(1),
    **{f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate(("k", "M", "G"), 1)},
    **{f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate(("K", "M", "G"), 1)},
    "KB": Fraction(1000),
}
SECONDS: Mapping[str, Fraction] = {
    "ns": Fraction(1, 10**9),
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
}
HERTZ: Mapping[str, Fraction] = {
    "Hz": Fraction(1),
    "kHz": Fraction(10**3),
    "MHz": Fraction(10**6),
    "GHz": Fraction(10**9),
}
COUNTS: Mapping[str, Fraction] = {"": Fraction(1), "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9)}

_NUMBER = r"\d{1,18}(?:\.\d{1,18})?"
_QUANTITY = re.compile(rf"({_NUMBER})\s*([A-Za-zµ]*)")
_RATIO = re.compile(rf"(-?{_NUMBER})\s*/\s*({_NUMBER})")


def expected(what: str, remedy: str = "", at: tuple[str, ...] = ()) -> PydanticCustomError:
    """The error a validator raises: what it wanted and what to do. The reader adds file, line and what it got.

    `at` is the key at fault below the one being validated, where the validator looks at several.
    """
    return PydanticCustomError("expected", "expected {expected}", {"expected": what, "remedy": remedy, "at": at})


def quantity(text: str, units: Mapping[str, Fraction]) -> Fraction | None:
    """`text` in the table's base unit, exactly; None where it is no number followed by one of the units."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        return None
    return Fraction(match[1]) * units[match[2]]


def _reader(units: Mapping[str, Fraction], what: str, whole: bool) -> Callable[[object, ValidationInfo], int | float]:
    bare = "" in units

    def read(value: object, info: ValidationInfo) -> int | float:
        number: Fraction | None = None
        if isinstance(value, str):
            number = quantity(value, units)
        elif isinstance(value, int | float) and not isinstance(value, bool) and (bare or info.mode == "python"):
            number = Fraction(value) if value >= 0 and value not in (float("inf"), float("nan")) else None
        elif isinstance(value, int | float) and not isinstance(value, bool):
            raise expected(what, "Write the unit beside the number.")
        if number is None or (whole and number.denominator != 1):
            raise expected(what)
        return int(number) if whole else float(number)

    return read


def _exact(value: int, units: tuple[tuple[str, int], ...]) -> str:
    """The shortest text with a unit that reads back as `value`."""
    name, size = next((name, size) for name, size in units if value % size == 0)
    return f"{value // size}{name}"


def format_bytes(value: int) -> str:
    """Bytes as text that reads back exactly: 524288 -> 512KiB, 1500000 -> 1500kB."""
    return _exact(
        value, (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("B", 1))
    )


def format_seconds(value: float) -> str:
    """Seconds as text in the unit that reads best: 0.02 -> 20ms."""
    name, size = next(((n, s) for n, s in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)) if value >= s), ("ns", 1e-9))
    return f"{value / size:.6g}{name}"


def _ratio(value: object) -> float:
    """A number, or a fraction as text: 0.5, '1/255'."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _RATIO.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or not Fraction(match[2]):
        raise expected("a number or a fraction such as 1/255")
    return float(Fraction(match[1]) / Fraction(match[2]))


def _per_channel(value: object) -> float | tuple[float, ...]:
    if not isinstance(value, list | tuple):
        return _ratio(value)
    if not value:
        raise expected("a number, or one number per channel")
    return tuple(_ratio(entry) for entry in value)


def _json(pattern: str, example: str, *plain: str) -> WithJsonSchema:
    text: dict[str, object] = {"type": "string", "pattern": pattern}
    forms = [text, *[dict[str, object](type=kind) for kind in plain]]
    return WithJsonSchema({"anyOf": forms, "examples": [example]} if plain else {**text, "examples": [example]})


def _pattern(units: Mapping[str, Fraction]) -> str:
    return rf"^\d+(\.\d+)?\s*({'|'.join(units)})$"


Bytes: TypeAlias = Annotated[
    int,
    BeforeValidator(_reader(BYTES, "a size with a unit, such as 512KiB or 2MB", whole=True)),
    PlainSerializer(format_bytes, return_type=str, when_used="json"),
    _json(_pattern(BYTES), "512KiB"),
]
"""Bytes. Text: `512KiB`, `2MB`, `300B`."""

Seconds: TypeAlias = Annotated[
    float,
    BeforeValidator(_reader(SECONDS, "a time with a unit, such as 20ms or 1.5s", whole=False)),
    PlainSerializer(format_seconds, return_type=str, when_used="json"),
    _json(_pattern(SECONDS), "20ms"),
]
"""Seconds. Text: `20ms`, `300us`, `1.5s`."""

Hertz: TypeAlias = Annotated[
    int,
    BeforeValidator(_reader(HERTZ, "a frequency with a unit, such as 80MHz", whole=True)),
    PlainSerializer(lambda value: f"{value}Hz", return_type=str, when_used="json"),
    _json(_pattern(HERTZ), "80MHz"),
]
"""Cycles in a second. Text: `80MHz`, `1.5GHz`."""

Count: TypeAlias = Annotated[
    int,
    BeforeValidator(_reader(COUNTS, "a count, such as 250000 or 12M", whole=True)),
    _json(_pattern(COUNTS), "12M", "integer"),
]
"""A plain count. Text: `12M`, `1.5k`; or the number itself."""

_RATIO_JSON: dict[str, object] = {
    "anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^-?\d+(\.\d+)?\s*/\s*\d+(\.\d+)?$"}],
    "examples": ["1/255"],
}

PerChannel: TypeAlias = Annotated[
    float | tuple[float, ...],
    BeforeValidator(_per_channel),
    WithJsonSchema({"anyOf": [*_RATIO_JSON["anyOf"], {"type": "array", "items": _RATIO_JSON, "minItems": 1}]}),
]
"""One number for all channels, or a list of one per channel. Text: `0.5`, `1/255`, `[0.485, 0.456, 0.406]`."""
