"""Where integer code is slower than floating-point code: a table of measurements, read before anything is quantized.

All artifacts of a build run one graph, so a node stays in floating point for every target of a spec if integers are
slower on one of them; build targets from specs of their own where that is too careful. The table is data in the source:
what a build decides never depends on the machine that builds, or on how busy it is.

Measured on a server core of 2023, one thread: best of 12 runs, kernels alone, uint8 activations and int8 weights.
"""

from collections.abc import Mapping, Sequence
from functools import partial

from graphc.backends import winograd
from graphc.backends.dot import has_vnni
from graphc.backends.targets import Target
from graphc.ir.graph import Graph, Node
from graphc.passes.protocol import Slower

SPEED: Mapping[str, Mapping[str, float]] = {
    "grouped convolution": {"vnni": 0.56, "avx2": 0.55, "sse": 0.47},
    "3x3 convolution": {"avx2": 0.64, "sse": 0.86},
    "decoded 3x3 convolution": {"vnni": 0.60, "avx2": 0.46},
    "product of activations": {"vnni": 0.92, "avx2": 0.72},
}
"""Kind -> how fast its integer code is beside its float code, by what the target multiplies 8-bit integers with.

Grouped: 64 channels in 8 groups, 3x3, 28x28 (no dot product: one product at a time). 3x3 of stride 1: 16 channels on
32x32 (64 on 28x28: 0.41 and 0.53), and only where floats take Winograd's algorithm (winograd.py decides by its model of
cycles: not where a stream of weights bounds them). Decoded, weights alone are integers: 128 channels on 28x28 (512 on
7x7, where floats have the direct sum too: 1.42). Activations: 8 products of 64x32 and 32x64
(one operand is packed at every run, as 16 bits). Depthwise and 1x1 convolutions and constant weights of products gain.
"""


def slower_on(targets: Sequence[Target]) -> Slower:
    """For a node: why integers do not pay on these targets, or the empty string. `decoded`: its weights alone are."""
    return partial(_reason, targets)


def _reason(targets: Sequence[Target], graph: Graph, node: Node, decoded: bool = False) -> str:
    ratios = [(ratio, target.id) for target in targets if (ratio := _ratio(target, graph, node, decoded)) is not None]
    if not ratios:
        return ""
    ratio, target = min(ratios)
    return f"its integer code has {ratio:.2f}x the speed of its float code on {target}"


def _ratio(target: Target, graph: Graph, node: Node, decoded: bool) -> float | None:
    """The speed of integer code beside float code; None where it is not known to be lower."""
    return SPEED.get(_kind(target, graph, node, decoded), {}).get(_unit(target))


def _kind(target: Target, graph: Graph, node: Node, decoded: bool) -> str:
    if node.op == "MatMul" and all(name not in graph.constants for name in node.inputs):
        return "product of activations"
    if node.op != "Conv":
        return ""
    groups, kernel = node.get_int("group", 1), graph.types[node.inputs[1]].dims
    if groups > 1:
        return "grouped convolution" if kernel[1] > 1 and not decoded else ""
    if not _has_winograd(target, graph, node, kernel):
        return ""
    return "decoded 3x3 convolution" if decoded else "3x3 convolution"


def _has_winograd(target: Target, graph: Graph, node: Node, kernel: Sequence[int]) -> bool:
    """Whether the float code of a convolution of one group is Winograd's filtering."""
    plain = all(step == 1 for key in ("strides", "dilations") for step in node.get_ints(key))
    result = graph.types[node.outputs[0]]
    if kernel[2:] != (winograd.KERNEL,) * 2 or not plain or not result.is_static:
        return False
    batch, filters, *output = result.dims
    return winograd.choose(target, batch, output, kernel[1], filters) is not None


def _unit(target: Target) -> str:
    """What multiplies 8-bit integers; the empty string where nothing was measured."""
    if target.family != "x86":
        return ""
    return "vnni" if has_vnni(target) else "avx2" if target.has("avx2") else "sse"
