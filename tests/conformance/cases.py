"""The node cases that onnx ships: one small model each, with its inputs and the results that are expected."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper
from onnx.backend.test.case.node import collect_testcases

SHAPING: Mapping[str, str] = {
    **dict.fromkeys(("Expand", "Reshape", "CenterCropPad"), "shape"),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), "axes"),
    **dict.fromkeys(("CumSum", "CumProd"), "axis"),
    **dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow", "AffineGrid"), "size"),
    **{
        f"Reduce{kind}": "axes"
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Col2Im": "image_shape block_shape",
    "ConstantOfShape": "input",
    "DFT": "dft_length axis",
    "Dropout": "training_mode",
    "Loop": "M cond",
    "MaxUnpool": "output_shape",
    "MelWeightMatrix": "num_mel_bins dft_length sample_rate lower_edge_hertz upper_edge_hertz",
    "NonMaxSuppression": "max_output_boxes_per_class",
    "OneHot": "depth",
    "Pad": "pads axes",
    "Range": "start limit delta",
    "Resize": "roi scales sizes",
    "STFT": "frame_step frame_length",
    "Slice": "starts ends axes steps",
    "Split": "split",
    "Tile": "repeats",
    "TopK": "K",
    "Trilu": "k",
    "Upsample": "scales",
}
"""Operator -> its operands (as onnx calls them) that decide shapes or the structure of the computation."""

WRONG = "wrong values"
ROUNDED = "its smallest values differ by the rounding of the largest ones, for which the case leaves no room."
"""What becomes of a case whose results are not those expected."""


@dataclass(frozen=True)
class Case:
    """One model as bytes. Inputs and expected results are arrays, or what else onnx has (lists, strings, None).

    `shaping` names the inputs that decide shapes.
    """

    name: str
    model: bytes
    inputs: Mapping[str, Any]
    expected: Mapping[str, Any]
    rtol: float
    atol: float
    shaping: tuple[str, ...]

    def bound(self) -> "Case":
        """The same case with the inputs that decide shapes as constants of the model."""
        model = ModelProto.FromString(self.model)
        model.graph.initializer.extend(numpy_helper.from_array(self.inputs[name], name) for name in self.shaping)
        inputs = {name: value for name, value in self.inputs.items() if name not in self.shaping}
        return Case(self.name, model.SerializeToString(), inputs, self.expected, self.rtol, self.atol, ())


def collect() -> list[Case]:
    """All of them, by name. Takes seconds: onnx computes every expected result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases divide by zero and overflow on purpose
        found = {case.name: case for case in collect_testcases(None)}
    shaping = {name: tuple(_shaping(case.model)) for name, case in found.items()}
    cases = []
    for name, case in sorted(found.items()):
        graph = case.model.graph
        ((inputs, expected),) = case.data_sets
        own = {value.name for value in graph.input}
        base = re.sub(r"_expanded.*", "", name)  # a function's body: its inputs have the operator's names
        cases.append(
            Case(
                name,
                case.model.SerializeToString(),
                dict(zip((value.name for value in graph.input), map(_array, inputs), strict=True)),
                dict(zip((value.name for value in graph.output), map(_array, expected), strict=True)),
                case.rtol,
                case.atol,
                tuple(each for each in shaping.get(base, shaping[name]) if each in own),
            )
        )
    return cases


def _array(value: Any) -> Any:
    """An array where it is one: some cases hold tensors as protobuf, or numbers."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def _shaping(model: ModelProto) -> Iterator[str]:
    """The graph inputs that decide shapes."""
    inputs = {value.name for value in model.graph.input}
    for node in model.graph.node:
        wanted = SHAPING.get(node.op_type, "").split()
        if wanted and onnx.defs.has(node.op_type):
            formal = [each.name for each in onnx.defs.get_schema(node.op_type).inputs]
            given = zip(formal, node.input, strict=False)
            yield from (name for each, name in given if each in wanted and name in inputs)
