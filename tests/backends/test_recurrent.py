"""Recurrent layers as kernels: an artifact of one gives what onnxruntime gives."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphc.backends.build import build_target
from graphc.backends.cache import Cache
from graphc.backends.decompose import decompose
from graphc.backends.decompose_recurrent import GATES, KERNELS
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.execute import Session
from graphc.ir.graph import Array
from graphc.runner import Runner
from tests.backends.test_decompose import graph_of

OPTIONS: dict[str, list[dict[str, Any]]] = {"LSTM": [{}], "GRU": [{}, {"linear_before_reset": 1}], "RNN": [{}]}


@pytest.mark.parametrize(("op", "direction"), list(product(GATES, ("forward", "bidirectional"))))
def test_steps_are_one_kernel(op: str, direction: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)

    def normal(*shape: int) -> Array:
        """Small enough that rounding does not grow from step to step."""
        return (rng.standard_normal(shape) * 0.4).astype(np.float32)

    both, gates, hidden = 2 if direction == "bidirectional" else 1, GATES[op], 7
    operands: list[Array | None] = [
        normal(6, 3, 5), normal(both, gates * hidden, 5), normal(both, gates * hidden, hidden),
        normal(both, 2 * gates * hidden), None, normal(both, 3, hidden),
    ]  # fmt: skip
    for options in OPTIONS[op]:
        outputs = 3 if op == "LSTM" else 2
        graph, given = graph_of(op, operands, (1, 2, 3), outputs, hidden_size=hidden, direction=direction, **options)
        kernels = [node for node in decompose(graph, kernels=True).nodes if node.domain == KERNELS]
        assert len(kernels) == both
        with Server() as server:
            folder = tmp_path / f"{len(options)}"
            build_target(graph, resolve({"cpu": "x86-64-v3"}), folder, server, Cache(tmp_path / "cache"))
        with Runner(folder) as runner:
            found = runner(**given)
        for name, value in Session(graph).run(given).items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=2e-6)
