"""The models of the speed table do the work that their papers say (MAC counts of the same layers in torch)."""

import pytest

from graphc.importer import load
from graphc.ir.cost import cost
from tests.bench.speed_models import MODELS


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("mobilenet_v2", 300_774_272),
        ("resnet18", 1_814_073_344),
        ("resnet50", 4_089_184_256),
        ("encoder", 1_434_451_968),
    ],
)
def test_models_do_their_work(name: str, macs: int) -> None:
    assert cost(load(MODELS[name]())).macs == macs
