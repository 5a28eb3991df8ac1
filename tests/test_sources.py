"""Sources of samples other than files of arrays: images, the user's functions, random numbers asked for by name."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import graphc
from graphc.data import Dataset
from graphc.errors import InputError
from graphc.ir import Array, TensorType
from graphc.spec.model import Calibration, Evaluation, Preprocess

FLOAT = np.dtype(np.float32)
NCHW = {"x": TensorType(FLOAT, (1, 3, 4, 6))}
PREPROCESS = Preprocess(fold=False, layout="nhwc", dtype="uint8", scale=1 / 255)


def picture(path: Path, *size: int) -> Array:
    """A picture whose pixels are all different, saved without loss."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (extra `images`)")
    pixels = np.arange(np.prod(size) * 3, dtype=np.uint8).reshape(*size, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(pixels).save(path)
    found: Array = pixels
    return found


def images(folder: Path, fit: str = "stretch", color: str = "rgb") -> Dataset:
    section = Calibration.model_validate({"images": folder, "fit": fit, "color": color})
    return Dataset(section, NCHW, PREPROCESS)


def test_images_of_the_right_size_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png", 4, 6)
    for color, expected in (("rgb", pixels), ("bgr", pixels[..., ::-1])):
        (batch,) = images(tmp_path, color=color)
        np.testing.assert_allclose(batch.feeds["x"][0], expected.transpose(2, 0, 1) / np.float32(255), rtol=1e-6)


def test_folders_of_images_are_classes(tmp_path: Path) -> None:
    for number, name in enumerate(("dog/2.png", "cat/1.png", "dog/1.png")):
        picture(tmp_path / name, 4, 6 + number)
    found = images(tmp_path)
    assert [batch.labels.tolist() for batch in found if batch.labels is not None] == [[0], [1], [1]]
    picture(tmp_path / "loose.png", 4, 6)
    assert not images(tmp_path).has_labels


def test_crop_takes_the_middle_and_stretch_takes_all(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 4, 6)
    image = pytest.importorskip("PIL.Image")
    wide = np.zeros((4, 18, 3), np.uint8)
    wide[:, 6:12] = 200  # the middle third
    image.fromarray(wide).save(tmp_path / "a.png")
    cropped, stretched = (next(iter(images(tmp_path, fit))).feeds["x"] for fit in ("crop", "stretch"))
    assert cropped.min() == pytest.approx(200 / 255, rel=1e-6)
    assert stretched.min() == 0.0
    assert stretched.mean() == pytest.approx(200 / 255 / 3, rel=0.02)


def test_fingerprints_follow_what_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 5, 7)
    prints = {images(tmp_path, *options).fingerprint for options in (("crop",), ("stretch",), ("crop", "bgr"))}
    before = images(tmp_path).fingerprint
    assert len(prints) == 3 and images(tmp_path).fingerprint == before
    picture(tmp_path / "b.png", 5, 7)
    assert images(tmp_path).fingerprint != before


