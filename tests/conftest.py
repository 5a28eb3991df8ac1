"""Where tests find what does not ship with the project."""

import os
from pathlib import Path

import pytest

from tests.golden import Golden

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the tests that import onnxruntime themselves; see graphc.ort

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


def find_shared() -> Path | None:
    """The folder of real models and data beside the repository, or None."""
    return SHARED if SHARED.is_dir() else None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and data; the test skips where it is absent (as in a user's clone)."""
    folder = find_shared()
    if folder is None:
        pytest.skip("../shared/data is absent (it does not ship with the project)")
    return folder


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden texts anew instead of comparing them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """The golden texts of the test's own module: `golden/<module>.txt` beside it."""
    path = Path(request.path)
    return Golden(path.parent / "golden" / f"{path.stem}.txt", request.config.getoption("--update-golden"))
