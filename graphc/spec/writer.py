"""From a Spec back to a YAML file that reads as the same Spec; only what was set is written."""

import os
from pathlib import Path
from typing import Any

import yaml

from graphc.spec.model import Spec

NOTE = "# Written by graphc; it needs no search to give the same result.\n"


def write(spec: Spec, path: Path) -> None:
    """Write `spec` to `path`, its paths relative to the new file's folder; what was there is replaced at once."""
    content: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True)
    for section in (content.get("model"), *content.get("data", {}).values()):
        for key in ("path", "images"):
            if section and section.get(key) is not None:
                section[key] = os.path.relpath(spec.folder / section[key], path.parent)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(NOTE + yaml.safe_dump(content, sort_keys=False, width=120), encoding="utf-8")
    beside.replace(path)
