"""Prune: weights become zeros that are not stored, or whole channels, heads and layers go.

    Conv(x, w)  ->  Conv(x, SparseToDense(mask, values))         patterns of weights: prune_weights.py
    Conv(x, w)  ->  Conv(x, w[kept]), its neighbours likewise    patterns of structure: prune_channels.py

| pattern | what goes |
|---|---|
| unstructured | single weights |
| N:M | all but N of every M weights in a row along the input channels |
| block | blocks of outputs x inputs, sized for the target's vectors |
| channels, heads, layers | parts of the graph |

`method` says which of them matter least. A pattern knows some of them: `METHODS`.
"""

import re
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from graphc.errors import UnsupportedError
from graphc.ir.graph import Graph
from graphc.passes import prune_weights
from graphc.passes.protocol import Context, Observation, Order, Pass
from graphc.passes.prune_allocation import Allocation

Method = Literal["magnitude", "wanda", "sparsegpt"]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]

OF_WEIGHTS = ("magnitude", "wanda", "sparsegpt")
METHODS: Mapping[str, tuple[str, ...]] = {
    "unstructured": OF_WEIGHTS,
    "N:M": OF_WEIGHTS,
    "block": OF_WEIGHTS,
    "channels": ("magnitude",),
    "heads": ("magnitude",),
    "layers": ("magnitude",),
}
"""Kind of pattern -> the methods that it knows."""

N_OF_M = re.compile(r"([1-9]\d*):([1-9]\d*)")
PATTERN = rf"^(unstructured|block|channels|heads|layers|{N_OF_M.pattern})$"


class Prune(Pass):
    """Weights, channels, heads or layers that matter least are removed: Conv(x, w) -> Conv(x, SparseToDense(m, v))."""

    overridable: ClassVar[frozenset[str]] = frozenset({"method", "sparsity", "block"})

    kind: Literal["prune"] = "prune"
    method: Annotated[Method, Field(description="which weights matter least; wanda and sparsegpt need calibration")]
    pattern: Annotated[
        str, Field(pattern=PATTERN, description="unstructured, N:M (such as '2:4'), block, channels, heads or layers")
    ]
    sparsity: Annotated[Share | None, Field(description="the share that goes; N:M says it itself (0: none)")] = None
    allocation: Annotated[
        Allocation, Field(description="how the share is spread over layers: patterns unstructured and block")
    ] = "uniform"
    block: Annotated[
        Literal["auto"] | tuple[Count, Count] | None,
        Field(
            description="pattern block: [outputs, inputs]; auto: the target's vector, and the inputs of a dot product"
        ),
    ] = None

    @model_validator(mode="after")
    def _fits_the_pattern(self) -> Self:
        """Method and options must be among those that the pattern knows."""
        wrong = {
            "method": (self.method not in METHODS[self.family], self._known_methods),
            "sparsity": self._wrong_sparsity(),
            "allocation": (
                self.allocation != "uniform" and self.family not in ("unstructured", "block"),
                "'uniform' (the pattern gives every layer its share)",
            ),
            "block": (self.block is not None and self.family != "block", "nothing (the pattern is not 'block')"),
        }
        if self.allocation == "global" and self.method != "magnitude":
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
        if self.sparsity is not None:
            return self.sparsity
        kept, of = self.kept_of or (1, 1)
        return 1 - kept / of

    @property
    def _known_methods(self) -> str:
        return (
            f"{' or '.join(repr(method) for method in METHODS[self.family])} (those that pattern {self.family} knows)"
        )

    def _wrong_sparsity(self) -> tuple[bool, str]:
        if self.kept_of is None:
            return self.sparsity is None, "a share from 0 up to, not including, 1"
        kept, of = self.kept_of
        fits = kept < of and self.sparsity in (None, 0, 1 - kept / of)
        return not fits, f"nothing, {1 - kept / of:g} or 0 (pattern {self.pattern})" if kept < of else "N below M"

    @property
    def order(self) -> Order:
        """Masks stand on weights as they are multiplied with: after what changes weights, before what stores them."""
        if not self.of_weights:
            return super().order
        changing = frozenset({"equalize", "smooth_quant", "awq"})
        return Order(requires=frozenset({"fold"}), after=changing, before=frozenset({"quantize"}))

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """What the method knows a weight's worth by."""
        return prune_weights.observes(graph, self.options(graph), self.allocation) if self.of_weights else ()

    def apply(self, graph: Graph, context: Context) -> Graph:
        """Prune every layer that the rules give a share; of others the report says why not."""
        if not self.of_weights:
            raise UnsupportedError(
                "prune", f"pattern {self.pattern} is not there yet.", "Use unstructured, N:M or block."
            )
        return prune_weights.apply(graph, self.options(graph), self.allocation, context)
