"""Targets as data: what this machine is, what the levels are, what a wrong id is told."""

import json
from pathlib import Path

import pytest

from graphc.backends import x86
from graphc.backends.targets import available, from_description, llvm_target, resolve
from graphc.errors import UnsupportedError

V2 = {"cx16", "lahf_lm", "popcnt", "pni", "ssse3", "sse4_1", "sse4_2"}
V3 = V2 | {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("cpu", "bits", "registers", "instructions"),
    [
        ("x86-64-v2", 128, 16, set()),
        ("x86-64-v3", 256, 16, {"avx2", "fma", "f16c"}),
        ("x86-64-v4", 512, 32, {"avx2", "fma", "f16c", "avx512"}),
    ],
)
def test_levels(cpu: str, bits: int, registers: int, instructions: set[str]) -> None:
    target = resolve({"cpu": cpu})
    assert (target.id, target.cpu, target.family, target.hosted) == (cpu, cpu, "x86", True)
    assert (target.vector_bits, target.vector_registers, target.instructions) == (bits, registers, instructions)
    assert target.lanes(32) == bits // 32


@pytest.mark.parametrize(
    ("flags", "cpu", "features"),
    [
        (V2, "x86-64-v2", set()),
        (V3 | {"avx_vnni"}, "x86-64-v3", {"+avxvnni"}),
        (V3 | {"avx512f", "avx512_vnni"}, "x86-64-v3", set()),  # half of AVX-512 is none
        (V4 - {"fma"}, "x86-64-v2", set()),
        (V4, "x86-64-v4", {"-prefer-256-bit"}),
        (
            V4 | {"avx512_vnni", "amx_tile", "amx_int8"},
            "x86-64-v4",
            {"-prefer-256-bit", "+avx512vnni", "+amx-tile", "+amx-int8"},
        ),
    ],
)
def test_a_machine_is_its_level_and_what_it_has_beyond(flags: set[str], cpu: str, features: set[str]) -> None:
    target = x86.machine_target(flags, None, None)
    assert (target.id, target.cpu, set(target.features)) == ("native", cpu, features)
    assert list(target.features) == sorted(target.features)
    assert target.has("avx512_vnni") == ("+avx512vnni" in features)
    assert target.has("amx_int8") == ("+amx-int8" in features)
    assert target.instructions <= x86.INSTRUCTIONS.keys()


def test_a_machine_that_is_too_old_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"older than x86-64-v2 \(no sse4_2\)"):
        x86.machine_target(V3 - {"sse4_2"}, None, None)


def test_this_machine_is_read_from_linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(x86.sys, "platform", "linux")
    cores = [V4 | {"avx512_vnni"}, V4]  # cores that differ have what all of them have
    info = tmp_path / "cpuinfo"
    info.write_text("\n".join(f"processor\t: {i}\nflags\t\t: {' '.join(flags)}\n" for i, flags in enumerate(cores)))
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        (tmp_path / f"index{index}").mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (tmp_path / f"index{index}" / name).write_text(f"{value}\n")
    target = x86.native(info, tmp_path)
    assert (target.cpu, target.has("avx512_vnni"), target.l1_bytes, target.l2_bytes) == (
        "x86-64-v4",
        False,
        48 << 10,
        2 << 20,
    )
    assert x86.native(info, tmp_path / "absent").l1_bytes == resolve({"cpu": "x86-64-v4"}).l1_bytes


@pytest.mark.parametrize(("machine", "system"), [("aarch64", "linux"), ("x86_64", "darwin")])
def test_native_on_another_machine_says_what_to_name(
    monkeypatch: pytest.MonkeyPatch, machine: str, system: str
) -> None:
    monkeypatch.setattr(x86.platform, "machine", lambda: machine)
    monkeypatch.setattr(x86.sys, "platform", system)
    with pytest.raises(UnsupportedError, match="Name what the code is for: x86-64-v2, x86-64-v3, x86-64-v4"):
        resolve({"cpu": "native"})


@pytest.mark.parametrize("cpu", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_a_description_is_plain_data_and_complete(cpu: str) -> None:
    target = resolve({"cpu": cpu})
    assert from_description(json.loads(json.dumps(target.description()))) == target


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cpu": "x86-64-v5"}, r"unknown cpu. Did you mean x86-64-v4\? Available: native, x86-64-v2"),
        ({"cpu": "nativ"}, r"Did you mean native\?"),
        ({"board": "stm32h743"}, "no board targets. Available: cpu: native, x86-64-v2"),
        ({"gpu": "sm_87", "host": "aarch64-linux"}, "no gpu targets. Available: cpu: native"),
        ({}, "expected a cpu, board or gpu"),
    ],
)
def test_what_is_not_there_is_refused_by_name(entry: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        resolve(entry)


def test_every_available_id_but_native_resolves_anywhere() -> None:
    for id_ in available()["cpu"]:
        if id_ != "native":
            assert resolve({"cpu": id_}).id == id_


def test_llvm_is_given_no_fast_math() -> None:
    options = llvm_target(resolve({"cpu": "x86-64-v4"}))
    assert options["mcpu"] == "x86-64-v4"
    assert not any(name.startswith("fast-math") for name in options)
