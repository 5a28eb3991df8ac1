"""Operators that code generation lacks, written in terms of those it has: graph to graph, before lowering.

    LSTM                      ->  MatMul, Add, Sigmoid, Tanh, ... for every step
    SoftmaxCrossEntropyLoss   ->  the function body that onnx defines it by
    QLinearConv               ->  DequantizeLinear, Conv, QuantizeLinear

Rules are tried again on what they wrote, and constants are folded in between, until nothing changes. A node that a
rule declines stays as it is.
"""

from collections.abc import Mapping

from graphc.backends import decompose_arrays as arrays
from graphc.backends import decompose_choices as choices
from graphc.backends import decompose_quantized as quantized
from graphc.backends import decompose_signal as signal
from graphc.backends import decompose_windows as windows
from graphc.backends.dead_nodes import drop_dead_nodes
from graphc.backends.decompose_functions import double_normalization, expand
from graphc.backends.decompose_recurrent import recurrent
from graphc.backends.decompose_resize import resize
from graphc.backends.decompose_rewrite import Decline, Rewrite, Rule
from graphc.errors import InternalError
from graphc.ir.edit import Edit
from graphc.ir.graph import Graph, Node
from graphc.passes.fold_constants import fold_constants

FUNCTIONS = (
    *("Attention", "BlackmanWindow", "CastLike", "Celu", "CenterCropPad"),
    *("HammingWindow", "HannWindow", "MeanVarianceNormalization", "NegativeLogLikelihoodLoss", "RotaryEmbedding"),
    *("SoftmaxCrossEntropyLoss", "SwiGLU", "Swish"),
)
"""Operators of onnx whose own definition is written out."""

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(FUNCTIONS, expand),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrent),
    "AffineGrid": arrays.affine_grid,
    "BatchNormalization": arrays.batch_normalization,
    "Col2Im": arrays.col2im,
    "ConvInteger": quantized.conv_integer,
    "CumProd": arrays.cumulative_product,
    "DFT": signal.dft,
    "DeformConv": windows.deform_conv,
    "Det": arrays.determinant,
    "If": choices.if_both,
    "IsInf": choices.is_infinite,
    "LayerNormalization": arrays.layer_normalization,
    "LpNormalization": arrays.lp_normalization,
    "MaxPool": windows.max_pool,
    "MaxUnpool": windows.max_unpool,
    "QLinearConv": quantized.qlinear_conv,
    "QLinearMatMul": quantized.qlinear_matmul,
    **dict.fromkeys(("GroupNormalization", "RMSNormalization"), double_normalization),
    "Resize": resize,
    "ReverseSequence": arrays.reverse_sequence,
    "STFT": signal.stft,
    "TensorScatter": arrays.tensor_scatter,
}

ML_RULES: Mapping[str, Rule] = {
    "ArrayFeatureExtractor": choices.array_feature_extractor,
    "Binarizer": choices.binarizer,
}
"""The same for the domain ai.onnx.ml."""

ROUNDS = 50
"""Rounds after which rules are taken to write each other's operators: a bug, not a deep model."""


def decompose(graph: Graph, kernels: bool = False) -> Graph:
    """`graph` without the operators of RULES; the same object where it has none.

    With `kernels`, all steps of a recurrent layer are one node that only code generation knows.

    Raises InternalError where rules do not come to an end.
    """
    for _ in range(ROUNDS):
        edit = Edit(graph)
        written = [node for node in graph.nodes if _write(Rewrite(graph, edit, node, kernels))]
        if not written:
            return graph
        graph = fold_constants(drop_dead_nodes(edit.apply()), _quiet)
    raise InternalError("decompose", f"does not come to an end after {ROUNDS} rounds.")


def _write(rewrite: Rewrite) -> bool:
    """Write a node anew if a rule does; says whether one did."""
    rule = {"": RULES, "ai.onnx.ml": ML_RULES}.get(rewrite.node.domain, {}).get(rewrite.node.op)
    if rule is None:
        return False
    try:
        rule(rewrite)
    except Decline:
        return False
    return True


def _quiet(_node: Node, _reason: str) -> None:
    """A node that is not evaluated simply stays."""
