"""What a pass is: its options, the values it wants observed, a rewrite. Every pass is a subclass of `Pass`.

    class Prune(Pass):
        kind: Literal["prune"] = "prune"
        sparsity: Annotated[float, Field(gt=0, lt=1)]
        before: ClassVar[frozenset[str]] = frozenset({"quantize"})

        def apply(self, graph: Graph, context: Context) -> Graph: ...

`where` overrides a pass's own fields for some nodes:

    where: [{operator: Gemm, sparsity: 0.5}, {name: "head*", sparsity: 0.1}]
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from graphc.errors import InputError
from graphc.ir.graph import Array, Graph, Node

MATCHERS = ("name", "operator", "position")

WEIGHT_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Einsum": (0, 1),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
}
"""Operators that have weights -> the operands that may hold them."""


@dataclass(frozen=True, slots=True)
class Range:
    """The smallest and the largest element: arrays `low` and `high`, float64 scalars."""


@dataclass(frozen=True, slots=True)
class AverageRange:
    """The mean, over feeds, of each feed's smallest and largest element: arrays `low` and `high`, float64 scalars."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often values occur: `counts` int64 [bins], the bins' `width`, exact `low` and `high` (float64 scalars).

    Bin i holds values from (i - bins / 2) * width to the next bin. The width is a power of two, so that neither the
    order nor the batching of the data changes a count.
    """

    bins: int = 8192


@dataclass(frozen=True, slots=True)
class Rows:
    """How a value becomes the rows [groups, n, K] of a matrix product; passes/layers.py says which fit a node.

    Without `kernel` each run of the last axis is a row, cut into `groups` parts. With it, each place of the window is a
    row (im2col) of the channels of a group [C / groups, *kernel], flattened; `pads` are begins, then ends.
    """

    groups: int = 1
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of a layer's input rows [groups, n, K]: `total` float64 [groups, K], and `count` = n (int64)."""

    rows: Rows


@dataclass(frozen=True, slots=True)
class Gram:
    """Second moments of a layer's input X [groups, n, K]: `gram` = X^T X, float64 [groups, K, K], and `count` = n
    (int64). The batching of the data changes no bit of it.
    """

    rows: Rows


@dataclass(frozen=True, slots=True)
class Moments:
    """Per channel (index along `axis`): float64 [channels] `low`, `high`, `mean`, `magnitude` (mean |x|), `energy`
    (mean x^2), and `count` (int64) of the elements in each.
    """

    axis: int


@dataclass(frozen=True, slots=True)
class Sample:
    """`sample`: up to `count` rows [groups, count, K] (float32) of a layer's input, each row equally likely, in order.

    Chosen by a hash of `seed` and a row's number, so the batching of the data changes nothing.
    """

    rows: Rows
    count: int = 1024
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Whole:
    """`values` [count, *shape]: the whole value in up to `count` feeds, each feed equally likely, in order; `seen`
    (int64): of so many.
    """

    count: int = 32
    seed: int = 0


Statistic = Range | AverageRange | Histogram | Total | Gram | Moments | Sample | Whole
"""What can be observed of a value; each kind says which arrays it yields. graphc.calibrate collects them in one run."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A wish: this statistic of this value of the graph, over the calibration data."""

    value: str
    statistic: Statistic


Statistics = Mapping[Observation, Mapping[str, Array]]
"""What calibration found: observation -> its arrays by name."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A node that a pass left alone, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did to a node, in figures."""

    node: str
    operator: str
    figures: Mapping[str, float]


def _silent(_message: str, _fraction: float) -> None:
    """Progress nobody watches."""


LANES = 16
"""Floats in a vector where no target says otherwise: 512 bits."""

Slower = Callable[[Graph, Node, bool], str]


@dataclass(frozen=True, slots=True)
class Sums:
    """What a layer adds up: for each of `filters` outputs at `places`, `taps` times `channels` products.

    `square`: the window moves one place at a time over every place; `alone`: each output reads a channel of its own.
    """

    places: tuple[int, ...]
    taps: int
    channels: int
    filters: int
    square: bool = False
    alone: bool = False


Speed = Callable[[Sums, Sequence[Sums]], tuple[float, str]]
"""(a layer, the layers in its place) -> how many times as fast they are on the target that gains least, its name."""


def unknown(_dense: Sums, _stages: Sequence[Sums]) -> tuple[float, str]:
    """No targets: everything is faster."""
    return float("inf"), ""


def never(_graph: Graph, _node: Node, _decoded: bool) -> str:
    """No targets, or none that matters."""
    return ""


