"""Which passes exist: graphc's own, then what other packages offer under the entry-point group `graphc.passes`.

A kind is spelled once: kind `share_weights` = file `passes/share_weights.py` = class `ShareWeights`; a new file is a
new kind. A foreign pass is an entry point `kind = "package.module:Class"`; one that fails to import breaks only the
specs that name its kind.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Annotated, NamedTuple, Union, get_args

from pydantic import Field

import graphc.passes
from graphc.errors import InputError
from graphc.passes.protocol import Pass

GROUP = "graphc.passes"


class Registry(NamedTuple):
    """`kinds`: kind -> its class. `broken`: kind of a foreign pass that cannot be used -> why."""

    kinds: Mapping[str, type[Pass]]
    broken: Mapping[str, str]


@cache
def registry() -> Registry:
    """All passes of this installation, found once per process."""
    kinds = dict(_built_in())
    broken: dict[str, str] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        try:
            if point.name in kinds:
                raise InputError(f"pass '{point.name}'", f"{point.value} has the kind of another pass.", "Rename it.")
            kinds[point.name] = _foreign(point)
        except InputError as error:
            broken[point.name] = str(error)
    return Registry(MappingProxyType(kinds), MappingProxyType(broken))


def union() -> object:
    """The discriminated union of every kind, as a type that pydantic validates and describes."""
    classes = tuple(registry().kinds.values())
    return Annotated[Union[classes], Field(discriminator="kind")]  # noqa: UP007 (a union of a tuple made at run time)


def _built_in() -> Iterator[tuple[str, type[Pass]]]:
    """Every module of graphc.passes that holds the class its name promises."""
    for module in iter_modules(graphc.passes.__path__):
        name = "".join(part.capitalize() for part in module.name.split("_"))
        found = getattr(import_module(f"graphc.passes.{module.name}"), name, None)
        if isinstance(found, type) and issubclass(found, Pass) and "kind" in found.__annotations__:
            yield module.name, found


def _foreign(point: EntryPoint) -> type[Pass]:
    """The class behind an entry point. Raises InputError when it cannot be imported or is no pass of that kind."""
    subject = f"pass '{point.name}' of {point.dist.name if point.dist else 'an unknown package'}"
    remedy = "Update or uninstall that package."
    try:
        found = point.load()
    except (ImportError, AttributeError, SyntaxError) as error:
        raise InputError(subject, f"{point.value} cannot be imported: {error}.", remedy) from error
    if not (isinstance(found, type) and issubclass(found, Pass)):
        raise InputError(subject, f"expected a subclass of graphc.passes.protocol.Pass, got {found!r}.", remedy)
    field = found.model_fields.get("kind")
    if field is None or get_args(field.annotation) != (point.name,):
        raise InputError(subject, f"expected a field `kind: Literal['{point.name}']`, got {field}.", remedy)
    return found