def test_images_that_cannot_serve_are_refused(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with pytest.raises(InputError, match="holds no images"):
        images(tmp_path)
    with pytest.raises(InputError, match=r"expected an input \[N, height, width, 1\]"):
        images(tmp_path, color="gray")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"a.png: cannot be read as an image"):
        list(images(tmp_path))
    image.fromarray(np.full((6, 4), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png: expected 8 bits per channel, got Pillow's I;16"):
        list(images(tmp_path))


def function(folder: Path, body: str) -> Dataset:
    (folder / "mine.py").write_text(f"import numpy\n\n\ndef samples():\n    {body}\n")
    return Dataset(Calibration(function="mine:samples"), NCHW, folder=folder)


def test_a_function_gives_arrays_by_name(tmp_path: Path) -> None:
    body = "return {'x': numpy.arange(144, dtype='f4').reshape(2, 3, 4, 6), 'y': [3, 4]}"
    found = function(tmp_path, body)
    batches = list(found)
    np.testing.assert_array_equal(batches[1].feeds["x"].ravel(), np.arange(72, 144))
    assert [batch.labels.tolist() for batch in batches if batch.labels is not None] == [[3], [4]]
    assert function(tmp_path, body).fingerprint == found.fingerprint
    assert function(tmp_path, body.replace("144,", "144.0,")).fingerprint == found.fingerprint
    assert function(tmp_path, body.replace("numpy.arange", "-numpy.arange")).fingerprint != found.fingerprint


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", r"data function mine:samples: .*mine.py:5: ZeroDivisionError"),
        ("raise type('Mine', (Exception,), {})('no disk')", r"mine.py:5: Mine: no disk"),
        ("raise SystemExit(3)", r"mine.py:5: SystemExit: 3"),
        ("return [1]", "expected arrays by name, got list"),
        ("return {'x': [[1, 2], [3]]}", "array 'x': expected an array, got list: .*inhomogeneous"),
        ("return (i for i in range(3))", "expected arrays by name, got generator"),
        ("return {'x': numpy.zeros((2, 3))}", "array 'x': expected float32"),
        ("return {'z': numpy.zeros((2, 3))}", "expected an array 'x' as the model's input, got z"),
        ("return {'x': numpy.array([None])}", "expected numbers, got Python objects"),
        ("return {'x': numpy.zeros((2, 3, 6, 4), 'f4')}", r"expected shape \[N, 3, 4, 6\]"),
        ("return {'x': numpy.zeros((0, 3, 4, 6), 'f4')}", "expected samples, got empty arrays"),
        ("return {'x': numpy.full((2, 3, 4, 6), numpy.nan, 'f4')}", "got NaN or infinity in row 0"),
        ("return {'x': numpy.full((2, 3, 4, 6), numpy.inf, 'f4')}", "got NaN or infinity in row 0"),
    ],
)
def test_functions_that_cannot_serve_are_refused(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        list(function(tmp_path, body))


@pytest.mark.parametrize(("distribution", "low", "high"), [("normal", -9, 9), ("uniform", 0, 1)])
def test_random_numbers_are_the_same_every_time(distribution: str, low: float, high: float) -> None:
    section = Calibration.model_validate({"random": distribution, "count": 5})
    first, second = (np.concatenate([batch.feeds["x"] for batch in Dataset(section, NCHW)]) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(np.unique(first)) == first.size and low <= first.min() < first.max() <= high


def test_a_build_marks_random_data(tmp_path: Path) -> None:
    from tests.passes.quantized import model, normal

    graph = model("(float[1,8] x) => (float[1,4] y)", "y = MatMul (x, w)", w=normal(8, 4))
    quantize = {"kind": "quantize", "weights": "int8", "activations": "uint8", "calibrate": "minmax"}
    spec = {
        "data": {"calibration": {"random": "normal", "count": 8}},
        "passes": [{"kind": "fold"}, quantize],
    }
    report = graphc.compile(graph, spec, out=tmp_path / "build", cache=tmp_path / "cache").report
    assert report.spec["data"]["calibration"]["random"] == "normal"
    assert {step.quality.data for step in report.steps if step.quality is not None} == {"random"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of path, images, function, random"),
        ({"random": "normal", "function": "a:b", "count": 1}, "one of path, images, function, random"),
        ({"random": "normal"}, "a count of random samples"),
        ({"function": "a:b", "fit": "crop"}, "`fit` beside `images`, and nowhere else"),
        ({"images": ".", "fit": "crop"}, "`color` beside `images`, and nowhere else"),
        ({"function": "a"}, "module:function"),
    ],
)
def test_sections_name_one_source(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Calibration.model_validate(given)


def test_random_numbers_judge_nothing() -> None:
    with pytest.raises(ValidationError, match="real data"):
        Evaluation.model_validate({"random": "normal", "count": 3, "metric": "agreement"})
