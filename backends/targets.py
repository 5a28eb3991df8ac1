"""Targets: what a compiled model runs on, as plain data, and how a spec's target entry becomes one.

A family (x86, ...) is one file with a `FAMILY` record; `_families` lists them. No TVM is needed to read any of it.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from graphc.errors import UnsupportedError

Kind = Literal["cpu", "board", "gpu"]


@dataclass(frozen=True, slots=True)
class Target:
    """One processor that kernels are compiled for.

    Every field may decide the code of a kernel, so all of them (`description`) belong in cache keys and the manifest.
    Where `id` is "native" the rest describes the machine concretely.
    """

    id: str
    """The name in the spec and of the artifact's folder: `native`, `x86-64-v3`."""
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
    """What schedules choose by: the names of `graphc.backends.x86.INSTRUCTIONS` (`fma`, `avx512_vnni`, ...)."""
    float_abi: Literal["", "hard", "soft"] = ""
    """Of Arm targets without an operating system; empty where the triple decides."""
    hosted: bool = True
    """Whether an operating system is there (files, threads, dynamic libraries)."""
    library_ending: str = ".so"
    """Of a dynamic library; empty where there are none."""
    archive_ending: str = ".a"
    winograd: bool = True
    """Whether float convolutions may use Winograd's filtering: see `graphc.backends.winograd` for what it errs."""

    def has(self, instruction: str) -> bool:
        """Whether schedules may use `instruction`."""
        return instruction in self.instructions

    def lanes(self, bits: int) -> int:
        """How many elements of `bits` bits one vector register holds."""
        return self.vector_bits // bits

    def description(self) -> dict[str, Any]:
        """All fields as JSON-ready data: the same on every machine for every target but `native`."""
        return {**asdict(self), "features": list(self.features), "instructions": sorted(self.instructions)}


def from_description(description: Mapping[str, Any]) -> Target:
    """The inverse of `Target.description`, for a manifest that was read back."""
    features, instructions = tuple(description["features"]), frozenset(description["instructions"])
    return Target(**{**description, "features": features, "instructions": instructions})


@dataclass(frozen=True, slots=True)
class Family:
    """The targets of one family. A maker is called when its target is asked for: `native` looks at the host."""

    name: str
    cpus: Mapping[str, Callable[[], Target]]
    boards: Mapping[str, Callable[[], Target]] = field(default_factory=dict)


def _families() -> tuple[Family, ...]:
    from graphc.backends import x86  # a family file imports Target from here

    return (x86.FAMILY,)


def available() -> dict[Kind, list[str]]:
    """The ids that `resolve` knows, by the key of the spec entry that names them."""
    families = _families()
    return {
        "cpu": [id_ for family in families for id_ in family.cpus],
        "board": [id_ for family in families for id_ in family.boards],
        "gpu": [],
    }


def resolve(entry: Mapping[str, Any]) -> Target:
    """The target that an entry of the spec's `targets:` names, such as `{"cpu": "native", "winograd": False}`.

    Raises UnsupportedError for an id or a kind of target that graphc has no backend for, naming what there is.
    """
    for kind in ("cpu", "board", "gpu"):
        if entry.get(kind) is not None:
            target = _maker(kind, entry[kind])()
            return replace(target, winograd=entry.get("winograd", target.winograd))
    raise UnsupportedError("targets", f"expected a cpu, board or gpu, got {dict(entry)}.", "Write {cpu: native}.")


def _maker(kind: Kind, id_: str) -> Callable[[], Target]:
    for family in _families():
        makers = {"cpu": family.cpus, "board": family.boards, "gpu": {}}[kind]
        if id_ in makers:
            return makers[id_]
    known = available()
    subject = f"target {{{kind}: {id_}}}"
    if not known[kind]:
        there = "; ".join(f"{key}: {', '.join(ids)}" for key, ids in known.items() if ids)
        raise UnsupportedError(subject, f"this version of graphc has no {kind} targets.", f"Available: {there}.")
    close = difflib.get_close_matches(id_, known[kind], n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    raise UnsupportedError(subject, f"unknown {kind}.", f"{hint}Available: {', '.join(known[kind])}.")


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
