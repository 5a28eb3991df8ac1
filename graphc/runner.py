"""Run a compiled model from Python: ctypes and numpy, nothing else (a board's Python has little more).

with graphc.open("build/mobilenet/native", threads=2) as model:
    y = model(x)
"""

import _ctypes
import ctypes
import importlib
import platform
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from graphc import artifact
from graphc.artifact import Manifest, Tensor
from graphc.errors import GraphcError, InputError, InternalError, UnsupportedError

Array: TypeAlias = npt.NDArray[Any]

_MEANING = {
    1: "a pointer is NULL",
    2: "memory is not aligned",
    3: "the arena is smaller than the library asks for",
    4: "the number of threads is out of range",
    5: "this processor lacks instructions that the artifact was compiled for",
    6: "the weights' checksum is wrong",
    7: "the system did not start a thread",
    8: "the arena is not initialised",
    9: "there is no clock",
    10: "the library is of another build than its manifest",
}
_REMEDY = {
    5: "Build it for this machine, or for an older processor: `graphc targets` lists them.",
    6: "The file is damaged: build or copy it again.",
    7: "Ask for fewer threads.",
    10: "Close what was opened from this folder before it was built again, and open it anew.",
}


class Opened(Protocol):
    """An artifact that can be called, wherever it runs."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def outputs(self) -> tuple[Tensor, ...]: ...

    def __call__(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Any: ...


class _Options(ctypes.Structure):
    """`<name>_options` of the artifact's header."""

    _fields_ = (
        ("build", ctypes.c_uint64),
        ("arena_bytes", ctypes.c_size_t),
        ("threads", ctypes.c_int32),
        ("checksum", ctypes.c_int32),
        ("clock", ctypes.c_void_p),
    )


class Runner:
    """An opened model with an arena of its own.

    Safe to call from several threads, which then take turns; to run at the same time, open the model once for each (the
    weights are in memory once). Do not use an opened model in a child process made by `fork`.
    """

    def __init__(self, path: str | Path, threads: int = 1, *, checksum: bool = False) -> None:
        """Load the artifact in the folder `path`; `threads` counts the caller's own.

        Raises InputError where there is no artifact, or with `checksum` when its weights are damaged;
        UnsupportedError where it cannot run on this machine.
        """
        self.manifest: Manifest = artifact.read(path)
        self.folder = artifact.find(path)
        if not 1 <= threads <= self.manifest.max_threads:
            raise InputError(str(path), f"expected 1 to {self.manifest.max_threads} threads, got {threads}.")
        self._lock = threading.Lock()
        self._library = _load(self.folder, self.manifest)
        arena = self.manifest.arena
        memory = np.empty(arena.bytes + arena.alignment, np.uint8)
        self._arena = memory.ctypes.data + -memory.ctypes.data % arena.alignment
        options = _Options(int(self.manifest.build, 16), arena.bytes, threads, int(checksum), None)
        code = self._function("init", 2)(self._arena, ctypes.addressof(options))
        if code != 0:
            _unload(self._library)
            raise failure(self.folder, code)
        close = self._function("close", 1)
        self._finalizer = weakref.finalize(self, _close, close, self._arena, self._library, memory)
        tensors = len(self.inputs) + len(self.outputs)
        self._run, self._profile = self._function("run", 1 + tensors), self._function("profile", 2 + tensors)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Names, shapes, dtypes and quantization of what a call takes, in order."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The same of what it returns."""
        return self.manifest.outputs

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def __call__(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Any:
        """Run once: arrays by position, by input name, or both. Their dtype and shape must be the model's.

        Returns a new array; a dict of them by output name where the model has several outputs.
        Raises InputError for an input that is missing, unknown, or of the wrong dtype or shape.
        """
        return self._named(self._execute(self._run, (), arrays, named))

    def bind(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> Callable[[], Any]:
        """A function that runs on these arrays as they are at each call, and returns the same output arrays every time.

        For loops in which the microseconds of an ordinary call count: nothing is checked, copied or allocated per run.
        Raises InputError as a call does, and for an array that cannot be read where it lies.
        """
        values = bound(self.folder, self.inputs, arrays, named)
        feeds = [checked(tensor, value) for tensor, value in zip(self.inputs, values, strict=True)]
        for tensor, value, feed in zip(self.inputs, values, feeds, strict=True):
            if feed is not value:
                remedy = "Pass numpy.ascontiguousarray(x) and write into that."
                raise InputError(f"input '{tensor.name}'", "expected a dense array, to be read where it lies.", remedy)
        results = [np.empty(tensor.shape, numpy_dtype(tensor.dtype)) for tensor in self.outputs]
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*feeds, *results)]
        outputs, memory = self._named(results), (feeds, results)

        def run(_memory: object = memory) -> Any:
            self._call(self._run, pointers)
            return outputs

        return run

    def profile(self, /, *arrays: npt.ArrayLike, **named: npt.ArrayLike) -> list[int]:
        """Run once and return the nanoseconds that each entry of `manifest.steps` took."""
        ticks = np.zeros(len(self.manifest.steps), np.uint64)
        self._execute(self._profile, (ticks.ctypes.data,), arrays, named)
        return [int(each) for each in ticks]

    def close(self) -> None:
        """End the threads and free the arena and the library. May be called again."""
        with self._lock:
            self._finalizer()

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<graphc.Runner {self.manifest.name} ({self.manifest.target['id']}){' closed' if self.closed else ''}>"

    def _execute(
        self,
        function: Callable[..., int],
        first: tuple[int, ...],
        arrays: Sequence[npt.ArrayLike],
        named: Mapping[str, npt.ArrayLike],
    ) -> list[Array]:
        feeds = [
            checked(tensor, value)
            for tensor, value in zip(self.inputs, bound(self.folder, self.inputs, arrays, named), strict=True)
        ]
        results = [np.empty(tensor.shape, numpy_dtype(tensor.dtype)) for tensor in self.outputs]
        self._call(function, [*first, *(array.ctypes.data for array in (*feeds, *results))])
        return results

    def _call(self, function: Callable[..., int], pointers: Sequence[object]) -> None:
        with self._lock:
            if self.closed:
                raise InputError(str(self.folder), "this model is closed.", "Open it again with graphc.open.")
            code = function(self._arena, *pointers)
        if code != 0:
            raise failure(self.folder, code)

    def _named(self, results: list[Array]) -> Any:
        """The one output, or all of them by name."""
        if len(results) == 1:
            return results[0]
        return {tensor.name: array for tensor, array in zip(self.outputs, results, strict=True)}

    def _function(self, name: str, pointers: int) -> Callable[..., int]:
        symbol = f"{self.manifest.identifier}_{name}"
        function = getattr(self._library, symbol, None)
        if function is None:
            raise InputError(str(self.folder), f"its library has no {symbol}.", "Build the artifact again.")
        function.argtypes = [ctypes.c_void_p] * pointers
        function.restype = None if name == "close" else ctypes.c_int
        return function  # type: ignore[no-any-return]


