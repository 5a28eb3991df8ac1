"""How figures and progress read."""

import io

import pytest

from graphc.terminal import Lines, duration, number, size, table


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1234567, "1.18 MiB"), (5 * 2**40, "5120 GiB")],
)
def test_size(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [(999, "999"), (1234, "1.23 k"), (300_800_000, "301 M"), (0, "0")])
def test_number(value: int, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.234e-3, "1.23 ms"), (2.5e-7, "250 ns"), (1.0, "1.00 s"), (75.0, "75.0 s"), (0.0999, "99.9 ms")],
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


def test_lines_speak_of_slow_stages_only() -> None:
    now = [0.0]
    stream = io.StringIO()
    lines = Lines(stream, clock=lambda: now[0])
    for stage, at, fraction in [
        ("fold", 0.0, 0.0),
        ("fold", 0.5, 1.0),
        ("calibrate", 1.0, 0.0),
        ("calibrate", 2.5, 0.25),
        ("calibrate", 3.0, 0.5),
        ("calibrate", 12.5, 0.75),
        ("calibrate", 15.0, 1.0),
    ]:
        now[0] = at
        lines(stage, fraction)
    assert stream.getvalue() == "calibrate: 25%\ncalibrate: 75%\ncalibrate: done in 14.0 s\n"


def test_a_piped_table_is_aligned_and_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    table(("step", "size"), [("quantize " * 20, "1 B"), ("x", "100 B")], "<>", "Steps")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Steps"
    assert len(lines) == 4
    assert len({len(line) for line in lines[1:]}) == 1
