"""Entropy coding: the C decodes what Python encodes, bit for bit, and refuses all else without a stray access."""

import ctypes
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.backends.coded_weights import TABLE_BYTES
from graphc.backends.emit_c import template
from graphc.backends.entropy import BLOCK, METHODS, Bytes, Method, code_lengths, counted, encode, encoded, entropy_bytes
from tests.backends.c_programs import toolchain

HEAD = "#include <stddef.h>\n#include <stdint.h>\n"
DECODE = """
int decode(int method, const uint8_t *in, size_t size, uint8_t *out, size_t count, size_t stride, uint8_t *table)
{
    return decode_coded(method, in, size, out, count, stride, table);
}"""
STRICT = ("-std=c99", "-O1", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror")


def compiled(source: str, output: Path, *flags: str) -> Path:
    path = output.with_suffix(".c")
    path.write_text(source)
    command = [*toolchain().compiler, *STRICT, str(path), *flags, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("decoder")
    source = HEAD + template("runtime_coded.c") + DECODE
    return ctypes.CDLL(str(compiled(source, folder / "decoder.so", "-shared", "-fPIC")))


def decode(library: ctypes.CDLL, method: Method, data: Bytes, count: int, stride: int = 1) -> Bytes | None:
    """The bytes, `stride` apart in memory; None where the C refuses."""
    out, table = np.full(count * stride + 1, 0xAA, np.uint8), np.zeros(TABLE_BYTES, np.uint8)
    data = np.ascontiguousarray(data)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (data, out, table)]
    sizes = [ctypes.c_size_t(number) for number in (len(data), count, stride)]
    done = library.decode(METHODS.index(method), pointers[0], sizes[0], pointers[1], *sizes[1:], pointers[2])
    between = np.delete(out, np.arange(0, count * stride, stride))
    assert (between == 0xAA).all()
    return out[: count * stride : stride] if done else None


@cache
def samples() -> dict[str, Bytes]:
    rng = np.random.default_rng(0)
    sparse = rng.integers(1, 32, 40_000) * (rng.random(40_000) < 0.05)
    return {
        "normal": np.clip(rng.normal(128, 12, 30_001), 0, 255).astype(np.uint8),
        "sparse": sparse.astype(np.uint8),
        "noise": rng.integers(0, 256, 10_000).astype(np.uint8),
        "one value": np.full(5_000, 9, np.uint8),
        "skewed": np.repeat(np.arange(20), 2 ** np.arange(20) // 8 + 1).astype(np.uint8),
        "one": np.uint8([200]),
        "none": np.zeros(0, np.uint8),
        "a block": rng.integers(0, 3, BLOCK).astype(np.uint8),
        "a block and one": rng.integers(0, 3, BLOCK + 1).astype(np.uint8),
    }


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("sample", samples())
def test_every_method_gives_back_every_byte(library: ctypes.CDLL, sample: str, method: Method, stride: int) -> None:
    values = samples()[sample]
    np.testing.assert_array_equal(decode(library, method, encode(values, method), len(values), stride), values)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 255), max_size=300), st.sampled_from(METHODS))
def test_whatever_the_bytes(library: ctypes.CDLL, values: list[int], method: Method) -> None:
    array = np.array(values, np.uint8)
    np.testing.assert_array_equal(decode(library, method, encode(array, method), len(array)), array)


def test_streams_come_close_to_the_entropy() -> None:
    normal, sparse = samples()["normal"], samples()["sparse"]
    assert len(encode(normal, "rans")) < 1.02 * entropy_bytes(counted(normal))
    assert len(encode(normal, "huffman")) < 1.02 * entropy_bytes(counted(normal))
    assert len(encode(sparse, "rans")) < 1.06 * entropy_bytes(counted(sparse))  # a twenty-fifth of it is the header
    assert len(encode(sparse, "huffman")) > 1.5 * entropy_bytes(counted(sparse))  # a zero costs a bit


