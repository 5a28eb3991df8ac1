"""The C of a compiled model: header, source, and the assembler text that embeds its weights.

The text lies in templates beside this file (`artifact.h.in`, `artifact.c.in`, `runtime_*.c`); here are the parts that
depend on the program. C99, free of warnings under -Wall -Wextra -Wconversion.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from math import prod

import numpy as np

from graphc.artifact import Footprint, Quantization, Tensor
from graphc.backends.emit_cpu_arm import capabilities
from graphc.backends.emit_cpu_x86 import cpu_check
from graphc.backends.emit_names import comment, model_identifier, tensor_identifiers
from graphc.backends.emit_sources import checksum, kernel_definitions, weight_arrays
from graphc.backends.emit_weights import Weights
from graphc.backends.plan import Copy, MemoryPlan, Place
from graphc.backends.program import Call, Kernel, Program
from graphc.backends.targets import Target
from graphc.errors import InternalError
from graphc.version import VERSION

MAX_THREADS = 64
STATE_BYTES = {True: 960, False: 24}
"""Room for the runtime's state but its pointers to tensors, with threads and without; the C checks that it suffices."""

MEMORY_FUNCTIONS = """\
void *memcpy(void *to, const void *from, size_t count);
void *memset(void *to, int value, size_t count);"""
"""All that the C calls where there is no C library to include."""

C_TYPES = {
    "bool": "uint8_t",
    "float16": "uint16_t",
    "bfloat16": "uint16_t",
    "float32": "float",
    "float64": "double",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("int2", "uint2", "int4", "uint4", "float4_e2m1fn"), "uint8_t"),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), "uint8_t"
    ),
}