@dataclass
class Context:
    """What a pass is given beside the graph, and where it leaves its remarks. One context serves one step.

    `progress(message, fraction)` may be called as often as liked, with 0 <= fraction <= 1. `slower(graph, node,
    decoded)` says why the integer code of a node (`decoded`: with float activations) does not pay on the targets that
    are built for; nothing where it does. `speed` tells how fast thin layers are there. `lanes`: floats in the widest
    vector of those targets. `drop(graph)`: how much worse the spec's metric is than the model's, in its own unit; None
    where the spec has none.
    """

    statistics: Statistics = field(default_factory=dict)
    progress: Callable[[str, float], None] = _silent
    skips: list[Skip] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    slower: Slower = never
    speed: Speed = unknown
    lanes: int = LANES
    drop: Callable[[Graph], float] | None = None
    compared: dict[str, Graph] = field(default_factory=dict)

    def compare(self, name: str, graph: Graph) -> None:
        """Have another result of this step judged beside its own, on the same data."""
        self.compared[name] = graph

    def note(self, node: Node, **figures: float) -> None:
        """Record figures of what was done to `node`."""
        self.notes.append(Note(_shown_name(node), node.op, figures))

    def skip(self, node: Node, reason: str) -> None:
        """Record that `node` is left as it is. The same remark twice counts once."""
        remark = Skip(_shown_name(node), node.op, reason)
        if remark not in self.skips:
            self.skips.append(remark)


def _shown_name(node: Node) -> str:
    return node.name or (node.results[0] if node.results else "?")


