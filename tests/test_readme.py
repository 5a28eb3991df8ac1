"""Every command and snippet of the README works: the set-up lines without a C compiler, the rest in order."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fresh import ROOT, copy_project, shell, without_compiler

README = (ROOT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Block:
    language: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
COMMANDS = [block.text for block in BLOCKS if block.language == "bash"]
QUICKSTART, TESTS, TOOLS, COMPILE, BOARD = COMMANDS


def only(language: str) -> str:
    (text,) = [block.text for block in BLOCKS if block.language == language]
    return text


def test_every_block_is_run_here() -> None:
    assert [block.language for block in BLOCKS] == ["bash", "bash", "yaml", "bash", "python", "c", "bash", "bash"]
    assert README.count("```") == 2 * len(BLOCKS)
    assert "graphc build specs/digits.yaml" in QUICKSTART and "pytest" in TESTS


def test_length() -> None:
    assert len(README.splitlines()) < 120, "one or two screens"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A clone on a machine with Python, pip and no compiler; an empty cache. Gone afterwards: it takes a gigabyte."""
    place = tmp_path_factory.mktemp("machine")
    project = copy_project(place / "project")
    yield project, {**without_compiler(place / "bin"), "GRAPHC_CACHE": str(place / "cache")}
    shutil.rmtree(place)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_first_command_builds_the_quickstart(machine: tuple[Path, dict[str, str]]) -> None:
    project, environment = machine
    printed = shell(QUICKSTART, project, environment)
    folder = project / "build" / "digits"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "report.json", "native"}
    for figure in ("top1", "KiB", "MACs"):
        assert figure in printed
    assert (folder / "model.onnx").stat().st_size < 0.5 * (project / "specs" / "digits" / "model.onnx").stat().st_size
    shell(".venv/bin/graphc verify build/digits/native", project, environment)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_second_command_finds_the_tests(machine: tuple[Path, dict[str, str]]) -> None:
    """The command as it stands, told by pytest's own variable to collect every test and run none."""
    project, environment = machine
    printed = shell(TESTS, project, {**environment, "PYTEST_ADDOPTS": "--collect-only -q"})
    assert "tests/spec/test_units.py" in printed and "error" not in printed.lower().split("tests collected")[-1]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the later snippets are run: the specs, and the README's own spec among them, already built."""
    place = tmp_path_factory.mktemp("workshop")
    shutil.copytree(ROOT / "specs", place / "specs")
    (place / "specs" / "mine.yaml").write_text(only("yaml"))
    shell(TOOLS, place, environment(place))
    return place


def environment(place: Path) -> dict[str, str]:
    """`graphc` and `python` are those of the environment that runs the tests; `cc` is there even where it is not."""
    tools = place / "bin"
    if not tools.exists():
        tools.mkdir()
        if shutil.which("cc") is None:
            (tools / "cc").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ziglang cc "$@"\n')
            (tools / "cc").chmod(0o755)
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tools), os.environ["PATH"]])
    return {**os.environ, "PATH": path}


def test_the_tools(workshop: Path) -> None:
    folder = workshop / "build" / "mine"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "report.json", "native"}
    assert '"quantize"' in (workshop / "graphc.schema.json").read_text()


def test_python(workshop: Path) -> None:
    (workshop / "stage.py").write_text(only("python"))
    printed = shell("python stage.py", workshop, environment(workshop)).splitlines()
    assert re.fullmatch(r"\d+ bytes of weights", printed[-2]) and printed[-1] in map(str, range(10))


def test_c(workshop: Path) -> None:
    (workshop / "main.c").write_text(only("c"))
    printed = shell(COMPILE, workshop, environment(workshop)).splitlines()
    assert [line.split(":")[0] for line in printed] == [str(digit) for digit in range(10)]
    code = "import graphc, numpy; print(*graphc.open('build/mine/native')(numpy.zeros((1, 8, 8, 1), 'f4'))[0])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=workshop, capture_output=True, text=True, check=True
    ).stdout
    assert [float(line.split(":")[1]) for line in printed] == pytest.approx([float(x) for x in found.split()], rel=1e-5)


def test_the_board(workshop: Path) -> None:
    for program, package in (("arm-none-eabi-gcc", "gcc-arm-none-eabi"), ("qemu-system-arm", "qemu-system-arm")):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here (Debian: {package})")
    printed = shell(BOARD, workshop, environment(workshop))
    assert "mps2-an386" in printed and "instructions" in printed
