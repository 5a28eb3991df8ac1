"""Graph -> ONNX: a model that onnx.checker accepts and plain onnxruntime runs, graphc's operators as functions."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from graphc.errors import InputError, InternalError
from graphc.ir.functions import DOMAIN, VERSION, functions_in
from graphc.ir.graph import IR_VERSION, OPSET, Array, Graph, bits_of
from graphc.ir.infer import ML_OPSET, STANDARD
from graphc.ir.protobuf import graph_to_proto, tensor_to_proto
from graphc.version import VERSION as GRAPHC_VERSION

ML_DOMAIN = "ai.onnx.ml"
EXTERNAL_ABOVE = 1 << 30
"""Bytes of weights above which `save` puts them in a file beside the model (protobuf ends at 2 GB)."""
ALIGN = 4096
"""Offsets of external tensors: a page, so that each can be mapped."""


def to_model(graph: Graph) -> ModelProto:
    """The model in memory, weights inside. The same graph gives the same bytes.

    A model past 2 GB cannot be serialized from here: use `save`. Raises InternalError for a backend's own operators.
    """
    return _model(graph, None)


def save(graph: Graph, path: str | Path) -> None:
    """Write `graph` to `path`, over what was there; weights past 1 GiB in all go to `<path>.data` beside it.

    Files appear whole or not at all. Raises InputError where the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        size = sum(graph.types[name].bytes for name in graph.constants)
        if size <= EXTERNAL_ABOVE:
            with _whole(path) as file:
                file.write(to_model(graph).SerializeToString(deterministic=True))
        else:
            _save_external(graph, path)
    except OSError as error:
        raise InputError(
            str(path), f"cannot be written: {error.strerror}.", "Check the folder and the space on the disk."
        ) from error


def _model(graph: Graph, tensors: dict[str, TensorProto] | None) -> ModelProto:
    proto = graph_to_proto(graph, tensors)
    domains = set(_domains(graph))
    if foreign := domains - STANDARD:
        problem = f"operators of domain {', '.join(sorted(foreign))} have no ONNX form."
        raise InternalError(f"graph '{graph.name}'", problem)
    imports = [helper.make_opsetid("", OPSET)]
    if ML_DOMAIN in domains:
        imports.append(helper.make_opsetid(ML_DOMAIN, ML_OPSET))
    if DOMAIN in domains:
        imports.append(helper.make_opsetid(DOMAIN, VERSION))
    return ModelProto(
        ir_version=IR_VERSION,
        producer_name="graphc",
        producer_version=GRAPHC_VERSION,
        graph=proto,
        opset_import=imports,
        functions=functions_in(proto),
        metadata_props=[
            onnx.StringStringEntryProto(key=key, value=graph.metadata[key]) for key in sorted(graph.metadata)
        ],
    )


def _domains(graph: Graph) -> Iterator[str]:
    for node in graph.nodes:
        yield node.domain
        for body in node.subgraphs:
            yield from _domains(body)


def _save_external(graph: Graph, path: Path) -> None:
    """Weights first, then the model that refers to them, so that a reader never meets a model without its data."""
    data = path.with_name(f"{path.name}.data")
    with _whole(data) as file:
        tensors = {name: _append(file, name, array, data.name) for name, array in graph.constants.items()}
    with _whole(path) as file:
        file.write(_model(graph, tensors).SerializeToString(deterministic=True))


def _append(file: BinaryIO, name: str, array: Array, location: str) -> TensorProto:
    """Write a tensor's bytes at the next page; small ones stay in the protobuf."""
    if array.nbytes < ALIGN or array.dtype == np.dtype(object):
        return tensor_to_proto(name, array)
    file.seek(-file.tell() % ALIGN, os.SEEK_CUR)
    offset = file.tell()
    if bits_of(array.dtype) % 8:
        file.write(tensor_to_proto(name, array).raw_data)
    else:
        np.ascontiguousarray(array).tofile(file)
    proto = TensorProto(
        name=name,
        dims=array.shape,
        data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(file.tell() - offset))):
        proto.external_data.append(onnx.StringStringEntryProto(key=key, value=value))
    return proto


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` when the block ends well, and leaves nothing otherwise."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
