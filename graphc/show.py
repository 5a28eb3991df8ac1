"""`graphc show`: what is in a model or an artifact."""

import json
from collections import Counter
from pathlib import Path

from graphc import artifact
from graphc.artifact import Manifest, Tensor
from graphc.errors import InputError
from graphc.staging import MANIFEST
from graphc.terminal import line_out, number, size, table


def show_any(path: Path, full: bool, as_json: bool) -> None:
    """Print a summary of an ONNX file, the whole graph with `full`, or an artifact's manifest."""
    if path.is_dir() or path.name == MANIFEST:
        if full:
            raise InputError(str(path), "is an artifact; --text is for models.", "Show the build's model.onnx.")
        _show_artifact(artifact.read(path), as_json)
        return
    from graphc.importer import load
    from graphc.ir.text import text

    graph = load(path)
    if full:
        line_out(text(graph).rstrip())
    else:
        _show_model(graph, as_json)


def _show_model(graph: "object", as_json: bool) -> None:
    from graphc.ir import Graph
    from graphc.ir.cost import cost

    assert isinstance(graph, Graph)
    price = cost(graph)
    kinds = Counter(f"{node.domain}.{node.op}" if node.domain else node.op for node in graph.nodes)
    borders = {side: {n: str(graph.types[n]) for n in getattr(graph, side)} for side in ("inputs", "outputs")}
    if as_json:
        figures = {"nodes": len(graph.nodes), "bytes": price.bytes, "parameters": price.parameters, "macs": price.macs}
        line_out(
            json.dumps({"name": graph.name, **borders, **figures, "operators": dict(kinds.most_common())}, indent=1)
        )
        return
    line_out(graph.name)
    for side, types in borders.items():
        for name, kind in types.items():
            line_out(f"  {side[:-1]:<8}{name}: {kind}")
    macs = "open shapes" if price.macs is None else f"{number(price.macs)} MACs"
    line_out(
        f"  {len(graph.nodes)} nodes, {size(price.bytes)} of weights, {number(price.parameters)} parameters, {macs}"
    )
    line_out(f"  {', '.join(f'{kind} x{count}' for kind, count in kinds.most_common())}")


def _show_artifact(manifest: Manifest, as_json: bool) -> None:
    if as_json:
        line_out(manifest.to_json().rstrip())
        return
    made = f"built by graphc {manifest.graphc} with {manifest.toolchain.name} {manifest.toolchain.version}"
    line_out(f"{manifest.name} for {manifest.target['id']} ({manifest.target['cpu']}), {made}")
    for side, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            line_out(f"  {side:<8}{_tensor(tensor)}")
    line_out(f"  weights {size(manifest.weights.bytes)}")
    arena = manifest.arena
    line_out(
        f"  arena   {size(arena.bytes)} (lower bound {size(arena.lower_bound)}, at {', '.join(arena.peak) or 'none'})"
    )
    if (patches := arena.patches) is not None:
        twice = f"{patches.macs / patches.macs_before - 1:.1%} more products"
        line_out(f"  patches {patches.count}, of {patches.nodes[0]} to {patches.nodes[-1]}: {twice}")
    line_out()
    rows = [
        (str(i), step.kernel or "copy", ", ".join(step.nodes), str(step.tasks)) for i, step in enumerate(manifest.steps)
    ]
    table(("call", "kernel", "nodes", "tasks"), rows, "><<>")


def _tensor(tensor: Tensor) -> str:
    grid = tensor.quantization
    stands_for = f", (q - {grid.zero_point}) * {grid.scale:.6g}" if grid else ""
    return f"{tensor.name}: {tensor.dtype}{list(tensor.shape)}{stands_for}"