@dataclass(frozen=True)
class Unit:
    """All that the text depends on."""

    program: Program
    plan: MemoryPlan
    weights: Weights
    target: Target
    quantization: Mapping[str, Quantization]
    code: Mapping[str, bytes]
    """Of each kernel: an object, or with `emit: c` what `graphc.backends.c_kernel` wrote."""
    build: str
    """16 hexadecimal digits that differ where the code or the weights do."""

    @property
    def prefix(self) -> str:
        return model_identifier(self.program.name)

    @property
    def in_c(self) -> bool:
        """Whether everything is text."""
        return self.target.emit == "c"

    @property
    def compiled(self) -> list[Call]:
        """The calls of kernels that have code of their own."""
        return [call for call in (*self.program.setup, *self.plan.calls) if call.kernel in self.code]

    @property
    def state_bytes(self) -> int:
        """The state at the start of the arena, up to the first buffer."""
        pointers = 8 * (1 + len(self.program.inputs) + len(self.program.outputs))
        needed = STATE_BYTES[self.target.system] + pointers
        return -(-needed // self.plan.alignment) * self.plan.alignment

    @property
    def arena_bytes(self) -> int:
        return self.state_bytes + self.plan.bytes

    @property
    def alignment(self) -> int:
        """Of the arena: the state holds pointers and 64-bit numbers."""
        return max(self.plan.alignment, 8)

    @property
    def max_threads(self) -> int:
        return MAX_THREADS if self.target.system else 1

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """As the manifest and the C name them."""
        return self._tensors[: len(self.program.inputs)]

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return self._tensors[len(self.program.inputs) :]

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        names = [*self.program.inputs, *self.program.outputs]
        offsets = [*self.plan.input_offsets, *self.plan.output_offsets]
        found = []
        for name, identifier, offset in zip(names, tensor_identifiers(names), offsets, strict=True):
            buffer = self.program.buffers[name]
            place = None if offset is None else self.state_bytes + offset
            quantization = self.quantization.get(name)
            found.append(Tensor(name, identifier, buffer.dtype, buffer.shape, buffer.bytes, quantization, place))
        return tuple(found)

    @property
    def parameters(self) -> tuple[str, ...]:
        """How the C functions declare inputs and outputs."""
        read = [f"const {c_type(tensor.dtype)} *{tensor.identifier}" for tensor in self.inputs]
        return (*read, *(f"{c_type(tensor.dtype)} *{tensor.identifier}" for tensor in self.outputs))


def header(unit: Unit, footprint: Footprint | None = None) -> str:
    """`<name>.h`: sizes, shapes and quantization as constants, errors, and the four functions.

    With a `footprint` also what else the code takes, checked against the board's memory wherever it is included.
    """
    blocks = [_tensor_constants(unit, tensor, "input") for tensor in unit.inputs]
    blocks += [_tensor_constants(unit, tensor, "output") for tensor in unit.outputs]
    inside = any(tensor.offset is not None for tensor in (*unit.inputs, *unit.outputs))
    return fill(
        template("artifact.h.in"),
        **_common(unit),
        build=unit.build,
        arena_bytes=str(unit.arena_bytes),
        arena_alignment=str(unit.alignment),
        weights_bytes=str(unit.weights.bytes),
        max_threads=str(unit.max_threads),
        footprint=_footprint(unit, footprint) if footprint else "",
        tensors="\n\n".join(blocks),
        io_note=", except at the offsets above" if inside else "",
    )


def source(unit: Unit) -> str:
    """`<name>.c`: one small function per step, their table, the runtime, and the four functions of the header."""
    steps = [_call(unit, index, call) for index, call in enumerate(unit.plan.calls)]
    steps += [_copy(unit, index, copy) for index, copy in enumerate(unit.plan.copies, len(steps))]
    tasks = [call.tasks for call in unit.plan.calls] + [1 for _ in unit.plan.copies]
    table = "".join(f"    {{step_{index}, {count}}},\n" for index, count in enumerate(tasks))
    text = "\n".join(steps)
    tensors = unit.inputs + unit.outputs
    has_weights = unit.weights.bytes > 0
    return fill(
        template("artifact.c.in"),
        **_common(unit),
        system=_system(unit),
        memory="#include <string.h>" if unit.target.system else MEMORY_FUNCTIONS,
        state_bytes=str(unit.state_bytes),
        parallel_tasks=str(max(tasks)),
        weights=_weights(unit) if has_weights else "",
        kernels=_prototypes(unit) + (kernel_definitions(unit.compiled, unit.code) if unit.in_c else ""),
        frame="".join(f"    {parameter};\n" for parameter in unit.parameters),
        steps=text,
        table=table,
        runtime=template("runtime_threads.c" if unit.target.system else "runtime_single.c"),
        checks=_static_checks(tensors),
        checksum=(template("runtime_crc.c") if has_weights else "") + _decoders(unit) + _processor_check(unit.target),
        setup=_setup(unit),
        init_checks=_init_checks(unit, has_weights),
        run_checks=_run_checks(unit.prefix.upper(), tensors),
        bind="".join(f"    s->at.{tensor.identifier} = {tensor.identifier};\n" for tensor in tensors),
        arguments="".join(f", {tensor.identifier}" for tensor in tensors),
    )


def assembly(unit: Unit) -> str:
    """`weights.s`: the bytes of `weights.bin` as a read-only section."""
    return fill(template("weights.s.in"), prefix=unit.prefix, alignment=str(unit.weights.alignment))


def template(name: str) -> str:
    return files("graphc.backends").joinpath(name).read_text(encoding="utf-8")


def fill(text: str, **values: str) -> str:
    """The template with each `@name@` replaced, in one sweep; a name without a value is a KeyError."""
    return re.sub(r"@(\w+)@", lambda match: values[match[1]], text)


def _common(unit: Unit) -> dict[str, str]:
    return {
        "title": comment(unit.program.name),
        "version": VERSION,
        "target": comment(unit.target.id),
        "prefix": unit.prefix,
        "PREFIX": unit.prefix.upper(),
        "calls": str(len(unit.plan.calls) + len(unit.plan.copies)),
        "parameters": "".join(f", {parameter}" for parameter in unit.parameters),
    }


def c_type(dtype: str) -> str:
    if dtype not in C_TYPES:
        raise InternalError(f"type {dtype}", "no C type holds one element of it.", "Lower it to whole bytes.")
    return C_TYPES[dtype]


def _tensor_constants(unit: Unit, tensor: Tensor, side: str) -> str:
    start = f"#define {unit.prefix.upper()}_{tensor.identifier.upper()}"
    lines = [
        f"/* {side} '{comment(tensor.name)}': {tensor.dtype}{list(tensor.shape)} */",
        f"{start}_ELEMENTS {prod(tensor.shape)}",
        f"{start}_BYTES {tensor.bytes}",
        f"{start}_RANK {len(tensor.shape)}",
    ]
    if tensor.shape:
        lines.append(f"{start}_SHAPE {{{', '.join(map(str, tensor.shape))}}}")
    lines.append(f'{start}_DTYPE "{tensor.dtype}"')
    if tensor.quantization:
        scale = np.format_float_scientific(np.float32(tensor.quantization.scale), unique=True, trim="0")
        lines += [f"{start}_SCALE {scale}f", f"{start}_ZERO_POINT ({tensor.quantization.zero_point})"]
    if tensor.offset is not None:
        lines.append(f"{start}_OFFSET {tensor.offset} /* bytes into the arena: it may lie there, or elsewhere */")
    return "\n".join(lines)


def _footprint(unit: Unit, footprint: Footprint) -> str:
    """Stack and flash as constants, and the proof that they fit, for compilers to repeat."""
    upper, board = unit.prefix.upper(), unit.target.board
    lines = [
        f"#define {upper}_STACK_BYTES {footprint.stack} /* the most that a call takes; interrupts come on top of it */",
        f"#define {upper}_CODE_BYTES {footprint.code} /* of flash, beside the weights */",
    ]
    checks = []
    if board is not None:
        checks.append(("arena_fits", f"{upper}_ARENA_BYTES <= {board.ram[0].bytes}"))
        checks.append(("ram_suffices", f"{upper}_ARENA_BYTES + {upper}_STACK_BYTES <= {board.ram_bytes}"))
    if board is not None and board.flash is not None:
        checks.append(("flash_suffices", f"{upper}_CODE_BYTES + {upper}_WEIGHTS_BYTES <= {board.flash.bytes}"))
    lines += [f"typedef char {unit.prefix}_{name}[({condition}) ? 1 : -1];" for name, condition in checks]
    return "".join(f"{line}\n" for line in lines)


PROCESSOR_HEADERS = {"x86": "cpuid.h", "arm": "sys/auxv.h"}
"""What the check of a family's processors includes; the check itself is `cpu_<family>.c.in`."""


def _system(unit: Unit) -> str:
    """What precedes everything else: headers of the operating system."""
    if not unit.target.system:
        return ""
    headers = [PROCESSOR_HEADERS[unit.target.family], "pthread.h", "signal.h", "time.h"]
    return "#define _POSIX_C_SOURCE 200809L\n" + "".join(f"#include <{name}>\n" for name in headers)


def _weights(unit: Unit) -> str:
    if unit.in_c:
        return (
            weight_arrays(unit.weights) + "\n#define CONSTANT(type, offset) ((const type *)(const void *)w##offset)\n\n"
        )
    hidden = '__attribute__((visibility("hidden")))'
    return (
        f"extern const uint8_t {unit.prefix}_weights[{unit.prefix.upper()}_WEIGHTS_BYTES] {hidden};\n\n"
        f"#define CONSTANT(type, offset) ((const type *)(const void *)({unit.prefix}_weights + (offset)))\n\n"
    )


def _prototypes(unit: Unit) -> str:
    lines = []
    for symbol in dict.fromkeys(call.kernel for call in (*unit.program.setup, *unit.plan.calls)):
        kernel = unit.program.kernels[symbol]
        if unit.in_c and not kernel.c:
            continue  # they are defined here
        if not re.fullmatch(r"[A-Za-z_]\w*", symbol, re.ASCII):
            raise InternalError(f"kernel '{symbol}'", "expected a name that C takes.")
        pointers = [f"{_pointer(kernel, index)}p{index}" for index in range(len(kernel.dtypes))]
        parameters = ", ".join([*pointers, "int32_t task_begin", "int32_t task_end"])
        lines.append(f"{'static int' if kernel.c else 'void'} {symbol}({parameters});\n")
    return "".join(lines)


def _decoders(unit: Unit) -> str:
    """The C of kernels that are no objects: decoders of weights."""
    used = dict.fromkeys(call.kernel for call in (*unit.program.setup, *unit.plan.calls))
    texts = [unit.program.kernels[symbol].c for symbol in used if unit.program.kernels[symbol].c]
    return "\n".join([template("runtime_coded.c"), *texts]) if texts else ""


def _setup(unit: Unit) -> str:
    """What init does at the end: coded weights are checked, then the setup's calls made."""
    upper, lines = unit.prefix.upper(), []
    for each in unit.program.coded:
        if each.crc32 is not None and each.name in unit.weights.offsets:
            data = f"CONSTANT(uint8_t, {unit.weights.offsets[each.name]})"
            found = f"~crc32(0xffffffffu, {data}, {each.stored})"
            lines.append(f"    if ({found} != {each.crc32:#010x}u) return {upper}_ERROR_CHECKSUM;\n")
    if unit.program.setup:
        lines.append("    const frame *at = &s->at;\n")
    for call in unit.program.setup:
        kernel = unit.program.kernels[call.kernel]
        arguments = [_argument(unit, unit.plan.places[name], kernel, i) for i, name in enumerate(call.arguments)]
        made = f"{call.kernel}({', '.join(arguments)}, 0, {call.tasks})"
        lines.append(f"    if (!{made}) return {upper}_ERROR_CHECKSUM;\n" if kernel.c else f"    {made};\n")
    return "".join(lines)


def _pointer(kernel: Kernel, index: int) -> str:
    return f"{'const ' if kernel.constant[index] else ''}{c_type(kernel.dtypes[index])} *"


def _call(unit: Unit, index: int, call: Call) -> str:
    kernel = unit.program.kernels[call.kernel]
    arguments = []
    for number, name in enumerate(call.arguments):
        place = unit.plan.places[name]
        if place.space in ("input", "constant") and not kernel.constant[number]:
            raise InternalError(f"kernel {call.kernel}", f"its parameter {number} is not constant, but '{name}' is.")
        arguments.append(f"        {_argument(unit, place, kernel, number)}, /* {_describe(unit.program, name)} */\n")
    return (
        f"/* {comment(', '.join(call.nodes))} */\n"
        f"static void step_{index}(const frame *at, int32_t begin, int32_t end)\n{{\n"
        f"    {call.kernel}(\n{''.join(arguments)}        begin, end);\n}}\n"
    )


def _describe(program: Program, name: str) -> str:
    buffer = program.buffers.get(name)
    return comment(f"{name}: {buffer.dtype}{list(buffer.shape)}" if buffer else name)


def _argument(unit: Unit, place: Place, kernel: Kernel, number: int) -> str:
    """The pointer that a kernel gets. Memory that is viewed as another type is cast."""
    wanted = c_type(kernel.dtypes[number])
    if place.space == "constant":
        return f"CONSTANT({wanted}, {unit.weights.offsets[place.name]})"
    if place.space == "arena":
        return f"BUFFER({wanted}, {place.at + place.offset})"
    tensor = (unit.inputs if place.space == "input" else unit.outputs)[place.at]
    const = "const " if place.space == "input" else ""
    if place.offset:
        byte = f"({const}uint8_t *)({const}void *)at->{tensor.identifier} + {place.offset}"
        return f"({const}{wanted} *)({const}void *)({byte})"
    same = c_type(tensor.dtype) == wanted
    return f"at->{tensor.identifier}" if same else f"({const}{wanted} *)({const}void *)at->{tensor.identifier}"


def _copy(unit: Unit, index: int, copy: Copy) -> str:
    place = copy.source
    if place.space == "constant":
        source = f"CONSTANT(uint8_t, {unit.weights.offsets[place.name]})"
    elif place.space == "arena":
        source = f"BUFFER(uint8_t, {place.at})"
    else:
        source = f"at->{(unit.inputs if place.space == 'input' else unit.outputs)[place.at].identifier}"
    target = unit.outputs[copy.output]
    return (
        f"/* output '{comment(target.name)}' has the bytes of '{comment(copy.source.name)}' */\n"
        f"static void step_{index}(const frame *at, int32_t begin, int32_t end)\n{{\n"
        f"    (void)begin;\n    (void)end;\n"
        f"    memcpy(at->{target.identifier}, {source}, {copy.bytes});\n}}\n"
    )


def _static_checks(tensors: tuple[Tensor, ...]) -> str:
    sizes = {c_type(tensor.dtype): tensor for tensor in tensors if prod(tensor.shape)}
    lines = ["CHECK(arena_holds_state, ARENA_BYTES >= STATE_BYTES);\n"]
    for type_, tensor in sizes.items():
        lines.append(f"CHECK({type_}_size, sizeof({type_}) == {tensor.bytes // prod(tensor.shape)});\n")
    return "".join(lines)


def _processor_check(target: Target) -> str:
    """`cpu_is_sufficient` of the target's family; nothing where there is no system to ask."""
    if not target.system:
        return ""
    text = template(f"cpu_{target.family}.c.in")
    if target.family == "x86":
        check = cpu_check(target)
        rows = "".join(f"        {{{', '.join(f'{value:#x}u' for value in row)}}},\n" for row in check.cpuid)
        return "\n" + fill(text, cpuid=rows, xcr0=f"{check.xcr0:#x}")
    first, second = capabilities(target)
    return "\n" + fill(text, hwcap=f"{first:#x}", hwcap2=f"{second:#x}")


def _init_checks(unit: Unit, has_weights: bool) -> str:
    upper = unit.prefix.upper()
    lines = [f"    if (!cpu_is_sufficient()) return {upper}_ERROR_CPU;\n"] if unit.target.system else []
    if has_weights:
        whole = f"~crc32(0xffffffffu, {unit.prefix}_weights, {upper}_WEIGHTS_BYTES)"
        call = f"{checksum(unit.weights) if unit.in_c else whole} != {unit.weights.crc32:#010x}u"
        lines.append(f"    if (options->checksum != 0 && {call}) return {upper}_ERROR_CHECKSUM;\n")
    return "".join(lines)


def _run_checks(upper: str, tensors: tuple[Tensor, ...]) -> str:
    lines = []
    for tensor in tensors:
        if tensor.bytes:
            name, size = tensor.identifier, f"sizeof *{tensor.identifier}"
            lines.append(f"    if ({name} == NULL) return {upper}_ERROR_NULL;\n")
            lines.append(f"    if ((uintptr_t){name} % {size} != 0) return {upper}_ERROR_ALIGNMENT;\n")
    return "".join(lines)
