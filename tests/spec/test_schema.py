"""The JSON Schema that editors get: every section and every pass is in it, and it agrees with the reader."""

import json

from graphc.passes.registry import registry
from graphc.spec import schema
from graphc.spec.model import Spec


def test_it_is_plain_json() -> None:
    assert json.loads(json.dumps(schema())) == schema()


def test_sections_and_what_is_required() -> None:
    found = schema()
    assert set(found["properties"]) == set(Spec.model_fields)
    assert found["required"] == ["model"]
    assert found["additionalProperties"] is False


def test_every_kind_of_pass() -> None:
    found = schema()
    mapping = found["properties"]["passes"]["items"]["discriminator"]["mapping"]
    assert set(mapping) == set(registry().kinds) >= {"fold", "quantize"}
    assert {f"#/$defs/{kind.__name__}" for kind in registry().kinds.values()} == set(mapping.values())


def test_targets_and_units() -> None:
    found = schema()
    names = [choice["$ref"] for choice in found["properties"]["targets"]["items"]["oneOf"]]
    assert names == ["#/$defs/Cpu", "#/$defs/Board", "#/$defs/Gpu"]
    flash = found["$defs"]["Budget"]["properties"]["flash"]["anyOf"][0]
    assert flash["type"] == "string" and flash["examples"] == ["512KiB"]
