"""Object files as bytes: what they lack, and what is left without their debug sections."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tvm
from tvm import te, tirx

from graphc.backends.elf import undefined_symbols, without_debug
from graphc.errors import InternalError

TARGETS = {
    "x86-64": {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "mcpu": "x86-64-v3"},
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
    "cortex-m7": {"kind": "llvm", "mtriple": "thumbv7em-none-eabihf", "mcpu": "cortex-m7", "mfloat-abi": "hard"},
}


def tvm_object(target: str, folder: Path) -> bytes:
    """What TVM writes, debug sections and all."""
    x = te.placeholder((16,), name="x")
    func = te.create_prim_func([x, te.compute((16,), lambda i: tirx.exp(x[i]), name="y")])
    path = folder / "kernel.o"
    tvm.compile(tvm.IRModule({"main": func}), target=TARGETS[target]).mod.write_to_file(str(path), "o")
    return path.read_bytes()


def readelf(*arguments: str | Path) -> str:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf on PATH")
    done = subprocess.run(["readelf", "--wide", *arguments], capture_output=True, text=True, check=True)
    assert not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", TARGETS)
def test_debug_sections_go_and_the_rest_stays(target: str, tmp_path: Path) -> None:
    before = tvm_object(target, tmp_path)
    after = without_debug(before)
    (tmp_path / "after.o").write_bytes(after)
    sections = readelf("--sections", tmp_path / "after.o")
    assert ".debug" in readelf("--sections", tmp_path / "kernel.o")
    assert not any(name in sections for name in DROPPED)
    assert ".text" in sections
    assert "expf" in undefined_symbols(after)
    assert undefined_symbols(after) == undefined_symbols(before)
    assert len(after) < len(before)
    assert without_debug(after) == after
    code, stripped = (readelf("--hex-dump=.text", "--relocs", tmp_path / name) for name in ("kernel.o", "after.o"))
    assert dump(code) == dump(stripped)


DROPPED = (".debug", ".ARM.ex")


def dump(text: str) -> list[str]:
    """The bytes of .text and where its relocations point."""
    kept = []
    for line in text.splitlines():
        if line.startswith(("Relocation section", "Hex dump")):
            kept.append(line.split(" at offset")[0])
        elif line.strip() and kept and not any(name in kept[-1] for name in DROPPED):
            kept.append(line)
    return [line for line in kept if not any(name in line for name in DROPPED)]


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF\x02\x02" + bytes(60), b"MZ" + bytes(100)])
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(InternalError, match="expected a little-endian ELF object"):
        undefined_symbols(data)
