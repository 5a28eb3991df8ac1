"""The largest samples of regions: RoiAlign in mode `max`, where TVM takes another maximum than ONNX does.

A sample lies between four pixels, each with a bilinear weight. ONNX (and onnxruntime) take the largest of the weighted
pixels of all samples, w_i p_i, instead of the largest sum of four, which is what TVM computes.
"""

from collections.abc import Sequence
from typing import Any

from tvm import te, tirx

from graphc.backends.relax_module import Lowering, computes, convert
from graphc.errors import UnsupportedError
from graphc.ir import Node

INT = "int32"


@computes("", "RoiAlign")
def roi_align(state: Lowering, node: Node) -> Sequence[Any]:
    """Averages are TVM's; so is every shape. Raises UnsupportedError where maxima have no fixed number of samples."""
    if node.get_str("mode", "avg") == "avg":
        return convert(state, node)
    count = node.get_int("sampling_ratio", 0)
    if count < 1:
        problem = "mode max with as many samples as each region asks for."
        raise UnsupportedError(node.label, problem, "Give it a sampling_ratio above 0.")
    shape = state.type(node.outputs[0]).dims
    dtype = state.type(node.inputs[0]).dtype.name
    aligned = node.get_str("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scale = tirx.const(node.get_float("spatial_scale", 1.0), dtype)
    shift = tirx.const(0.5 if aligned else 0.0, dtype)

    def define(x: te.Tensor, regions: te.Tensor, images: te.Tensor) -> te.Tensor:
        rows, columns = (te.reduce_axis((0, count), name) for name in ("rows", "columns"))

        def places(region: Any, axis: int, cell: Any, sample: Any) -> list[tuple[Any, Any]]:
            """(pixel, weight) of the two neighbours of a sample along y (axis 0) or x; outside weighs nothing."""
            start, end = (regions[region, corner] * scale - shift for corner in (1 - axis, 3 - axis))
            length = end - start if aligned else tirx.max(end - start, tirx.const(1.0, dtype))
            cells, size = int(shape[2 + axis]), int(x.shape[2 + axis])
            inside = (sample.astype(dtype) + 0.5) / tirx.const(float(count), dtype)
            at = start + (cell.astype(dtype) + inside) * (length / tirx.const(float(cells), dtype))
            near = tirx.max(at, tirx.const(0.0, dtype))
            low = tirx.min(near.astype(INT), size - 1)
            part = tirx.Select(low >= size - 1, tirx.const(0.0, dtype), near - low.astype(dtype))
            counts = tirx.all(at >= -1.0, at <= float(size)).astype(dtype)
            return [(low, counts * (1 - part)), (tirx.min(low + 1, size - 1), counts * part)]

        def element(region: Any, channel: Any, y: Any, x_: Any) -> Any:
            image = images[region].astype(INT)
            weighted = [
                wy * wx * x[image, channel, row, column]
                for row, wy in places(region, 0, y, rows)
                for column, wx in places(region, 1, x_, columns)
            ]
            largest = weighted[0]
            for each in weighted[1:]:
                largest = tirx.max(largest, each)
            return te.max(largest, axis=[rows, columns])

        return te.compute(shape, element, name="largest_samples")

    return [state.emit(define, *map(state.value, node.inputs), name="largest_samples")]
