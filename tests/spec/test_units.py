"""Quantities with units: what they read as, that they read back, and what is refused."""

import json

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from graphc.spec.units import Bytes, Count, PerChannel, Seconds, format_bytes, format_seconds


class Quantities(BaseModel):
    size: Bytes | None = None
    time: Seconds | None = None
    count: Count | None = None
    scale: PerChannel | None = None


def from_file(**values: object) -> Quantities:
    return Quantities.model_validate_json(json.dumps(values), strict=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [("512KiB", 524288), ("2MB", 2_000_000), ("1.5 MiB", 1572864), ("300B", 300), ("1kB", 1000), ("1GiB", 2**30)],
)
def test_sizes(text: str, value: int) -> None:
    assert from_file(size=text).size == value


@pytest.mark.parametrize(
    ("text", "value"), [("20ms", 0.02), ("1.5 s", 1.5), ("300us", 3e-4), ("7µs", 7e-6), ("5ns", 5e-9)]
)
def test_times(text: str, value: float) -> None:
    assert from_file(time=text).time == value


@pytest.mark.parametrize(("given", "value"), [("12M", 12_000_000), ("1.5k", 1500), (250, 250), ("250", 250)])
def test_counts(given: object, value: int) -> None:
    assert from_file(count=given).count == value


@pytest.mark.parametrize(
    ("given", "value"), [("1/255", 1 / 255), (0.5, 0.5), (2, 2.0), ("-1.5/2", -0.75), (["1/2", 3], (0.5, 3.0))]
)
def test_factors(given: object, value: object) -> None:
    assert from_file(scale=given).scale == value


@pytest.mark.parametrize(
    "given",
    [
        {"size": 512},
        {"size": "512"},
        {"size": "512 kb"},
        {"size": "-1KiB"},
        {"size": "0.3B"},
        {"size": "1e3B"},
        {"size": True},
        {"time": 20},
        {"time": "20 minutes"},
        {"time": True},
        {"count": -3},
        {"count": 1.5},
        {"count": True},
        {"count": "12Mi"},
        {"scale": "1/0"},
        {"scale": "one"},
        {"scale": []},
        {"scale": [["1/2"]]},
        {"scale": True},
    ],
)
def test_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        from_file(**given)
    assert [error["type"] for error in caught.value.errors()] == ["expected"]


def test_python_numbers_are_base_units() -> None:
    made = Quantities(size=512, time=0.02)
    assert (made.size, made.time) == (512, 0.02)


@pytest.mark.parametrize("value", [0, 1, 1000, 1024, 1500, 524288, 2_000_000, 3 * 2**30, 10**9 + 7])
def test_sizes_read_back(value: int) -> None:
    assert TypeAdapter(Bytes).validate_python(format_bytes(value)) == value


@pytest.mark.parametrize(("value", "text"), [(0.02, "20ms"), (1.5, "1.5s"), (3e-4, "300us"), (5e-9, "5ns")])
def test_times_read_back(value: float, text: str) -> None:
    assert format_seconds(value) == text
    assert TypeAdapter(Seconds).validate_python(text) == value
