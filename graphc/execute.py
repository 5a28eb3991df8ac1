"""Running a Graph in onnxruntime: the float reference, calibration's source of values, the oracle of the tests.

    with_taps = Session(graph, taps=("conv_1_out",))
    values = with_taps.run({"x": x})        # outputs and taps by name

Deterministic: one thread unless told otherwise, no graph optimization unless asked for, 8-bit kernels that do not
saturate between products (`session.x64quantprecision`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from graphc import ort
from graphc.errors import InputError, UnsupportedError
from graphc.exporter import to_model
from graphc.ir.graph import Array, Graph, TensorType, bits_of

BESIDE = 1 << 20
"""Constants of this many bytes or more are handed to onnxruntime as they lie in memory, outside the protobuf."""


class Session:
    """One graph, loaded once, run many times. `taps` are values to return beside the graph's outputs.

    Raises InputError for a tap that the graph does not have, UnsupportedError where onnxruntime refuses the model.
    """

    def __init__(
        self, graph: Graph, *, taps: Sequence[str] = (), optimize: bool = False, threads: int | None = 1
    ) -> None:
        self.graph = graph
        self._wanted = tuple(dict.fromkeys((*graph.outputs, *taps)))
        for tap in taps:
            if tap not in graph.types:
                raise InputError(f"value '{tap}'", "is not in the graph, so it cannot be observed.", "Check its name.")
        computed = tuple(name for name in self._wanted if name in graph.producers)
        self._computed = computed
        if computed:
            self._session = _session(replace(graph, outputs=computed), _options(optimize, threads))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs, then taps, by name. Raises InputError when `feeds` are not what the graph's inputs ask for."""
        check_feeds(self.graph, feeds)
        given = {name: np.require(feeds[name], requirements="C") for name in self.graph.inputs}  # keeps rank 0
        values: dict[str, Array] = {**self.graph.constants, **given}
        if self._computed:
            try:
                found = self._session.run(list(self._computed), given)
            except ort.refusals() as error:
                raise UnsupportedError("onnxruntime", f"fails to run this graph: {_first_line(error)}") from error
            values.update(zip(self._computed, found, strict=True))
        return {name: values[name] for name in self._wanted}


def run(graph: Graph, feeds: Mapping[str, Array], taps: Sequence[str] = ()) -> dict[str, Array]:
    """The outputs of one run (and `taps`), by name, without graph optimizations."""
    return Session(graph, taps=taps).run(feeds)


def batches(graph: Graph, rows: Mapping[str, Array], most: int) -> Iterator[tuple[dict[str, Array], int]]:
    """Cut rows into feeds that fit the graph: (feeds, how many of them are rows); the last feed repeats its last row.

    `rows` holds one array per input, all with the same number of rows. A batch is as large as the graph's inputs say,
    or `most` where they leave it open; an input that fixes one row is given rows one at a time.
    Raises InputError where the inputs disagree about the batch or the arrays about the number of rows.
    """
    size = batch_size(graph, most)
    counts = {name: len(rows[name]) for name in graph.inputs if name in rows}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InputError("data", f"has different numbers of rows ({shown}).", "Give one row per sample to every input.")
    total = min(counts.values(), default=0)
    for start in range(0, total, size):
        index = np.minimum(np.arange(start, start + size), total - 1)
        yield {name: rows[name][index] for name in counts}, min(size, total - start)


def batch_size(graph: Graph, most: int) -> int:
    """Rows per run: the first dimension of the inputs where it is fixed, `most` where all of them leave it open."""
    first = {shape[0] for name in graph.inputs if (shape := graph.types[name].shape)}
    fixed = {dim for dim in first if isinstance(dim, int)}
    if len(fixed) > 1:
        shown = ", ".join(f"{name}: {graph.types[name]}" for name in graph.inputs)
        raise InputError(
            "inputs", f"disagree about the batch, their first dimension ({shown}).", "Run the graph whole."
        )
    return fixed.pop() if fixed else most


def check_feeds(graph: Graph, feeds: Mapping[str, Array]) -> None:
    """Refuse feeds with names, types or shapes other than the inputs' (InputError)."""
    names = ", ".join(graph.inputs)
    for name in feeds:
        if name not in graph.inputs:
            raise InputError(f"data '{name}'", f"is no input of the model (inputs: {names}).", "Rename or remove it.")
    for name in graph.inputs:
        if name not in feeds:
            raise InputError(f"input '{name}'", f"has no data (got: {', '.join(feeds) or 'none'}).", "Add it.")
        _check_feed(name, graph.types[name], feeds[name])


def _check_feed(name: str, kind: TensorType, array: Array) -> None:
    if array.dtype != kind.dtype and kind.dtype != np.dtype(object):
        got = f"expected {kind}, got {array.dtype}{list(array.shape)}"
        raise InputError(f"input '{name}'", f"has another type: {got}.", f"Convert it to {kind.dtype}.")
    if kind.shape is None:
        return
    fits = len(kind.shape) == array.ndim and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(kind.shape, array.shape, strict=True)
    )
    if not fits:
        got = f"expected {kind}, got {array.dtype}{list(array.shape)}"
        raise InputError(f"input '{name}'", f"has another shape: {got}.", "Reshape the data or fix the model's inputs.")


def _options(optimize: bool, threads: int | None) -> Any:
    onnxruntime = ort.onnxruntime()
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _session(graph: Graph, options: Any) -> Any:
    """Load `graph`; large constants stay where they are, so that its size has no limit."""
    large = {name: array for name, array in graph.constants.items() if _lies_beside(array)}
    small = {name: array for name, array in graph.constants.items() if name not in large}
    model = to_model(replace(graph, constants=small))
    for name, array in large.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        proto = TensorProto(name=name, dims=array.shape, data_type=kind, data_location=TensorProto.EXTERNAL)
        proto.external_data.add(key="location", value="memory")
        model.graph.initializer.append(proto)
    if large:
        options.add_external_initializers(list(large), [_ort_value(array) for array in large.values()])
    try:
        return ort.onnxruntime().InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except ort.refusals() as error:
        remedy = "It cannot serve as the reference; replace the operator it names."
        raise UnsupportedError("onnxruntime", f"refuses this graph: {_first_line(error)}", remedy) from error


def _lies_beside(array: Array) -> bool:
    return array.nbytes >= BESIDE and array.dtype != np.dtype(object) and bits_of(array.dtype) % 8 == 0


def _ort_value(array: Array) -> Any:
    values = ort.onnxruntime().OrtValue
    array = np.require(array, requirements="C")
    if array.dtype.isbuiltin == 1:  # a type of numpy's own
        return values.ortvalue_from_numpy(array)
    storage = array.view(np.dtype(f"u{array.dtype.itemsize}"))
    return values.ortvalue_from_numpy_with_onnx_type(storage, helper.np_dtype_to_tensor_dtype(array.dtype))


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:400] if text else type(error).__name__
