"""Datasets: streamed batches, choice of samples, fingerprints, one clear error for every way a file can be wrong."""

import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graphc.data import Dataset
from graphc.errors import InputError
from graphc.ir import TensorType
from graphc.npz import members
from graphc.spec.model import Calibration, Preprocess

RNG = np.random.default_rng(0)
FLOAT = np.dtype(np.float32)
IMAGES = RNG.normal(size=(10, 3, 4, 4)).astype(np.float32)
LABELS = np.arange(10)
IMAGE = {"x": TensorType(FLOAT, (1, 3, 4, 4))}


def dataset(folder: Path, inputs: dict[str, TensorType], count: int | None = None, **arrays: object) -> Dataset:
    np.savez(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return Dataset(Calibration(path=folder / "data.npz", count=count), inputs)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_every_sample_in_order(save, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path / "a.npz", x=IMAGES, y=LABELS, source=np.array(["a"]))
    found = list(Dataset(Calibration(path=tmp_path / "a.npz"), IMAGE))
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in found]), IMAGES)
    assert [batch.labels.tolist() for batch in found if batch.labels is not None] == [[i] for i in range(10)]
    assert {batch.feeds["x"].dtype for batch in found} == {FLOAT}


def test_iterating_twice_gives_the_same(tmp_path: Path) -> None:
    data = dataset(tmp_path, IMAGE, x=IMAGES)
    first, second = ([batch.feeds["x"].tobytes() for batch in data] for _ in range(2))
    assert first == second
    assert (len(data), data.has_labels) == (10, False)


def test_an_npy_serves_a_model_with_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", IMAGES)
    data = Dataset(Calibration(path=tmp_path / "images.npy", count=5), IMAGE)
    np.testing.assert_array_equal(np.concatenate([batch.feeds["x"] for batch in data]), IMAGES[::2])
    assert not data.has_labels
    with pytest.raises(InputError, match="expected an array 'x' as the model's input, got images"):
        Dataset(Calibration(path=tmp_path / "images.npy"), {**IMAGE, "state": IMAGE["x"]})


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "expected an .npy file"), (b"\x93NUMPY", "expected an .npy file")]
)
def test_a_damaged_npy_is_refused(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        Dataset(Calibration(path=tmp_path / "x.npy"), IMAGE)


def test_an_npy_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-8])
    with pytest.raises(InputError, match=f"expected {IMAGES.nbytes + 128} bytes"):
        Dataset(Calibration(path=tmp_path / "x.npy"), IMAGE)


def test_count_is_spread_evenly(tmp_path: Path) -> None:
    data = dataset(tmp_path, IMAGE, count=4, x=IMAGES, y=LABELS)
    assert [int(batch.labels[0]) for batch in data if batch.labels is not None] == [0, 2, 5, 7]


def test_batch_of_the_model(tmp_path: Path) -> None:
    inputs = {"x": TensorType(FLOAT, (2, 3, 4, 4))}
    data = dataset(tmp_path, inputs, count=4, x=IMAGES, y=LABELS)
    assert [batch.labels.tolist() for batch in data if batch.labels is not None] == [[0, 1], [4, 5]]
    assert [batch.feeds["x"].shape for batch in data] == [(2, 3, 4, 4)] * 2
    assert len(data) == 2


def test_whole_inputs_per_row_and_scalars(tmp_path: Path) -> None:
    inputs = {
        "input": TensorType(FLOAT, (1, 4)),
        "state": TensorType(FLOAT, (2, 1, 3)),
        "rate": TensorType(np.dtype(np.int64), ()),
        "gain": TensorType(FLOAT, ()),
    }
    states = RNG.normal(size=(5, 2, 1, 3)).astype(np.float32)
    arrays = {
        "input": np.ones((5, 4), np.float32),
        "state": states,
        "rate": np.int64(16000),
        "gain": np.arange(5, dtype="f4"),
    }
    found = list(dataset(tmp_path, inputs, **arrays))
    assert np.array_equal(np.stack([batch.feeds["state"] for batch in found]), states)
    assert [batch.feeds["rate"].item() for batch in found] == [16000] * 5
    assert [batch.feeds["gain"].item() for batch in found] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert {batch.feeds["gain"].shape for batch in found} == {()}


