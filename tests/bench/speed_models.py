"""The models of `tests.bench.speed`, with random weights: MobileNetV2, ResNet-18 and -50, an encoder, and 8-bit twins.

    python -m tests.bench.speed_models DIR

Batch 1, float32: images of 3x224x224 with batch norms folded, an encoder of 6 layers on 128x384 (12 heads, 1536 wide,
GELU). NAME-int8.onnx is what onnxruntime's `quantize_static` makes of NAME.onnx: QDQ, uint8 activations, int8 weights
per channel, ranges of four random inputs. They measure speed and memory, never accuracy.

Sources: M. Sandler et al., MobileNetV2, CVPR 2018; K. He et al., Deep Residual Learning, CVPR 2016; A. Vaswani et al.,
Attention Is All You Need, NIPS 2017.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphc.ir import Array

IMAGE, TOKENS, WIDTH, HEADS, INNER, LAYERS = (1, 3, 224, 224), 128, 384, 12, 1536, 6
SIX = ("zero", "six")
"""What ReLU6 clips to."""


class Model:
    """An ONNX graph under construction: methods add a node and return the name of its result."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        for name, value in zip(SIX, (0.0, 6.0), strict=True):
            self._constants.append(numpy_helper.from_array(np.array(value, np.float32), name))

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def weights(self, *shape: int, spread: float) -> str:
        return self.constant((self._random.standard_normal(shape) * spread).astype(np.float32))

    def constant(self, array: Array) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        """Padded so that stride 1 keeps the size; weights keep the variance."""
        depth = inputs // group * kernel**2
        w = self.weights(outputs, inputs // group, kernel, kernel, spread=(2 / depth) ** 0.5)
        bias, size = self.weights(outputs, spread=0.1), (kernel, kernel)
        pads = [kernel // 2] * 4
        return self.node("Conv", x, w, bias, kernel_shape=size, strides=(stride,) * 2, pads=pads, group=group)

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.node("MatMul", x, self.weights(inputs, outputs, spread=inputs**-0.5))
        return self.node("Add", product, self.weights(outputs, spread=0.1))

    def proto(self, result: str, given: Sequence[int]) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, given)
        self._nodes[-1].output[:] = ["y"]
        assert result == self._nodes[-1].name
        graph = helper.make_graph(self._nodes, "speed", [x], [onnx.ValueInfoProto(name="y")], self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _classified(model: Model, x: str, channels: int) -> onnx.ModelProto:
    features = model.node("Flatten", model.node("GlobalAveragePool", x))
    weights, bias = model.weights(channels, 1000, spread=channels**-0.5), model.weights(1000, spread=0.1)
    return model.proto(model.node("Gemm", features, weights, bias), IMAGE)


def mobilenet_v2() -> onnx.ModelProto:
    model = Model()
    x, channels = model.node("Clip", model.conv("x", 3, 32, 3, 2), *SIX), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outputs, count, first_stride in stages:
        for index in range(count):
            stride, wide = (1 if index else first_stride), channels * expansion
            inner = x if expansion == 1 else model.node("Clip", model.conv(x, channels, wide, 1), *SIX)
            inner = model.node("Clip", model.conv(inner, wide, wide, 3, stride, wide), *SIX)
            inner = model.conv(inner, wide, outputs, 1)
            x = model.node("Add", x, inner) if stride == 1 and channels == outputs else inner
            channels = outputs
    return _classified(model, model.node("Clip", model.conv(x, channels, 1280, 1), *SIX), 1280)


def resnet(counts: Sequence[int], bottleneck: bool) -> onnx.ModelProto:
    model = Model()
    x, channels = model.node("Relu", model.conv("x", 3, 64, 7, 2)), 64
    x = model.node("MaxPool", x, kernel_shape=(3, 3), strides=(2, 2), pads=[1] * 4)
    for stage, count in enumerate(counts):
        outputs = 64 * 2**stage * (4 if bottleneck else 1)
        for index in range(count):
            stride = 2 if stage and not index else 1
            layers = [(outputs // 4, 1, 1), (outputs // 4, 3, stride)] if bottleneck else [(outputs, 3, stride)]
            inner, width = x, channels
            for wide, kernel, step in layers:
                inner, width = model.node("Relu", model.conv(inner, width, wide, kernel, step)), wide
            inner = model.conv(inner, width, outputs, 1 if bottleneck else 3)
            shortcut = x if channels == outputs and stride == 1 else model.conv(x, channels, outputs, 1, stride)
            x, channels = model.node("Relu", model.node("Add", inner, shortcut)), outputs
    return _classified(model, x, channels)


def encoder() -> onnx.ModelProto:
    model, x = Model(), "x"
    for _ in range(LAYERS):
        x = _normalized(model, model.node("Add", x, _attended(model, x)))
        inner = model.linear(x, WIDTH, INNER)
        half = model.node("Erf", model.node("Div", inner, model.constant(np.array(2**0.5, np.float32))))
        half = model.node("Mul", inner, model.node("Add", half, model.constant(np.array(1, np.float32))))
        inner = model.node("Mul", half, model.constant(np.array(0.5, np.float32)))
        x = _normalized(model, model.node("Add", x, model.linear(inner, INNER, WIDTH)))
    return model.proto(x, (1, TOKENS, WIDTH))


def _normalized(model: Model, x: str) -> str:
    one, zero = model.constant(np.ones(WIDTH, np.float32)), model.constant(np.zeros(WIDTH, np.float32))
    return model.node("LayerNormalization", x, one, zero)


def _attended(model: Model, x: str) -> str:
    """Softmax(q k' / sqrt(d)) v, head by head."""
    heads = model.constant(np.array([1, TOKENS, HEADS, WIDTH // HEADS], np.int64))

    def head(perm: Sequence[int]) -> str:
        return model.node("Transpose", model.node("Reshape", model.linear(x, WIDTH, WIDTH), heads), perm=perm)

    q, k, v = head((0, 2, 1, 3)), head((0, 2, 3, 1)), head((0, 2, 1, 3))
    scale = model.constant(np.array((WIDTH // HEADS) ** -0.5, np.float32))
    weights = model.node("Softmax", model.node("MatMul", model.node("Mul", q, scale), k), axis=-1)
    together = model.node("Transpose", model.node("MatMul", weights, v), perm=(0, 2, 1, 3))
    joined = model.node("Reshape", together, model.constant(np.array([1, TOKENS, WIDTH], np.int64)))
    return model.linear(joined, WIDTH, WIDTH)


MODELS: Mapping[str, Callable[[], onnx.ModelProto]] = {
    "mobilenet_v2": mobilenet_v2,
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "encoder": encoder,
}


class RandomInputs:
    """Four of them, as onnxruntime's calibration reads data."""

    def __init__(self, shape: Sequence[int]) -> None:
        rng = np.random.default_rng(1)
        self._left = iter([{"x": rng.standard_normal(shape).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self._left, None)


def quantized(path: Path, result: Path) -> None:
    """The 8-bit twin of a model with one input, x."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    given = onnx.load(path).graph.input[0].type.tensor_type.shape
    shape = [axis.dim_value for axis in given.dim]

    with TemporaryDirectory() as folder:
        clean = Path(folder) / "clean.onnx"
        quant_pre_process(str(path), str(clean), skip_symbolic_shape=True)
        kinds = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        quantize_static(
            str(clean), str(result), RandomInputs(shape), quant_format=QuantFormat.QDQ, per_channel=True, **kinds
        )


def make(folder: Path) -> list[Path]:
    """Write all of them, each followed by its twin."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, model in MODELS.items():
        path, twin = folder / f"{name}.onnx", folder / f"{name}-int8.onnx"
        onnx.save(model(), path)
        quantized(path, twin)
        paths += [path, twin]
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(*make(parser.parse_args().folder), sep="\n")


if __name__ == "__main__":
    main()
