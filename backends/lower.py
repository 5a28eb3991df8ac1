"""From a graph to a program, in the compile server.

Graph -> 16-bit floats widened -> channels last -> products narrowed if asked for -> Relax
      -> fused PrimFuncs -> scheduled -> stages -> Program
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax

from graphc.artifact import Patches
from graphc.backends.anchor import products
from graphc.backends.choices import NO_CHOICES, Choices
from graphc.backends.float_products import narrowed
from graphc.backends.layout import channels_last
from graphc.backends.objects import OVERLAPPING, task_count, tir_json
from graphc.backends.overlap import Distance, distance
from graphc.backends.padded_results import Border, border, written_padded
from graphc.backends.patches import patched
from graphc.backends.program import Buffer, Call, Kernel, Overlap, Program, Role
from graphc.backends.relax_module import ALIAS, MARK, PART, WHOLE, relax_module
from graphc.backends.schedule import scheduled
from graphc.backends.stages import Stage, stages
from graphc.backends.targets import Target
from graphc.backends.widen import widened
from graphc.backends.work import Share, with_work
from graphc.errors import InputError, UnsupportedError
from graphc.ir import Array, Graph

Note = Callable[[str], None]

BYTES = {"int8", "uint8"}
"""Types that C lets alias any other."""

NODE = "_of_node_"
"""Stands between the name of a kernel and the index of the graph node it was made for."""


def lower(graph: Graph, target: Target, note: Note = lambda _: None, choices: Choices = NO_CHOICES) -> Program:
    """Lower a graph whose shapes are all static. `note` hears what is being worked on.

    Raises UnsupportedError naming the node that no kernel exists for, InputError where a shape is open.
    """
    _require_static(graph)
    narrow = narrowed(channels_last(widened(graph)), target)
    laid_out, patches = _in_patches(narrow.graph, target)
    module, constants, decisions = relax_module(laid_out, target, note, choices)
    module, marks = fused(module)
    program = _Assembly(laid_out, target, constants, marks, note).program(module)
    return replace(program, decisions=decisions, patches=patches, multiplied=narrow.told)


def _in_patches(graph: Graph, target: Target) -> tuple[Graph, Patches | None]:
    """The graph as `target.patches` wants it, and what that makes of it."""
    if target.patches < 2:
        return graph, None
    found = patched(graph, target.patches, target.alignment)
    if found is None:
        problem = f"no part of it takes less memory in {target.patches} patches."
        raise UnsupportedError(f"model '{graph.name}'", problem, "Leave `patches` out, or ask for another number.")
    return found.graph, Patches(found.nodes, found.count, *found.macs)


def _require_static(graph: Graph) -> None:
    for name, kind in graph.types.items():
        if not kind.is_static:
            producer = graph.producers.get(name)
            raise InputError(
                producer.label if producer else f"input '{name}'",
                f"'{name}' has the open shape {kind}.",
                "Fix every dimension under `model: inputs:` and run the fold pass.",
            )
        if kind.dtype.kind in "OSU":
            raise UnsupportedError(
                f"value '{name}'", "strings cannot be compiled.", "Keep text processing outside the model."
            )
    for name in graph.outputs:
        if not graph.types[name].size:
            problem = f"it is empty ({graph.types[name]})."
            raise UnsupportedError(f"output '{name}'", problem, "Drop it from the model's outputs.")


def fused(module: Any) -> tuple[Any, dict[str, tuple[int, ...]]]:
    """TVM's operator fusion, and which graph nodes each function that is left computes."""
    passes = relax.transform
    legal = tvm.ir.transform.Sequential([passes.LegalizeOps(), passes.AnnotateTIROpPattern()])(module)
    grouped = passes.FuseOps()(_one_function_per_call(legal))
    marks = {
        variable.name_hint: _marks(variable.name_hint, function) for variable, function in grouped.functions.items()
    }
    rest = [passes.FuseTIR(), passes.CanonicalizeBindings(), passes.DeadCodeElimination()]
    return tvm.ir.transform.Sequential(rest)(grouped), marks


def _one_function_per_call(module: Any) -> Any:
    """Give each call_tir of `main` a PrimFunc of its own, named after the graph node it came from.

    Fusion renames variables but keeps functions' names, so this is how a fused kernel knows its nodes.
    """
    main = module["main"]
    functions = {variable: function for variable, function in module.functions.items() if variable.name_hint == "main"}
    blocks = []
    for block in main.body.blocks:
        indices = _node_of_each(block.bindings)
        bindings = []
        for number, (binding, index) in enumerate(zip(block.bindings, indices, strict=True)):
            value = binding.value
            if isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
                callee = value.args[0]
                own = tvm.ir.GlobalVar(f"{callee.name_hint}{NODE}{index}_{number}")
                relax.expr._update_type(own, callee.ty)
                functions[own] = module[callee]
                value = relax.Call(value.op, [own, *value.args[1:]], value.attrs, value.ty_args)
                relax.expr._update_type(value, binding.value.ty)
            bindings.append(relax.VarBinding(binding.var, value))
        blocks.append(type(block)(bindings))
    body = relax.SeqExpr(blocks, main.body.body)
    relax.expr._update_type(body, main.body.ty)
    functions[next(v for v in functions if v.name_hint == "main")] = relax.Function(
        main.params, body, main.ret_ty, main.is_pure, main.attrs
    )
    return tvm.IRModule(functions, attrs=module.attrs)


