"""The objects of a program's kernels: from the cache, the missing ones from the compile server."""

from collections import defaultdict
from contextlib import closing

from graphc.backends.cache import Cache, kernel_key
from graphc.backends.program import Kernel, Program
from graphc.backends.targets import Target
from graphc.backends.worker import Job, Server, Watcher
from graphc.errors import GraphcError

OBJECT_CODE = "graphc.backends.objects:object_code"
C_CODE = "graphc.backends.c_kernel:c_code"
SHOWN_NODES = 3  # in the name that messages give a kernel


def compile_kernels(
    program: Program, target: Target, cache: Cache, server: Server, progress: Watcher | None = None
) -> dict[str, bytes]:
    """The object file of each kernel of `program`, by symbol, in the program's order; its C where that is asked for.

    Each is cached as soon as it is there, so that an interrupted build goes on where it was. Raises InternalError that
    names the kernel and its nodes where TVM fails on it.
    """
    kernels = [kernel for kernel in program.kernels.values() if kernel.tir]
    keys = {kernel.symbol: kernel_key(kernel.tir, kernel.symbol, target) for kernel in kernels}
    found = {symbol: code for symbol, key in keys.items() if (code := cache.get(key)) is not None}
    missing = [kernel for kernel in kernels if kernel.symbol not in found]
    nodes = _nodes(program)
    jobs = [Job(*_function(kernel, target), _subject(kernel.symbol, nodes[kernel.symbol])) for kernel in missing]
    with closing(server.outcomes(jobs, progress)) as outcomes:
        for index, outcome in outcomes:
            if isinstance(outcome, GraphcError):
                raise outcome
            symbol = missing[index].symbol
            found[symbol] = outcome
            cache.put(keys[symbol], outcome)
    return {symbol: found[symbol] for symbol in keys}


def _function(kernel: Kernel, target: Target) -> tuple[str, tuple[object, ...]]:
    """What makes a kernel's code, and with what arguments."""
    if target.emit == "c":
        return C_CODE, (kernel.tir, kernel.symbol, kernel.constant)
    return OBJECT_CODE, (kernel.tir, kernel.symbol, target)


def _nodes(program: Program) -> dict[str, list[str]]:
    """Kernel -> the graph nodes that it computes."""
    nodes: dict[str, list[str]] = defaultdict(list)
    for call in (*program.setup, *program.calls):
        nodes[call.kernel] += [name for name in call.nodes if name not in nodes[call.kernel]]
    return nodes


def _subject(symbol: str, nodes: list[str]) -> str:
    more = ", ..." if len(nodes) > SHOWN_NODES else ""
    return f"kernel {symbol} ({', '.join(nodes[:SHOWN_NODES])}{more})" if nodes else f"kernel {symbol}"