def test_exact_conversions_only(tmp_path: Path) -> None:
    found = list(dataset(tmp_path, IMAGE, x=np.full((2, 3, 4, 4), 200, np.uint8)))
    assert found[0].feeds["x"].dtype == FLOAT and found[0].feeds["x"].max() == 200.0
    found = list(dataset(tmp_path, IMAGE, x=IMAGES.astype(">f4")))
    assert np.array_equal(found[3].feeds["x"], IMAGES[3:4])
    with pytest.raises(InputError, match=r"array 'x': expected float32 .*, got float64. Save array.astype"):
        dataset(tmp_path, IMAGE, x=IMAGES.astype(np.float64))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES, "y": LABELS}, "expected an array 'x' as the model's input, got images, y. Name the arrays"),
        ({"x": IMAGES[:, :2]}, r"array 'x': expected shape \[N, 3, 4, 4\] for the input float32\[1, 3, 4, 4\], got"),
        ({"x": IMAGES[0]}, r"array 'x': expected shape \[N, 3, 4, 4\]"),
        ({"x": IMAGES[:0]}, "expected samples, got empty arrays"),
        ({"x": IMAGES, "y": LABELS[:9]}, r"array 'y': expected labels for 10 runs, got int64\[9\]"),
        ({"x": IMAGES, "y": np.int64(3)}, "array 'y': expected labels for 10 runs"),
        ({"x": IMAGES, "y": np.array(list("abcdefghij"))}, "array 'y': expected numbers as labels"),
        ({"x": np.array([{}, {}], object)}, "array 'x': expected numbers, got Python objects"),
        ({"x": np.asfortranarray(IMAGES)}, "array 'x': is in Fortran order. Save numpy.ascontiguousarray"),
    ],
)
def test_unfit_arrays(arrays: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        dataset(tmp_path, IMAGE, **arrays)
    assert str(caught.value).startswith(str(tmp_path / "data.npz"))


def test_arrays_must_agree(tmp_path: Path) -> None:
    inputs = {"a": TensorType(FLOAT, (1, 2)), "b": TensorType(FLOAT, (1, 3))}
    with pytest.raises(InputError, match="equally many runs, got 'a' for 4, 'b' for 5"):
        dataset(tmp_path, inputs, a=np.zeros((4, 2), "f4"), b=np.zeros((5, 3), "f4"))


@pytest.mark.parametrize(
    ("batch", "count", "message"),
    [
        (1, 11, "expected at least 11 samples, got 10. Lower `count`"),
        (2, 3, "count 3 is no multiple of the model's batch of 2. Say `count: 2`"),
        (3, None, "expected a multiple of the model's batch of 3 rows"),
    ],
)
def test_count_must_fit(batch: int, count: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        dataset(tmp_path, {"x": TensorType(FLOAT, (batch, 3, 4, 4))}, count=count, x=IMAGES)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(bad: float, tmp_path: Path) -> None:
    images = IMAGES.copy()
    images[7, 1, 2, 3] = bad
    with pytest.raises(InputError, match="array 'x': expected finite numbers, got NaN or infinity in row 7"):
        list(dataset(tmp_path, IMAGE, x=images))


def test_open_dimensions_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"open dimensions. Fix them in the spec: `model: \{inputs: \{x: "):
        dataset(tmp_path, {"x": TensorType(FLOAT, ("N", 3, 4, 4))}, x=IMAGES)


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="expected a readable file"):
        members(path)
    for content in (b"", b"PK\x03\x04 and so on", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"expected an \.npz file, got") as caught:
            members(path)
        assert caught.value.exit_code == 2
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(InputError, match="an archive without arrays"):
        members(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", "no array")
    with pytest.raises(InputError, match=r"expected an \.npz file, got"):
        members(path)


def test_every_truncation_is_an_input_error(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=IMAGES)
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in range(0, len(content), 97):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            list(Dataset(Calibration(path=path), IMAGE))


def test_damage_inside_is_an_input_error_or_is_seen_as_data(tmp_path: Path) -> None:
    """A flipped byte is either detected or gives finite numbers of the right shape; never a traceback."""
    np.savez_compressed(tmp_path / "whole.npz", x=IMAGES)
    content = bytearray((tmp_path / "whole.npz").read_bytes())
    path, refused = tmp_path / "flipped.npz", 0
    for place in range(0, len(content), 53):
        flipped = bytes(content[:place]) + bytes([content[place] ^ 0x55]) + bytes(content[place + 1 :])
        path.write_bytes(flipped)
        try:
            found = list(Dataset(Calibration(path=path), IMAGE))
            assert all(batch.feeds["x"].shape == (1, 3, 4, 4) for batch in found)
        except InputError:
            refused += 1
    assert refused > 0


def test_short_data_under_a_long_header(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES)
    header_and_half = (tmp_path / "x.npy").read_bytes()[:500]
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header_and_half)
    with pytest.raises(InputError, match=r"array 'x': expected 2048 bytes for float32\[10, 3, 4, 4\], got 500"):
        members(tmp_path / "a.npz")


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (pytest.fail, ("a pickle was loaded",))

    np.savez(tmp_path / "a.npz", x=np.array([Trap()], object))
    with pytest.raises(InputError, match="Python objects"):
        Dataset(Calibration(path=tmp_path / "a.npz"), IMAGE)


