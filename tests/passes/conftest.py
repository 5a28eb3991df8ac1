"""What holds for every test of a pass."""

import pytest

from tests.passes import quantized


@pytest.fixture(autouse=True)
def _same_noise() -> None:
    """A test's weights do not depend on which tests the same process ran before it."""
    quantized.RNG.bit_generator.state = quantized.START
