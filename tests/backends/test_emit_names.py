"""Names for C from any text."""

import re

from hypothesis import given
from hypothesis import strategies as st

from graphc.backends.emit_names import comment, model_identifier, tensor_identifiers

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)


@given(st.lists(st.text(), max_size=8))
def test_identifiers_are_valid_and_differ_in_more_than_case(names: list[str]) -> None:
    found = tensor_identifiers(names)
    assert len(found) == len(names)
    assert all(IDENTIFIER.fullmatch(name) for name in found)
    assert len({name.upper() for name in found}) == len(names)


@given(st.text())
def test_prefixes_are_valid(name: str) -> None:
    assert IDENTIFIER.fullmatch(model_identifier(name))


@given(st.text(alphabet=st.sampled_from("*/\\?\n\0aé入 ")) | st.text())
def test_comments_stay_comments(text: str) -> None:
    found = f"/* {comment(text)} */"
    assert found.isascii()
    assert found.isprintable()
    assert found.index("*/") == len(found) - 2
    assert "/*" not in found[1:]
    assert "??" not in found
    assert "\\" not in found


def test_examples() -> None:
    assert model_identifier("MobileNet v2 (α=1.4)") == "MobileNet_v2_1_4"
    assert tensor_identifiers(["x", "X", "int", "input:0", "", "入力", "2", "arena"]) == [
        "x",
        "x_2",
        "int_",
        "input_0",
        "tensor",
        "tensor_2",
        "n2",
        "arena_",
    ]