class Rule(BaseModel):
    """Matches nodes by name glob, operator, or position; whatever else it holds overrides the pass's own fields.

    All matchers given must match. Where several rules set the same field for a node, the most specific one wins. A rule
    is more specific than another when, in this order: its name is exact (no wildcard); its name pattern has more
    literal characters; it gives a position; it gives an operator. Between equals the later one wins.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    name: Annotated[str | None, Field(min_length=1, description="glob on the node's name: *, ?, [abc]")] = None
    operator: Annotated[str | None, Field(min_length=1, description="the node's operator, such as Conv")] = None
    position: Annotated[Literal["first", "last"] | None, Field(description="first or last node with weights")] = None

    @model_validator(mode="after")
    def _matches_and_overrides(self) -> Self:
        if all(getattr(self, key) is None for key in MATCHERS):
            raise ValueError(f"matches nothing: expected one of {', '.join(MATCHERS)}")
        if not self.overrides:
            raise ValueError("overrides nothing: expected at least one option of the pass beside the matcher")
        return self

    @property
    def overrides(self) -> Mapping[str, Any]:
        """The options that this rule sets."""
        return self.model_extra or {}

    @property
    def specificity(self) -> tuple[bool, int, bool, bool]:
        """Sorts rules from general to specific."""
        pattern = self.name or ""
        exact = bool(pattern) and not any(c in pattern for c in "*?[")
        literals = len(pattern.translate(str.maketrans("", "", "*?[]")))
        return exact, literals, self.position is not None, self.operator is not None

    def matches(self, node: Node, ends: Mapping[str, Node]) -> bool:
        """Whether this rule speaks about `node`; `ends` gives the nodes that stand first and last."""
        return (
            (self.name is None or fnmatchcase(node.name, self.name))
            and (self.operator is None or node.op == self.operator)
            and (self.position is None or ends.get(self.position) is node)
        )


@dataclass(frozen=True, slots=True)
class Order:
    """Where a pass may stand: each kind in `requires` earlier; no pass whose kind is in `after` later, none in `before`
    earlier.
    """

    requires: frozenset[str] = frozenset()
    after: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()


class Pass(BaseModel):
    """One rewrite of a graph; its fields are its options, as the spec spells them.

    Order among passes is data: `requires`, `after` and `before` as in `Order`; a pass whose options decide states
    `order` itself. `overridable` names the fields that `where` may change.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    requires: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()
    before: ClassVar[frozenset[str]] = frozenset()
    overridable: ClassVar[frozenset[str]] = frozenset()

    kind: str
    where: Annotated[tuple[Rule, ...], Field(description="rules that override options for some nodes")] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        """Every rule laid over the pass's own options must give valid options; mistakes are located inside `where`."""
        own = self._own_options()
        errors: list[InitErrorDetails] = []
        for index, rule in enumerate(self.where):
            errors += self._rule_errors(index, rule, own)
        if errors:
            raise ValidationError.from_exception_data(type(self).__name__, errors)
        return self

    def _own_options(self) -> dict[str, Any]:
        """What a node's options start from: all that rules may change, and of the rest only what has no default.

        So a check of the whole pass (integer outputs need integer activations, say) does not hold for single nodes.
        """
        fields = type(self).model_fields
        return {
            key: getattr(self, key)
            for key in self.model_fields_set
            if key in self.overridable or (key != "where" and fields[key].is_required())
        }

    def _laid_over(self, own: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a node: those of the rules over the pass's own, as far as these still have a meaning."""
        return {**own, **overrides}

    def _rule_errors(self, index: int, rule: Rule, own: Mapping[str, Any]) -> list[InitErrorDetails]:
        unknown = [key for key in rule.overrides if key not in self.overridable]
        allowed = {"allowed": ", ".join(sorted(self.overridable)) or "nothing"}
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("rule_key", "a rule cannot set this; it can set {allowed}", allowed),
                loc=("where", index, key),
                input=rule.overrides[key],
            )
            for key in unknown
        ]
        known = {key: value for key, value in rule.overrides.items() if key not in unknown}
        try:
            type(self).model_validate(self._laid_over(own, known))
        except ValidationError as error:
            for detail in error.errors():
                problem = PydanticCustomError(detail["type"], detail["msg"], detail.get("ctx"))
                at = ("where", index, *detail["loc"])
                errors.append(InitErrorDetails(type=problem, loc=at, input=detail["input"]))
        return errors

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema states what a rule of this very pass may hold, so that editors complete it."""
        schema = handler(core)
        body = handler.resolve_ref_schema(schema)
        properties = body.get("properties", {})
        if "where" in properties:
            rule = handler.resolve_ref_schema(properties["where"]["items"])
            matchers = {key: rule["properties"][key] for key in MATCHERS}
            own = {key: _without_default(properties[key]) for key in sorted(cls.overridable)}
            items = {"type": "object", "properties": {**matchers, **own}, "additionalProperties": False}
            properties["where"] = {**properties["where"], "items": items}
        return schema

    @property
    def order(self) -> Order:
        """Where this pass may stand among the others."""
        return Order(self.requires, self.after, self.before)

    def misfits(self, later: Sequence["Pass"]) -> Sequence[str]:
        """Why the passes that come later make this one senseless as its options are; nothing where they do not."""
        del later
        return ()

    def options(self, graph: Graph) -> dict[Node, Self]:
        """Node -> this pass with the node's own options, for every node of `graph` (not of its subgraphs).

        Raises InputError for a rule that matches no node: it is a typing error, or meant for another model.
        """
        if not self.where:
            return dict.fromkeys(graph.nodes, self)
        weighted = [node for node in graph.nodes if has_weights(graph, node)]
        ends = {"first": weighted[0], "last": weighted[-1]} if weighted else {}
        own = self._own_options()
        rules = sorted(self.where, key=lambda rule: rule.specificity)
        used: set[int] = set()
        options: dict[Node, Self] = {}
        made: dict[tuple[int, ...], Self] = {(): self}
        for node in graph.nodes:
            matching = tuple(i for i, rule in enumerate(rules) if rule.matches(node, ends))
            used.update(matching)
            if matching not in made:
                overrides = {key: value for i in matching for key, value in rules[i].overrides.items()}
                made[matching] = type(self).model_validate(self._laid_over(own, overrides))
            options[node] = made[matching]
        for i, rule in enumerate(rules):
            if i not in used:
                problem = f"the rule {_shown(rule)} matches no node of the graph."
                raise InputError(f"{self.kind}.where", problem, _known(graph))
        return options

    def observes(self, graph: Graph) -> tuple[Observation, ...]:
        """The statistics that `apply` will look up in its context; none by default, and then no data is needed."""
        del graph
        return ()

    @abstractmethod
    def apply(self, graph: Graph, context: Context) -> Graph:
        """The rewritten graph; the very same object where there was nothing to do."""


def has_weights(graph: Graph, node: Node) -> bool:
    """Whether `node` multiplies by weights of its own: a floating-point constant or what a decoder makes of one."""
    return any(
        name in graph.types and len(graph.types[name].shape or ()) >= 2 and _is_weight(graph, name)
        for position in WEIGHT_OPERANDS.get(node.op, ())
        for name in node.inputs[position : position + 1]
    )


def _is_weight(graph: Graph, name: str) -> bool:
    kind = graph.types[name].dtype
    if not (np.issubdtype(kind, np.floating) or kind.name == "bfloat16"):
        return False
    while name not in graph.constants:
        producer = graph.producers.get(name)
        if producer is None or not producer.inputs:
            return False
        name = producer.inputs[0]
    return True


def _without_default(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key != "default"}


def _shown(rule: Rule) -> str:
    given = {key: getattr(rule, key) for key in MATCHERS if getattr(rule, key) is not None}
    return "{" + ", ".join(f"{key}: {value}" for key, value in given.items()) + "}"


def _known(graph: Graph) -> str:
    names = [node.name for node in graph.nodes if has_weights(graph, node)][:6]
    operators = sorted({node.op for node in graph.nodes})
    shown = ", ".join(names) + (", ..." if len(names) == 6 else "")
    return f"Nodes with weights: {shown or 'none'}; operators: {', '.join(operators)}."


def check_order(passes: Sequence[Pass]) -> None:
    """Refuse a list of passes that breaks the order rules they state, or whose options do not go together, naming every
    breach (InputError).
    """
    breaches: list[str] = []
    misfits: list[str] = []
    for index, step in enumerate(passes):
        earlier = {other.kind for other in passes[:index]}
        later = {other.kind for other in passes[index + 1 :]}
        at = f"{step.kind} (step {index + 1})"
        rules = step.order
        breaches += [f"{at} needs {kind} before it" for kind in sorted(rules.requires - earlier)]
        breaches += [f"{at} must come after {kind}" for kind in sorted(rules.after & later)]
        breaches += [f"{at} must come before {kind}" for kind in sorted(rules.before & earlier)]
        misfits += [f"{at} {misfit}" for misfit in step.misfits(passes[index + 1 :])]
    if breaches:
        raise InputError("passes", f"are in an order that cannot work: {'; '.join(breaches)}.", "Reorder the list.")
    if misfits:
        raise InputError("passes", f"do not go together: {'; '.join(misfits)}.", "Change one of them, or leave it out.")
