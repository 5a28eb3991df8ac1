"""Compiling a program's kernels: through the server once, from the cache from then on."""

from pathlib import Path

import pytest
from tvm import te

from graphc.backends.cache import Cache
from graphc.backends.elf import undefined_symbols
from graphc.backends.kernels import compile_kernels
from graphc.backends.objects import tir_json
from graphc.backends.program import Call, Kernel, Program
from graphc.backends.targets import resolve
from graphc.backends.worker import Server
from graphc.errors import InternalError

V3 = resolve({"cpu": "x86-64-v3"})


def kernel(symbol: str, size: int) -> Kernel:
    x = te.placeholder((size,), name="x")
    func = te.create_prim_func([x, te.compute((size,), lambda i: x[i] + 1.0, name="y")])
    return Kernel(symbol, tir_json(func), ("float32", "float32"), (True, False))


def program(*kernels: Kernel) -> Program:
    calls = tuple(Call(k.symbol, ("x", "y"), 1, (f"node_{k.symbol}",), ("y",)) for k in kernels)
    return Program("p", {}, {k.symbol: k for k in kernels}, calls, (), (), {})


def test_a_second_time_nothing_is_compiled(tmp_path: Path) -> None:
    cache, both = Cache(tmp_path), program(kernel("a", 8), kernel("b", 16))
    with Server(jobs=2, scratch=cache.scratch()) as server:
        first = compile_kernels(both, V3, cache, server)
    assert list(first) == ["a", "b"]
    assert [undefined_symbols(code) for code in first.values()] == [frozenset(), frozenset()]
    with Server(jobs=2) as server:
        assert compile_kernels(both, V3, cache, server) == first
        assert not server.started


def test_only_what_changed_is_compiled(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    seen: list[str] = []
    with Server(jobs=1) as server:
        compile_kernels(program(kernel("a", 8), kernel("b", 16)), V3, cache, server)
        changed = program(kernel("a", 8), kernel("b", 32))
        compile_kernels(
            changed, V3, cache, server, lambda finished, total, text: seen.append(f"{finished}/{total} {text}")
        )
    assert seen == ["1/1 kernel b (node_b)"]


def test_an_error_names_the_nodes(tmp_path: Path) -> None:
    broken = Kernel("a", "{}", (), ())
    with Server(jobs=1) as server, pytest.raises(InternalError, match=r"^kernel a \(node_a\): "):
        compile_kernels(program(broken), V3, Cache(tmp_path), server)
