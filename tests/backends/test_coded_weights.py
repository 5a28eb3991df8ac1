"""Artifacts whose weights are entropy-coded: the same numbers, fewer bytes, and nothing that is damaged is run."""

from pathlib import Path

import numpy as np
import pytest

from graphc.artifact import Manifest
from graphc.backends.coded_weights import TABLE, TABLE_BYTES, store
from graphc.backends.emit import emit
from graphc.backends.emit_c import template
from graphc.backends.entropy import METHODS
from graphc.backends.plan import plan
from graphc.backends.program import Buffer, Kernel, Program
from graphc.backends.targets import Storage
from graphc.errors import GraphcError
from graphc.runner import Runner
from tests.backends.c_programs import FLOATS, TARGET, call, compile_and_run, kernels, make, toolchain

RNG = np.random.default_rng(0)
LARGE = {
    "w": RNG.choice(np.float32([0, 0, 0, 1, -2, 0.5]), (4, 16)).astype(np.float32),
    "v": np.repeat(np.float32([1.5, 0, 0, 0, -1, 0, 0, 2]), 8).reshape(4, 16),
    "n": RNG.normal(size=(4, 16)).astype(np.float32),
}
MODES: tuple[Storage, ...] = ("coded", "streamed")


def program() -> Program:
    """y = reverse(x + w + v) + n + w: one constant is read twice, one is noise that coding cannot shorten."""
    calls = [
        call("add", "x", "w", "a"),
        call("add", "a", "v", "b", b="a"),
        call("reverse", "b", "c"),
        call("add", "c", "n", "d", d="c"),
        call("add", "d", "w", "y", y="d"),
    ]
    return make(calls, dict.fromkeys("xabcdy", FLOATS), constants=LARGE)


def expected(x: np.ndarray) -> np.ndarray:
    reversed_ = ((x + LARGE["w"]) + LARGE["v"]).reshape(-1)[::-1].reshape(x.shape)
    return (reversed_ + LARGE["n"]) + LARGE["w"]


def built(folder: Path, storage: Storage, *, io_in_arena: bool = False) -> Manifest:
    stored = store(program(), storage)
    planned = plan(stored, io_in_arena=io_in_arena)
    return emit(stored, planned, kernels(), folder, target=TARGET, toolchain=toolchain())


def test_the_decoders_table_has_the_size_that_the_c_states() -> None:
    assert f"#define CODED_TABLE {TABLE_BYTES}\n" in template("runtime_coded.c")
    assert f"enum {{ {', '.join(f'CODED_{name.upper()}' for name in METHODS)} }};" in template("runtime_coded.c")


def test_plain_programs_stay_as_they_are() -> None:
    plain = program()
    assert store(plain, "plain") is plain


@pytest.mark.parametrize("storage", MODES)
def test_what_coding_shortens_is_coded_and_listed(storage: Storage) -> None:
    stored = store(program(), storage)
    assert {name: each.crc32 is not None for name, each in ((c.name, c) for c in stored.coded)} == {
        "w.coded": True,
        "v.coded": True,
        "n": False,
    }
    for each in stored.coded:
        assert each.packed == 256
        assert each.stored == (256 if each.crc32 is None else stored.constants[each.name].nbytes)
        assert 0 < each.bound <= 256
    assert {"w", "v"}.isdisjoint(stored.constants)


@pytest.mark.parametrize("storage", MODES)
def test_the_artifact_computes_the_same_bits(storage: Storage, tmp_path: Path) -> None:
    manifest = built(tmp_path / "a", storage)
    plain = built(tmp_path / "b", "plain")
    assert manifest.weights.bytes < plain.weights.bytes
    assert manifest.arena.bytes > plain.arena.bytes
    x = RNG.normal(size=(4, 16)).astype(np.float32)
    for threads in (1, 3):
        with Runner(tmp_path / "a", threads) as run:
            for _ in range(2):  # what init decoded is still there
                np.testing.assert_array_equal(run(x), expected(x))


def test_streamed_weights_share_memory_that_coded_ones_do_not() -> None:
    calls = [call("add", "x", "w0", "a0")]
    calls += [call("add", f"a{i}", f"w{i + 1}", f"a{i + 1}" if i < 30 else "y") for i in range(31)]
    constants = {f"w{i}": np.full((4, 16), i, np.float32) for i in range(32)}
    types = {**{f"a{i}": FLOATS for i in range(31)}, "x": FLOATS, "y": FLOATS}
    found = {mode: plan(store(make(calls, types, constants=constants), mode)).bytes for mode in MODES}
    assert found["coded"] >= 32 * 256
    assert found["streamed"] < TABLE_BYTES + 4 * 256


def test_the_decoders_table_is_free_again_after_init() -> None:
    planned = plan(store(program(), "coded"))
    assert planned.bytes <= TABLE_BYTES + 3 * 256
    assert planned.places[TABLE].space == "arena"


@pytest.mark.parametrize("storage", MODES)
def test_damaged_weights_are_refused_by_init(storage: Storage, tmp_path: Path) -> None:
    stored = store(program(), storage)
    built(tmp_path / "a", storage)
    library = next((tmp_path / "a").glob("*.so"))
    content = library.read_bytes()
    for name in ("w.coded", "v.coded"):
        stream = stored.constants[name].tobytes()
        at = content.index(stream)
        for place in (0, len(stream) // 2, len(stream) - 1):
            damaged = bytearray(content)
            damaged[at + place] ^= 1 << place % 8
            library.write_bytes(damaged)
            with pytest.raises(GraphcError, match="weights"):
                Runner(tmp_path / "a")
            library.unlink()  # another file, not the one that the process has mapped
    library.write_bytes(content)


@pytest.mark.parametrize("storage", MODES)
def test_it_is_strict_c99_and_clean_under_sanitizers(storage: Storage, tmp_path: Path) -> None:
    folder, work = tmp_path / "a", tmp_path / "work"
    work.mkdir()
    built(folder, storage, io_in_arena=True)
    main = """
static uint8_t arena[DEMO_ARENA_BYTES] __attribute__((aligned(DEMO_ARENA_ALIGNMENT)));
int main(void) {
    float x[64], y[64];
    for (int i = 0; i < 64; ++i) x[i] = (float)i;
    if (demo_init(arena, NULL) != DEMO_OK || demo_run(arena, x, y) != DEMO_OK) return 1;
    for (int i = 0; i < 64; ++i) printf("%.9g ", (double)y[i]);
    demo_close(arena);
    return 0;
}"""
    flags = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
    printed = compile_and_run(main, folder, work, *flags, kernels_as_c=True)
    x = np.arange(64, dtype=np.float32).reshape(4, 16)
    np.testing.assert_array_equal(np.float32(printed.split()), expected(x).reshape(-1))


def test_constants_that_are_outputs_stay_plain() -> None:
    base = make(
        [call("add", "x", "w", "y")], {"x": FLOATS, "y": FLOATS}, outputs=("y", "w"), constants={"w": LARGE["w"]}
    )
    stored = store(base, "coded")
    assert stored.setup == ()
    assert "w" in stored.constants
    assert isinstance(stored.buffers["w"], Buffer)
    assert all(isinstance(kernel, Kernel) for kernel in stored.kernels.values())
