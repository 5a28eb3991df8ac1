"""The spec's JSON Schema, for completion and checks in an editor."""

from typing import Any

from graphc.spec.model import Spec


def schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a spec file, with every pass of this installation."""
    found = Spec.model_json_schema(mode="validation")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "graphc spec",
        "required": ["model"],
    }
