"""QDQ models in a few lines: quantized inputs and weights with random data, and results with a grid that fits them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, ValueInfoProto, helper, numpy_helper

from graphc.execute import Session
from graphc.importer import load
from graphc.ir.graph import Array, Graph

Floats = npt.NDArray[np.floating]


class Qdq:
    """A model under construction. Methods return value names; every random number comes from `seed`."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self._protos: list[object] = []
        self._inputs: list[object] = []
        self._outputs: list[str] = []
        self._constants: dict[str, Array] = {}
        self._count = 0

    def input(self, shape: Sequence[int | str], dtype: str = "int8", scale: float = 0.05, zero_point: int = 3) -> str:
        """A quantized input of the model, dequantized."""
        name = self._name("x")
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, list(shape)))
        return self.dequantize(name, np.array(scale, np.float32), np.array(zero_point, dtype))

    def raw(self, shape: Sequence[int]) -> str:
        """An input of bytes, cast to floats."""
        name = self._name("x")
        self._inputs.append(helper.make_tensor_value_info(name, 2, list(shape)))
        return self.node("Cast", [name], to=1)

    def dequantize(self, name: str, scale: Array, zero_point: Array, axis: int = 1) -> str:
        operands = [name, self.constant(scale), self.constant(zero_point)]
        return self.node("DequantizeLinear", operands, **({"axis": axis} if scale.ndim else {}))

    def weights(
        self, shape: Sequence[int], axis: int | None = 0, dtype: str = "int8", zero_points: tuple[int, int] = (0, 1)
    ) -> str:
        """Quantized weights with a scale per index of `axis` (one for all: None), dequantized."""
        info = np.iinfo(dtype)
        values = self.random.integers(info.min, info.max + 1, shape).astype(dtype)
        count = () if axis is None else (shape[axis],)
        scale = self.random.uniform(0.001, 0.02, count).astype(np.float32)
        offset = self.random.integers(*zero_points, count).astype(dtype)
        return self.dequantize(self.constant(values), np.asarray(scale), np.asarray(offset), axis or 0)

    def dynamic(self, shape: Sequence[int]) -> tuple[str, str, str]:
        """A float input of the model, quantized at run time: integers, scale, zero point."""
        name = self._name("x")
        self._inputs.append(helper.make_tensor_value_info(name, 1, list(shape)))
        first = self.node("DynamicQuantizeLinear", [name], 3)
        return first, f"{first}_1", f"{first}_2"

    def integers(self, shape: Sequence[int], dtype: str) -> str:
        """A constant of any integers."""
        info = np.iinfo(dtype)
        return self.constant(np.asarray(self.random.integers(info.min, info.max + 1, shape), dtype))

    def floats(self, shape: Sequence[int], spread: float = 1.0) -> str:
        return self.constant((self.random.standard_normal(shape) * spread).astype(np.float32))

    def constant(self, array: Array) -> str:
        name = self._name("c")
        self._constants[name] = array
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes: object) -> str:
        """A node; returns its first result (the others end in _1, _2, ...)."""
        name = self._name(op.lower())
        results = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        self._protos.append(helper.make_node(op, list(inputs), results, name=name, **attributes))
        return name

    def quantize(
        self, value: str, dtype: str = "int8", scale: float | None = None, zero_point: int | None = None
    ) -> str:
        """QuantizeLinear on the grid given, or on one that spans the values seen on a random run (a little less)."""
        if scale is None or zero_point is None:
            seen = self.run(value)
            low, high = min(0.0, float(seen.min()) * 0.9), max(1e-3, float(seen.max()) * 0.9)
            scale = (high - low) / (255 if dtype.endswith("8") else 65535)
            zero_point = round(-low / scale) + int(np.iinfo(dtype).min)
        constants = [self.constant(np.array(scale, np.float32)), self.constant(np.array(zero_point, dtype))]
        return self.node("QuantizeLinear", [value, *constants])

    def requantize(self, value: str, dtype: str = "int8") -> str:
        """A QuantizeLinear and DequantizeLinear pair."""
        q = self.quantize(value, dtype)
        scale, zero_point = list(self._constants)[-2:]
        return self.node("DequantizeLinear", [q, scale, zero_point])

    def output(self, value: str) -> None:
        self._outputs.append(value)

    def result(self, value: str, dtype: str = "int8") -> None:
        """A quantized output of the model."""
        self.output(self.quantize(value, dtype))

    def run(self, value: str) -> Array:
        """One float value on random inputs."""
        graph = load(self.model([value]))
        return Session(graph).run(feeds(graph, self.random))[value]

    def model(self, outputs: Sequence[str] = ()) -> ModelProto:
        results = [ValueInfoProto(name=name) for name in outputs or self._outputs]
        tensors = [numpy_helper.from_array(a, name) for name, a in self._constants.items()]
        graph = helper.make_graph(self._protos, "qdq", self._inputs, results, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def graph(self) -> Graph:
        return load(self.model())

    def _name(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"


def feeds(graph: Graph, random: np.random.Generator) -> dict[str, Array]:
    """Integers over the whole range of each input; noise for a float one."""
    found: dict[str, Array] = {}
    for name in graph.inputs:
        if graph.types[name].dtype == np.float32:
            found[name] = random.standard_normal(graph.types[name].dims).astype(np.float32)
            continue
        info = np.iinfo(str(graph.types[name].dtype))
        shape = [n if isinstance(n, int) else 2 for n in graph.types[name].shape or ()]
        found[name] = random.integers(info.min, info.max + 1, shape).astype(str(graph.types[name].dtype))
    return found
