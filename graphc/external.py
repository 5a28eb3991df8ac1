"""External tensor data: files beside a model, mapped into memory, never outside the model's folder."""

from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, helper, numpy_helper

from graphc.errors import InputError
from graphc.ir.graph import Array

_PACKED_BITS = {
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2,
    TensorProto.UINT2: 2,
}
"""Types of several elements to a byte."""


class Folder:
    """The folder that a model's external data must lie in; None for models that came as bytes."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._maps: dict[Path, npt.NDArray[np.uint8]] = {}

    def tensor(self, proto: TensorProto) -> Array:
        """A view into the mapped file (unpacked copies for types under one byte).

        Raises InputError for a path that leaves the folder, a missing file, or a range that does not fit the shape.
        """
        where = f"tensor '{proto.name}'"
        entries = {entry.key: entry.value for entry in proto.external_data}
        try:
            offset, stated = int(entries.get("offset", 0)), int(entries["length"]) if "length" in entries else None
            dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.data_type))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                where, f"its external data is described wrongly ({error}).", "Export the model again."
            ) from error
        if proto.data_type == TensorProto.STRING:
            raise InputError(where, "strings cannot be external data.", "Export the model again.")
        count = prod(proto.dims)
        length = _bytes_of(proto.data_type, count, dtype)
        if stated is not None and stated != length:
            raise InputError(
                where,
                f"{stated} bytes of external data for {dtype}{list(proto.dims)} (expected {length}).",
                "Export the model again.",
            )
        path = self._resolve(entries.get("location", ""), where)
        data = self._map(path, where)
        if min(offset, length, *proto.dims, 0) < 0 or offset + length > data.size:
            raise InputError(
                where,
                f"bytes {offset} to {offset + length} of '{path.name}', which has {data.size}.",
                "The data file is truncated or belongs to another model.",
            )
        raw = data[offset : offset + length]
        if proto.data_type in _PACKED_BITS:
            packed = TensorProto(name=proto.name, data_type=proto.data_type, dims=proto.dims, raw_data=raw.tobytes())
            array: Array = numpy_helper.to_array(packed)
        elif offset % dtype.alignment:
            array = np.frombuffer(raw.tobytes(), dtype).reshape(proto.dims)
        else:
            array = raw.view(dtype).reshape(proto.dims)
        return array

    def _resolve(self, location: str, where: str) -> Path:
        if self._path is None:
            raise InputError(
                where,
                f"its data lies in '{location}', but the model came without a folder.",
                "Load the model by its path.",
            )
        folder = self._path.resolve()
        path = (folder / location.replace("\0", "")).resolve()
        if not location or "\0" in location or path == folder or not path.is_relative_to(folder):
            raise InputError(
                where,
                f"its data path '{location}' leaves the model's folder.",
                "Put the data file beside the model and refer to it by a relative path.",
            )
        return path

    def _map(self, path: Path, where: str) -> npt.NDArray[np.uint8]:
        if path not in self._maps:
            if not path.is_file():
                raise InputError(where, f"its data file '{path.name}' is missing.", f"Put it in {path.parent}.")
            try:
                mapped = path.stat().st_size > 0  # an empty file cannot be mapped
                self._maps[path] = np.memmap(path, np.uint8, "r") if mapped else np.empty(0, np.uint8)
            except (OSError, ValueError) as error:
                raise InputError(
                    where, f"its data file '{path.name}' cannot be read: {error}.", "Export the model again."
                ) from error
        return self._maps[path]


def _bytes_of(data_type: int, count: int, dtype: np.dtype[np.generic]) -> int:
    return (count * _PACKED_BITS.get(data_type, dtype.itemsize * 8) + 7) // 8
