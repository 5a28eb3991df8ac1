"""A fresh machine, as far as one machine can play it: a copy of the project, Python and pip, and no C compiler."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_BEHIND = shutil.ignore_patterns(
    ".*_cache", ".git", ".venv", ".types", ".hypothesis", "__pycache__", "build", "*.egg-info"
)
COMPILERS = re.compile(
    r"(.*-)?(gcc|g\+\+|cc|c\+\+|cpp|c89|c99|clang|clang\+\+|tcc|ld|ld\.\w+|as|zig|cmake|make)(-[\d.]+)?"
)


def copy_project(to: Path) -> Path:
    """What a clone holds, without what builds and tools left in the working tree."""
    return Path(shutil.copytree(ROOT, to, ignore=LEFT_BEHIND))


def without_compiler(folder: Path) -> dict[str, str]:
    """The environment with a PATH, made in `folder`, without compilers; `python3` is the interpreter of the tests."""
    folder.mkdir()
    for directory in reversed(["/usr/bin", "/bin"]):
        for tool in Path(directory).iterdir():
            if not COMPILERS.fullmatch(tool.name) and not (folder / tool.name).is_symlink():
                (folder / tool.name).symlink_to(tool)
    for name in ("python3", "python"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(Path(sys.executable).resolve())
    hidden = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CC", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"}
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, "PATH": str(folder)}


def shell(command: str, cwd: Path, environment: Mapping[str, str], seconds: int = 500) -> str:
    """Run `command` with bash and return what it printed; a failure shows all of it."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd, env=dict(environment), timeout=seconds, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\nexit code {done.returncode}\n{done.stdout}"
    return done.stdout
