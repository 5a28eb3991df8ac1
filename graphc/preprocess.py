"""From raw data to what the model takes: `(transpose(cast(raw)) * scale - mean) / std`.

The same steps in two places: as nodes in front of the model, so that the artifact takes raw data (`fold: true`), or in
numpy on the data files (`fold: false`). Both round alike: one float operation per step, in the model's own type.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from graphc.errors import InputError
from graphc.ir import Array, Edit, Graph, TensorType
from graphc.ir.protobuf import type_to_proto
from graphc.spec.model import Preprocess

KEY = "data.preprocess"


def target(preprocess: Preprocess, inputs: Mapping[str, TensorType]) -> str:
    """The input that preprocessing applies to. Raises InputError where it is not clear, or not there."""
    names = ", ".join(inputs)
    if preprocess.input is not None and preprocess.input not in inputs:
        raise InputError(f"{KEY}.input", f"expected an input of the model ({names}), got '{preprocess.input}'.")
    if preprocess.input is None and len(inputs) != 1:
        raise InputError(KEY, f"expected a model with one input, got {names}.", "Name one: `input: ...`.")
    return preprocess.input or next(iter(inputs))


def raw_type(preprocess: Preprocess, model: TensorType) -> TensorType:
    """Type of the raw data for an input of type `model`: its layout before the transpose, its dtype before the cast.

    Raises InputError where the options do not fit that input.
    """
    _check(preprocess, model)
    shape = model.dims
    order = _transpose(preprocess, len(shape))
    raw = [0] * len(shape)
    for position, source in enumerate(order):
        raw[source] = shape[position]
    return TensorType(np.dtype(preprocess.dtype or model.dtype), tuple(raw))


def prepend(graph: Graph, preprocess: Preprocess) -> Graph:
    """The graph with preprocessing in front: the input keeps its name and takes raw data.

    y = model(x)  ->  y = model(Div(Sub(Mul(Transpose(Cast(x)), scale), mean), std))

    Raises InputError where the options do not fit the model.
    """
    name = target(preprocess, {name: graph.types[name] for name in graph.inputs})
    model = graph.types[name]
    raw = raw_type(preprocess, model)
    if name in graph.outputs:
        raise InputError(KEY, f"the input '{name}' is an output of the model as well.", "Say `fold: false`.")
    edit = Edit(graph)
    source = edit.fresh(f"{name}_raw")
    edit.set_inputs({source if n == name else n: raw if n == name else graph.types[n] for n in graph.inputs})
    edit.redirect(name, _nodes(edit, source, preprocess, raw, model))
    changed = edit.apply()
    edit = Edit(changed)
    edit.set_inputs({name if n == source else n: changed.types[n] for n in changed.inputs})
    edit.redirect(source, name)
    return edit.apply()


def apply(preprocess: Preprocess, data: Array, model: TensorType) -> Array:
    """Raw data `[N, ...]`, laid out as `raw_type` says, as the model's input takes it (`model.dtype`)."""
    result: Array = data.astype(model.dtype).transpose(_transpose(preprocess, data.ndim))
    for op, constant in _steps(preprocess, model):
        result = _NUMPY[op](result, constant)
    return np.ascontiguousarray(result)


_NUMPY: Mapping[str, np.ufunc] = {"Mul": np.multiply, "Sub": np.subtract, "Div": np.divide}


def _nodes(edit: Edit, value: str, preprocess: Preprocess, raw: TensorType, model: TensorType) -> str:
    """Record the nodes that turn `value` into the model's input; returns the last one's result."""
    first = edit.graph.nodes[0] if edit.graph.nodes else None
    if raw.dtype != model.dtype:
        element = type_to_proto(model).tensor_type.elem_type
        value = edit.add("Cast", [value], {"to": element}, name="preprocess_cast", near=first)
    order = _transpose(preprocess, len(model.dims))
    if order != tuple(range(len(order))):
        value = edit.add("Transpose", [value], {"perm": order}, name="preprocess_transpose", near=first)
    for op, array in _steps(preprocess, model):
        constant = edit.constant(array, f"preprocess_{op.lower()}_by")
        value = edit.add(op, [value, constant], name=f"preprocess_{op.lower()}", near=first)
    return value


def _steps(preprocess: Preprocess, model: TensorType) -> Iterator[tuple[str, Array]]:
    """Operator and constant of each arithmetic step that is given, in order."""
    rank = len(model.dims)
    axis = _channel_axis(preprocess, rank)
    for op, value in (("Mul", preprocess.scale), ("Sub", preprocess.mean), ("Div", preprocess.std)):
        if value is not None:
            array = np.asarray(value, model.dtype)
            yield op, array.reshape([-1 if i == axis else 1 for i in range(rank)]) if array.ndim else array


def _channel_axis(preprocess: Preprocess, rank: int) -> int:
    return 1 if preprocess.model_layout == "nchw" else rank - 1


def _transpose(preprocess: Preprocess, rank: int) -> tuple[int, ...]:
    """The permutation from the raw layout to the model's."""
    if preprocess.layout in (None, preprocess.model_layout):
        return tuple(range(rank))
    return (0, rank - 1, *range(1, rank - 1)) if preprocess.layout == "nhwc" else (0, *range(2, rank), 1)


def _check(preprocess: Preprocess, model: TensorType) -> None:
    if not model.is_static:
        raise InputError(KEY, f"expected an input of fixed shape, got {model}.", "Fix it in model.inputs.")
    shape, values = model.dims, (preprocess.scale, preprocess.mean, preprocess.std)
    if preprocess.layout is not None and len(shape) < 3:
        raise InputError(f"{KEY}.layout", f"expected an input with 3 dimensions or more, got {model}.", "Remove it.")
    if any(value is not None for value in values) and not np.issubdtype(model.dtype, np.floating):
        problem = f"expected a floating-point input for scale, mean and std, got {model}."
        raise InputError(KEY, problem, "Remove them; layout may stay.")
    for key, value in zip(("scale", "mean", "std"), values, strict=True):
        channels = shape[_channel_axis(preprocess, len(shape))] if isinstance(value, tuple) else None
        if isinstance(value, tuple) and len(value) != channels:
            remedy = "Give one per channel, or say `model_layout: nhwc` where the model's last dimension is channels."
            raise InputError(f"{KEY}.{key}", f"expected {channels} values for {model}, got {len(value)}.", remedy)
