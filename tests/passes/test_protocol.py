"""The pass protocol: rules that override options, their precedence, order among passes, skips."""

from typing import ClassVar, Literal

import pytest
from onnx import parser
from pydantic import ValidationError

from graphc.errors import InputError
from graphc.importer import load
from graphc.ir.graph import Graph
from graphc.passes.protocol import Context, Pass, Rule, Skip, check_order


class Trim(Pass):
    overridable: ClassVar[frozenset[str]] = frozenset({"share", "mode"})
    before: ClassVar[frozenset[str]] = frozenset({"finish"})

    kind: Literal["trim"] = "trim"
    share: float = 0.5
    mode: Literal["soft", "hard"] = "soft"
    seed: int = 0

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


class Finish(Pass):
    requires: ClassVar[frozenset[str]] = frozenset({"trim"})

    kind: Literal["finish"] = "finish"

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


class Paint(Pass):
    after: ClassVar[frozenset[str]] = frozenset({"trim"})

    kind: Literal["paint"] = "paint"

    def apply(self, graph: Graph, context: Context) -> Graph:
        return graph


GRAPH = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
  [first]  a = MatMul (x, w)
  [act]    b = Relu (a)
  [head_1] c = MatMul (b, w)
  [head_2] y = MatMul (c, w)
}
"""


def graph() -> Graph:
    return load(parser.parse_model(GRAPH))


def shares(step: Trim) -> dict[str, float]:
    """Node name -> the share that applies to it."""
    return {node.name: options.share for node, options in step.options(graph()).items()}


def test_without_rules_every_node_has_the_options_of_the_pass() -> None:
    step = Trim(share=0.3)
    assert all(options is step for options in step.options(graph()).values())


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ([{"operator": "MatMul", "share": 0.1}], {"first": 0.1, "act": 0.5, "head_1": 0.1, "head_2": 0.1}),
        ([{"name": "head_?", "share": 0.1}], {"first": 0.5, "act": 0.5, "head_1": 0.1, "head_2": 0.1}),
        ([{"position": "first", "share": 0.1}], {"first": 0.1, "act": 0.5, "head_1": 0.5, "head_2": 0.5}),
        ([{"position": "last", "share": 0.1}], {"first": 0.5, "act": 0.5, "head_1": 0.5, "head_2": 0.1}),
        (
            [{"name": "head*", "operator": "Relu", "share": 0.1}, {"name": "act", "share": 0.2}],
            None,
        ),
    ],
)
def test_a_rule_speaks_about_the_nodes_that_all_its_matchers_match(
    where: list[dict[str, object]], expected: dict[str, float] | None
) -> None:
    step = Trim.model_validate({"where": where})
    if expected is None:
        with pytest.raises(InputError, match=r"name: head\*, operator: Relu.* matches no node"):
            step.options(graph())
    else:
        assert shares(step) == expected


@pytest.mark.parametrize(
    ("general", "specific"),
    [
        ({"operator": "MatMul"}, {"position": "last"}),
        ({"position": "last"}, {"name": "*2"}),
        ({"name": "h*"}, {"name": "head*"}),
        ({"name": "head*"}, {"name": "head*", "operator": "MatMul"}),
        ({"name": "head*"}, {"name": "head_2"}),
        ({"name": "head_2", "operator": "MatMul"}, {"name": "head_2", "operator": "MatMul", "position": "last"}),
    ],
)
def test_the_most_specific_rule_wins_wherever_it_stands(general: dict[str, str], specific: dict[str, str]) -> None:
    rules = [{**general, "share": 0.1}, {**specific, "share": 0.2}]
    assert shares(Trim.model_validate({"where": rules}))["head_2"] == 0.2
    assert shares(Trim.model_validate({"where": rules[::-1]}))["head_2"] == 0.2


def test_between_equals_the_later_rule_wins_and_fields_fall_through_one_by_one() -> None:
    step = Trim.model_validate(
        {
            "where": [
                {"operator": "MatMul", "share": 0.1, "mode": "hard"},
                {"name": "head_1", "share": 0.2},
                {"name": "head_1", "share": 0.3},
            ]
        }
    )
    options = {node.name: own for node, own in step.options(graph()).items()}
    assert (options["head_1"].share, options["head_1"].mode) == (0.3, "hard")
    assert (options["head_2"].share, options["head_2"].mode) == (0.1, "hard")


@pytest.mark.parametrize(
    ("where", "location", "problem"),
    [
        ([{"share": 0.1}], ("where", 0), "matches nothing"),
        ([{"name": "a"}], ("where", 0), "overrides nothing"),
        ([{"name": "a", "seed": 1}], ("where", 0, "seed"), "mode, share"),
        ([{"name": "a", "sahre": 1}], ("where", 0, "sahre"), "mode, share"),
        ([{"name": "a", "share": 0.1}, {"name": "b", "mode": "firm"}], ("where", 1, "mode"), "'soft' or 'hard'"),
        ([{"position": "middle", "share": 0.1}], ("where", 0, "position"), "'first' or 'last'"),
    ],
)
def test_mistakes_in_rules_are_found_when_the_pass_is_made(
    where: list[dict[str, object]], location: tuple[object, ...], problem: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        Trim.model_validate({"where": where})
    (error,) = caught.value.errors()
    assert error["loc"] == location
    assert problem in error["msg"]


def test_a_rule_that_matches_nothing_names_what_there_is() -> None:
    step = Trim.model_validate({"where": [{"name": "haed*", "share": 0.1}]})
    with pytest.raises(InputError, match=r"haed\*.*matches no node.*first, head_1, head_2.*MatMul, Relu"):
        step.options(graph())


def test_the_json_schema_says_what_a_rule_can_hold() -> None:
    rule = Trim.model_json_schema()["properties"]["where"]["items"]
    assert set(rule["properties"]) == {"name", "operator", "position", "share", "mode"}
    assert rule["additionalProperties"] is False


def test_passes_are_values() -> None:
    step = Trim.model_validate({"where": [{"name": "a", "share": 0.1}]})
    assert step == Trim.model_validate(step.model_dump())
    assert isinstance(step.where[0], Rule)
    with pytest.raises(ValidationError, match="frozen"):
        step.share = 0.1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="Extra inputs"):
        Trim.model_validate({"colour": "red"})


def test_a_skip_is_recorded_once() -> None:
    context, nodes = Context(), graph().nodes
    context.skip(nodes[0], "shared")
    context.skip(nodes[0], "shared")
    context.skip(nodes[1], "no weights")
    assert context.skips == [Skip("first", "MatMul", "shared"), Skip("act", "Relu", "no weights")]


def test_order_is_checked_and_every_breach_named() -> None:
    check_order([Trim(), Paint(), Finish()])
    with pytest.raises(InputError) as caught:
        check_order([Finish(), Paint(), Trim()])
    message = str(caught.value)
    assert "finish (step 1) needs trim before it" in message
    assert "paint (step 2) must come after trim" in message
    assert "trim (step 3) must come before finish" in message
