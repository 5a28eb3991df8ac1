"""The spec: one YAML file that says what to compress, how, for which targets, and what it may cost."""

from graphc.spec.mistakes import Mistake, SpecError
from graphc.spec.model import Spec
from graphc.spec.reader import parse, read
from graphc.spec.schema import schema

__all__ = ["Mistake", "Spec", "SpecError", "parse", "read", "schema"]
