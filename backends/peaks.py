"""Small kernels whose speed is this machine's limit, as a program of graphc's own (runs in a worker: imports TVM).

multiply  acc[i] = acc[i] * x + x                     float32, every accumulator in a register
dot       acc[i] += x . w                             integers of 8 bits and bfloat16, by each instruction that
                                                    schedules would use
read      for task: sum of `CHUNK` bytes              the first 2^n chunks again and again: from a cache, or from memory

Each is called `CALLS` times in a row. The node of a call says what it is: "float32", "int8 vnni",
"bf16 dpbf16", "read 1048576".
"""

from collections.abc import Callable, Sequence
from typing import Any

import tvm
from tvm import tirx

from graphc.artifact import Work
from graphc.backends.dot import Dot, has_vnni
from graphc.backends.dot_x86 import multiply_add
from graphc.backends.narrow_bf16 import CODE
from graphc.backends.objects import tir_json
from graphc.backends.program import Buffer, Call, Kernel, Program
from graphc.backends.schedule_amx import INPUTS, PRODUCTS, SUMS, WEIGHTS, configured, instruction, tile_number
from graphc.backends.statements import const, function, loop, sequence, spread, tasks, vector
from graphc.backends.targets import Target
from graphc.backends.tiles import AMX_BYTES, AMX_CHANNELS, AMX_ROWS

CALLS = 3
TASKS, ROUNDS = 16, 4096
"""Of the arithmetic kernels: tasks for threads to share, and how often each goes through its accumulators."""
CHUNK = 64 << 10
SMALLEST = 256 << 10
"""Bytes that the first reading kernel reads; each further one reads four times as many."""