def open(path: str | Path, threads: int = 1, *, checksum: bool = False) -> Runner:  # noqa: A001
    """Open the artifact in the folder `path`, such as `build/mobilenet/native`; see Runner."""
    return Runner(path, threads, checksum=checksum)


def bound(
    folder: Path, inputs: Sequence[Tensor], arrays: Sequence[npt.ArrayLike], named: Mapping[str, npt.ArrayLike]
) -> list[npt.ArrayLike]:
    """The values of a call in the order of the inputs. Raises InputError for what is missing, or too much."""
    names = [tensor.name for tensor in inputs]
    expected = f"expected {', '.join(map(repr, names)) or 'no input'}"
    if len(arrays) > len(names):
        raise InputError(str(folder), f"{expected}, got {len(arrays)} arrays.")
    if unknown := sorted(named.keys() - set(names[len(arrays) :])):
        raise InputError(str(folder), f"{expected}, got {', '.join(map(repr, unknown))} as well.")
    if missing := [name for name in names[len(arrays) :] if name not in named]:
        raise InputError(str(folder), f"no value for input {', '.join(map(repr, missing))}.")
    return [*arrays, *(named[name] for name in names[len(arrays) :])]


def _load(folder: Path, manifest: Manifest) -> ctypes.CDLL:
    if manifest.files.library is None:
        raise UnsupportedError(str(folder), f"an artifact for {manifest.target['id']} has no library to load.")
    file = (folder / manifest.files.library).resolve()
    if not file.is_file():
        raise InputError(str(file), "no such file.", "Build the artifact again.")
    if (size := file.stat().st_size) != manifest.files.library_bytes:
        problem = f"expected {manifest.files.library_bytes} bytes, got {size}."
        raise InputError(str(file), problem, "It is damaged or of another build: build or copy the artifact again.")
    try:
        return ctypes.CDLL(str(file))
    except OSError as error:
        raise UnsupportedError(
            str(file),
            f"this machine ({platform.system()} {platform.machine()}) cannot load it: {error}.",
            f"It was built for {manifest.target['triple']}.",
        ) from error


def _unload(library: ctypes.CDLL) -> None:
    """So that a library built again under the same name is loaded anew."""
    _ctypes.dlclose(library._handle)


def _close(close: Callable[..., int], arena: int, library: ctypes.CDLL, memory: Array) -> None:
    """Runs once: at `close`, when the Runner is collected, or when Python ends. `memory` lives until here."""
    close(arena)
    _unload(library)
    del memory


def failure(folder: Path, code: int) -> GraphcError:
    """The error that a code of an artifact's functions means."""
    kind = InternalError if code in (1, 2, 4, 8, 9) else UnsupportedError if code in (5, 7) else InputError
    return kind(str(folder), f"{_MEANING.get(code, f'error {code}')}.", _REMEDY.get(code, ""))


def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's own types, and those of ml_dtypes (bfloat16, float8), which is imported only for them."""
    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        extended: np.dtype[Any] = np.dtype(getattr(importlib.import_module("ml_dtypes"), name))
    except ImportError as error:
        raise UnsupportedError(f"dtype {name}", "numpy lacks it.", "Run `pip install ml_dtypes`.") from error
    return extended


def checked(tensor: Tensor, value: npt.ArrayLike) -> Array:
    """The value as a dense, aligned array; copied only where it is not one. Raises InputError for another type."""
    array, dtype = np.asarray(value), numpy_dtype(tensor.dtype)
    if array.dtype != dtype:
        remedy = f"Convert it: x.astype({tensor.dtype!r})."
        raise InputError(f"input '{tensor.name}'", f"expected dtype {tensor.dtype}, got {array.dtype}.", remedy)
    if array.shape != tensor.shape:
        raise InputError(f"input '{tensor.name}'", f"expected shape {list(tensor.shape)}, got {list(array.shape)}.")
    return np.require(array, requirements=("C", "A"))
