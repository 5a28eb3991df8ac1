"""Operators that choose: branches decided at run time, tests of single values, lookups of features."""

import numpy as np

from graphc.backends.decompose_rewrite import Decline, Rewrite
from graphc.ir.graph import Graph


def if_both(rewrite: Rewrite) -> None:
    """Both branches are computed, and one is picked: only for results of one type and shape in both."""
    branches = [rewrite.node.attributes[key] for key in ("then_branch", "else_branch")]
    bodies = [branch for branch in branches if isinstance(branch, Graph)]
    types = [
        [body.types[name] if name in body.types else rewrite.type(name) for name in body.outputs] for body in bodies
    ]
    if types[0] != types[1] or not all(kind.is_static for kind in types[0]):
        raise Decline
    condition = rewrite.reshape(rewrite.node.inputs[0])
    then, otherwise = (rewrite.splice(body, ()) for body in bodies)
    rewrite.finish(*(rewrite.op("Where", condition, a, b) for a, b in zip(then, otherwise, strict=True)))


def is_infinite(rewrite: Rewrite) -> None:
    """Only one sign: equality with that infinity."""
    signs = [rewrite.node.get_int(f"detect_{sign}", 1) for sign in ("positive", "negative")]
    if all(signs) or not any(signs):
        raise Decline
    x = rewrite.node.inputs[0]
    rewrite.finish(rewrite.op("Equal", x, rewrite.number(np.inf if signs[0] else -np.inf, x)))


def array_feature_extractor(rewrite: Rewrite) -> None:
    """Columns of the last axis."""
    x, index = rewrite.node.inputs
    shape = rewrite.dims(x)
    rows, count = int(np.prod(shape[:-1])), rewrite.type(index).size
    flat = rewrite.reshape(x, rows, shape[-1])
    rewrite.finish(rewrite.op("Gather", flat, rewrite.reshape(index, count), axis=1))


def binarizer(rewrite: Rewrite) -> None:
    """1 above the threshold, 0 elsewhere."""
    x = rewrite.node.inputs[0]
    above = rewrite.op("Greater", x, rewrite.number(rewrite.node.get_float("threshold", 0.0), x))
    rewrite.finish(rewrite.op("CastLike", above, x))