def _node_of_each(bindings: Any) -> list[int]:
    """Graph node index of every binding: the one its variable names, or that of the next variable that names one."""
    indices: list[int] = []
    current = -1
    for binding in reversed(bindings):
        found = re.match(rf"{MARK}(\d+)_", binding.var.name)
        current = int(found.group(1)) if found else current
        indices.append(current)
    return indices[::-1]


def _marks(name: str, function: Any) -> tuple[int, ...]:
    """The graph nodes that a function computes, from its own name or those of what it calls."""
    names = [name]
    if isinstance(function, relax.Function) and name != "main":
        values = [binding.value for block in function.body.blocks for binding in block.bindings]
        names += [value.args[0].name_hint for value in values if isinstance(value, relax.Call) and value.args]
    found = [int(match) for each in names for match in re.findall(rf"{NODE}(\d+)_", each)]
    return tuple(dict.fromkeys(index for index in found if index >= 0))


def _source(variable: Any, bound: dict[Any, Any]) -> Any:
    """The variable behind plain renamings; (variable, index) for an item of a tuple."""
    while isinstance(bound.get(variable), relax.Var):
        variable = bound[variable]
    item = bound.get(variable)
    return (_source(item.tuple_value, bound), item.index) if isinstance(item, relax.TupleGetItem) else variable


@dataclass(frozen=True)
class _Padding:
    """What a call puts around the only result of another. `shared`: something else reads that result, too."""

    variable: Any
    border: Border
    shared: bool


def _paddings(module: Any, bindings: Sequence[Any]) -> dict[Any, _Padding]:
    """Variable that a call makes -> the first padding of it, seen through views."""
    origin: dict[Any, Any] = {}
    readers: dict[Any, int] = defaultdict(int)
    found: dict[Any, tuple[Any, Border]] = {}
    for binding in bindings:
        value = binding.value
        callee = value.args[0] if isinstance(value, relax.Call) and len(value.args) > 1 else None
        read = [origin.get(each, each) for each in relax.analysis.free_vars(value)]
        name = callee.name_hint if isinstance(callee, tvm.ir.GlobalVar) else ""
        if isinstance(value, relax.Var) or name.startswith(ALIAS):
            origin[binding.var] = read[0] if read else binding.var
            continue
        around = border(module[callee]) if name and len(read) == 1 else None
        if around is not None:
            found.setdefault(read[0], (binding.var, around))
        for each in read:
            readers[each] += 1
    return {variable: _Padding(*each, shared=readers[variable] > 1) for variable, each in found.items()}


