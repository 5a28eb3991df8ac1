"""Mistakes in a spec file and how they read: pydantic's errors turned into expected, got and a remedy."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from graphc.errors import InputError
from graphc.passes.registry import registry

Location = tuple[int | str, ...]

EXPECTED: Mapping[str, str] = {
    "missing": "this key",
    "string_type": "text",
    "path_type": "a path",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
    "greater_than": "a value above {gt}",
    "greater_than_equal": "a value of at least {ge}",
    "less_than": "a value below {lt}",
    "less_than_equal": "a value of at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
    "string_too_short": "at least {min_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "expected": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "union_tag_not_found": "a key {discriminator}",
    "rule_key": "one of {allowed}",
    "family": "a key `cpu`, `board` or `gpu`",
}
"""What each kind of pydantic error wanted; braces are filled from the error's context."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One mistake. `key` is its place, such as `passes[2].weights`; `line` counts from 1.

    Where `expected` is empty, `got` tells the whole problem.
    """

    file: str
    line: int
    key: str
    expected: str
    got: str
    remedy: str = ""

    @property
    def subject(self) -> str:
        return f"{self.file}:{self.line}: {self.key}" if self.key else f"{self.file}:{self.line}"

    @property
    def problem(self) -> str:
        return sentence(self.expected, self.got)

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.subject}:", self.problem, self.remedy) if part)


class SpecError(InputError):
    """All mistakes of one spec file, one per line of the message, in the order of the file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(sorted(mistakes, key=lambda mistake: mistake.line))
        first = self.mistakes[0]
        super().__init__(first.subject, first.problem, first.remedy)

    def __str__(self) -> str:
        return "\n".join(str(mistake) for mistake in self.mistakes)


def sentence(expected: str, got: str) -> str:
    """A mistake as a sentence; where nothing is `expected`, `got` tells it all."""
    return f"expected {expected}, got {got}." if expected else f"{got.rstrip('.')}."


def shown(value: object) -> str:
    """A value from the file as messages quote it: short, and containers by their kind."""
    match value:
        case None:
            return "nothing"
        case dict():
            return f"keys ({', '.join(list(map(str, value))[:4])})" if value else "an empty mapping"
        case list():
            return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe(error: ErrorDetails, root: type[BaseModel]) -> tuple[str, str, str]:
    """(expected, got, remedy) of one pydantic error raised while validating `root`."""
    kind, context, value = error["type"], dict(error.get("ctx", {})), error["input"]
    if kind == "extra_forbidden":
        return _unknown_key(error["loc"], root)
    wanted = EXPECTED.get(kind)
    if wanted is None:
        return "", str(context.get("error", error["msg"])), ""
    remedy = str(context.pop("remedy", ""))
    if kind == "missing":
        return wanted, "nothing", f"Add `{error['loc'][-1]}: ...`."
    if kind == "union_tag_invalid":
        tag, known = str(context["tag"]), registry().kinds
        remedy = registry().broken.get(tag, "") or _did_you_mean(tag, known) or "`graphc passes` describes them."
        return f"one of {', '.join(known)}", shown(tag), remedy
    if kind == "literal_error" and isinstance(value, str):
        remedy = _did_you_mean(value, re.findall(r"'([^']*)'", str(context["expected"])))
    return wanted.format(**context), shown(value), remedy


def _unknown_key(location: Location, root: type[BaseModel]) -> tuple[str, str, str]:
    names = sorted({name for model in _models_at(location[:-1], root) for name in model.model_fields})
    key = str(location[-1])
    return f"one of {', '.join(names)}", f"an unknown key '{key}'", _did_you_mean(key, names) or "Remove it."


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.lower(), list(known), n=1)
    return f"Did you mean '{close[0]}'?" if close else ""


def _models_at(location: Location, root: type[BaseModel]) -> Sequence[type[BaseModel]]:
    """The models that may stand at a pydantic location. A part that is no field is the tag of a union: it picks one."""
    models: Sequence[type[BaseModel]] = [root]
    for part in location:
        inner = [
            m
            for model in models
            if part in model.model_fields
            for m in _mentioned(model.model_fields[str(part)].annotation)
        ]
        if inner:
            models = inner
        elif isinstance(part, str):
            models = [model for model in models if part in _tags(model)] or models
    return models


def _mentioned(annotation: Any) -> list[type[BaseModel]]:
    """Every model class inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _mentioned(argument)]


def _tags(model: type[BaseModel]) -> tuple[object, ...]:
    kind = model.model_fields.get("kind")
    return (*(get_args(kind.annotation) if kind else ()), model.__name__.lower())
