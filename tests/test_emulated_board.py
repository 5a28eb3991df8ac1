"""Artifacts without an operating system: what they hold, and that they compute the same on an emulated board."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import graphc
from graphc.artifact import Manifest
from graphc.backends.boards import BOARDS, Memory
from graphc.backends.elf import defined_symbols, undefined_symbols
from graphc.backends.targets import Target, resolve
from graphc.backends.toolchain import FREESTANDING
from graphc.emulated_board import EMULATOR, EmulatedBoard, board_for
from graphc.errors import BudgetError, InputError, ToolchainError, UnsupportedError
from graphc.verify import verify
from tests import small
from tests.backends.c_programs import bare_toolchain, build_bare, demo, demo_reference

CPUS = ("cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")


@pytest.fixture
def emulator() -> None:
    if shutil.which(EMULATOR) is None:
        pytest.skip(f"no {EMULATOR} on PATH: apt install qemu-system-arm")


def x() -> np.ndarray:
    return np.random.default_rng(0).integers(-8, 8, (4, 16)).astype(np.float32) / 4


@pytest.mark.usefixtures("emulator")
@pytest.mark.parametrize("cpu", CPUS)
def test_every_processor_computes_the_same(cpu: str, tmp_path: Path) -> None:
    build_bare(demo(), tmp_path / cpu, resolve({"cpu": cpu}))
    with EmulatedBoard(tmp_path / cpu) as board:
        for given in (x(), -x()):
            found, expected = board(given), demo_reference(given)
            assert all(np.array_equal(found[name], expected[name]) for name in expected)
        steps = board.profile(x())
    assert board.manifest.footprint is not None
    assert 0 < board.counts.stack <= board.manifest.footprint.stack
    assert len(steps) == len(board.manifest.steps) and min(steps) > 0


@pytest.mark.usefixtures("emulator")
def test_two_runs_take_the_same_instructions(tmp_path: Path) -> None:
    build_bare(demo(), tmp_path / "m4", resolve({"cpu": "cortex-m4"}))
    counts = []
    for _ in range(2):
        with EmulatedBoard(tmp_path / "m4") as board:
            board(x())
            board.profile(x())
            counts.append(board.counts)
    assert counts[0] == counts[1] and counts[0].stack > 0


@pytest.mark.usefixtures("emulator")
def test_inputs_are_checked_as_everywhere(tmp_path: Path) -> None:
    build_bare(demo(), tmp_path / "m4", resolve({"cpu": "cortex-m4"}))
    with EmulatedBoard(tmp_path / "m4") as board, pytest.raises(InputError, match="expected dtype float32"):
        board(x().astype(np.float64))


def archive(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    tools = bare_toolchain(manifest.target["cpu"])
    subprocess.run([*tools.archiver, "x", manifest.files.archive], cwd=folder, check=True)
    return {path.name: path.read_bytes() for path in folder.glob("*.o")}


def test_nothing_but_memory_functions_is_needed(tmp_path: Path) -> None:
    manifest = build_bare(demo(), tmp_path / "m4", resolve({"cpu": "cortex-m4"}))
    objects = archive(tmp_path / "m4", manifest)
    needed = set().union(*(undefined_symbols(data) for data in objects.values()))
    own = set().union(*({symbol.name for symbol in defined_symbols(data)} for data in objects.values()))
    outside = {name for name in needed - own if not name.startswith("__aeabi_")}
    assert outside <= {"memcpy", "memset"}


def small_board(**changes: object) -> Target:
    return replace(resolve({"board": "nrf52840"}), board=replace(BOARDS["nrf52840"], **changes))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ram": (Memory(0x20000000, 1024),)}, r"bytes of RAM are missing: the arena takes \d+, the stack \d+ bytes"),
        ({"flash": Memory(0, 600)}, r"bytes of flash are missing: the weights take \d+, the code \d+ bytes"),
    ],
)
def test_code_that_does_not_fit_leaves_nothing(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match=problem) as error:
        build_bare(demo(), tmp_path / "small", small_board(**changes))
    assert error.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_the_header_repeats_the_proof(tmp_path: Path) -> None:
    manifest = build_bare(demo(), tmp_path / "nrf", resolve({"board": "nrf52840"}))
    header = (tmp_path / "nrf" / "demo.h").read_text()
    assert manifest.footprint is not None
    assert f"#define DEMO_STACK_BYTES {manifest.footprint.stack} " in header
    assert f"#define DEMO_CODE_BYTES {manifest.footprint.code} " in header
    shrunk = header.replace(f"<= {256 << 10}", "<= 100")
    (tmp_path / "use.c").write_text(shrunk)
    with pytest.raises(ToolchainError, match="demo_arena_fits"):
        bare_toolchain("cortex-m4").compile("use.c", "use.o", tmp_path)


def test_a_processor_without_a_board_in_the_emulator_is_named() -> None:
    assert board_for(resolve({"board": "stm32h743"})).id == "mps2-an500"
    with pytest.raises(UnsupportedError, match="no board with a cortex-m85"):
        board_for(resolve({"cpu": "cortex-m85"}))


def test_a_missing_emulator_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_bare(demo(), tmp_path / "m4", resolve({"cpu": "cortex-m4"}))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt install qemu-system-arm"):
        EmulatedBoard(tmp_path / "m4")


@pytest.mark.parametrize("id_", ["nrf52840", "stm32h743", "nucleo-f411re", "mps2-an386", "rp2040"])
def test_a_project_to_start_from_links(id_: str, tmp_path: Path) -> None:
    """With the board's own memories; where its maker's SDK brings the start-up code, the program is compiled alone."""
    target = resolve({"board": id_})
    manifest = build_bare(demo(), tmp_path / id_, target)
    folder, tools = tmp_path / id_ / "example", bare_toolchain(target.cpu)
    for file in (manifest.files.header, manifest.files.archive):
        shutil.copy(tmp_path / id_ / file, folder / file)
    sources = [path.stem for path in folder.glob("*.c")]
    for source in sources:
        tools.compile(f"{source}.c", f"{source}.o", folder, (*FREESTANDING, "-Werror"))
    assert "demo" in (folder / "CMakeLists.txt").read_text()
    if "start" in sources:
        objects = [f"{source}.o" for source in sources]
        tools.link_device([*objects, manifest.files.archive], "board.ld", "program.elf", folder)
        assert (folder / "program.elf").stat().st_size > 0


@pytest.mark.usefixtures("emulator")
def test_verification_counts_what_a_run_takes(tmp_path: Path) -> None:
    spec = small.write(tmp_path, small.SPEC.replace("{cpu: native}", "{board: mps2-an386}"))
    built = graphc.compile(None, spec, out=tmp_path / "build")
    found = verify(built.artifact("mps2-an386"), samples=4)
    assert found.agrees and found.integer_nodes > 0 and found.on_board is not None
    assert found.on_board.instructions == sum(found.on_board.steps) > 1000
    assert 0 < found.on_board.stack <= found.on_board.stack_bound


@pytest.mark.parametrize(
    ("memory", "problem"),
    [
        (
            {"ram": "256B", "flash": "1MiB"},
            r"bytes of RAM are missing: the arena takes \d+ bytes of 256; most is",
        ),
        ({"ram": "64KiB", "flash": "64B"}, r"bytes of flash are missing: the weights take \d+ bytes of 64"),
    ],
)
def test_a_model_too_large_is_an_error_before_code_is_generated(
    memory: dict[str, str], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_kernels(*_: object) -> None:
        raise AssertionError("code was generated")

    monkeypatch.setattr("graphc.backends.kernels.compile_kernels", compile_kernels)
    small.write(tmp_path)
    spec = {
        "model": {"path": str(tmp_path / "small.onnx"), "inputs": {"image": [1, 3, 8, 8]}},
        "targets": [{"board": {"name": "tiny", "cpu": "cortex-m4", **memory}}],
    }
    with pytest.raises(BudgetError, match=problem) as error:
        graphc.compile(None, spec, out=tmp_path / "build")
    assert error.value.exit_code == 3
    assert "`quantize` to int8" in str(error.value)
    assert not list((tmp_path / "build").glob("**/*.*"))
