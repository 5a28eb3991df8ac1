"""No network, and no writes outside the output and cache folders: a build and a verification, watched from outside.

Python's audit events and the folders themselves are looked at everywhere; where there is `strace`, so is every system
call of every process that takes part: onnxruntime, TVM, the C compiler.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fresh import ROOT

WATCH = """
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def watch(event, arguments):
    if event.startswith("socket.") and event != "socket.__new__":
        say(event)
    if event == "open" and isinstance(arguments[0], str) and arguments[2] & WRITES:
        say("open " + os.path.abspath(arguments[0]))
    if event in ("os.mkdir", "os.rename", "os.link", "os.symlink"):
        say(event + " " + os.path.abspath(arguments[0 if event == "os.mkdir" else 1]))
def say(text):
    os.write(LOG, (text + "\\n").encode())
LOG = os.open(os.environ["WATCH_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
sys.addaudithook(watch)
"""
"""A sitecustomize module: every Python process of the build writes what it does to $WATCH_LOG."""

MAIN = "from graphc.cli import main; main()"

CALLS = "socket,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat"


@dataclass(frozen=True)
class Watched:
    """A finished build: its folders, what Python reported, and what strace did (None: there is no strace)."""

    place: Path
    changed: set[Path]
    reported: list[str]
    calls: list[str] | None

    def allowed(self, path: str) -> bool:
        folders = [self.place / name for name in ("out", "cache", "watch")]
        return path.startswith("/dev/") or any(Path(path).is_relative_to(folder) for folder in folders)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The quickstart from a cold cache, then its verification; home, temporary and working folders are new."""
    place = tmp_path_factory.mktemp("confined").resolve()
    for name in ("home", "tmp", "work", "watch"):
        (place / name).mkdir()
    shutil.copytree(ROOT / "specs", place / "work" / "specs")
    (place / "watch" / "sitecustomize.py").write_text(WATCH)
    before = listing(place)
    for arguments in (["build", "specs/digits.yaml", "-o", f"{place}/out"], ["verify", f"{place}/out/digits/native"]):
        command = [*tracer(place / "watch" / "trace"), sys.executable, "-c", MAIN, *arguments]
        done = subprocess.run(
            command, cwd=place / "work", env=environment(place), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    trace = place / "watch" / "trace"
    calls = trace.read_text().splitlines() if trace.exists() else None
    changed = {path for path, state in listing(place).items() if before.get(path) != state}
    yield Watched(place, changed, (place / "watch" / "log").read_text().splitlines(), calls)
    shutil.rmtree(place)


def environment(place: Path) -> dict[str, str]:
    hidden = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {
        **kept,
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "GRAPHC_CACHE": str(place / "cache"),
        "PYTHONPATH": str(place / "watch"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "WATCH_LOG": str(place / "watch" / "log"),
    }


def tracer(output: Path) -> list[str]:
    """strace as a prefix of a command; nothing where there is none, or where it may not trace."""
    strace = shutil.which("strace")
    if strace is None:
        return []
    if subprocess.run([strace, "-o", os.devnull, "true"], check=False, capture_output=True).returncode != 0:
        return []
    return [strace, "-f", "-y", "-qq", "-A", "-o", str(output), "-e", f"trace={CALLS}", "-e", "signal=none"]


def listing(place: Path) -> dict[Path, tuple[int, int]]:
    """Every file and folder below `place`, with its size and time."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in place.rglob("*")}


def test_only_the_output_and_the_cache_are_left(watched: Watched) -> None:
    """Folders that were there before keep their time: nothing was made in them and removed again."""
    assert {path for path in watched.changed if not watched.allowed(str(path))} == set()
    assert watched.place / "out" / "digits" / "model.onnx" in watched.changed


def test_python_opens_no_connection_and_no_file_elsewhere(watched: Watched) -> None:
    actions = [line.partition(" ") for line in watched.reported]
    assert [name for name, _, _ in actions if name.startswith("socket.")] == []
    written = [path for _, _, path in actions]
    assert [path for path in written if not watched.allowed(path)] == []
    assert any(path.startswith(f"{watched.place}/cache/") for path in written)


def test_no_process_opens_a_connection_or_a_file_elsewhere(watched: Watched) -> None:
    if watched.calls is None:
        pytest.skip("strace is absent, or may not trace here")
    done = [call for call in watched.calls if " = -1 " not in call]
    assert [call for call in done if "socket(AF_INET" in call] == []
    made = [call for call in done if re.search(r"O_WRONLY|O_RDWR|O_CREAT|(creat|mkdir|rename|link)\w*\(", call)]
    assert [call for call in made if not watched.allowed(target(call))] == []
    assert any("kernel.o" in call for call in made) and any("libdigits.so" in call for call in made)


def target(call: str) -> str:
    """The path that a system call makes or opens: the last one it names, under the folder that strace says it is in."""
    folders, name = re.findall(r"(?:AT_FDCWD|\d+)<([^>]*)>, \"", call), re.findall(r'"([^"]*)"', call)[-1]
    return os.path.normpath(os.path.join(folders[-1] if folders else "/relative", name))  # noqa: PTH118