def program(target: Target, largest: int) -> Program:
    """Every kernel that `target` has; `largest` is how many bytes are read at most."""
    lanes = max(1, target.lanes(32))
    sums = max(TASKS * target.vector_registers * lanes, TASKS * AMX_ROWS * AMX_CHANNELS * len(SUMS))
    buffers = {
        "x": Buffer("x", "float32", (largest // 4,), "input"),
        "bytes": Buffer("bytes", "int8", (AMX_ROWS * AMX_BYTES,), "input"),
        "codes": Buffer("codes", "uint16", (AMX_ROWS * AMX_BYTES // 2,), "input"),
        "sums": Buffer("sums", "float32", (sums,), "output"),
        "integers": Buffer("integers", "int32", (sums,), "output"),
        "totals": Buffer("totals", "float32", (largest // CHUNK * lanes,), "output"),
    }
    kernels: dict[str, Kernel] = {}
    calls: list[Call] = []

    def add(label: str, nest: Callable[[Sequence[Any]], Any], operands: Sequence[str], count: int, work: Work) -> None:
        declared = [tirx.decl_buffer(buffers[name].shape, buffers[name].dtype, name) for name in operands]
        symbol = "read" if label.startswith("read") else label.replace(" ", "_")
        attributes = tvm.ir.make_node("ir.DictAttrs", **{"tirx.noalias": True})
        text = tir_json(function(declared, attributes, [nest(declared)]))
        types = tuple(buffers[name].dtype for name in operands)
        kernels[symbol] = Kernel(symbol, text, types, (True, False))
        calls.extend([Call(symbol, tuple(operands), count, (label,), (operands[1],), work=work)] * CALLS)

    macs, nest = multiply(target)
    add("float32", nest, ("x", "sums"), TASKS, Work(macs, "float32"))
    for dot in dots(target):
        floats = dot.weights == CODE
        arithmetic, operands = ("bf16", ("codes", "sums")) if floats else ("int8", ("bytes", "integers"))
        macs, nest = (tile_products if dot.tiled else dot_products)(target, dot)
        add(f"{arithmetic} {dot.kind}", nest, operands, TASKS, Work(macs, arithmetic))
    size = SMALLEST
    while size <= largest:
        add(f"read {size}", read(lanes, largest), ("x", "totals"), size // CHUNK, Work(data=size))
        size *= 4
    inputs, outputs = ("x", "bytes", "codes"), ("sums", "integers", "totals")
    return Program("peaks", buffers, kernels, tuple(calls), inputs, outputs, {})


def program_job(target: Target, largest: int) -> Program:
    """What the compile server runs."""
    return program(target, largest)


def dots(target: Target) -> list[Dot]:
    """The instructions for 8-bit integers and for bfloat16 that schedules choose among."""
    if target.family != "x86":
        return []
    tiles = [Dot.of("amx")] if target.has("amx_int8") else []
    integers = [*tiles, Dot.of("vnni" if has_vnni(target) else "madd")]
    floats = {"amx_bf16": "amx_bf16", "dpbf16": "avx512_bf16"}
    return integers + [Dot.of(kind) for kind, instruction in floats.items() if target.has(instruction)]


def _accumulators(target: Target) -> int:
    """Enough to hide the latency of an addition, with registers left for operands."""
    return max(1, target.vector_registers * 3 // 4)


def _in_registers(
    target: Target, result: Any, first: Callable[[int], Any], step: Callable[[Any], Any], dtype: str
) -> Any:
    """for task: acc[i] = first(i); `ROUNDS` times acc[i] = step(acc[i]); result[task, i] = acc[i]."""
    lanes, number = max(1, target.lanes(32)), _accumulators(target)
    places = [vector(const(i * lanes), lanes) for i in range(number)]

    def body(task: Any) -> Any:
        acc = tirx.decl_buffer((number * lanes,), dtype, "acc", scope="local")
        start = [tirx.BufferStore(acc, first(i), [place]) for i, place in enumerate(places)]
        update = [tirx.BufferStore(acc, step(acc[place]), [place]) for place in places]
        end = [
            tirx.BufferStore(result, acc[place], [vector((task * number + i) * lanes, lanes)])
            for i, place in enumerate(places)
        ]
        return sequence([tirx.AllocBuffer(acc), *start, loop("round", 0, ROUNDS, lambda _: sequence(update)), *end])

    return tasks(TASKS, body)


def multiply(target: Target) -> tuple[int, Callable[[Sequence[Any]], Any]]:
    """(multiply-accumulates, the nest over (x, sums)): nothing but multiplications that are added."""
    lanes = max(1, target.lanes(32))

    def nest(buffers: Sequence[Any]) -> Any:
        x, sums = buffers
        factor = spread(x[const(0)], lanes)

        def first(i: int) -> Any:
            return spread(x[const(i)], lanes)

        return _in_registers(
            target, sums, lambda i: spread(x[const(i)], lanes), lambda acc: acc * factor + factor, "float32"
        )

    return TASKS * ROUNDS * _accumulators(target) * lanes, nest


def dot_products(target: Target, dot: Dot) -> tuple[int, Callable[[Sequence[Any]], Any]]:
    """The same for dot products in vectors, over (bytes or codes, their sums)."""
    lanes = max(1, target.lanes(32))

    def nest(buffers: Sequence[Any]) -> Any:
        x, sums = buffers
        weights = x[vector(const(0), lanes * dot.step)]
        inputs = x[vector(const(0), dot.step)]
        dtype = str(sums.dtype)
        zero = spread(const(0, dtype), lanes)
        return _in_registers(
            target, sums, lambda _: zero, lambda acc: multiply_add(dot, acc, inputs, weights, lanes, 0), dtype
        )

    return TASKS * ROUNDS * _accumulators(target) * lanes * dot.step, nest


def tile_products(target: Target, dot: Dot) -> tuple[int, Callable[[Sequence[Any]], Any]]:
    """The same for matrix tiles: four of sums, two of inputs and two of weights, all of them full."""
    size = AMX_ROWS * AMX_CHANNELS

    def nest(buffers: Sequence[Any]) -> Any:
        x, sums = buffers

        def body(task: Any) -> Any:
            config = tirx.decl_buffer((64,), "uint8", "config", scope="local")
            start = configured(config, AMX_ROWS, AMX_BYTES)
            start += [instruction("tilezero", tile_number(n)) for n in SUMS]
            line = tirx.const(AMX_BYTES, "int64")
            start += [
                instruction("tileloadd64", tile_number(n), tirx.address_of(x[const(0)]), line) for n in range(4, 8)
            ]
            products = [
                instruction(
                    PRODUCTS[str(x.dtype)], tile_number(n), tile_number(INPUTS[n // 2]), tile_number(WEIGHTS[n % 2])
                )
                for n in SUMS
            ]
            end = [
                instruction("tilestored64", tile_number(n), tirx.address_of(sums[(task * len(SUMS) + n) * size]), line)
                for n in SUMS
            ]
            # tilestored64 writes all of `sums`; TVM sees its address only.
            touched = tirx.BufferStore(sums, const(0, str(sums.dtype)), [task * len(SUMS) * size])
            steps = loop("round", 0, ROUNDS, lambda _: sequence(products))
            return sequence([tirx.AllocBuffer(config), touched, *start, steps, *end, instruction("tilerelease")])

        return tasks(TASKS, body)

    return TASKS * ROUNDS * len(SUMS) * size * AMX_BYTES // dot.weights.itemsize, nest


def read(lanes: int, largest: int) -> Callable[[Sequence[Any]], Any]:
    """The nest over (x, totals) whose task is the sum of one chunk."""
    together = 8
    length = CHUNK // 4

    def nest(buffers: Sequence[Any]) -> Any:
        x, totals = buffers

        def body(task: Any) -> Any:
            acc = tirx.decl_buffer((together * lanes,), "float32", "acc", scope="local")
            places = [vector(const(i * lanes), lanes) for i in range(together)]
            zero = [tirx.BufferStore(acc, spread(const(0.0, "float32"), lanes), [place]) for place in places]

            def add(k: Any) -> Any:
                first = task * length + k * (together * lanes)
                return sequence(
                    [
                        tirx.BufferStore(acc, acc[place] + x[vector(first + i * lanes, lanes)], [place])
                        for i, place in enumerate(places)
                    ]
                )

            total = acc[places[0]]
            for place in places[1:]:
                total = total + acc[place]
            end = tirx.BufferStore(totals, total, [vector(task * lanes, lanes)])
            return sequence([tirx.AllocBuffer(acc), *zero, loop("k", 0, length // (together * lanes), add), end])

        return tasks(largest // CHUNK, body)

    return nest
