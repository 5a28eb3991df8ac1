"""Looking into TIR: what a statement loads and from where in memory, and expressions in the place of variables."""

from collections.abc import Mapping
from math import prod
from typing import Any

import tvm.ir
import tvm_ffi
from tvm import tirx

from graphc.backends.statements import const


def loads(part: Any) -> list[Any]:
    """Every load of a tensor element under a statement or expression."""
    found: list[Any] = []
    tvm_ffi.structural_walk(part, (tvm.ir.TensorLoad, found.append))
    return found


def reads(part: Any, buffer: Any) -> bool:
    return any(load.source.same_as(buffer) for load in loads(part))


def variables(part: Any) -> list[Any]:
    """Every mention of a variable, buffers among them."""
    found: list[Any] = []
    tvm_ffi.structural_walk(part, (tirx.Var, found.append))
    return found


def substituted(part: Any, places: Mapping[Any, Any]) -> Any:
    """The part with other expressions for variables."""
    return tvm_ffi.structural_map(part, (tirx.Var, lambda variable: places.get(variable, variable)))


def flat_place(load: Any) -> Any:
    """Where in its buffer, as a flat one, an element lies."""
    at: Any = const(0)
    for index, extent in zip(load.indices, load.source.shape, strict=True):
        at = at * extent + index
    return at


def flat_buffer(buffer: Any) -> Any:
    """The same memory as a buffer of one dimension."""
    return tirx.decl_buffer((prod(int(extent) for extent in buffer.shape),), buffer.dtype, buffer.name)
