"""The real models under shared/data/models: the input shapes they are tested at, and feeds in their range.

for name in MODELS: graph = load(folder / "models" / name, MODELS[name].shapes)
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Maker = Callable[[np.random.Generator, tuple[int, ...]], npt.NDArray[np.generic]]


def normal(mean: float = 0.0, deviation: float = 1.0) -> Maker:
    return lambda rng, shape: rng.normal(mean, deviation, shape).astype(np.float32)


def uniform(low: float, high: float) -> Maker:
    return lambda rng, shape: rng.uniform(low, high, shape).astype(np.float32)


def whole(low: int, high: int, dtype: type[np.integer]) -> Maker:
    """Whole numbers from `low` to `high`, both included."""
    return lambda rng, shape: rng.integers(low, high + 1, shape).astype(dtype)


def pixels(rng: np.random.Generator, shape: tuple[int, ...]) -> npt.NDArray[np.generic]:
    return rng.integers(0, 256, shape).astype(np.float32)


@dataclass(frozen=True)
class Model:
    """One file: its inputs' shapes in order, how to make their values, and MACs in millions (None: approximate)."""

    shapes: Mapping[str, tuple[int, ...]]
    makers: Mapping[str, Maker]
    mega_macs: float | None

    def feeds(self, seed: int = 0) -> dict[str, npt.NDArray[np.generic]]:
        """Random inputs in the range that the model was made for; the same seed gives the same values."""
        rng = np.random.default_rng(seed)
        return {name: self.makers[name](rng, shape) for name, shape in self.shapes.items()}


def one(name: str, shape: tuple[int, ...], maker: Maker, mega_macs: float | None) -> Model:
    return Model({name: shape}, {name: maker}, mega_macs)


INT8 = whole(-128, 127, np.int8)

MODELS: Mapping[str, Model] = {
    "converted/cifar10_resnet20.onnx": one("input", (1, 3, 32, 32), normal(), 40.55),
    "converted/cifar10_resnet44.onnx": one("input", (1, 3, 32, 32), normal(), 97.17),
    "converted/cifar10_resnet56.onnx": one("input", (1, 3, 32, 32), normal(), 125.49),
    "converted/crepe_tiny.onnx": one("input", (1, 1024), normal(), 36.79),
    "converted/fer_mini_xception.onnx": one("input", (1, 64, 64, 1), uniform(-1, 1), 10.16),
    "converted/kwt1_raw_audio.onnx": one("audio", (1, 16000), normal(0, 0.1), 98.88),
    "converted/mlkws_crnn_s.onnx": one("mfcc:0", (1, 49, 10), normal(0, 10), None),
    "converted/mlkws_ds_cnn_l.onnx": one("mfcc:0", (1, 49, 10), normal(0, 10), 28.33),
    "converted/mlkws_ds_cnn_s.onnx": one("mfcc:0", (1, 49, 10), normal(0, 10), 2.66),
    "converted/mobilenet_v1_025_224_imagenet.onnx": one("input", (1, 224, 224, 3), uniform(-1, 1), 41.03),
    "converted/mobilenet_v2_100_224_float_from_uint8.onnx": one("input", (1, 224, 224, 3), uniform(-1, 1), 300.78),
    "converted/mobilenet_v2_100_224_uint8_qdq.onnx": one("input", (1, 224, 224, 3), whole(0, 255, np.uint8), 300.78),
    "converted/stories260k_prefill64.onnx": one("input_ids", (1, 64), whole(1, 511, np.int64), 19.22),
    "mlperf_tiny/ad_autoencoder_float.onnx": one("input", (1, 640), normal(-20, 10), 0.26),
    "mlperf_tiny/ad_autoencoder_int8_qdq.onnx": one("input_1", (1, 640), INT8, 0.26),
    "mlperf_tiny/ic_resnet8_float.onnx": one("input", (1, 32, 32, 3), pixels, 12.50),
    "mlperf_tiny/ic_resnet8_int8_qdq.onnx": one("input_1_int8", (1, 32, 32, 3), INT8, 12.50),
    "mlperf_tiny/kws_dscnn_float.onnx": one("input", (1, 49, 10, 1), normal(-40, 20), 2.66),
    "mlperf_tiny/kws_dscnn_int8_qdq.onnx": one("input_1", (1, 49, 10, 1), INT8, 2.66),
    "mlperf_tiny/vww_mobilenet025_float.onnx": one("input", (1, 96, 96, 3), uniform(0, 1), 7.49),
    "mlperf_tiny/vww_mobilenet025_int8_qdq.onnx": one("input_1_int8", (1, 96, 96, 3), INT8, 7.49),
    "native/basic_pitch_nmp.onnx": one("serving_default_input_2:0", (1, 43844, 1), normal(0, 0.1), 524.08),
    "native/ch_PP-OCRv3_det_infer.onnx": one("x", (1, 3, 320, 320), normal(), 477.96),
    "native/ch_ppocr_mobile_v2.0_cls_infer.onnx": one("x", (1, 3, 48, 192), uniform(-1, 1), 16.32),
    "native/dnsmos_model_v8.onnx": one("input_1", (1, 900, 120), normal(-20, 10), 435.33),
    "native/dtln_model_1.onnx": Model(
        {"input_2": (1, 1, 257), "input_3": (1, 2, 128, 2)},
        {"input_2": uniform(0, 2), "input_3": normal(0, 0.3)},
        0.36,
    ),
    "native/fastestdet.onnx": one("input.1", (1, 3, 352, 352), uniform(0, 1), 121.49),
    "native/gesture_keypoint_mlp.onnx": one("input", (1, 42), uniform(-1, 1), 0.00),
    "native/gesture_point_history_lstm.onnx": Model(
        {"input": (1, 32), "score_threshold": ()},
        {"input": uniform(-1, 1), "score_threshold": lambda _, shape: np.full(shape, 0.25, np.float32)},
        0.02,
    ),
    "native/gtcrn_simple_stream.onnx": Model(
        {
            "mix": (1, 257, 1, 2),
            "conv_cache": (2, 1, 16, 16, 33),
            "tra_cache": (2, 3, 1, 1, 16),
            "inter_cache": (2, 1, 33, 16),
        },
        dict.fromkeys(("mix", "conv_cache", "tra_cache", "inter_cache"), normal(0, 0.3)),
        0.50,
    ),
    "native/magika_standard_v3_3.onnx": one("bytes", (1, 2048), whole(0, 256, np.int32), 366.72),
    "native/mnist-8.onnx": one("Input3", (1, 1, 28, 28), pixels, 0.79),
    "native/silero_vad_16k_op15.onnx": Model(
        {"input": (1, 576), "state": (2, 1, 128), "sr": ()},
        {"input": normal(0, 0.1), "state": normal(0, 0.3), "sr": lambda _, shape: np.full(shape, 16000, np.int64)},
        None,
    ),
    "native/super_resolution_espcn.onnx": one("input", (1, 1, 224, 224), uniform(0, 1), 2984.87),
    "native/ultraface_RFB-320.onnx": one("input", (1, 3, 240, 320), uniform(-1, 1), 100.42),
    "native/ultraface_RFB-320_simplified.onnx": one("input", (1, 3, 240, 320), uniform(-1, 1), 100.42),
    "native/yolox_nano.onnx": one("images", (1, 3, 416, 416), pixels, 522.55),
    "native/yunet_n_320_320.onnx": one("input", (1, 3, 320, 320), pixels, 135.60),
}
