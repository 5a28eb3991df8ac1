"""Sensitivity: a layer made fragile shows as such, limits hold, the written spec gives the choice again."""

import json
from pathlib import Path

import numpy as np
import pytest

from graphc.backends.cache import Cache
from graphc.cli import main
from graphc.compile import FolderMemory
from graphc.errors import InputError
from graphc.exporter import save
from graphc.ir.cost import cost
from graphc.job import prepare
from graphc.mixed_precision import average_bits, walk, within_bits, within_drop, within_macs, within_size
from graphc.relative_entropy import FLOOR, RelativeEntropy
from graphc.sensitivity import MEASURES, By, Row, Sensitivity, Subject, sensitivity, subject_of
from graphc.spec import read
from graphc.spec.writer import write
from tests.passes.quantized import model

FORMATS = ("int8", "int4")
SHAPES = {"w": (8, 16), "v": (16, 16), "u": (16, 4)}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """Three layers; the second has one outlier per channel, so few integers are left for its other weights."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    weights["v"][0] *= 10
    body = "a = MatMul (x, w)\nr = Relu (a)\nb = MatMul (r, v)\ns = Relu (b)\ny = MatMul (s, u)"
    graph = model("(float[1,8] x) => (float[1,4] y)", body, **weights)
    save(graph, tmp_path / "net.onnx")
    for name, rows in (("calibration", 40), ("test", 60)):
        x = rng.normal(size=(rows, 8)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=x)
    path = tmp_path / "net.yaml"
    path.write_text(
        "model: {path: net.onnx}\n"
        "data: {calibration: {path: calibration.npz}, evaluation: {path: test.npz, metric: agreement}}\n"
        "passes: [{kind: fold}, {kind: quantize, weights: int8, activations: uint8, calibrate: minmax}]\n"
    )
    return path


@pytest.fixture
def subject(spec: Path, tmp_path: Path) -> Subject:
    return subject_of(prepare(None, spec), FolderMemory(Cache(tmp_path / "cache")), FORMATS, 50)


def test_every_layer_and_format_is_measured_alone(subject: Subject) -> None:
    found = sensitivity(subject, FORMATS)
    assert (len(found.rows), found.metric, found.before, found.samples) == (6, "agreement", 100.0, 50)
    noise = {(row.layer, row.candidate): row.noise for row in found.rows}
    layers = list(dict.fromkeys(row.layer for row in found.rows))
    for layer in layers:
        assert noise[layer, "int4"] > 10 * noise[layer, "int8"]
    assert max(layers, key=lambda layer: noise[layer, "int4"]) == layers[1]


@pytest.mark.parametrize("by", MEASURES)
def test_the_fragile_layer_is_told_by_every_measure(subject: Subject, by: By) -> None:
    found = sensitivity(subject, FORMATS, by=by)
    losses = {(row.layer, row.candidate): found.loss(row) for row in found.rows}
    layers = list(dict.fromkeys(row.layer for row in found.rows))
    assert max(losses, key=losses.__getitem__) == (layers[1], "int4")
    assert walk(found).choices[-1][layers[1]].candidate == "int4"
    assert losses[layers[1], "int4"] > 0 and all(row.kl is not None and row.kl > 0 for row in found.rows)


def test_a_measure_that_is_not_there_is_refused(spec: Path, tmp_path: Path) -> None:
    spec.write_text(spec.read_text().replace(", evaluation: {path: test.npz, metric: agreement}", ""))
    subject = subject_of(prepare(None, spec), FolderMemory(Cache(tmp_path / "cache")), FORMATS, 40)
    with pytest.raises(InputError, match="no metric to compare layers by"):
        sensitivity(subject, FORMATS, by="metric")


def test_relative_entropy_is_that_of_distributions_however_scores_are_given() -> None:
    rng = np.random.default_rng(0)
    p, q = (rng.dirichlet(np.ones(5), 40).astype(np.float32) for _ in range(2))
    expected = float(np.mean(np.sum(p * np.log(p / q), axis=-1)))
    for given, wanted in ((q, p), (np.log(q) + 3, np.log(p) - 1), (q[:, :, None, None], p[:, :, None, None])):
        entropy = RelativeEntropy()
        for rows in (slice(0, 10), slice(10, 40)):
            entropy.add(given[rows], wanted[rows])
        assert entropy.value == pytest.approx(expected, rel=1e-3)
    places = RelativeEntropy()  # classes of a picture's places lie on axis 1
    places.add(*(np.moveaxis(array.reshape(2, 4, 5, 5), -1, 1) for array in (q, p)))
    assert places.value == pytest.approx(expected, rel=1e-3)


def test_relative_entropy_of_what_is_no_distribution() -> None:
    single, broken = RelativeEntropy(), RelativeEntropy()
    single.add(np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32))
    assert single.value is None
    certain = np.eye(3, dtype=np.float32)
    broken.add(certain[[1, 2, 0]], certain)
    assert broken.value == pytest.approx(-np.log(FLOOR), rel=1e-3)


def test_what_was_measured_is_not_measured_again(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sensitivity(subject, FORMATS)
    monkeypatch.setattr("graphc.quality._measure", lambda *_: pytest.fail("measured again"))
    assert sensitivity(subject, FORMATS) == found


def test_fragile_layers_keep_their_bits_under_a_limit_on_size(subject: Subject) -> None:
    found = sensitivity(subject, FORMATS)
    path = walk(found)
    assert [average_bits(choice) for choice in path.choices] == sorted(map(average_bits, path.choices), reverse=True)
    finest, coarsest = (
        cost(subject.applied(subject.chosen(choice))).bytes for choice in (path.choices[0], path.choices[-1])
    )
    limit = (finest + coarsest) // 2
    choice = within_size(subject, found, limit)
    assert coarsest < cost(subject.applied(subject.chosen(choice))).bytes <= limit
    with pytest.raises(InputError, match="cannot be met"):
        within_size(subject, found, coarsest - 1)


def test_limits_on_bits_and_on_the_drop_hold(subject: Subject) -> None:
    found = sensitivity(subject, FORMATS)
    assert average_bits(within_bits(found, 6.0)) <= 6.0
    choice = within_drop(subject, found, 20.0)
    value = subject.judge({"": subject.applied(subject.chosen(choice))})[""].value
    assert value is not None and 100.0 - value <= 20.0


def test_the_cheapest_noise_goes_first() -> None:
    rows = [Row(layer, "MatMul", weights, 100, saved, sqnr, None)
            for layer, weights, saved, sqnr in (("a", "int8", 300, 40), ("a", "int4", 350, 10), ("a", "int2", 375, 9.5),
                                                ("b", "int8", 300, 40), ("b", "int4", 350, 30))]  # fmt: skip
    path = walk(Sensitivity(tuple(rows), None, None, 1000, 1)).choices
    assert [{layer: row.candidate for layer, row in choice.items()} for choice in path] == [
        {"a": "int8", "b": "int8"}, {"a": "int8", "b": "int4"}, {"a": "int2", "b": "int4"}
    ]  # fmt: skip


def test_the_command_writes_a_spec_that_gives_the_choice_again(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "elsewhere" / "chosen.yaml"
    out.parent.mkdir()
    options = ["--weights", "int8,int4", "--average-bits", "6", "--json", "-o", str(out)]
    monkeypatch.setattr("sys.argv", ["graphc", "sensitivity", str(spec), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (0, None)
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    step = read(out).passes[1]
    rules = {rule.name: rule.overrides for rule in step.where}
    assert rules == {layer: {"weights": "int4"} for layer, name in chosen.items() if name == "int4"}
    assert prepare(None, out).model.nodes  # paths in it hold


def test_a_written_spec_reads_as_the_same(spec: Path) -> None:
    again = spec.with_name("again.yaml")
    write(read(spec), again)
    assert read(again).model_dump(exclude={"name"}) == read(spec).model_dump(exclude={"name"})


@pytest.fixture
def pruned(spec: Path, tmp_path: Path) -> Subject:
    text = spec.read_text()
    text = text[: text.index("passes:")] + (
        "passes: [{kind: fold}, {kind: prune, method: magnitude, pattern: channels, sparsity: 0.5, repair: bias}]\n"
    )
    spec.write_text(text)
    return subject_of(prepare(None, spec), FolderMemory(Cache(tmp_path / "cache")), SHARES, 50)


SHARES = ("0", "0.25", "0.5")


def test_pruning_is_measured_by_layer_and_share(pruned: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sensitivity(pruned, SHARES)
    assert [row.candidate for row in found.rows] == [*SHARES, *SHARES]
    assert (found.title, found.metric) == ("sparsity", "agreement")
    assert [row.sqnr is None for row in found.rows] == [True, False, False] * 2
    assert [row.macs for row in found.rows] == sorted(row.macs for row in found.rows[:3]) + sorted(
        row.macs for row in found.rows[3:]
    )
    monkeypatch.setattr("graphc.sensitivity.Subject.applied", lambda *_: pytest.fail("pruned again"))
    assert sensitivity(pruned, SHARES) == found


def test_shares_come_within_a_limit_on_macs(pruned: Subject) -> None:
    found = sensitivity(pruned, SHARES)
    limit = int(0.7 * found.macs)
    choice = within_macs(pruned, found, limit)
    left = cost(pruned.applied(pruned.chosen(choice))).macs
    assert left is not None and left <= limit
    assert any(row.candidate != "0.5" for row in choice.values())
    with pytest.raises(InputError, match="cannot be met"):
        within_macs(pruned, found, found.macs // 10)


def test_the_command_writes_shares(
    pruned: Subject, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "cache"))
    macs = int(0.7 * sensitivity(pruned, SHARES).macs)
    options = ["--sparsity", ",".join(SHARES), "--macs", str(macs), "--json", "-o", str(tmp_path / "chosen.yaml")]
    monkeypatch.setattr("sys.argv", ["graphc", "sensitivity", str(spec), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code in (0, None)
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    rules = {rule.name: rule.overrides["sparsity"] for rule in read(tmp_path / "chosen.yaml").passes[1].where}
    assert rules == {layer: float(share) for layer, share in chosen.items()}
