"""The quickstart's network and data: real, held out, small, and as good as its README says."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from sklearn.datasets import load_digits

from graphc import metrics, preprocess
from graphc.data import Dataset
from graphc.execute import Session
from graphc.importer import load
from graphc.spec import read

ROOT = Path(__file__).parent.parent
SPEC, FOLDER = ROOT / "specs" / "digits.yaml", ROOT / "specs" / "digits"
Images = npt.NDArray[np.float32]


def rows(images: Images) -> list[bytes]:
    return [image.astype(np.float32).tobytes() for image in images.reshape(-1, 64)]


def test_the_images_are_scikit_learns_and_held_out() -> None:
    images, labels = load_digits(return_X_y=True)
    known = dict(zip(rows(images), labels.tolist(), strict=True))
    with np.load(FOLDER / "test.npz") as test, np.load(FOLDER / "calibration.npz") as calibration:
        held_out, digits, calibrated = test["image"], test["y"], calibration["image"]
    assert (held_out.shape, calibrated.shape) == ((500, 8, 8, 1), (200, 8, 8, 1))
    assert [known[row] for row in rows(held_out)] == digits.tolist()
    assert set(rows(calibrated)) <= known.keys()
    assert not set(rows(calibrated)) & set(rows(held_out))
    assert np.bincount(digits).min() >= 48
    assert (held_out.min(), held_out.max(), held_out.dtype) == (0, 16, np.float32)


def test_a_network_worth_compressing() -> None:
    model = onnx.load(FOLDER / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    operators = {node.op_type for node in model.graph.node}
    assert operators == {"Conv", "BatchNormalization", "Relu", "MaxPool", "Add", "Flatten", "Gemm"}
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer)
    assert 30_000 < weights < 40_000


def test_accuracy_on_raw_pixels() -> None:
    spec = read(SPEC)
    assert spec.model and spec.data.preprocess and spec.data.evaluation
    graph = preprocess.prepend(load(spec.model.path, spec.model.inputs), spec.data.preprocess)
    samples = Dataset(spec.data.evaluation, {"image": graph.types["image"]}, spec.data.preprocess)
    metric, session = metrics.create(spec.data.evaluation, graph.outputs, spec.folder).start(), Session(graph)
    for batch in samples:
        metric.add(session.run(batch.feeds), batch.labels, None)
    assert len(samples) == 500
    assert metric.value() == 99.6


def test_all_of_it_is_under_a_megabyte() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 2**20
