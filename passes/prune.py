"""Prune: weights become zeros that are not stored, or whole channels, heads and layers go.

    Conv(x, w)  ->  Conv(x, SparseToDense(mask, values))         patterns of weights: prune_weights.py
    Conv(x, w)  ->  Conv(x, w[kept]), its neighbours likewise    patterns of structure: prune_channels.py

| pattern | what goes |
|---|---|
| unstructured | single weights |
| N:M | all but N of every M weights in a row along the input channels |
| block | blocks of outputs x inputs, sized for the target's vectors |
| channels, heads, layers | parts of the graph |

`method` says which of them matter least. A pattern knows some of them: `METHODS`. Patterns of structure are cut to
`sparsity`, a share of all channels (heads, blocks), or until `macs` of the multiply-accumulates are left; a list of
either is taken step by step, with `repair` in between (channel_repair.py).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from graphc.ir.graph import Graph, Node
from graphc.passes import prune_channels, prune_layers, prune_weights
from graphc.passes.channel_repair import Repair
from graphc.passes.channel_worth import BY_DATA, BY_GRADIENTS, BY_WEIGHTS
from graphc.passes.protocol import Context, Observation, Order, Pass
from graphc.passes.prune_allocation import Allocation

Method = Literal[
    "magnitude", "wanda", "sparsegpt", "l1", "fpgm", "taylor", "fisher", "energy", "hessian", "reconstruction",
    "similarity",
]  # fmt: skip
Share = Annotated[float, Field(ge=0, lt=1)]
Left = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

OF_WEIGHTS = ("magnitude", "wanda", "sparsegpt")
OF_CHANNELS = (*BY_WEIGHTS, *BY_GRADIENTS, *BY_DATA)
METHODS: Mapping[str, tuple[str, ...]] = {
    "unstructured": OF_WEIGHTS,
    "N:M": OF_WEIGHTS,
    "block": OF_WEIGHTS,
    "channels": OF_CHANNELS,
    "heads": OF_CHANNELS,
    "layers": ("similarity",),
}
"""Kind of pattern -> the methods that it knows; prune_weights.py, channel_worth.py and prune_layers.py explain them."""

ALLOCATIONS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("unstructured", "block"), ("uniform", "global", "erk", "sensitivity")),
    **dict.fromkeys(("channels", "heads"), ("uniform", "global", "sensitivity")),
    "N:M": ("uniform",),
    "layers": ("uniform", "sensitivity"),
}
"""Kind of pattern -> how it can spread the share."""

N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")
PATTERN = rf"^(unstructured|block|channels|heads|layers|{N_OF_M.pattern})$"


def _beside_spec(path: Path, info: ValidationInfo) -> Path:
    found = Path(info.context["folder"]) / path if info.context else path
    if not found.is_file():
        raise PydanticCustomError("file", "expected a file that exists, got {found}", {"found": str(found)})
    return found


class Prune(Pass):
    """Weights, channels, heads or layers that matter least are removed: Conv(x, w) -> Conv(x, SparseToDense(m, v))."""

    overridable: ClassVar[frozenset[str]] = frozenset({"method", "sparsity", "block", "repair"})

    kind: Literal["prune"] = "prune"
    method: Annotated[Method, Field(description="which weights matter least; wanda and sparsegpt need calibration")]
    pattern: Annotated[
        str, Field(pattern=PATTERN, description="unstructured, N:M (such as '2:4'), block, channels, heads or layers")
    ]
    sparsity: Annotated[
        Share | Annotated[tuple[Share, ...], Field(min_length=1)] | None,
        Field(description="the share that goes; N:M says it itself (0: none); several of channels: one after another"),
    ] = None
    macs: Annotated[
        Left | Annotated[tuple[Left, ...], Field(min_length=1)] | None,
        Field(description="instead of sparsity, for channels, heads, layers: the share of MACs that is left"),
    ] = None
    allocation: Annotated[
        Allocation, Field(description="how the share is spread over layers; N:M and layers spread it evenly")
    ] = "uniform"
    block: Annotated[
        Literal["auto"] | tuple[Count, Count] | None,
        Field(
            description="pattern block: [outputs, inputs]; auto: the target's vector, and the inputs of a dot product"
        ),
    ] = None
    round_to: Annotated[
        Literal["auto"] | Count,
        Field(description="channels, heads: what stays is a multiple; auto: the target's vector"),
    ] = 1
    repair: Annotated[Repair, Field(description="what stays makes up for what went, on calibration data")] = "none"
    gradients: Annotated[
        Path | None,
        AfterValidator(lambda path, info: path if path is None else _beside_spec(path, info)),
        Field(description="an .npz of gradients by name of weights, for taylor and fisher"),
    ] = None

    @model_validator(mode="after")
    def _fits_the_pattern(self) -> Self:
        """Method and options must be among those that the pattern knows."""
        wrong = {
            "method": (self.method not in METHODS[self.family], self._known_methods),
            "sparsity": self._wrong_sparsity(),
            "allocation": (
                self.allocation not in ALLOCATIONS[self.family],
                f"{_either(ALLOCATIONS[self.family])} (those that pattern {self.family} knows)",
            ),
            "block": (self.block is not None and self.family != "block", "nothing (the pattern is not 'block')"),
            **self._wrong_of_structure(),
        }
        if self.of_weights and self.allocation == "global" and self.method != "magnitude":
            wrong["allocation"] = True, "'uniform', 'erk' or 'sensitivity' (only magnitudes compare between layers)"
        errors = [
            InitErrorDetails(type="literal_error", loc=(key,), input=getattr(self, key), ctx={"expected": expected})
            for key, (is_wrong, expected) in wrong.items()
            if is_wrong
        ]
        if errors:
            raise ValidationError.from_exception_data("Prune", errors)
        return self

    @property
    def family(self) -> str:
        """The kind of pattern, as `METHODS` spells it."""
        return "N:M" if N_OF_M.fullmatch(self.pattern) else self.pattern

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """N and M of the pattern N:M."""
        found = N_OF_M.fullmatch(self.pattern)
        return (int(found[1]), int(found[2])) if found else None

    @property
    def of_weights(self) -> bool:
        """Whether single weights or blocks of them become zero, and the graph keeps its shape."""
        return self.family in ("unstructured", "N:M", "block")

    @property
    def share(self) -> float:
        """The share of weights that goes."""
        if isinstance(self.sparsity, float):
            return self.sparsity
        kept, of = self.kept_of or (1, 1)
        return 1 - kept / of

    @property
    def stages(self) -> tuple[float, ...]:
        """Of structure: shares that go (of MACs: that are left), one after another, each of the graph at first."""
        given = self.sparsity if self.macs is None else self.macs
        return given if isinstance(given, tuple) else (given or 0.0,)

    @property
    def _known_methods(self) -> str:
        return f"{_either(METHODS[self.family])} (those that pattern {self.family} knows)"

    def _wrong_of_structure(self) -> dict[str, tuple[bool, str]]:
        """Options that only patterns of structure know."""
        why = f"(pattern {self.pattern} leaves the graph its shape)"
        return {
            "macs": (self.macs is not None and self.of_weights, f"nothing {why}"),
            "repair": (self.repair == "batch_norm" and self.of_weights, f"'none', 'bias' or 'least_squares' {why}"),
            "round_to": (self.round_to != 1 and self.family not in ("channels", "heads"), f"1 {why}"),
            "where": (
                not self.of_weights and any(rule.overrides.keys() - {"sparsity"} for rule in self.where),
                f"rules that set only `sparsity` (pattern {self.pattern})",
            ),
            "gradients": (
                self.gradients is not None and self.method not in BY_GRADIENTS,
                "nothing (the method is not taylor or fisher)",
            ),
        }

    def _wrong_sparsity(self) -> tuple[bool, str]:
        if not self.of_weights:
            return (self.sparsity is None) == (self.macs is None), "a share, or `macs` instead of it"
        if self.kept_of is None:
            return not isinstance(self.sparsity, float), "a share from 0 up to, not including, 1"
        kept, of = self.kept_of
        fits = kept < of and self.sparsity in (None, 0, 1 - kept / of)
        return not fits, f"nothing, {1 - kept / of:g} or 0 (pattern {self.pattern})" if kept < of else "N below M"

    @property
    def order(self) -> Order:
        """Masks stand on weights as they are multiplied with: after what changes weights, before what stores them.

        Channels go before anything is stored in few bits; batch normalizations are there until `fold`.
        """
        if not self.of_weights:
            return Order(before=frozenset({"quantize", "fold"} if self.repair == "batch_norm" else {"quantize"}))
        changing = frozenset({"equalize", "smooth_quant", "awq"})
        return Order(requires=frozenset({"fold"}), after=changing, before=frozenset({"quantize"}))

    def layers(self, graph: Graph) -> tuple[Node, ...]:
        """Nodes whose `sparsity` decides what goes: a layer, or the one that makes channels that go together."""
        if self.of_weights:
            return prune_weights.layers(graph, self.options(graph))
        return prune_channels.layers(graph, self)

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """What the method knows a weight's worth by."""
        match self.family:
            case "layers":
                return prune_layers.observes(graph, self)
            case "channels" | "heads":
                return prune_channels.observes(graph, self)
        return prune_weights.observes(graph, self.options(graph), self.allocation)

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Prune every layer that the rules give a share; of others the report says why not."""
        match self.family:
            case "layers":
                return prune_layers.apply(graph, self, self.options(graph), context)
            case "channels" | "heads":
                return prune_channels.apply(graph, self, self.options(graph), context)
        return prune_weights.apply(graph, self.options(graph), self.allocation, context)


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)
