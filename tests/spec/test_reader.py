"""The YAML reader: the design's sketch reads, and every mistake is reported at once with its line and a remedy."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphc.errors import InputError
from graphc.spec import Spec, SpecError, parse, read
from graphc.spec.model import Board, Cpu, Gpu

SKETCH = """\
model: {path: mobilenet_v2.onnx, inputs: {input: [1, 3, 224, 224]}}
data:
  calibration: {path: cal.npz, count: 128}
  evaluation: {path: test.npz, metric: top1}
  preprocess: {layout: nhwc, scale: 1/255, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], fold: true}
passes:
  - kind: fold
targets:
  - {cpu: native}
  - {board: raspberry-pi-4}
  - {gpu: sm_87, host: aarch64-linux}
budget: {flash: 512KiB, ram: 256KiB, latency: 20ms, macs: 300M, accuracy_drop: 1.0}
"""

WORDS = [
    *("path", "count", "metric", "calibration", "evaluation", "preprocess", "fold", "mean", "std", "scale", "layout"),
    *("kind", "weights", "activations", "where", "name", "cpu", "board", "gpu", "host", "flash", "latency", "macs"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("mobilenet_v2.onnx", "cal.npz", "test.npz"):
        (tmp_path / name).touch()
    return tmp_path


def mistakes(text: str, folder: Path) -> list[str]:
    """Every mistake as `line key: the rest`."""
    with pytest.raises(SpecError) as caught:
        parse(text, folder / "spec.yaml")
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [str(mistake) for mistake in caught.value.mistakes]
    return [str(mistake).removeprefix(f"{folder / 'spec.yaml'}:") for mistake in caught.value.mistakes]


def only(text: str, folder: Path) -> str:
    found = mistakes(text, folder)
    assert len(found) == 1, found
    return found[0]


def test_sketch(folder: Path) -> None:
    path = folder / "MobileNet-v2.yaml"
    path.write_text(SKETCH)
    spec = read(path)
    assert spec.name == "mobilenet_v2"
    assert spec.folder == folder
    assert spec.model is not None and spec.model.path == folder / "mobilenet_v2.onnx"
    assert spec.model.inputs == {"input": (1, 3, 224, 224)}
    assert spec.data.calibration is not None and spec.data.calibration.count == 128
    assert spec.data.evaluation is not None and spec.data.evaluation.metric == "top1"
    assert spec.data.preprocess is not None and spec.data.preprocess.scale == 1 / 255
    assert [step.kind for step in spec.passes] == ["fold"]
    assert spec.targets == (Cpu(cpu="native"), Board(board="raspberry-pi-4"), Gpu(gpu="sm_87", host="aarch64-linux"))
    assert [target.id for target in spec.targets] == ["native", "raspberry-pi-4", "sm_87-aarch64-linux"]
    assert (spec.budget.flash, spec.budget.latency, spec.budget.macs) == (524288, 0.02, 300_000_000)


def test_frozen_and_equal(folder: Path) -> None:
    spec = parse(SKETCH, folder / "a.yaml")
    assert spec == parse(SKETCH, folder / "a.yaml")
    with pytest.raises(ValueError, match="frozen"):
        spec.name = "b"  # type: ignore[misc]


def test_spec_in_python_needs_no_model() -> None:
    assert Spec(targets=(Cpu(cpu="native"),)).model is None


@pytest.mark.parametrize(
    ("stem", "name"), [("digits", "digits"), ("3d", "m_3d"), ("Ünï-2.1", "n_2_1"), ("__", "model")]
)
def test_name_from_file(stem: str, name: str, folder: Path) -> None:
    assert parse("model: {path: cal.npz}", folder / f"{stem}.yaml").name == name


def test_all_mistakes_at_once(folder: Path) -> None:
    text = """\
model: {path: absent.onnx, inptus: {input: [1, -3, 2.5, x]}}
data:
  calibration: {path: cal.npz, cuont: 128}
  calibration: {path: cal.npz}
  evaluation: {path: test.npz, metric: topp1}
passes:
  - {kind: fodl}
  - {knid: fold}
  - {kind: fold, deep: true}
  - fold
