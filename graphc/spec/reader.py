"""From a YAML file to a Spec: every mistake at once, with file, line, key, what was expected, what came and a remedy.

Scalars follow the YAML 1.2 core schema: `1e-4` is a number; `no`, `12:30` and `1_000` are text.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from graphc.errors import InputError
from graphc.spec.mistakes import Location, Mistake, SpecError, describe, shown
from graphc.spec.model import Spec

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 100_000
"""Limits on a spec file; values are counted with aliases expanded, so that a small file cannot become a large one."""

Json: TypeAlias = dict[str, "Json"] | list["Json"] | str | int | float | bool | None


def read(path: str | Path) -> Spec:
    """The spec in a YAML file; its paths are relative to the file's folder, its name defaults to the file's.

    Raises SpecError with all mistakes, or InputError when the file cannot be read at all.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InputError(
                str(path), f"expected a spec of at most {MAX_BYTES} bytes, got {size}.", "Is this the right file?"
            )
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            str(path), f"expected a readable spec file, got: {error.strerror}.", "Check the path."
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            str(path), f"expected text in UTF-8, got byte {content[error.start]:#04x} at {error.start}."
        ) from error
    return parse(text, path)


def parse(text: str, path: str | Path) -> Spec:
    """Like `read`, for text already in memory; `path` is where messages and relative paths say it lies."""
    document = _Document(text, str(path))
    context = {"folder": Path(path).parent}
    try:
        spec = Spec.model_validate_json(json.dumps(document.data), strict=True, context=context)
    except ValidationError as errors:
        document.add(errors.errors(include_url=False))
        raise SpecError(document.mistakes) from None
    if document.mistakes:
        raise SpecError(document.mistakes)
    return spec if spec.name else spec.model_copy(update={"name": _identifier(Path(path).stem)})


