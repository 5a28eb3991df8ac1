"""What a compiled model says about itself: `manifest.json`, read with the standard library alone.

A board's Python has numpy and little else, so this file and the runner import neither pydantic nor onnx.
"""

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from graphc.errors import InputError

MANIFEST = "manifest.json"
FORMAT = 3
"""Changes when an older graphc could not run a newer artifact."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quantization:
    """Real value = (stored integer - zero_point) * scale."""

    scale: float
    zero_point: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output: dense, row-major. `offset` is where it may lie in the arena, None: outside."""

    name: str
    identifier: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    quantization: Quantization | None
    offset: int | None


@dataclass(frozen=True, slots=True)
class Patches:
    """Layers that are computed in `count` patches, one after another, to need less memory at once; `macs` of the whole
    model without and with what is computed twice for it."""

    nodes: tuple[str, ...]
    count: int
    macs_before: int
    macs: int


@dataclass(frozen=True, slots=True)
class Arena:
    """Memory that one caller provides. `lower_bound` is the largest set of bytes alive at once, at `peak`'s nodes;
    `state` bytes at its start belong to the runtime."""

    bytes: int
    alignment: int
    state: int
    lower_bound: int
    peak: tuple[str, ...]
    patches: Patches | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A constant that `nodes` read: its bytes as kernels read it, as it is stored, and the entropy of its bytes."""

    nodes: tuple[str, ...]
    packed: int
    stored: int
    bound: float


@dataclass(frozen=True, slots=True)
class Weights:
    """The constants as one block of bytes, and its checksums; `parts` are listed where they may be entropy-coded."""

    bytes: int
    sha256: str
    crc32: int
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do at least. `macs` are the multiply-accumulates that its kernel executes (Winograd's
    filtering: fewer than the convolution has), on operands of type `arithmetic`; `weights` bytes of constants are
    read, `data` bytes of other buffers read or written.
    """

    macs: int = 0
    arithmetic: str = ""
    weights: int = 0
    data: int = 0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What code without an operating system takes beside arena and weights: bytes of code and tables in flash, and
    a bound for the stack of one call (see `graphc.backends.stack`)."""

    code: int
    stack: int


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of the list that a run goes through: a kernel on `tasks` tasks; the kernel is "" for a plain copy."""

    nodes: tuple[str, ...]
    kernel: str
    tasks: int
    work: Work


@dataclass(frozen=True, slots=True)
class Decision:
    """Which kernel multiplies the weights of a node that has zeros: `sparse` skips them, `dense` does not. `speed` is
    that of skipping beside the dense kernel's, as expected."""

    node: str
    kernel: str
    speed: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call of `nodes` that reads constants alone and writes so many bytes of the arena: `once`, by init, or at every
    run."""

    nodes: tuple[str, ...]
    bytes: int
    once: bool


@dataclass(frozen=True, slots=True)
class Multiplied:
    """What multiplies the floats of a node where narrower ones were asked for: an instruction by name, or float32; and
    why."""

    node: str
    instruction: str
    reason: str


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What compiled and linked the C."""

    name: str
    version: str


@dataclass(frozen=True, slots=True)
class Files:
    """Names of the files beside the manifest; `library` is None where there are no dynamic libraries.

    `library_bytes` tells a library that was cut off, which the system's loader would crash on.
    """

    library: str | None
    library_bytes: int
    archive: str
    header: str
    source: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One compiled model. `identifier` is the prefix of its C functions; `target` describes what it runs on; `build`
    (16 hexadecimal digits) differs where the code or the weights do. `footprint` is None under an operating system."""

    format: int
    build: str
    graphc: str
    name: str
    identifier: str
    target: dict[str, Any]
    toolchain: Toolchain
    files: Files
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    arena: Arena
    weights: Weights
    footprint: Footprint | None
    max_threads: int
    steps: tuple[Step, ...]
    decisions: tuple[Decision, ...]
    prepared: tuple[Prepared, ...]
    multiplied: tuple[Multiplied, ...]

    @property
    def ram(self) -> int:
        """Bytes of the arena, and of the stack where it is known."""
        return self.arena.bytes + (self.footprint.stack if self.footprint else 0)

    def to_json(self) -> str:
        """Sorted keys, no time, no path: equal for equal builds."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def find(path: str | Path) -> Path:
    """The folder of an artifact, given the folder or any file in it. Raises InputError where there is none."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if not path.exists() or not (folder / MANIFEST).is_file():
        problem = f"no {MANIFEST} there." if path.exists() else "no such file or folder."
        raise InputError(str(path), problem, "Give the folder that `graphc build` wrote, such as build/NAME/TARGET.")
    return folder


def read(path: str | Path) -> Manifest:
    """The manifest of an artifact. Raises InputError for a file that is damaged or from a newer graphc."""
    file = find(path) / MANIFEST
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(file), f"cannot be read: {error}.", "Build the artifact again.") from error
    found = data.get("format") if isinstance(data, dict) else None
    if found != FORMAT:
        raise InputError(
            str(file), f"expected format {FORMAT}, got {found!r}.", "Build it again, or update graphc where it runs."
        )
    try:
        return _parse(Manifest, data, "manifest")
    except (TypeError, ValueError) as error:
        raise InputError(str(file), f"{error}.", "Build the artifact again.") from error


def _parse(kind: type[T], data: Any, where: str) -> T:
    """JSON data as the dataclass `kind`. Raises TypeError or ValueError that says where it is not."""
    if not isinstance(data, dict):
        raise TypeError(f"{where}: expected an object, got {data!r}")
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    if names != data.keys():
        raise ValueError(f"{where}: missing {sorted(names - data.keys())}, unknown {sorted(data.keys() - names)}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(hints[name], data[name], f"{where}.{name}") for name in names})


def _value(hint: Any, data: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        choices = [choice for choice in get_args(hint) if choice is not NoneType]
        return None if data is None else _value(choices[0], data, where)
    if origin is tuple and isinstance(data, list):
        item = get_args(hint)[0]
        return tuple(_value(item, each, f"{where}[{index}]") for index, each in enumerate(data))
    if is_dataclass(hint) and isinstance(hint, type):
        return _parse(hint, data, where)
    plain = origin or hint
    if plain is float and isinstance(data, int):
        return float(data)
    if not isinstance(data, plain) or (plain is int and isinstance(data, bool)):
        raise TypeError(f"{where}: expected {plain.__name__}, got {data!r}")
    return data