@pytest.mark.parametrize("sample", samples())
def test_the_smallest_stream_is_chosen(sample: str) -> None:
    values = samples()[sample]
    chosen = encoded(values)
    assert len(chosen.data) == min(len(encode(values, method)) for method in METHODS)
    assert chosen.count == len(values)


def test_code_lengths_are_limited_and_complete() -> None:
    counts = np.zeros(256, np.int64)
    counts[:40] = np.fromiter(fibonacci(40), np.int64)  # without the limit, the longest would have 39 bits
    lengths = code_lengths(counts)
    assert lengths.max() <= 15
    assert (2.0 ** -lengths[lengths > 0]).sum() == 1


def fibonacci(count: int) -> Iterator[int]:
    one, two = 1, 1
    for _ in range(count):
        yield one
        one, two = two, one + two


@pytest.mark.parametrize("method", METHODS)
def test_streams_that_end_early_or_late_are_refused(library: ctypes.CDLL, method: Method) -> None:
    values = samples()["normal"][:3000]
    data = encode(values, method)
    for cut in (*range(min(len(data), 200)), *range(200, len(data), 37)):
        assert decode(library, method, data[:cut], len(values)) is None
    assert decode(library, method, np.append(data, np.uint8(0)), len(values)) is None
    assert decode(library, method, data, len(values) + 5000) is None


FUZZ = """
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

static uint32_t next(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 8;
}

/* Every buffer has exactly its size, so that the sanitizer sees each access beside it. */
static int one(int method, const uint8_t *data, size_t size, size_t count, size_t stride)
{
    uint8_t *in = malloc(size), *out = malloc(count * stride), *table = malloc(CODED_TABLE);
    if (size != 0) memcpy(in, data, size);
    const int done = decode_coded(method, in, size, out, count, stride, table);
    free(in);
    free(out);
    free(table);
    return done;
}

int main(int argc, char **argv)
{
    uint32_t seed = 1;
    long refused = 0;
    for (int file = 1; file + 2 < argc; file += 3) {
        static uint8_t data[1 << 20];
        FILE *stream = fopen(argv[file], "rb");
        if (stream == NULL) return 2;
        const size_t size = fread(data, 1, sizeof data, stream), count = (size_t)atol(argv[file + 2]);
        const int method = atoi(argv[file + 1]);
        fclose(stream);
        if (!one(method, data, size, count, 1)) return 3;
        for (int round = 0; round < 1500; ++round) {
            static uint8_t changed[1 << 20];
            size_t length = next(&seed) % 4 == 0 ? next(&seed) % (size + 1) : size;
            memcpy(changed, data, size);
            for (uint32_t flips = 1 + next(&seed) % 8; flips > 0; --flips) {
                const size_t reach = next(&seed) % 2 != 0 && size > 160 ? 160 : size; /* often in the header */
                changed[next(&seed) % reach] = (uint8_t)next(&seed);
            }
            const size_t wanted = next(&seed) % 5 == 0 ? next(&seed) % (2 * count) : count;
            if (!one(method, changed, length, wanted, 1 + (size_t)round % 4)) ++refused;
        }
    }
    printf("%ld\\n", refused);
    return 0;
}"""


def test_mutated_streams_touch_nothing_beside_them(tmp_path: Path) -> None:
    sanitized = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    try:
        compiled("int main(void) { return 0; }\n", tmp_path / "nothing", *sanitized)
    except AssertionError as error:
        pytest.skip(f"this C compiler has no sanitizers: {error}")
    program = compiled(HEAD + template("runtime_coded.c") + FUZZ, tmp_path / "fuzz", *sanitized)
    arguments: list[str] = []
    for name in ("normal", "sparse", "skewed"):
        for method in METHODS[1:]:
            values = samples()[name][:6000]
            path = tmp_path / f"{name}-{method}"
            path.write_bytes(encode(values, method).tobytes())
            arguments += [str(path), str(METHODS.index(method)), str(len(values))]
    ran = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert int(ran.stdout) > 0.9 * 1500 * 6
