"""Steps: applied in order, checked, measured on the best data there is, and remembered."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from graphc.data import Dataset
from graphc.errors import InputError, InternalError
from graphc.ir import Edit, Graph
from graphc.job import Job, prepare
from graphc.memory import Forgetful
from graphc.passes.protocol import Context, Pass
from graphc.passes.prune import Prune
from graphc.pipeline import Data, run
from graphc.quality import Difference
from tests import small

OPTIONS = {"weights": "int8", "activations": "uint8", "calibrate": "minmax"}


class Recording(Forgetful):
    """A memory of one process, which says what it was asked."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.found: list[str] = []

    def recall(self, kind: str, *parts: Any) -> bytes | None:
        value = self.kept.get(repr((kind, parts)))
        self.found += [kind] if value is not None else []
        return value

    def keep(self, value: bytes, kind: str, *parts: Any) -> None:
        self.kept[repr((kind, parts))] = value


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    return prepare(None, small.write(tmp_path_factory.mktemp("job")))


def test_each_step_is_measured_against_the_model(job: Job) -> None:
    done = run(job.model, job.spec.passes, job.data, Forgetful())
    assert [(step.index, step.kind) for step in done.steps] == [(0, "model"), (1, "fold"), (2, "quantize")]
    qualities = [step.quality for step in done.steps]
    assert all(quality and quality.metric == "top1" and quality.samples == 16 for quality in qualities)
    assert done.steps[2].bytes < done.steps[1].bytes
    assert done.steps[2].options["weights"] == "int8"
    assert done.graph.outputs == job.model.outputs


def test_a_step_shows_what_it_could_have_come_to(job: Job) -> None:
    options = {"pattern": "channels", "method": "reconstruction", "sparsity": 0.5, "repair": "least_squares"}
    passes = (job.spec.passes[0], Prune.model_validate(options))
    step = run(job.model, passes, job.data, Forgetful()).steps[2]
    bare = step.compared["without repair"]
    assert step.quality is not None and step.quality.sqnr is not None and bare.sqnr is not None
    assert step.quality.sqnr > bare.sqnr
    assert [(note.operator, dict(note.figures)) for note in step.notes] == [("Conv", {"before": 256, "after": 128})]


def test_without_evaluation_data_the_calibration_data_serves(job: Job) -> None:
    done = run(job.model, job.spec.passes, Data(calibration=job.data.calibration), Forgetful())
    quality = done.steps[2].quality
    assert quality is not None and quality.data == "calibration" and quality.samples == 8
    assert quality.metric is None and quality.value is None
    assert quality.sqnr is not None and quality.sqnr > 20 and 0 < quality.error < 0.1


def test_without_any_data_only_costs_are_known(job: Job) -> None:
    done = run(job.model, job.spec.passes[:1], Data(), Forgetful())
    assert [step.quality for step in done.steps] == [None, None]


def test_statistics_need_calibration_data(job: Job) -> None:
    with pytest.raises(InputError, match="pass quantize needs calibration data"):
        run(job.model, job.spec.passes, Data(), Forgetful())


def test_results_are_remembered(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Recording()
    first = run(job.model, job.spec.passes, job.data, memory)
    assert memory.found == []
    monkeypatch.setattr(Dataset, "__iter__", lambda _: pytest.fail("the data was read again"))
    second = run(job.model, job.spec.passes, job.data, memory)
    assert second.steps == first.steps
    assert memory.found == ["statistics", "quality", "quality", "quality"]


def test_stop_after(job: Job) -> None:
    assert len(run(job.model, job.spec.passes, job.data, Forgetful(), stop_after=0).steps) == 1
    assert len(run(job.model, job.spec.passes, job.data, Forgetful(), stop_after=1).steps) == 2


def test_progress_ends_every_stage(job: Job) -> None:
    last: dict[str, float] = {}
    run(job.model, job.spec.passes, job.data, Forgetful(), progress=last.__setitem__)
    assert {"step 1 (fold)", "step 2 (quantize)", "step 2 (quantize): calibration"} <= last.keys()
    assert set(last.values()) == {1.0}


class Spoil(Pass):
    kind: Literal["spoil"] = "spoil"

    def apply(self, graph: Graph, context: Context) -> Graph:
        context.skip(graph.nodes[0], "seen")
        return Graph(graph.name, graph.inputs, ("nowhere",), graph.nodes, graph.types, graph.constants)


class Remark(Pass):
    kind: Literal["remark"] = "remark"

    def apply(self, graph: Graph, context: Context) -> Graph:
        context.skip(graph.nodes[0], "seen")
        return Edit(graph).apply()


def test_a_pass_that_spoils_the_graph_is_named(job: Job) -> None:
    with pytest.raises(InternalError, match="nowhere"):
        run(job.model, [Spoil()], Data(), Forgetful())


def test_skips_are_collected(job: Job) -> None:
    (_, step) = run(job.model, [Remark()], Data(), Forgetful()).steps
    assert [(skip.operator, skip.reason) for skip in step.skips] == [(job.model.nodes[0].op, "seen")]


def test_difference() -> None:
    found = Difference()
    found.add(np.array([1.0, np.nan, np.inf]), np.array([1.0, np.nan, np.inf]))
    assert (found.sqnr, found.error) == (None, 0.0)
    found.add(np.array([2.0, 4.0]), np.array([2.5, 4.0]))
    assert found.error == 0.5 / 4.0
    assert found.sqnr == pytest.approx(10 * np.log10((1 + 2.5**2 + 16) / 0.25))
    found.add(np.array(np.nan), np.array(0.0))
    assert (found.sqnr, found.error) == (-np.inf, np.inf)


def test_integer_borders_are_judged_as_numbers(tmp_path: Path) -> None:
    spec = small.SPEC.replace("calibrate: minmax", "calibrate: minmax, io: int8")
    job = prepare(None, small.write(tmp_path, spec))
    done = run(job.model, job.spec.passes, job.data, Forgetful())
    assert done.graph.types["image"].dtype == np.int8 and done.graph.types["scores"].dtype == np.int8
    quality = done.steps[2].quality
    assert quality is not None and quality.sqnr is not None and quality.sqnr > 20
