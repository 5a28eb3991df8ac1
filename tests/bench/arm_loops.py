"""The hottest loops of Arm kernels by `llvm-mca`: what a core's pipelines allow, with all data in the first cache.

    python -m tests.bench.arm_loops [--mca llvm-mca] [CORE ...]

For each layer the innermost loop with the most products: how many instructions multiply, how many there are, how many
of them reach the stack (spills), cycles of a run of the loop, and products per cycle.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from onnx import numpy_helper

from graphc.backends import objects
from graphc.backends.integer import explain
from graphc.backends.lower import lower
from graphc.backends.targets import Target, resolve
from graphc.importer import load
from graphc.ir import Graph
from tests.backends.qdq import Qdq
from tests.onnx_text import model_of

CORES = ("cortex-a53", "cortex-a72", "cortex-a76")
"""Of armv7 LLVM 14 has no model (Cortex-A7) or does not read the code (Cortex-A9)."""
RUNS = 100

PRODUCTS = {
    r"fml[as]\tv\d+\.8h": 8,
    r"fm(la|ul)\tv\d+\.4s": 4,
    r"(s|u|su|us)dot\t": 16,
    r"[su]ml(al|sl)2?\tv\d+\.4s|[su]mull2?\tv\d+\.4s|mla\tv\d+\.4s": 4,
    r"v(mla|mul|fma)\.f32\tq|vm(la|ul)l\.[su]16|vmla\.i32\tq": 4,
}
"""Instructions that multiply, and how many products each adds up."""

INTEGERS, FLOATS, HALVES = "8-bit", "float32", "float16"


def convolution(channels: int, size: int, weights: tuple[int, ...], kind: str, **attributes: object) -> Graph:
    """One convolution of stride 1 that keeps the size."""
    around = [weights[-1] // 2] * 4
    if kind == INTEGERS:
        m = Qdq()
        x = m.input((1, channels, size, size), "uint8", 0.02, 120)
        m.result(m.requantize(m.node("Conv", [x, m.weights(weights)], pads=around, **attributes)))
        return explain(m.graph()).graph
    written = "".join(f", {name} = {value}" for name, value in attributes.items())
    shape = f"{size},{size}"
    text = (
        f"g (float[1,{channels},{shape}] x) => (float[1,{weights[0]},{shape}] y)"
        f" {{ y = Conv <pads = {around}{written}> (x, w) }}"
    )
    return with_weights(text, weights)


def product(kind: str) -> Graph:
    if kind == INTEGERS:
        m = Qdq()
        m.result(m.requantize(m.node("MatMul", [m.input((64, 256), "uint8", 0.02, 120), m.weights((256, 256), 1)])))
        return explain(m.graph()).graph
    return with_weights("g (float[64,256] x) => (float[64,256] y) { y = MatMul (x, w) }", (256, 256))


def with_weights(text: str, shape: tuple[int, ...]) -> Graph:
    model = model_of(text)
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(array, "w"))
    return load(model)


LAYERS: Mapping[str, Callable[[str], Graph]] = {
    "conv 1x1, 14x14, 256 -> 64": lambda kind: convolution(256, 14, (64, 256, 1, 1), kind),
    "conv 3x3, 28x28, 64 -> 64": lambda kind: convolution(64, 28, (64, 64, 3, 3), kind),
    "depthwise 3x3, 28x28, 64": lambda kind: convolution(64, 28, (64, 1, 3, 3), kind, group=64),
    "matmul 64x256 by 256x256": product,
}


def innermost(code: str) -> Iterator[str]:
    """The bodies of loops without another one inside."""
    labels = {match[1]: match.end() for match in re.finditer(r"^(\.LBB\w+):", code, re.MULTILINE)}
    branches = re.finditer(r"^\t(?:b\S*|cbn?z|tbn?z)\t(?:.*, )?(\.LBB\w+)$", code, re.MULTILINE)
    loops = [(labels[branch[1]], branch.end()) for branch in branches if labels[branch[1]] < branch.start()]
    for begin, end in loops:
        if not any(begin <= first and last < end for first, last in loops):
            yield code[begin:end]


def counted(loop: str) -> tuple[int, int]:
    """(instructions that multiply, products)."""
    found = {each: len(re.findall(rf"^\t({each})", loop, re.MULTILINE)) for each in PRODUCTS}
    return sum(found.values()), sum(PRODUCTS[each] * count for each, count in found.items())


def cycles(loop: str, target: Target, mca: str) -> float:
    processor = [f"-mtriple={target.triple}", f"-mcpu={target.cpu}", f"-mattr={','.join(target.features)}"]
    command = [mca, *processor, f"-iterations={RUNS}", "-"]
    text = re.sub(r"\.LBB\w+", "0", re.sub(r"^\.\S+:.*$|^\s*(//|@).*$", "", loop, flags=re.MULTILINE))
    out = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Total Cycles:\s+(\d+)", out)
    assert found is not None, out
    return int(found[1]) / RUNS


def row(layer: str, kind: str, core: str, mca: str) -> str:
    target = resolve({"cpu": core, "winograd": False, "arithmetic": "fp16" if kind == HALVES else "float32"})
    kernels = lower(LAYERS[layer](kind), target).kernels
    code = [objects.assembly(kernel.tir, "kernel", target) for kernel in kernels.values()]
    loop = max((each for text in code for each in innermost(text)), key=lambda each: counted(each)[1])
    multiply, products = counted(loop)
    instructions = re.findall(r"^\t[a-z]\S*", loop, re.MULTILINE)
    spills = len(re.findall(r"\[sp", loop))
    took = cycles(loop, target, mca)
    counts = f"{multiply} of {len(instructions)} | {spills} | {took:.1f} | {products / took:.1f}"
    return f"| {core} | {layer} | {kind} | {counts} |"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cores", nargs="*", default=CORES, metavar="CORE")
    parser.add_argument("--mca", default="llvm-mca")
    given = parser.parse_args(arguments)
    print("| core | layer | type | multiply | spills | cycles | products a cycle |\n|---|---|---|---:|---:|---:|---:|")
    for core in given.cores or CORES:
        kinds = [FLOATS, INTEGERS, *([HALVES] if resolve({"cpu": core}).has("fp16") else [])]
        for kind in kinds:
            for layer in LAYERS:
                if kind != HALVES or "depthwise" not in layer:
                    print(row(layer, kind, core, given.mca), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
