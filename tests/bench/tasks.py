"""The models whose accuracy is compared, their rows, and how answers are scored.

Rows are split once per data set with seed 0: calibration rows are never test rows, and every method gets the same ones.
CIFAR-10 and MNIST calibrate on training images; elsewhere the rows that are not drawn for calibration are the test.
"""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float32]
Figures = Mapping[str, float]
Score = Callable[[Array, Array, Array | None], Figures]
"""(outputs, the float model's outputs, labels) -> figures, the one that decides first; sample by sample."""

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

    `transformer`: peers are told so where they have an option for it.
    """

    model: str
    rows: Callable[[Path], Rows]
    score: Score
    drop: float | None = 1.0
    higher: bool = True
    transformer: bool = False


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


def spectra(data: Path) -> Rows:
    """Log-mel-like windows of real clips: 5 frames of 128 bands, in decibels, as the autoencoder was trained on."""
    clips = np.load(data / "datasets/mlperf_tiny/kws01_wav_int16_200.npz")["x"].astype(np.float32) / 32768
    chosen, others = drawn(len(clips), 40)
    windows = np.stack([_log_mel(clip) for clip in clips])
    return Rows(windows[chosen].reshape(-1, 640), windows[others].reshape(-1, 640))


def _log_mel(clip: Floats) -> Floats:
    """Two windows of 5 frames x 128 mel bands (1024 samples, hop 512) in dB, [2, 640]; MLPerf Tiny's features."""
    frames = np.lib.stride_tricks.sliding_window_view(clip, 1024)[::512] * np.hanning(1024)
    power = np.abs(np.fft.rfft(frames)) ** 2
    mel = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 130)
    edges = 700 * (10 ** (mel / 2595) - 1)
    bins = np.fft.rfftfreq(1024, 1 / 16000)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    bank = np.clip(np.minimum(rising, falling), 0, None)
    decibels = 10 * np.log10(power @ bank.T + 1e-10)
    starts = (5, 15)
    return np.stack([decibels[start : start + 5].ravel() for start in starts]).astype(np.float32)


def top1(outputs: Array, reference: Array, labels: Array | None) -> Figures:
    """Per cent of right answers."""
    del reference
    assert labels is not None
    return {"top1": 100 * float((_answers(outputs) == labels.ravel()).mean())}


def agreement(outputs: Array, reference: Array, labels: Array | None) -> Figures:
    """Per cent of answers that are the float model's."""
    del labels
    return {"agreement": 100 * float((_answers(outputs) == _answers(reference)).mean())}


def fidelity(outputs: Array, reference: Array, labels: Array | None) -> Figures:
    """Decibels of the float model's outputs over the difference, and the mean absolute difference."""
    del labels
    apart = outputs.astype(np.float64) - reference
    noise = float(np.square(apart).sum())
    ratio = 10 * np.log10(float(np.square(reference.astype(np.float64)).sum()) / noise) if noise else np.inf
    return {"sqnr": float(ratio), "mae": float(np.abs(apart).mean())}


def perplexity(outputs: Array, reference: Array, labels: Array | None) -> Figures:
    del reference
    assert labels is not None
    logits = outputs.reshape(*labels.shape, -1).astype(np.float64)
    shifted = logits - logits.max(-1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return {"perplexity": float(np.exp(-np.take_along_axis(logs, labels[..., None].astype(np.int64), -1).mean()))}


def _answers(outputs: Array) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = outputs.reshape(len(outputs), -1).argmax(1)
    return found


def reconstruction(rows: Array) -> Score:
    """The largest difference, per sample, between the errors of reconstruction, in per cent of the float model's."""

    def score(outputs: Array, reference: Array, labels: Array | None) -> Figures:
        del labels
        x = rows[: len(outputs)].astype(np.float64)
        own, floats = (np.square(y.reshape(x.shape) - x).mean(1) for y in (outputs, reference))
        return {
            "worst": 100 * float(np.abs(own / floats - 1).max()),
            "mean": 100 * float(np.abs(own / floats - 1).mean()),
        }

    return score


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

TASKS: Mapping[str, Task] = {
    "resnet20": Task("converted/cifar10_resnet20.onnx", cifar(normalized), top1, 0.3),
    "resnet44": Task("converted/cifar10_resnet44.onnx", cifar(normalized), top1, 0.3),
    "resnet56": Task("converted/cifar10_resnet56.onnx", cifar(normalized), top1, 0.3),
    "resnet8": Task("mlperf_tiny/ic_resnet8_float.onnx", cifar(raw), top1, 0.3),
    "kws_dscnn": Task(
        "mlperf_tiny/kws_dscnn_float.onnx", split("mlperf_tiny/kws01_mfcc_int8_1000.npz", tiny_features, 100), top1
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
    "vww": Task("mlperf_tiny/vww_mobilenet025_float.onnx", resized(96, 1 / 255, 0, 200), fidelity, None),
    "autoencoder": Task("mlperf_tiny/ad_autoencoder_float.onnx", spectra, fidelity, None),
    "stories260k": Task("converted/stories260k_prefill64.onnx", stories, perplexity, None, False, True),
}