targets: [{cpu: nativ}, {boadr: x}, {gpu: sm_87}]
1: 3
budget:
  flash: 512
  accuracy_drop: -1.0
"""
    places = [" ".join(mistake.split(": ")[:2]) for mistake in mistakes(text, folder)]
    assert places == [
        "1 model.path",
        "1 model.inptus",
        "3 data.calibration.cuont",
        "4 data.calibration",
        "5 data.evaluation.metric",
        "7 passes[0]",
        "8 passes[1]",
        "9 passes[2].deep",
        "10 passes[3]",
        "11 targets[0].cpu",
        "11 targets[1]",
        "11 targets[2].host",
        '12 expected text as a key, got 1. Write "1" in quotes.',
        "14 budget.flash",
        "15 budget.accuracy_drop",
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("budgte: {}", "2: budgte: expected one of budget, data, model, name, passes, targets, got an unknown key"),
        ("budgte: {}", "Did you mean 'budget'?"),
        ("budget: {flash: 512}", "expected a size with a unit, such as 512KiB or 2MB, got 512. Write the unit"),
        ("budget: {latency: 3 weeks}", 'expected a time with a unit, such as 20ms or 1.5s, got "3 weeks"'),
        ("passes: [{kind: flod}]", "Did you mean 'fold'?"),
        ("passes: {kind: fold}", "2: passes: expected a list, got keys (kind)."),
        ("targets: [{cpu: x86-64-v9}]", "'x86-64-v4', 'zen4', "),
        ("targets: [{cpu: x86-64-v9}]", 'got "x86-64-v9". Did you mean \'x86-64-v'),
        (
            "targets: [{board: {name: mine, cpu: cortex-m4, ram: 64}}]",
            "2: targets[0].board.ram: expected a size with a",
        ),
        ("targets: [{board: {name: mine, cpu: cortex-m4, rom: 1KiB, ram: 1KiB}}]", "board.rom: expected one of clock,"),
        ("targets: [{board: {name: mine, cpu: cortex-m4}}]", "2: targets[0].board.ram: expected this key, got nothing"),
        ("targets: [{board: STM32}]", "2: targets[0].board: expected text that matches"),
        ("targets: [{cpu: native}, {cpu: native}]", "2: targets: expected each target once (twice: native)"),
        (
            "data: {evaluation: {path: test.npz}}",
            "2: data.evaluation.metric: expected this key, got nothing. Add `metric",
        ),
        ("data: {evaluation: {path: test.npz, metric: 'a b:c'}}", 'or module:function, got "a b:c"'),
        (
            "data: {calibration: {path: cal.npz, count: '8'}}",
            'data.calibration.count: expected a whole number, got "8".',
        ),
        ("data: {calibration: {path: cal.npz, count: true}}", "expected a whole number, got true."),
        ("data: {calibration: {path: cal.npz, count: 0}}", "expected a value above 0, got 0."),
        ("data: {preprocess: {scale: 1/255}}", "2: data.preprocess.fold: expected this key"),
        ("data: {preprocess: {fold: false, mean: [1, 2]}}", "expected `layout: nhwc` or `layout: nchw` beside values"),
        ("data: {preprocess: {fold: false, std: 0}}", "data.preprocess.std: expected values other than 0, got "),
        ("budget: {accuracy_drop: 1.0}", "2: budget.accuracy_drop: expected data.evaluation beside it"),
        ("budget: {accuracy_drop: 1e999}", '2: budget.accuracy_drop: expected a plain value, got !!float "1e999".'),
        ("budget: !secret {}", "2: budget: expected plain YAML, got the tag !secret. Remove the tag."),
        ("name: 2fast", "2: name: expected text that matches"),
        ("name: 2026-11-22", "2: name: expected text that matches"),
        ("? [a]\n: 1", "2: expected text as a key, got a list."),
        ("data: {calibration: {path: cal.npz, count: no}}", 'expected a whole number, got "no".'),
    ],
)
def test_messages(line: str, message: str, folder: Path) -> None:
    assert message in only(f"model: {{path: mobilenet_v2.onnx}}\n{line}\n", folder)


def test_numbers_of_yaml_1_2(folder: Path) -> None:
    head = "model: {path: cal.npz}\ndata: {evaluation: {path: test.npz, metric: top1}}\n"
    assert parse(f"{head}budget: {{accuracy_drop: 1e-4}}", folder / "a.yaml").budget.accuracy_drop == 1e-4
    assert parse(f"{head}budget: {{macs: 0x10}}", folder / "a.yaml").budget.macs == 16
    assert parse(f"{head}budget: {{accuracy_drop: 1}}", folder / "a.yaml").budget.accuracy_drop == 1.0


def test_missing_model(folder: Path) -> None:
    assert only("targets: []", folder) == "1: model: expected this key, got nothing. Add `model: {path: ...}`."
    with pytest.raises(SpecError, match="1: model: expected this key, got nothing"):
        parse("model:", folder / "a.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text", "3"])
def test_not_a_mapping(text: str, folder: Path) -> None:
    assert "expected keys with values (model, passes, targets, ...), got" in only(text, folder)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model: {path: a", 1),
        ("model: {}\n\tdata: x", 2),
        ("model: a\n---\nmodel: b", 2),
        ("a: *b", 1),
        ("model: {}\ndata: \x00", 2),
        ("model: &a {}\nb: &a 1\n c", 2),
    ],
)
def test_broken_yaml(text: str, line: int, folder: Path) -> None:
    found = only(text, folder)
    assert found.startswith(f"{line}: expected YAML, got ") and "Check indentation" in found


def test_limits(folder: Path) -> None:
    assert "levels of nesting" in only("a: " + "[" * 500_000, folder)
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
    )
    assert "aliases expanded, got more. Remove aliases" in only(bomb, folder)
    assert "aliases expanded, got more. Remove aliases" in only("a: &a [*a]", folder)


def test_alias_is_the_same_as_writing_it_twice(folder: Path) -> None:
    text = "model: {path: cal.npz}\ndata: {calibration: {path: &p cal.npz}, evaluation: {path: *p, metric: top1}}"
    data = parse(text, folder / "a.yaml").data
    assert data.calibration and data.evaluation and data.calibration.path == data.evaluation.path


def test_unreadable_files(folder: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: expected a readable spec file"):
        read(folder / "absent.yaml")
    with pytest.raises(InputError, match="expected a readable spec file"):
        read(folder)
    (folder / "latin.yaml").write_bytes("# ü\nmodel: {}".encode("latin-1"))
    with pytest.raises(InputError, match="expected text in UTF-8, got byte 0xfc at 2"):
        read(folder / "latin.yaml")
    (folder / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(InputError, match="at most 1048576 bytes"):
        read(folder / "large.yaml")


def test_byte_order_mark(folder: Path) -> None:
    (folder / "bom.yaml").write_text("model: {path: cal.npz}", encoding="utf-8-sig")
    assert read(folder / "bom.yaml").name == "bom"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_text_is_a_spec_or_an_input_error(data: st.DataObject, folder: Path) -> None:
    """Characters are cut out of the sketch or put into it: whatever comes, there is no traceback."""
    text = SKETCH
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(start + 8, len(text))))
        pieces = st.text(max_size=4) | st.sampled_from(
            ["{", "}", "[", "- ", ": ", "\n  ", "&a ", "*a", "!!x ", "'", "\t", "? "]
        )
        text = text[:start] + data.draw(pieces) + text[end:]
    try:
        assert isinstance(parse(text, folder / "a.yaml"), Spec)
    except InputError as error:
        assert str(error).startswith(str(folder / "a.yaml"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
        max_leaves=12,
    )
)
def test_any_values_under_known_keys(folder: Path, value: object) -> None:
    text = yaml.safe_dump(
        {"model": {"path": "cal.npz"}, "data": value, "passes": value, "targets": value, "budget": value}
    )
    try:
        parse(text, folder / "a.yaml")
    except SpecError as error:
        assert all(mistake.line >= 1 and mistake.got for mistake in error.mistakes)
