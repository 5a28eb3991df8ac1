"""The models whose accuracy is compared, their rows, and how answers are scored.

Rows are split once per data set with seed 0: calibration rows are never test rows, and every method gets the same ones.
CIFAR-10 and MNIST calibrate on training images; elsewhere the rows that are not drawn for calibration are the test.
"""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Figures = Mapping[str, float]
Score = Callable[[Array, Array, "Rows"], Figures]
"""(outputs, the float model's outputs, rows) -> figures, the one that decides first."""

SEED = 0
MEAN, DEVIATION = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
KEYWORDS = {
    "tiny": ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes", "silence", "unknown"],
    "kwt": ["silence", "unknown", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go"],
}
"""Label orders of the two keyword models' makers."""


@dataclass(frozen=True)
class Rows:
    """What the model takes, one sample per row: for calibration, and for the test with its labels."""

    calibration: Array
    test: Array
    labels: Array | None = None


@dataclass(frozen=True)
class Task:
    """`model` is below shared/data/models. `drop`: how much worse than float the first figure may be; `higher`: better.

    `limits`: what figures may be at most. `transformer`: peers are told so where they have an option for it. `options`:
    what graphc's spec says beside what it says for every model.
    """

    model: str
    rows: Callable[[Path], Rows]
    score: Score
    drop: float | None = 1.0
    higher: bool = True
    transformer: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def drawn(count: int, number: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Row numbers for calibration, drawn with seed 0, and the others in order."""
    order = np.random.default_rng(SEED).permutation(count)
    return np.sort(order[:number]), np.sort(order[number:])


def normalized(images: npt.NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(((images.astype(np.float32) / 255 - MEAN) / DEVIATION).transpose(0, 3, 1, 2))


def raw(images: npt.NDArray[np.uint8]) -> Floats:
    return images.astype(np.float32)


def cifar(prepare: Callable[[npt.NDArray[np.uint8]], Floats], calibration: int = 200) -> Callable[[Path], Rows]:
    """The 5,000 test images; calibration on training images."""

    def read(data: Path) -> Rows:
        train, test = (np.load(data / f"datasets/cifar10/{name}.npz") for name in ("train_10000", "test_even_5000"))
        chosen, _ = drawn(len(train["y"]), calibration)
        return Rows(prepare(train["x"][chosen]), prepare(test["x"]), test["y"])

    return read


def resized(size: int, scale: float, shift: float, calibration: int = 50, test: int = 2000) -> Callable[[Path], Rows]:
    """CIFAR-10 images enlarged (bilinear) for models without labelled data here: `test` test images, no labels."""

    def read(data: Path) -> Rows:
        train, held = (
            np.load(data / f"datasets/cifar10/{name}.npz")["x"] for name in ("train_10000", "test_even_5000")
        )
        return Rows(*(enlarged(images[drawn(len(images), count)[0]], size) * np.float32(scale) + np.float32(shift)
                      for images, count in ((train, calibration), (held, test))))  # fmt: skip

    return read


def enlarged(images: npt.NDArray[np.uint8], size: int) -> Floats:
    """Bilinear, half-pixel centres: [N, H, W, C] -> [N, size, size, C], 0..255."""
    weights = [_bilinear(side, size) for side in images.shape[1:3]]
    return np.stack([np.einsum("ah,hwc,bw->abc", weights[0], image.astype(np.float32), weights[1], optimize=True)
                     for image in images]).astype(np.float32)  # fmt: skip


def _bilinear(side: int, size: int) -> Floats:
    places = np.clip((np.arange(size) + 0.5) * side / size - 0.5, 0, side - 1)
    lower = np.minimum(places.astype(int), side - 2)
    found = np.zeros((size, side), np.float32)
    found[np.arange(size), lower] = 1 - (places - lower)
    found[np.arange(size), lower + 1] += places - lower
    return found


def split(
    file: str, prepare: Callable[[Array], Array], calibration: int, labels: Sequence[int] = ()
) -> Callable[[Path], Rows]:
    """The rows `x` of a file, some drawn for calibration; `labels` renumbers `y`."""

    def read(data: Path) -> Rows:
        stored = np.load(data / "datasets" / file)
        chosen, others = drawn(len(stored["x"]), calibration)
        y = np.asarray(labels)[stored["y"]] if labels else stored["y"]
        return Rows(prepare(stored["x"][chosen]), prepare(stored["x"][others]), y[others])

    return read


def mnist(data: Path) -> Rows:
    def read(name: str) -> npt.NDArray[np.uint8]:
        content = gzip.decompress((data / f"datasets/mnist/{name}-ubyte.gz").read_bytes())
        rank = content[3]
        shape = np.frombuffer(content, ">i4", rank, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)

    train = read("train-images-idx3")
    chosen, _ = drawn(len(train), 200)
    return Rows(raw(train[chosen, None]), raw(read("t10k-images-idx3")[:, None]), read("t10k-labels-idx1"))


def stories(data: Path) -> Rows:
    """64 tokens in, the token after each as label; 16 of the 64 sequences calibrate."""
    ids = np.load(data / "datasets/stories260k/self_sampled_tokens_64x129.npz")["ids"]
    chosen, others = drawn(len(ids), 16)
    return Rows(ids[chosen, :64], ids[others, :64], ids[others, 1:65])


MEL_RANGE = (-84.85, 14.86)
"""The decibels that the reference int8 model's input holds: scale 0.3910152, zero point 89."""


def spectra(data: Path) -> Rows:
    """Windows of the log-mel spectra of real clips, as the autoencoder takes them: 5 frames of 128 bands, every start.

    Windows that leave `MEL_RANGE` (digital silence, close speech) are no inputs of this model. `labels` are numbers of
    clips: a sample of MLPerf Tiny's is a clip, and its score the mean over its windows.
    """
    clips = np.load(data / "datasets/mlperf_tiny/kws01_wav_int16_200.npz")["x"].astype(np.float32) / 32768
    chosen, others = drawn(len(clips), 40)
    calibration, test = (_windows(clips[rows]) for rows in (chosen, others))
    return Rows(calibration[0], *test)


def _windows(clips: Floats) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Windows [n, 640] within `MEL_RANGE`, and each one's clip."""
    spectra = [np.lib.stride_tricks.sliding_window_view(_log_mel(clip), (5, 128)).reshape(-1, 640) for clip in clips]
    owners = np.repeat(np.arange(len(clips)), [len(windows) for windows in spectra])
    found = np.concatenate(spectra)
    inside = ((found >= MEL_RANGE[0]) & (found <= MEL_RANGE[1])).all(axis=1)
    return found[inside].astype(np.float32), owners[inside]


def _log_mel(clip: Floats) -> npt.NDArray[np.float64]:
    """Decibels [frames, 128] as librosa's melspectrogram gives them to MLPerf Tiny: 1024 samples, hop 512, Slaney's mel
    scale and norm.
    """
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    power = np.abs(np.fft.rfft(np.lib.stride_tricks.sliding_window_view(clip, 1024)[::512] * hann)) ** 2
    linear, ratio = 200 / 3, np.log(6.4) / 27  # Hz per mel up to 1000 Hz = 15 mel, then e^ratio per mel
    mel = np.linspace(0, 15 + np.log(8) / ratio, 130)
    edges = np.where(mel < 15, mel * linear, 1000 * np.exp(ratio * (mel - 15)))
    bins = np.fft.rfftfreq(1024, 1 / 16000)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.clip(np.minimum(rising, falling), 0, None) * (2 / (edges[2:] - edges[:-2]))[:, None]
    decibels: npt.NDArray[np.float64] = 10 * np.log10(power @ bank.T + np.finfo(float).eps)
    return decibels


def top1(outputs: Array, reference: Array, rows: Rows) -> Figures:
    """Per cent of right answers."""
    del reference
    assert rows.labels is not None
    return {"top1": 100 * float((_answers(outputs) == rows.labels.ravel()).mean())}


def agreement(outputs: Array, reference: Array, rows: Rows) -> Figures:
    """Per cent of answers that are the float model's."""
    del rows
    return {"agreement": 100 * float((_answers(outputs) == _answers(reference)).mean())}


def fidelity(outputs: Array, reference: Array, rows: Rows) -> Figures:
    """Decibels of the float model's outputs over the difference, and the mean absolute difference."""
    del rows
    apart = outputs.astype(np.float64) - reference
    noise = float(np.square(apart).sum())
    ratio = 10 * np.log10(float(np.square(reference.astype(np.float64)).sum()) / noise) if noise else np.inf
    return {"sqnr": float(ratio), "mae": float(np.abs(apart).mean())}


def perplexity(outputs: Array, reference: Array, rows: Rows) -> Figures:
    del reference
    labels = rows.labels
    assert labels is not None
    logits = outputs.reshape(*labels.shape, -1).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return {"perplexity": float(np.exp(-np.take_along_axis(logs, labels[..., None].astype(np.int64), -1).mean()))}


def _answers(outputs: Array) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(1)
    return found


def reconstruction(outputs: Array, reference: Array, rows: Rows) -> Figures:
    """How far the mean squared error of reconstruction is from the float model's, in per cent of it.

    Of clips (the labels), the worst and the mean; and of windows the worst.
    """
    assert rows.labels is not None
    x = rows.test.astype(np.float64)
    own, floats = (np.square(y.reshape(x.shape) - x).mean(1) for y in (outputs, reference))
    owners = np.unique(rows.labels, return_inverse=True)[1]
    apart = 100 * np.abs(np.bincount(owners, own) / np.bincount(owners, floats) - 1)
    window = 100 * float(np.abs(own / floats - 1).max())
    return {"worst": float(apart.max()), "mean": float(apart.mean()), "worst window": window}


def tiny_features(x: Array) -> Array:
    return (x.astype(np.float32) - 83) * np.float32(0.5847029089927673)


def same(x: Array) -> Array:
    return x


def samples(x: Array) -> Array:
    return x.astype(np.float32) / 32768


def tokens(x: Array) -> Array:
    return x.astype(np.int32)


MEL = "mlperf_tiny/mlkws_mfcc_49x10_1000.npz"
TO_KWT = [KEYWORDS["kwt"].index(word) for word in KEYWORDS["tiny"]]

AUTOENCODER = "mlperf_tiny/ad_autoencoder_float.onnx"
MIXED: Mapping[str, Any] = {
    "activations": "int16",
    "calibrate": "minmax",
    "rounding": "gptq",
    "where": [
        {"name": "functional_1/dense_[12]/MatMul", "weights": "fp16", "activations": "none"},
        {"position": "last", "weights": "int4", "group": 64, "activations": "none"},
    ],
}
"""Bits by layer for the autoencoder: its second and third layer make most of the error, its last one hardly any."""

TASKS: Mapping[str, Task] = {
    "resnet20": Task("converted/cifar10_resnet20.onnx", cifar(normalized), top1, 0.3),
    "resnet44": Task("converted/cifar10_resnet44.onnx", cifar(normalized), top1, 0.3),
    "resnet56": Task("converted/cifar10_resnet56.onnx", cifar(normalized), top1, 0.3),
    "resnet8": Task("mlperf_tiny/ic_resnet8_float.onnx", cifar(raw), top1, 0.3, limits={"bytes": 98_496}),
    "kws_dscnn": Task(
        "mlperf_tiny/kws_dscnn_float.onnx",
        split("mlperf_tiny/kws01_mfcc_int8_1000.npz", tiny_features, 100),
        top1,
        limits={"bytes": 53_936},
    ),
    "ds_cnn_s": Task("converted/mlkws_ds_cnn_s.onnx", split(MEL, same, 100), top1),
    "ds_cnn_l": Task("converted/mlkws_ds_cnn_l.onnx", split(MEL, same, 100), top1),
    "kwt1": Task(
        "converted/kwt1_raw_audio.onnx",
        split("mlperf_tiny/kws01_wav_int16_200.npz", samples, 40, TO_KWT),
        top1,
        transformer=True,
    ),
    "magika": Task("native/magika_standard_v3_3.onnx", split("magika_files/files_features.npz", tokens, 200), top1),
    "mnist": Task("native/mnist-8.onnx", mnist, top1),
    "mobilenet_v1": Task("converted/mobilenet_v1_025_224_imagenet.onnx", resized(224, 1 / 127.5, -1), agreement, None),
    "mobilenet_v2": Task(
        "converted/mobilenet_v2_100_224_float_from_uint8.onnx", resized(224, 1 / 127.5, -1), agreement, None
    ),
    "vww": Task(
        "mlperf_tiny/vww_mobilenet025_float.onnx",
        resized(96, 1 / 255, 0, 200),
        fidelity,
        None,
        limits={"mae": 0.01, "bytes": 333_288},
    ),
    "autoencoder": Task(
        AUTOENCODER,
        spectra,
        reconstruction,
        None,
        False,
        limits={"worst": 5, "bytes": 276_976},
        options={"where": [{"position": "last", "per_channel": False}]},
    ),
    "autoencoder_mixed": Task(
        AUTOENCODER,
        spectra,
        reconstruction,
        None,
        False,
        limits={"worst window": 5, "bytes": 276_976},
        options=MIXED,
    ),
    "stories260k": Task("converted/stories260k_prefill64.onnx", stories, perplexity, None, False, True),
}
