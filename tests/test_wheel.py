"""The built wheel, installed where there is no source tree and no compiler: nothing is missing in it, and it works."""

import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fresh import ROOT, copy_project, shell, without_compiler

ROOMS = {"graphc": "graphc", "passes": "graphc/passes", "backends": "graphc/backends"}
"""Folder of the project -> folder in the wheel."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("wheel")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def environment(place: Path) -> dict[str, str]:
    return {**without_compiler(place / "bin"), "GRAPHC_CACHE": str(place / "cache")}


@pytest.fixture(scope="module")
def wheel(place: Path, environment: dict[str, str]) -> Path:
    project = copy_project(place / "project")
    shell(f"python3 -m venv '{place}/venv'", place, environment)
    shell(f"'{place}/venv/bin/pip' wheel --quiet --no-deps -w '{place}' .", project, environment)
    (found,) = place.glob("graphc-*.whl")
    return found


def shipped() -> set[str]:
    """Every file of the project's three rooms, by its path in the wheel."""
    return {
        f"{inside}/{path.relative_to(ROOT / room).as_posix()}"
        for room, inside in ROOMS.items()
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def packed(wheel: Path) -> set[str]:
    """Every file of the wheel but its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_file_is_in_it_and_nothing_else(wheel: Path) -> None:
    assert packed(wheel) == shipped()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_builds_the_quickstart(wheel: Path, place: Path, environment: dict[str, str]) -> None:
    python = f"'{place}/venv/bin/python'"
    shell(f"{python} -m pip install --quiet '{wheel}[cross]'", place, environment)
    modules = sorted(name.removesuffix(".py").replace("/", ".") for name in packed(wheel) if name.endswith(".py"))
    imports = "\n".join(f"import {name.removesuffix('.__init__')}" for name in modules)
    (place / "imports.py").write_text(f"{imports}\nprint(graphc.__file__)\n")
    printed = shell(f"{python} imports.py", place, environment)
    assert printed.strip().endswith("site-packages/graphc/__init__.py")
    shell(f"'{place}/venv/bin/graphc' build project/specs/digits.yaml -o out", place, environment)
    shell(f"'{place}/venv/bin/graphc' verify out/digits/native", place, environment)
    assert {path.name for path in (place / "out" / "digits").iterdir()} == {"model.onnx", "report.json", "native"}
