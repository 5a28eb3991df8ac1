"""Which compiler is taken, and what happens where there is none or it fails."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from graphc import runner
from graphc.backends import toolchain as toolchain_module
from graphc.backends.cache import default_folder
from graphc.backends.emit import emit
from graphc.backends.plan import plan
from graphc.backends.toolchain import Toolchain, find, find_zig, is_host
from graphc.errors import ToolchainError
from tests.backends import c_programs
from tests.backends.c_programs import TARGET, demo, demo_reference, toolchain

ELSEWHERE = "aarch64-unknown-linux-gnu"


def test_this_machine_is_recognised() -> None:
    if sys.platform != "linux":
        pytest.skip("triples of Linux")
    assert [is_host("x86_64-unknown-linux-gnu"), is_host(ELSEWHERE)].count(True) <= 1
    assert not is_host("thumbv7em-none-eabihf")


def test_the_chosen_compiler_comes_first(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    found = find(TARGET.triple, tmp_path, environment={"PATH": "/usr/bin:/bin", "CC": "gcc -O1"})
    assert found.name == "gcc"
    assert found.compiler[1:] == ("-O1",)
    assert found.version[0].isdigit()


def test_a_wrong_choice_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"no-such-compiler.*no such program.*CC"):
        find(TARGET.triple, tmp_path, environment={"PATH": "/usr/bin:/bin", "CC": "no-such-compiler"})
    with pytest.raises(ToolchainError, match="--version"):
        find(TARGET.triple, tmp_path, environment={"PATH": "/usr/bin:/bin", "CC": "false"})


def test_a_cross_compiler_may_be_named_in_the_spec_or_the_environment(tmp_path: Path) -> None:
    if not shutil.which("gcc"):
        pytest.skip("no gcc")
    paths = {"PATH": "/usr/bin:/bin"}
    assert find(ELSEWHERE, tmp_path, compiler="gcc -O1", environment=paths).compiler[1:] == ("-O1",)
    given = {**paths, "CC_aarch64_linux_gnu": "gcc -O2", "CC": "false"}
    assert find(ELSEWHERE, tmp_path, environment=given).compiler[1:] == ("-O2",)
    assert find(ELSEWHERE, tmp_path, compiler="gcc -O1", environment=given).compiler[1:] == ("-O1",)
    with pytest.raises(ToolchainError, match=r"the spec's `compiler` 'no-such-gcc': no such program\."):
        find(ELSEWHERE, tmp_path, compiler="no-such-gcc", environment=given)
    with pytest.raises(ToolchainError, match=r"\$CC_arm_linux_gnueabihf 'no-such-gcc'"):
        find("armv7-unknown-linux-gnueabihf", tmp_path, environment={**paths, "CC_arm_linux_gnueabihf": "no-such-gcc"})


@pytest.mark.parametrize(
    ("triple", "package"),
    [
        (TARGET.triple, "apt install gcc`"),
        (ELSEWHERE, "gcc-aarch64-linux-gnu`"),
        ("armv7-unknown-linux-gnueabihf", "gcc-arm-linux-gnueabihf`"),
    ],
)
def test_without_any_compiler_the_remedy_is_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, triple: str, package: str
) -> None:
    monkeypatch.setattr(toolchain_module, "find_zig", lambda: None)
    with pytest.raises(ToolchainError) as caught:
        find(triple, tmp_path, environment={"PATH": str(tmp_path)})
    assert "pip install 'graphc[cross]'" in str(caught.value)
    assert package in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_compilers_complaint_is_passed_on(tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int main(void) { return missing; }\n")
    with pytest.raises(ToolchainError, match=r"wrong\.c(.|\n)*missing"):
        toolchain().compile("wrong.c", "wrong.o", tmp_path)


def test_a_compiler_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain_module, "TIMEOUT", 0.2)
    slow = Toolchain("slow", "1", ("sh", "-c", "sleep 60; true"), ("ar",))
    with pytest.raises(ToolchainError, match=r"longer than 0\.2 s"):
        slow.compile("a.c", "a.o", tmp_path)


def test_an_unresolved_symbol_is_an_error_now_not_when_opened(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int elsewhere(void); int here(void); int here(void) { return elsewhere(); }\n")
    toolchain().compile("a.c", "a.o", tmp_path)
    with pytest.raises(ToolchainError, match="elsewhere"):
        toolchain().link(["a.o"], "liba.so", ["here"], tmp_path)


def test_pip_alone_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zig from the extra `cross`, with no other compiler in sight: same results, same bytes in two folders."""
    if find_zig() is None:
        pytest.skip("ziglang is not installed (extra `cross`)")
    (tmp_path / "nothing").mkdir()
    zig = find(TARGET.triple, default_folder(), environment={"PATH": str(tmp_path / "nothing")})
    assert zig.name == "zig"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    program = demo()
    for folder in ("one", "two"):
        emit(program, plan(program), c_programs.kernels(), tmp_path / folder, target=TARGET, toolchain=zig)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    x = np.random.default_rng(3).normal(size=(4, 16)).astype(np.float32)
    with runner.open(tmp_path / "one", threads=3, checksum=True) as model:
        result = model(x)
    assert all(np.array_equal(result[name], value) for name, value in demo_reference(x).items())


def test_other_processors_are_one_target_away(tmp_path: Path) -> None:
    """The hook for cross compilation: the runtime's C compiles for an Arm board with what pip brings."""
    if find_zig() is None and not shutil.which("aarch64-linux-gnu-gcc"):
        pytest.skip("no compiler for aarch64 (extra `cross`)")
    cross = find(ELSEWHERE, default_folder())
    c_programs.write_kernel("scale", tmp_path)
    cross.compile("scale.c", "scale.o", tmp_path)
    assert (tmp_path / "scale.o").read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
