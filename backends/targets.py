"""Targets: what a compiled model runs on, as plain data, and how a spec's target entry becomes one.

A family (x86, arm, ...) is one file with a `FAMILY` record; `_families` lists them. A board is an entry of
`graphc.backends.boards`, or of the spec itself. No TVM is needed to read any of it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from graphc.backends import boards
from graphc.backends.boards import BOARDS, Board, Memory
from graphc.errors import UnsupportedError

Kind = Literal["cpu", "board", "gpu"]
Storage = Literal["plain", "coded", "streamed"]


@dataclass(frozen=True, slots=True)
class Target:
    """One processor that kernels are compiled for.

    Every field may decide the code of a kernel, so all of them (`description`) belong in cache keys and the manifest.
    Where `id` is "native" the rest describes the machine concretely.
    """

    id: str
    """The name in the spec and of the artifact's folder: `native`, `x86-64-v3`, `raspberry-pi-4`."""
    family: str
    """The file of `backends/` that describes it: `x86`."""
    triple: str
    """LLVM target triple."""
    cpu: str
    """LLVM processor name: the instruction set's base and the tuning."""
    features: tuple[str, ...]
    """LLVM features added to (`+name`) or taken from (`-name`) `cpu`, sorted."""
    vector_bits: int
    """Width of the widest vector register that kernels use."""
    vector_registers: int
    """How many such registers there are."""
    l1_bytes: int
    """Level-1 data cache of one core."""
    l2_bytes: int
    """Level-2 cache that one core can count on."""
    instructions: frozenset[str] = field(default=frozenset())
    """What schedules choose by: names of the family's `INSTRUCTIONS` (`fma`, `avx512_vnni`, `dotprod`, ...)."""
    float_abi: Literal["", "hard", "soft"] = ""
    """Of Arm targets without an operating system; empty where the triple decides."""
    hosted: bool = True
    """Whether an operating system is there (files, threads, dynamic libraries)."""
    library_ending: str = ".so"
    """Of a dynamic library; empty where there are none."""
    archive_ending: str = ".a"
    winograd: bool = True
    """Whether float convolutions may use Winograd's filtering: see `graphc.backends.winograd` for what it errs."""
    arithmetic: Literal["float32", "bf16", "fp16"] = "float32"
    """What convolutions and products of floats multiply: `graphc.backends.narrow_bf16` and `narrow_fp16` say what
    that errs."""
    weights: Storage = "plain"
    """How constants are stored: as kernels read them, or entropy-coded (`graphc.backends.coded_weights`)."""
    emit: Literal["objects", "c"] = "objects"
    """Whether kernels are compiled here, or written as C99 that any compiler takes."""
    patches: int = 0
    """In how many patches the first layers are computed: 0: as many as it takes to fit (`graphc.backends.patches`)."""
    board: Board | None = None
    """The board it is part of, where the spec names one."""
    compiler: str = ""
    """The command of the C compiler that the spec names; empty: `graphc.backends.toolchain` finds one."""

    @property
    def system(self) -> bool:
        """Whether the C around the kernels may use an operating system: threads, a clock, what processor this is."""
        return self.hosted and self.emit == "objects"

    def has(self, instruction: str) -> bool:
        """Whether schedules may use `instruction`."""
        return instruction in self.instructions

    @property
    def alignment(self) -> int:
        """Of buffers where memory is scarce, in bytes: a vector, and what the runtime's state holds."""
        return max(8, self.vector_bits // 8)

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` bits one vector register holds."""
        return self.vector_bits // bits

    def description(self) -> dict[str, Any]:
        """All fields as JSON-ready data: the same on every machine for every target but `native`."""
        return {**asdict(self), "features": list(self.features), "instructions": sorted(self.instructions)}


def from_description(description: Mapping[str, Any]) -> Target:
    """The inverse of `Target.description`, for a manifest that was read back."""
    features, instructions = tuple(description["features"]), frozenset(description["instructions"])
    board = boards.from_description(description["board"]) if description["board"] else None
    return Target(**{**description, "features": features, "instructions": instructions, "board": board})


def _on_board(target: Target, board: Board) -> Target:
    return replace(target, id=board.id, board=board)


@dataclass(frozen=True, slots=True)
class Family:
    """The processors of one family. A maker is called when its target is asked for: `native` looks at the host."""

    name: str
    cpus: Mapping[str, Callable[[], Target]]
    on_board: Callable[[Target, Board], Target] = _on_board
    """A processor's target as the chip of a board has it."""


def _families() -> tuple[Family, ...]:
    from graphc.backends import arm, cortex_m, x86  # a family file imports Target from here

    return (x86.FAMILY, arm.FAMILY, cortex_m.FAMILY)


def available() -> dict[Kind, list[str]]:
    """The ids that `resolve` knows, by the key of the spec entry that names them."""
    return {"cpu": [id_ for family in _families() for id_ in family.cpus], "board": list(BOARDS), "gpu": []}


def resolve(entry: Mapping[str, Any]) -> Target:
    """The target that an entry of the spec's `targets:` names, such as `{"cpu": "native", "winograd": False}`.

    A board's value is an id of `graphc.backends.boards`, or the description of a board as `graphc.spec` reads it.
    Raises UnsupportedError for an id or a kind of target that graphc does not know, naming what there is.
    """
    if entry.get("cpu") is not None:
        _, target = _cpu(entry["cpu"], f"target {{cpu: {entry['cpu']}}}")
    elif entry.get("board") is not None:
        target = _board(entry["board"])
    elif entry.get("gpu") is not None:
        there = "; ".join(f"{key}: {', '.join(ids)}" for key, ids in available().items() if ids)
        subject = f"target {{gpu: {entry['gpu']}}}"
        raise UnsupportedError(subject, "this version of graphc has no gpu targets.", f"Available: {there}.")
    else:
        raise UnsupportedError("targets", f"expected a cpu, board or gpu, got {dict(entry)}.", "Write {cpu: native}.")
    if entry.get("emit") == "c":
        target = _as_c(target)
    changed = {name: entry.get(name) for name in ("winograd", "arithmetic", "compiler", "weights", "patches")}
    target = replace(target, **{name: value for name, value in changed.items() if value is not None})
    if target.patches and target.system:
        problem = "`patches` is for memory of a microcontroller; this target has an operating system."
        raise UnsupportedError(f"target {target.id}", problem, "Leave `patches` out.")
    if target.arithmetic == "bf16" and not (target.has("amx_bf16") or target.has("avx512_bf16")):
        problem = "it has neither amx_bf16 nor avx512_bf16, so `arithmetic: bf16` is not for it."
        remedy = "Leave that out: weights stored as bfloat16 are widened to float32 by every target."
        raise UnsupportedError(f"target {target.id}", problem, remedy)
    _require_half(target)
    return target


def _require_half(target: Target) -> None:
    if target.arithmetic == "fp16" and not target.has("fp16"):
        problem = "it has no arithmetic of float16 (FEAT_FP16), so `arithmetic: fp16` is not for it."
        remedy = "Leave that out (weights stored as float16 are widened by every target), or choose one that has it: "
        raise UnsupportedError(f"target {target.id}", problem, f"{remedy}cortex-a55, cortex-a76 and later ones.")


def _as_c(target: Target) -> Target:
    """Kernels in portable C99 of it: no instruction set, no vectors."""
    return replace(
        target,
        id=f"{target.id}-c",
        emit="c",
        family="c",
        instructions=frozenset(),
        vector_bits=32,
        vector_registers=12,
        winograd=False,
    )


def _cpu(id_: str, subject: str) -> tuple[Family, Target]:
    for family in _families():
        if id_ in family.cpus:
            return family, family.cpus[id_]()
    raise _unknown(subject, "cpu", id_)


def _board(entry: str | Mapping[str, Any]) -> Target:
    if isinstance(entry, str) and entry not in BOARDS:
        raise _unknown(f"target {{board: {entry}}}", "board", entry)
    board = BOARDS[entry] if isinstance(entry, str) else _own_board(entry)
    family, target = _cpu(board.cpu, f"board '{board.id}'")
    return family.on_board(target, board)


def _own_board(entry: Mapping[str, Any]) -> Board:
    """A board that the spec describes: see `graphc.spec.model.OwnBoard`."""
    return Board(
        id=entry["name"],
        name=entry["name"],
        cpu=entry["cpu"],
        clock_hz=int(entry["clock"] or 0),
        ram=tuple(Memory(memory["address"], memory["size"]) for memory in entry["ram"]),
        flash=Memory(entry["flash"]["address"], entry["flash"]["size"]) if entry["flash"] else None,
        fpu=entry["fpu"] or "",
        emulator=entry["emulator"] or "",
        startup="own",
    )


def _unknown(subject: str, kind: Kind, id_: str) -> UnsupportedError:
    known = available()[kind]
    close = difflib.get_close_matches(id_, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return UnsupportedError(subject, f"unknown {kind} '{id_}'.", f"{hint}Available: {', '.join(known)}.")


def llvm_target(target: Target) -> dict[str, Any]:
    """The configuration of `tvm.target.Target` for kernels of `target`.

    No fast-math option is set: results stay IEEE-754, except that LLVM fuses a multiply and an add into one FMA where
    the processor has it (TVM always allows that). Integer arithmetic has no such pair (see graphc.backends.arithmetic).
    """
    options: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": target.triple,
        "mcpu": target.cpu,
        "mattr": list(target.features),
        "opt-level": 3,
        "vector-width": target.vector_bits,
    }
    if target.float_abi:
        options["mfloat-abi"] = target.float_abi
    return options
