"""Artifacts for other processors under QEMU's user mode: equal to this machine's; a missing QEMU is one clear error."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import graphc
from graphc import artifact
from graphc.accuracy import accuracy_of
from graphc.backends import toolchain
from graphc.backends.cache import Cache
from graphc.backends.emit_stream import stream_program
from graphc.backends.targets import resolve
from graphc.compile import Build
from graphc.emulator import EmulatedLinux, emulates, find_emulator, open_anywhere
from graphc.errors import InputError, ToolchainError, UnsupportedError
from graphc.runner import Runner
from graphc.verify import verify
from tests import small

BOARDS = {"raspberry-pi-3": "aarch64-linux-gnu", "raspberry-pi-5": "aarch64-linux-gnu", "beaglebone-black": "arm"}

pytestmark = pytest.mark.skipif(
    not (shutil.which("qemu-aarch64-static") and shutil.which("qemu-arm-static")),
    reason="no QEMU user mode (apt install qemu-user-static)",
)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The small model in 8-bit integers for this machine and the boards."""
    folder = tmp_path_factory.mktemp("emulated")
    small.write(folder)
    targets = ", ".join(f"{{board: {board}}}" for board in BOARDS)
    spec = folder / "small.yaml"
    spec.write_text(spec.read_text().replace("{cpu: native}", f"{{cpu: native}}, {targets}"))
    return graphc.compile(None, spec, out=folder / "build")


@pytest.mark.parametrize("board", BOARDS)
@pytest.mark.parametrize("threads", [1, 3])
def test_integers_equal_the_reference_bit_for_bit(build: Build, board: str, threads: int) -> None:
    found = verify(build.artifact(board), samples=4, threads=threads)
    assert found.agrees and found.integer_nodes > 0
    assert all(each.limit == 0 and each.differing == 0 for each in found.outputs)


SYSROOTS = {"raspberry-pi-3": "/usr/aarch64-linux-gnu", "beaglebone-black": "/usr/arm-linux-gnueabihf"}
"""Where Debian's packages of cross compilers put the C library of each."""


@pytest.mark.parametrize("board", SYSROOTS)
def test_pip_alone_links_libraries_for_boards(
    board: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zig's dynamic library, loaded by the board's own C library, gives what the system's compiler made give."""
    if toolchain.find_zig() is None:
        pytest.skip("ziglang is not installed (extra `cross`)")
    if not Path(SYSROOTS[board]).is_dir():
        pytest.skip("no C library of the board (apt install libc6-arm64-cross libc6-armhf-cross)")
    emulator = find_emulator(resolve({"board": board}))
    with EmulatedLinux(build.artifact(board)) as other:
        x = np.random.default_rng(1).normal(size=other.inputs[0].shape).astype(other.inputs[0].dtype)
        expected = other(x)
    monkeypatch.setenv("PATH", str(tmp_path))
    small.write(tmp_path)
    spec = tmp_path / "small.yaml"
    spec.write_text(spec.read_text().replace("{cpu: native}", f"{{board: {board}}}"))
    made = graphc.compile(None, spec, out=tmp_path / "build").artifact(board)
    manifest = artifact.read(made)
    zig = toolchain.find(manifest.target["triple"], Cache().folder)
    assert (manifest.toolchain.name, manifest.toolchain.version) == ("zig", zig.version)
    (made / "stream.c").write_text(stream_program(manifest))
    command = [*zig.compiler, "stream.c", "-O1", "-L.", "-lsmall", "-Wl,-rpath,$ORIGIN", "-o", "stream"]
    subprocess.run(command, cwd=made, env={**os.environ, **zig.environment}, check=True, timeout=600)
    program = [*emulator, "-L", SYSROOTS[board], str(made / "stream"), "2"]
    output = subprocess.run(program, input=x.tobytes(), capture_output=True, check=True, timeout=60).stdout
    assert output == expected.tobytes()


def test_an_emulated_artifact_is_called_as_one_that_was_loaded(build: Build) -> None:
    rng = np.random.default_rng(0)
    with Runner(build.artifact("native")) as native, open_anywhere(build.artifact("raspberry-pi-5")) as emulated:
        assert isinstance(emulated, EmulatedLinux)
        (tensor,) = native.inputs
        for _ in range(3):
            x = rng.normal(size=tensor.shape).astype(tensor.dtype)
            np.testing.assert_array_equal(emulated(x), native(x))
            np.testing.assert_array_equal(emulated(**{tensor.name: x}), native(x))
        with pytest.raises(InputError, match="expected dtype"):
            emulated(np.zeros(tensor.shape, np.complex64))
        with pytest.raises(InputError, match="no value for input"):
            emulated()
    with open_anywhere(build.artifact("native")) as loaded:
        assert isinstance(loaded, Runner)


def test_an_emulator_that_ended_is_an_error_of_the_toolchain(build: Build) -> None:
    with EmulatedLinux(build.artifact("raspberry-pi-3")) as emulated:
        emulated._process.kill()
        emulated._process.wait()
        with pytest.raises(ToolchainError, match="ended with -9"):
            emulated(np.zeros(emulated.inputs[0].shape, emulated.inputs[0].dtype))


def test_a_wrong_number_of_threads_is_what_the_model_says_it_is(build: Build) -> None:
    with (
        EmulatedLinux(build.artifact("raspberry-pi-3"), threads=65) as emulated,
        pytest.raises(Exception, match="the number of threads is out of range"),
    ):
        emulated(np.zeros(emulated.inputs[0].shape, emulated.inputs[0].dtype))


def test_a_missing_emulator_is_named_with_the_command_that_installs_it(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ToolchainError, match=r"no emulator .*qemu-aarch64-static.*apt install qemu-user-static"
    ) as caught:
        find_emulator(resolve({"cpu": "cortex-a72"}))
    assert caught.value.exit_code == 5
    monkeypatch.setenv("QEMU", "no-such-qemu")
    with pytest.raises(ToolchainError, match=r"\(no-such-qemu\)\. Correct or unset \$QEMU"):
        find_emulator(resolve({"cpu": "cortex-a72"}))


def test_only_other_linux_processors_are_emulated(build: Build) -> None:
    assert emulates(resolve({"cpu": "cortex-a9"})) and not emulates(resolve({"cpu": "cortex-m4"}))
    with pytest.raises(UnsupportedError, match="do not run under QEMU's user mode"):
        EmulatedLinux(build.artifact("native"))


def test_the_spec_of_the_raspberry_pi_builds_verifies_and_is_as_good_as_here(tmp_path: Path) -> None:
    build = graphc.compile(None, Path(__file__).parent.parent / "specs" / "digits_raspberry_pi_4.yaml", out=tmp_path)
    board = build.artifact("raspberry-pi-4")
    found = verify(board, samples=4)
    assert found.agrees and found.integer_nodes == 6
    judged = accuracy_of(board, 200, threads=2)
    assert (judged.metric, judged.unit, judged.samples) == ("top1", "%", 200)
    assert judged.value >= 99.0
