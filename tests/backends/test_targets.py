"""Targets as data: what this machine is, what the levels are, what a wrong id is told."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from graphc.backends import arm, cortex_m, x86
from graphc.backends.boards import BOARDS, Board, Memory
from graphc.backends.dot import dot_product
from graphc.backends.targets import available, from_description, llvm_target, resolve
from graphc.errors import UnsupportedError
from graphc.spec.model import CpuId, OwnBoard

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


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        (V3, "madd"),
        (V3 | {"avx_vnni"}, "vnni"),
        (V4, "madd"),
        (V4 | {"avx_vnni"}, "madd"),  # 256 bits of it beside vectors of 512
        (V4 | {"avx512_vnni"}, "vnni"),
    ],
)
def test_bytes_are_multiplied_by_vnni_where_it_is_as_wide_as_vectors(flags: set[str], kind: str) -> None:
    target = x86.machine_target(flags, None, None)
    assert dot_product(target, np.dtype(np.int8), depth=64, columns=16).kind == kind
    assert dot_product(target, np.dtype(np.int16), depth=64, columns=16).kind == "madd"


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


def test_a_description_is_plain_data_and_complete() -> None:
    for kind, ids in available().items():
        for target in (resolve({kind: id_}) for id_ in ids if id_ != "native"):
            assert from_description(json.loads(json.dumps(target.description()))) == target


def test_the_spec_knows_the_processors() -> None:
    assert list(get_args(CpuId)) == available()["cpu"]


def test_instructions_are_those_that_a_family_describes() -> None:
    for module in (arm, cortex_m, x86):
        assert {
            name for core in module.FAMILY.cpus if core != "native" for name in resolve({"cpu": core}).instructions
        } <= (module.INSTRUCTIONS.keys())


@pytest.mark.parametrize(
    ("board", "triple", "hosted", "instruction"),
    [
        ("raspberry-pi-3", "aarch64-unknown-linux-gnu", True, "neon"),
        ("raspberry-pi-5", "aarch64-unknown-linux-gnu", True, "dotprod"),
        ("beaglebone-black", "armv7-unknown-linux-gnueabihf", True, "neon"),
        ("rp2040", "thumbv6m-none-eabi", False, None),
        ("mps2-an385", "thumbv7m-none-eabi", False, "saturate"),
        ("nrf52840", "thumbv7em-none-eabihf", False, "dsp"),
        ("mps3-an547", "thumbv8.1m.main-none-eabihf", False, "mve"),
    ],
)
def test_boards(board: str, triple: str, hosted: bool, instruction: str | None) -> None:
    target = resolve({"board": board})
    assert (target.id, target.triple, target.hosted, target.board) == (board, triple, hosted, BOARDS[board])
    assert target.has(instruction) if instruction else not target.instructions
    assert hosted == (BOARDS[board].flash is None) == (BOARDS[board].startup == "linux")
    assert target.library_ending == (".so" if hosted else "")


def test_a_board_says_which_floating_point_unit_its_chip_has() -> None:
    single, double = resolve({"board": "stm32f746-disco"}), resolve({"board": "stm32h743"})
    assert (single.features, single.has("fpu"), single.has("fpu_double")) == (("-fp64",), True, False)
    assert (double.features, double.has("fpu_double")) == ((), True)


def described(**entries: object) -> dict[str, object]:
    """The spec's entry for a board of the user's own."""
    return {"board": OwnBoard.model_validate({"name": "mine", "cpu": "cortex-m4", **entries}).model_dump()}


def test_a_board_of_the_users_own() -> None:
    target = resolve(described(flash="256KiB", ram=["64KiB", {"address": 0x10000000, "size": "8KiB"}], clock="80MHz"))
    assert (target.id, target.cpu, target.float_abi) == ("mine", "cortex-m4", "hard")
    assert target.board == Board(
        "mine",
        "mine",
        "cortex-m4",
        80_000_000,
        (Memory(0x20000000, 64 << 10), Memory(0x10000000, 8 << 10)),
        Memory(0, 256 << 10),
        startup="own",
    )
    soft = resolve(described(ram="64KiB", fpu="none"))
    assert (soft.triple, soft.float_abi, soft.has("fpu")) == ("thumbv7em-none-eabi", "soft", False)
    with pytest.raises(UnsupportedError, match="cortex-m4 has no floating-point unit for `fpu: double`"):
        resolve(described(ram="64KiB", fpu="double"))


def test_the_spec_may_name_the_compiler() -> None:
    assert resolve({"cpu": "cortex-a72", "compiler": "aarch64-linux-gnu-gcc-12"}).compiler == "aarch64-linux-gnu-gcc-12"
    assert resolve({"cpu": "cortex-a72", "compiler": None}).compiler == ""


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"cpu": "x86-64-v5"}, r"unknown cpu 'x86-64-v5'. Did you mean x86-64-v4 or .*\? Available: native, x86-64-v2"),
        ({"cpu": "nativ"}, r"Did you mean native\?"),
        ({"board": "raspberrypi4"}, r"unknown board 'raspberrypi4'. Did you mean raspberry-pi-4 or .*\? Available: "),
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