def test_fingerprint_follows_what_is_fed(tmp_path: Path) -> None:
    base = dataset(tmp_path, IMAGE, x=IMAGES).fingerprint
    other = tmp_path / "other"
    other.mkdir()
    assert dataset(other, IMAGE, x=IMAGES).fingerprint == base
    assert dataset(tmp_path, IMAGE, count=4, x=IMAGES).fingerprint != base
    assert dataset(tmp_path, IMAGE, x=IMAGES + 1).fingerprint != base
    section = Calibration(path=other / "data.npz")
    assert Dataset(section, IMAGE, Preprocess(fold=False, scale=0.5)).fingerprint != base
    assert Dataset(section, IMAGE, Preprocess(fold=True, scale=0.5)).fingerprint == base


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(save, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    save(tmp_path / "large.npz", x=np.zeros((1500, 3, 64, 64), np.float32))
    data = Dataset(Calibration(path=tmp_path / "large.npz"), {"x": TensorType(FLOAT, (1, 3, 64, 64))})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert sum(batch.feeds["x"].shape[0] for batch in data) == 1500
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} KiB more for a file of 72,000 KiB"


def test_preprocessing_is_applied_unless_folded(tmp_path: Path) -> None:
    raw = RNG.integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    options = {"layout": "nhwc", "scale": 1 / 255, "mean": (0.1, 0.2, 0.3), "dtype": "uint8"}
    np.savez(tmp_path / "a.npz", x=raw)
    section = Calibration(path=tmp_path / "a.npz")
    plain = list(Dataset(section, IMAGE, Preprocess.model_validate({**options, "fold": False})))
    mean = np.array([0.1, 0.2, 0.3], np.float32).reshape(1, 3, 1, 1)
    expected = raw.astype(np.float32).transpose(0, 3, 1, 2) * np.float32(1 / 255) - mean
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in plain]), expected)
    folded = {"x": TensorType(np.dtype(np.uint8), (1, 4, 4, 3))}
    untouched = list(Dataset(section, folded, Preprocess.model_validate({**options, "fold": True})))
    assert np.array_equal(np.concatenate([batch.feeds["x"] for batch in untouched]), raw)
