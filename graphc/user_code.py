"""Code of the user's own, named `module:function` in a spec: found beside the spec, else among what is installed."""

import importlib
import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from graphc.errors import InputError

RAISED = (Exception, SystemExit)
"""What the user's own code may raise: anything. It is reported as a mistake of theirs, with the line it came from."""


def find(subject: str, name: str, folder: Path) -> Callable[..., Any]:
    """What `module:attribute` names. Raises InputError, about `subject`, where there is no such thing to call."""
    module, _, attribute = name.rpartition(":")
    found = getattr(_module(subject, module, folder), attribute, None)
    if not callable(found):
        raise InputError(subject, f"expected a function or class '{attribute}' in {module}, got {found!r}.")
    return found  # type: ignore[no-any-return]  # whatever the user wrote


def source(name: str, folder: Path) -> Path | None:
    """The file beside the spec that holds the module of `module:attribute`; None where it must be installed."""
    path = folder.joinpath(*name.rpartition(":")[0].split(".")).with_suffix(".py")
    return path if path.is_file() else None


def failure(error: BaseException) -> str:
    """What the user's code raised, and on which line of which file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}."
    frames = traceback.extract_tb(error.__traceback__)
    at = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
    return f"{at}{type(error).__name__}: {error}"


def _module(subject: str, module: str, folder: Path) -> ModuleType:
    """The module, from a file in `folder` where there is one (nothing global changes), else from the installation."""
    path = source(f"{module}:", folder)
    try:
        if path is None:
            return importlib.import_module(module)
        spec = importlib.util.spec_from_file_location(module, path)
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    except ModuleNotFoundError as error:
        remedy = f"Put {module}.py beside the spec, or install it."
        raise InputError(subject, f"cannot be imported: {error}.", remedy) from error
    except RAISED as error:
        raise InputError(subject, failure(error)) from error
    return loaded
