"""Which inputs and outputs of a graph are integers on a grid."""

from onnx import parser

from graphc.borders import input_grids, output_grids
from graphc.importer import load


def test_only_quantization_makes_a_grid() -> None:
    """`Where` has three operands as DequantizeLinear has, constants among them: infinity is no zero point."""
    graph = load(
        parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (bool[4] mask, int8[4] q) => (float[4] y, uint8[4] z)
        <float zero = {0}, float low = {-inf}, float scale = {0.5}, int8 shift = {3}, uint8 middle = {128}>
        {
          masked = Where (mask, zero, low)
          real = DequantizeLinear (q, scale, shift)
          y = Add (masked, real)
          z = QuantizeLinear (real, scale, middle)
        }""")
    )
    assert {name: (grid.scale, grid.zero_point) for name, grid in input_grids(graph).items()} == {"q": (0.5, 3)}
    assert {name: (grid.scale, grid.zero_point) for name, grid in output_grids(graph).items()} == {"z": (0.5, 128)}