@dataclass
class _Assembly:
    """The program under construction: one pass over the bindings of the fused module's `main`."""

    graph: Graph
    target: Target
    data: dict[str, Array]
    marks: dict[str, tuple[int, ...]]
    note: Note
    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    symbols: dict[Any, str] = field(default_factory=dict)
    distances: dict[Any, Distance | None] = field(default_factory=dict)
    """Of stages by structure, between the largest result and the largest operand."""
    calls: list[Call] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    parts: dict[str, tuple[str, int]] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    staged: dict[str, list[Stage]] = field(default_factory=dict)
    shares: list[Share] = field(default_factory=list)
    """Of each call in the work of the graph's nodes."""
    products: dict[str, int | None] = field(default_factory=dict)
    """Fused function -> how many products it executes, None for all that its nodes have."""
    paddings: dict[Any, "_Padding"] = field(default_factory=dict)
    """Variable -> what pads it."""
    dropped: set[Any] = field(default_factory=set)
    """Variables that nothing reads but what pads them."""

    def program(self, module: Any) -> Program:
        main = module["main"]
        for variable in main.params:
            name = variable.name
            self.values[variable] = name
            if name in self.data:
                self._add_constant(name, self.data[name])
            else:
                self._add(name, variable.ty, "input")
        bindings = [binding for block in main.body.blocks for binding in block.bindings]
        results = self._results(main, bindings)
        self.paddings = _paddings(module, bindings)
        outputs = {variable: self.graph.outputs[i] for i, variable in enumerate(results)}
        for binding in bindings:
            self._bind(module, binding, outputs)
        used = {name for call in self.calls for name in call.arguments} | set(self.aliases.values())
        used |= {whole for whole, _ in self.parts.values()}
        buffers = {n: b for n, b in self.buffers.items() if b.role != "constant" or n in used}
        constants = {n: a for n, a in self.constants.items() if n in used}
        program = Program(
            self.graph.name,
            buffers,
            self.kernels,
            tuple(self.calls),
            self.graph.inputs,
            self.graph.outputs,
            constants,
            self.aliases,
            parts=self.parts,
        )
        return with_work(program, self.graph, self.shares)

    def _results(self, main: Any, bindings: list[Any]) -> list[Any]:
        """What holds each of the graph's outputs, in order: a variable, or (a variable that is a tuple, index)."""
        bound = {binding.var: binding.value for binding in bindings}
        value = main.body.body
        while isinstance(value, relax.Var) and isinstance(bound.get(value), relax.Var | relax.Tuple):
            value = bound[value]
        fields = list(value.fields) if isinstance(value, relax.Tuple) else [value]
        return [_source(item, bound) for item in fields]

    def _add(self, name: str, ty: Any, role: Role) -> str:
        dtype = str(ty.dtype) if role == "scratch" else self.graph.types[name].dtype.name
        self.buffers[name] = Buffer(name, dtype, tuple(int(d) for d in ty.shape), role)
        return name

    def _add_constant(self, name: str, array: Array) -> str:
        self.constants[name] = array
        self.buffers[name] = Buffer(name, array.dtype.name, tuple(array.shape), "constant")
        return name

    def _bind(self, module: Any, binding: Any, outputs: dict[Any, str]) -> None:
        variable, value = binding.var, binding.value
        if isinstance(value, relax.Var):
            self.values[variable] = self.values[value]
        elif isinstance(value, relax.TupleGetItem):
            self.values[variable] = self.values[value.tuple_value][value.index]
        elif isinstance(value, relax.Tuple):
            self.values[variable] = [self._operand(item) for item in value.fields]
        elif isinstance(value, relax.Call) and getattr(value.op, "name", "") == "relax.call_tir":
            self._call(module, variable, value, outputs)
        else:
            raise UnsupportedError(
                self._label(variable),
                f"lowers to {getattr(value, 'op', type(value).__name__)}, which needs TVM's runtime.",
                "Give its shape-deciding operands as constants, or replace the operator.",
            )

    def _operand(self, expression: Any) -> str:
        if expression in self.values:
            name: str = self.values[expression]
            return name
        if isinstance(expression, relax.TupleGetItem):
            item: str = self.values[expression.tuple_value][expression.index]
            return item
        if isinstance(expression, tvm.ir.GenericConst):
            return self._add_constant(f"constant.{len(self.constants)}", expression.value.numpy())
        raise UnsupportedError("lowering", f"cannot pass {type(expression).__name__} to a kernel.")

    def _label(self, variable: Any) -> str:
        found = re.match(rf"{MARK}(\d+)_", variable.name)
        return self.graph.nodes[int(found.group(1))].label if found else variable.name

    def _call(self, module: Any, variable: Any, call: Any, outputs: dict[Any, str]) -> None:
        callee, operands = call.args[0], call.args[1]
        if len(call.args) > 2 and call.args[2] is not None:
            raise UnsupportedError(
                self._label(variable), "its kernel has run-time shapes.", "Fix every dimension under `model: inputs:`."
            )
        types = call.ty_args[0]
        fields = list(types.fields) if isinstance(types, relax.TupleType) else [types]
        single = not isinstance(types, relax.TupleType)
        indices = self.marks[callee.name_hint]
        nodes = tuple(
            self.graph.nodes[i].name or self.graph.nodes[i].outputs[0] for i in indices if i < len(self.graph.nodes)
        )
        if callee.name_hint.startswith(ALIAS) and operands.fields[0] in self.dropped:
            self.dropped.add(variable)
            return
        if variable in self.values:
            return  # padding that is written already
        sources = [self._operand(item) for item in operands.fields]
        results = []
        for position, ty in enumerate(fields):
            public = outputs.get(variable if single else (variable, position))
            results.append(
                self._add(public or f"v{len(self.buffers)}.{position}", ty, "output" if public else "scratch")
            )
        self.values[variable] = results[0] if single else results
        if callee.name_hint.startswith(ALIAS):
            self.aliases[results[0]] = sources[0]
            return
        if callee.name_hint.startswith(PART):
            node = self.graph.nodes[indices[0]]
            row = self.buffers[sources[0]].bytes // self.buffers[sources[0]].shape[1]
            self.parts[results[0]] = (sources[0], row * node.get_int("first", 0))
            return
        if callee.name_hint.startswith(WHOLE):
            self._whole(sources, results[0])
            return
        if callee.name_hint not in self.staged:
            self.note(", ".join(nodes) or callee.name_hint)
            self.staged[callee.name_hint] = stages(scheduled(module[callee], self.target))
            self.products[callee.name_hint] = products(module[callee])
        self._stages(callee.name_hint, [*sources, *self._with_padding(callee.name_hint, variable, results)], nodes)

    def _with_padding(self, name: str, variable: Any, results: list[str]) -> list[str]:
        """What the stages of a function write, padded results among it where they are read so."""
        padding = self.paddings.get(variable)
        if padding is None:
            return results
        public = self.buffers[results[0]].role == "output"
        keep = padding.shared or public
        staged = written_padded(self.staged[name], padding.border, self.target, keep=keep)
        if staged is None:
            return results
        self.staged[name] = staged
        if keep:
            made = self.values[padding.variable] = self._add(f"v{len(self.buffers)}.0", padding.variable.ty, "scratch")
            return [*results, made]
        self.buffers.pop(results[0])
        self.values.pop(variable)
        self.dropped.add(variable)
        self.values[padding.variable] = self._add(results[0], padding.variable.ty, "scratch")
        return results

    def _whole(self, sources: list[str], result: str) -> None:
        """Buffers that were written become parts of one, in order."""
        start = 0
        for name in sources:
            while name in self.aliases:
                name = self.aliases[name]  # noqa: PLW2901 (what the view is of)
            self.parts[name] = (result, start)
            start += self.buffers[name].bytes

    def _stages(self, name: str, arguments: list[str], nodes: tuple[str, ...]) -> None:
        """Calls of a fused function's stages, with a buffer of the plan for each one that crosses them."""
        staged = self.staged[name]
        bound = dict(zip(staged[0].parameters, arguments, strict=True))
        for stage in staged:
            for buffer in stage.buffers:
                if buffer not in bound:
                    bound[buffer] = self._add(f"w{len(self.buffers)}", buffer.ty, "scratch")
            kernel = self._kernel(name, stage)
            in_place = {bound[target]: bound[source] for target, source in stage.in_place.items()}
            self.calls.append(
                Call(
                    kernel,
                    tuple(bound[b] for b in stage.buffers),
                    task_count(stage.function),
                    nodes,
                    tuple(bound[b] for b in stage.written),
                    in_place,
                    overlap=self._overlap(name, stage, bound),
                )
            )
            self.shares.append(Share(self.marks[name], self.products[name]))

    def _overlap(self, name: str, stage: Stage, bound: dict[Any, str]) -> Overlap | None:
        """How the largest result of a stage may overlap the largest operand, where one thread runs it."""
        sizes = {b: self.buffers[bound[b]].bytes for b in stage.buffers if bound[b] not in self.constants}
        operands = [b for b in sizes if not any(b.same_as(each) for each in stage.written)]
        if self.target.system or stage.in_place or not operands:
            return None
        target, source = (max(group, key=lambda b: sizes[b]) for group in (stage.written, operands))
        if str(target.dtype) != str(source.dtype) and not BYTES & {str(target.dtype), str(source.dtype)}:
            return None  # no C compiler would expect them to overlap
        key = tvm_ffi.structural_hash(stage.function, map_free_vars=True)
        if key not in self.distances:
            written, read = (
                next(i for i, b in enumerate(stage.buffers) if b.same_as(each)) for each in (target, source)
            )
            self.distances[key] = distance(stage.function, written, read, self.target.alignment)
        found = self.distances[key]
        if found is None:
            return None
        function = stage.function.with_attr("tirx.noalias", False).with_attr(OVERLAPPING, True)
        kernel = _made(name, replace(stage, function=function))
        return Overlap(bound[target], bound[source], found.least, found.step, kernel)

    def _kernel(self, name: str, stage: Stage) -> str:
        """The symbol of a stage's kernel; structurally equal stages share one."""
        key = tvm_ffi.structural_hash(stage.function, map_free_vars=True)
        if key not in self.symbols:
            kernel = _made(name, stage)
            self.symbols[key] = kernel.symbol
            self.kernels[kernel.symbol] = kernel
        return self.symbols[key]


def _made(name: str, stage: Stage) -> Kernel:
    """The kernel of a stage of the function `name`."""
    text = tir_json(stage.function)
    readable = re.sub(rf"{NODE}\d+_\d+|\W", "", name.removeprefix("fused_"))[:40].strip("_")
    symbol = f"{readable}_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    written = [any(b.same_as(w) for w in stage.written) for b in stage.buffers]
    return Kernel(symbol, text, tuple(str(b.dtype) for b in stage.buffers), tuple(not w for w in written))


def lower_job(graph: Graph, target: Target, note: Note, choices: Choices) -> Program:
    """What the compile server runs."""
    return lower(graph, target, note, choices)