def _identifier(stem: str) -> str:
    """A file's stem as an artifact name: MobileNet-v2 -> mobilenet_v2, 3d -> m_3d."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:60] or "model"
    return name if name[0].isalpha() else f"m_{name}"


class _Document:
    """One YAML document: its plain values, where each stands, and the mistakes found so far."""

    def __init__(self, text: str, file: str) -> None:
        self.file = file
        self.mistakes: list[Mistake] = []
        self._count = 0
        self._root = self._compose(text)
        self.data = self._value(self._root, "", 0)
        if isinstance(self.data, dict) and self.data.get("model") is None:
            line, key = self._place(("model",), exact=True)
            self._mistake(line, key, "this key", "nothing", "Add `model: {path: ...}`.")

    def add(self, errors: list[ErrorDetails]) -> None:
        """Take in pydantic's errors; no key is reported twice, and the branches of a union are joined."""
        reported = {mistake.key for mistake in self.mistakes}
        found: dict[str, Mistake] = {}
        for error in errors:
            at = (*error["loc"], *error.get("ctx", {}).get("at", ()))
            line, key = self._place(at, exact=error["type"] in ("missing", "extra_forbidden"))
            expected, got, remedy = describe(error, Spec)
            if (before := found.get(key)) is not None and expected not in before.expected:
                expected = f"{before.expected} or {expected}"
            found[key] = Mistake(self.file, line, key, expected, got, remedy)
        self.mistakes += [mistake for key, mistake in found.items() if key not in reported]

    def _compose(self, text: str) -> yaml.Node:
        loader: Any = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise SpecError([self._syntax(mark.line + 1 if mark else 1, str(error.problem))]) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise SpecError([self._syntax(line, f"the character {error.character!r}")]) from None
        finally:
            if loader is not None:
                loader.dispose()
        if not isinstance(node, yaml.MappingNode):
            raise SpecError([Mistake(self.file, 1, "", "keys with values (model, passes, targets, ...)", _kind(node))])
        return node

    def _syntax(self, line: int, problem: str) -> Mistake:
        return Mistake(self.file, line, "", "YAML", problem, "Check indentation, quotes and brackets on this line.")

    def _mistake(self, line: int, key: str, expected: str, got: str, remedy: str = "") -> None:
        self.mistakes.append(Mistake(self.file, line, key, expected, got, remedy))

    def _refuse(self, node: yaml.Node, key: str, expected: str, got: str, remedy: str) -> NoReturn:
        raise SpecError([*self.mistakes, Mistake(self.file, _line(node), key, expected, got, remedy)])

    def _value(self, node: yaml.Node, key: str, depth: int) -> Json:
        """The node as plain data. Aliases are expanded here, under the limits."""
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_VALUES:
            limit = f"at most {MAX_DEPTH} levels and {MAX_VALUES} values, aliases expanded"
            self._refuse(node, key, limit, "more", "Remove aliases (`*name`) that repeat or contain themselves.")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in (_MAP, _SEQ):
            self._mistake(_line(node), key, "plain YAML", f"the tag {node.tag}", "Remove the tag.")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(entry, f"{key}[{i}]", depth + 1) for i, entry in enumerate(node.value)]
        return self._scalar(node, key)

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> Json:
        lines: dict[str, int] = {}
        values: dict[str, Json] = {}
        for name_node, value_node in node.value:
            name, line = name_node.value, _line(name_node)
            if name_node.tag != _STR:
                got = name if isinstance(name, str) else _kind(name_node)
                self._mistake(
                    line, key, "text as a key", got, f'Write "{got}" in quotes.' if isinstance(name, str) else ""
                )
            elif name in values:
                self._mistake(
                    line,
                    _join(key, name),
                    "each key once",
                    f"'{name}' again (first on line {lines[name]})",
                    "Remove one.",
                )
            else:
                lines[name] = line
                values[name] = self._value(value_node, _join(key, name), depth + 1)
        return values

    def _scalar(self, node: yaml.Node, key: str) -> Json:
        text = str(node.value)
        match node.tag:
            case "tag:yaml.org,2002:str":
                return text
            case "tag:yaml.org,2002:null":
                return None
            case "tag:yaml.org,2002:bool" if text.lower() in ("true", "false"):
                return text.lower() == "true"
            case "tag:yaml.org,2002:int" if _INT.fullmatch(text):
                return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
            case "tag:yaml.org,2002:float" if _FLOAT.fullmatch(text) and math.isfinite(float(text)):
                return float(text)
        self._mistake(
            _line(node), key, "a plain value", f"{node.tag.replace('tag:yaml.org,2002:', '!!')} {shown(text)}"
        )
        return None

    def _place(self, location: Location, exact: bool) -> tuple[int, str]:
        """Line and key path of a pydantic location. `exact`: its last part is a key of the file (or one that lacks)."""
        parts = [part for i, part in enumerate(location) if not (i == 2 and location[0] in ("passes", "targets"))]
        node, line, key = self._root, 1, ""
        for i, part in enumerate(parts):
            last = exact and i == len(parts) - 1
            if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node, key = node.value[part], f"{key}[{part}]"
                line = _line(node)
            elif isinstance(node, yaml.MappingNode):
                entry = next(((k, v) for k, v in node.value if k.value == part), None)
                if entry is not None:
                    node, line, key = entry[1], _line(entry[0]), _join(key, str(part))
                elif last:
                    key = _join(key, str(part))
        return line, key


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _join(key: str, name: str) -> str:
    name = name if re.fullmatch(r"[\w/:.-]+", name) else json.dumps(name, ensure_ascii=False)
    return f"{key}.{name}" if key else name


def _kind(node: yaml.Node | None) -> str:
    match node:
        case None:
            return "nothing"
        case yaml.SequenceNode():
            return "a list"
        case yaml.MappingNode():
            return "a mapping"
    return shown(node.value)


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with the scalars of YAML 1.2's core schema and a limit on nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's attribute)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_DEPTH} levels of nesting", problem_mark=mark)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_STR, _MAP, _SEQ = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
_INT = re.compile(r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,15}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
for _name, _regexp, _first in (
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"(?:{_regexp.pattern})\\Z"), _first)
