"""Whole builds: what they leave, that they are repeatable, remembered, and never half-written."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest

import graphc
from graphc.backends.worker import Server
from graphc.compile import Build
from graphc.errors import BudgetError, InputError, InternalError
from graphc.execute import Session
from graphc.importer import load
from graphc.report import read_report
from graphc.staging import Staging
from tests import small


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the small network, and a cache of its own, filled by whichever test comes first."""
    folder = tmp_path_factory.mktemp("workshop")
    small.write(folder)
    before = os.environ.get("GRAPHC_CACHE")
    os.environ["GRAPHC_CACHE"] = str(folder / "cache")
    yield folder
    os.environ.pop("GRAPHC_CACHE")
    if before is not None:
        os.environ["GRAPHC_CACHE"] = before


@pytest.fixture(scope="module")
def build(workshop: Path) -> Build:
    return graphc.compile(None, workshop / "small.yaml", out=workshop / "first")


def content(folder: Path) -> dict[str, bytes]:
    """All that a build holds but the report, where latencies are."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "report.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_layout(build: Build, workshop: Path) -> None:
    assert build.folder == workshop / "first" / "small"
    assert {path.name for path in build.folder.iterdir()} == {"model.onnx", "report.json", "native"}
    names = {path.name for path in build.artifact("native").iterdir()}
    assert names == {"libsmall.so", "libsmall.a", "small.h", "small.c", "CMakeLists.txt", "manifest.json"}
    assert [path.name for path in (workshop / "first").iterdir()] == ["small"]


def test_report(build: Build) -> None:
    assert read_report(build.folder) == build.report
    assert [step.kind for step in build.report.steps] == ["model", "fold", "quantize"]
    first, _, last = build.report.steps
    assert last.bytes < first.bytes
    assert first.macs == last.macs == 4 * 3 * 9 * 64 + 20
    assert first.quality is not None and (first.quality.data, first.quality.samples) == ("evaluation", 16)
    assert first.quality.error == 0.0 and first.quality.sqnr is None
    assert last.quality is not None and last.quality.sqnr is not None and last.quality.sqnr > 20
    (target,) = build.report.targets
    assert target.flash == (build.artifact("native") / "libsmall.so").stat().st_size
    assert target.latency is not None and 0 < target.latency.minimum <= target.latency.median
    assert build.report.before is not None and build.report.before.engine == "onnxruntime"


def test_the_artifact_computes_what_the_model_does(build: Build) -> None:
    x = np.load(build.folder.parent.parent / "data.npz")["image"][:1]
    expected = Session(load(build.model)).run({"image": x})["scores"]
    with build.open() as runner:
        actual = runner(x)
    step = np.abs(expected).max() / 127
    assert np.abs(actual - expected).max() <= 2 * step


def test_a_second_build_compiles_nothing_and_is_the_same(
    build: Build, workshop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the compile server was started")

    monkeypatch.setattr(Server, "_started", refuse)
    again = graphc.compile(None, workshop / "small.yaml", out=workshop / "second")
    assert content(again.folder) == content(build.folder)
    assert again.report == build.report


def test_a_build_from_nothing_is_the_same(build: Build, workshop: Path) -> None:
    """Another folder, another cache: not a byte depends on either."""
    elsewhere = small.write(workshop / "elsewhere")
    fresh = graphc.compile(None, elsewhere, out=workshop / "fresh", cache=workshop / "other")
    assert content(fresh.folder) == content(build.folder)


def test_a_second_build_takes_under_two_seconds(build: Build, workshop: Path) -> None:
    """Of processor time, all of it in one thread: other tests run beside this one."""
    del build
    command = [sys.executable, "-c", "from graphc.cli import main; main()", "build", "small.yaml", "-o", "third"]
    times = []
    for _ in range(3):
        process = subprocess.Popen(command, cwd=workshop, stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        times.append(used.ru_utime + used.ru_stime)
    assert min(times[1:]) < 2.0


def test_python_takes_a_graph_and_a_spec_as_data(workshop: Path) -> None:
    model = graphc.load(small.model(), {"image": [1, 3, 8, 8]})
    made = graphc.compile(model, {"name": "mine", "passes": [{"kind": "fold"}]}, out=workshop / "python")
    assert made.folder.name == "mine" and made.report.targets == ()
    assert load(made.model).inputs == ("image",)


def test_importing_the_module_leaves_the_function() -> None:
    module = import_module("graphc.compile")
    assert graphc.compile is module.compile
    assert set(graphc.__all__) <= set(dir(graphc))
    assert all(getattr(graphc, name) is not None for name in graphc.__all__)


def test_stop_after(workshop: Path) -> None:
    (workshop / "no_target.yaml").write_text(small.SPEC.replace("targets: [{cpu: native}]", ""))
    made = graphc.compile(None, workshop / "no_target.yaml", out=workshop / "stopped", stop_after=1)
    assert [step.kind for step in made.report.steps] == ["model", "fold"]
    assert not any(node.op == "QuantizeLinear" for node in load(made.model).nodes)


def test_a_missed_budget_names_every_limit_and_by_how_much(workshop: Path) -> None:
    spec = workshop / "tight.yaml"
    spec.write_text(small.SPEC + "budget: {ram: 64B, size: 1MiB, flash: 1KiB}\n")
    with pytest.raises(BudgetError, match=r"flash on native is .* more than 1\.00 KiB .*; ram on native is") as caught:
        graphc.compile(None, spec, out=workshop / "over")
    assert caught.value.exit_code == 3
    assert "size" not in str(caught.value)
    assert read_report(workshop / "over" / "tight").name == "tight"


def test_a_failed_build_leaves_the_last_one(build: Build, workshop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(build.folder)

    def fail(*_: object, **__: object) -> NoReturn:
        raise InternalError("node", "broke.")

    monkeypatch.setattr(import_module("graphc.compile"), "build_target", fail)
    with pytest.raises(InternalError):
        graphc.compile(None, workshop / "small.yaml", out=workshop / "first")
    assert content(build.folder) == before
    assert [path.name for path in (workshop / "first").iterdir()] == ["small"]


def put(place: Path, *targets: str) -> None:
    """Write what a build of these targets leaves, in short."""
    with Staging(place) as staging:
        for target in targets:
            (staging.folder / target).mkdir()
            (staging.folder / target / "manifest.json").write_text("{}")
        (staging.folder / "model.onnx").write_text(" ".join(targets))
        (staging.folder / "report.json").write_text(
            json.dumps({"graphc": "0", "targets": [{"id": t} for t in targets]})
        )
        staging.commit()


def test_staging_replaces_the_last_build_and_nothing_else(tmp_path: Path) -> None:
    place = tmp_path / "build"
    put(place, "old", "both")
    (place / "notes").mkdir()
    (place / "notes" / "manifest.json").write_text("mine")
    put(place, "both", "new")
    assert sorted(path.name for path in place.iterdir()) == ["both", "model.onnx", "new", "notes", "report.json"]
    assert (place / "model.onnx").read_text() == "both new"
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


@pytest.mark.parametrize("name", ["model.onnx", "report.json", "native"])
def test_staging_touches_nothing_that_graphc_did_not_make(tmp_path: Path, name: str) -> None:
    place = tmp_path / "build"
    (place / name).mkdir(parents=True)
    with pytest.raises(InputError, match="is in the way"):
        put(place, "native")
    with pytest.raises(InputError, match="is in the way"), Staging(place, ["model.onnx", "report.json", "native"]):
        pass
    assert [path.name for path in place.iterdir()] == [name]
    assert [path.name for path in tmp_path.iterdir()] == ["build"]


def test_a_build_does_not_replace_the_model_that_it_reads(tmp_path: Path) -> None:
    spec = small.write(tmp_path / "small", small.SPEC.replace("small.onnx", "model.onnx").replace("{cpu: native}", ""))
    (tmp_path / "small" / "small.onnx").rename(tmp_path / "small" / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: is in the way"):
        graphc.compile(None, spec, out=tmp_path)
    assert (tmp_path / "small" / "model.onnx").read_bytes() == small.model().SerializeToString()
