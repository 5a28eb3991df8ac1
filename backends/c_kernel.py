"""A scheduled PrimFunc -> one portable C99 function (runs in a worker process: imports TVM).

    tirx statement  ->  C statement        acc[0] = acc[0] + int32(x[i]) * int32(w[i])   the same, element types exact

It is the kernel that `graphc.backends.objects` would give LLVM, without vectors and intrinsics. Each expression has
exactly the type that TVM says: what C promotes to `int` is cast back. Signed shifts to the left go through unsigned
numbers; there is no undefined behaviour that the kernel itself does not have. Integers come out bit by bit as from the
objects; floats may differ where LLVM contracts a multiply and an add.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.target.codegen import llvm_get_intrinsic_name

from graphc.backends.objects import scalar_function
from graphc.errors import InternalError

C_TYPES = {
    "bool": "uint8_t",
    "float32": "float",
    "float64": "double",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
NARROW = frozenset({"int8_t", "uint8_t", "int16_t", "uint16_t"})
"""Types that C promotes to int."""

BINARY = {
    "Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%", "RShift": ">>",
    "BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^",
}  # fmt: skip
COMPARE = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "And": "&&", "Or": "||"}
HELPERS = {"Min": "smaller", "Max": "larger"}
LIBRARY_CALLS = (
    "fabs",
    "sqrt",
    "floor",
    "ceil",
    "trunc",
    "round",
    "nearbyint",
    "pow",
    "sin",
    "cos",
    "tan",
    "atan",
    "fmod",
)


def c_code(tir: str, symbol: str, constant: Sequence[bool]) -> bytes:
    """The function as JSON: its `code`, the `helpers` it uses (see `helper`), and the library functions it `calls`.

    `constant` says which parameters it only reads. Raises InternalError for what has no C99 form.
    """
    printer = _Printer(symbol)
    code = printer.function(scalar_function(tir, symbol), constant)
    found = {"code": code, "helpers": sorted(printer.helpers), "calls": sorted(printer.calls)}
    return json.dumps(found).encode()


class _Definition(str):
    """A line that gives a value a name, and is left out where nothing uses it."""

    __slots__ = ("name",)
    name: str

    def __new__(cls, name: str, text: str) -> "_Definition":
        line = super().__new__(cls, text)
        line.name = name
        return line


class _Printer:
    """Prints one function. `lines` is what has been written; `names` are C names of variables and buffers."""

    def __init__(self, symbol: str) -> None:
        self.subject = f"kernel {symbol}"
        self.symbol = symbol
        self.lines: list[str] = []
        self.depth = 1
        self.names: dict[Any, str] = {}
        self.taken: set[str] = set()
        self.types: dict[str, str] = {}
        """Buffer's C name -> type of its elements."""
        self.used: set[str] = set()
        self.helpers: set[str] = set()
        self.calls: set[str] = set()

    def function(self, function: Any, constant: Sequence[bool]) -> str:
        """The whole definition, static."""
        restrict = "restrict " if bool(function.attrs.get("tirx.noalias", True)) else ""
        parameters = []
        for index, param in enumerate(function.params):
            pointer = isinstance(param.ty, tvm.ir.PointerType)
            name = self._name(param, f"p{index}" if pointer else "")
            kind = self._type(str(param.ty.element_type.dtype if pointer else param.ty.dtype))
            const = "const " if pointer and constant[index] else ""
            self.types[name] = kind
            parameters.append(f"{const}{kind} *{restrict}{name}" if pointer else f"{kind} {name}")
        self.statement(function.body)
        lines = [line for line in self.lines if not isinstance(line, _Definition) or line.name in self.used]
        unused = [name for name in map(self._known, function.params) if name not in self.used]
        body = [*(f"    (void){name};" for name in unused), *lines]
        return f"static void {self.symbol}({', '.join(parameters)})\n{{\n" + "\n".join(body) + "\n}\n"

    def statement(self, stmt: Any) -> None:
        kind = type(stmt).__name__
        method = getattr(self, f"_{kind.lower()}", None)
        if method is None:
            raise InternalError(self.subject, f"a {kind} has no form in C.")
        method(stmt)

    def _seqstmt(self, stmt: Any) -> None:
        for each in stmt.seq:
            self.statement(each)

    def _attrstmt(self, stmt: Any) -> None:
        self.statement(stmt.body)

    def _for(self, stmt: Any) -> None:
        name, kind = self._name(stmt.loop_var), self._type(str(stmt.loop_var.ty.dtype))
        start, end = self.expression(stmt.min), self._end(stmt)
        step = "1" if stmt.step is None else self.expression(stmt.step)
        advance = f"++{name}" if step == "1" else f"{name} += {step}"
        self._block(f"for ({kind} {name} = {start}; {name} < {end}; {advance}) {{", stmt.body)

    def _end(self, loop: Any) -> str:
        """Where a loop ends; begin + (end - begin) is end."""
        if isinstance(loop.extent, tirx.Sub) and loop.extent.b.same_as(loop.min):
            return self.expression(loop.extent.a)
        if isinstance(loop.min, tirx.IntImm) and int(loop.min.value) == 0:
            return self.expression(loop.extent)
        return f"{self.expression(loop.min)} + {self.expression(loop.extent)}"

    def _while(self, stmt: Any) -> None:
        before = len(self.lines)
        condition = self.expression(stmt.condition)
        if len(self.lines) != before:
            raise InternalError(self.subject, "a loop's condition binds names, which has no form in C.")
        self._block(f"while ({_bare(condition)}) {{", stmt.body)

    def _ifthenelse(self, stmt: Any) -> None:
        self._block(f"if ({_bare(self.expression(stmt.condition))}) {{", stmt.then_case)
        if stmt.else_case is not None:
            self.lines.pop()
            self._block("} else {", stmt.else_case)

    def _bufferstore(self, stmt: Any) -> None:
        place = self._element(stmt.buffer, stmt.indices)
        value = _bare(self.expression(stmt.value))
        self._line(f"{place} = {f'(uint8_t)({value})' if str(stmt.buffer.dtype) == 'bool' else value};")

    def _allocbuffer(self, stmt: Any) -> None:
        name, kind = self._name(stmt.buffer), self._type(str(stmt.buffer.dtype))
        count = 1
        for dim in stmt.buffer.shape:
            count *= int(dim.value)
        self.types[name] = kind
        self._line(f"{kind} {name}[{count}];")

    def _declbuffer(self, stmt: Any) -> None:
        """Another name for memory that has one."""
        source = stmt.data.args[0] if isinstance(stmt.data, tvm.ir.Call) else stmt.data
        name = self._known(source)
        if self.types[name] != self._type(str(stmt.buffer.dtype)):
            raise InternalError(self.subject, f"'{stmt.buffer.name}' reads memory as another type.")
        self.names[stmt.buffer] = name

    def _bind(self, stmt: Any) -> None:
        self._define(stmt.var, stmt.value)

    def _evaluate(self, stmt: Any) -> None:
        if isinstance(stmt.value, tvm.ir.Call) and not _is_prefetch(stmt.value):
            self._line(f"{self.expression(stmt.value)};")

    def _break(self, _: Any) -> None:
        self._line("break;")

    def _continue(self, _: Any) -> None:
        self._line("continue;")

    def expression(self, e: Any) -> str:
        """Of the type that TVM gives it; a bool is a C condition."""
        kind = type(e).__name__
        if kind in BINARY:
            return self._cast_back(e, f"({self.expression(e.a)} {BINARY[kind]} {self.expression(e.b)})")
        if kind in COMPARE:
            return f"({self.expression(e.a)} {COMPARE[kind]} {self.expression(e.b)})"
        if kind in HELPERS:
            return self._helper(f"{HELPERS[kind]}_{self._of(e)}", e.a, e.b)
        method = getattr(self, f"_{kind.lower()}_value", None)
        if method is None:
            raise InternalError(self.subject, f"a {kind} has no form in C.")
        return str(method(e))

    def _var_value(self, e: Any) -> str:
        name = self._known(e)
        self.used.add(name)
        return name

    def _intimm_value(self, e: Any) -> str:
        return integer(int(e.value), str(e.ty.dtype))

    def _floatimm_value(self, e: Any) -> str:
        value, kind = float(e.value), self._of(e)
        if not math.isfinite(value):
            bits = {math.inf: "0x7f800000", -math.inf: "0xff800000"}.get(value, "0x7fc00000")
            self.helpers.add("bits_uint32_t_to_float")
            return f"({kind})bits_uint32_t_to_float(UINT32_C({bits}))"
        text = f"{np.float32(value)!s}f" if kind == "float" else repr(value)
        return f"({text})" if value < 0 else text

    def _cast_value(self, e: Any) -> str:
        inner = self.expression(e.value)
        return f"({inner} != 0)" if str(e.ty.dtype) == "bool" else f"({self._of(e)}){inner}"

    def _not_value(self, e: Any) -> str:
        return f"(!{self.expression(e.a)})"

    def _bitwisenot_value(self, e: Any) -> str:
        return self._cast_back(e, f"(~{self.expression(e.a)})")

    def _lshift_value(self, e: Any) -> str:
        kind = self._of(e)
        unsigned = "uint64_t" if kind.endswith("64_t") else "uint32_t"
        return f"({kind})(({unsigned}){self.expression(e.a)} << {self.expression(e.b)})"

    def _select_value(self, e: Any) -> str:
        text = f"({self.expression(e.condition)} ? {self.expression(e.true_value)} : {self.expression(e.false_value)})"
        return self._cast_back(e, text)

    def _tensorload_value(self, e: Any) -> str:
        return self._element(e.source, e.indices)

    def _let_value(self, e: Any) -> str:
        self._define(e.var, e.value)
        return self.expression(e.body)

    def _call_value(self, e: Any) -> str:
        name = str(e.op.name).partition(".")[2]
        if name == "if_then_else":
            return self._choice(e)
        if name in ("call_pure_extern", "call_extern"):
            return self._library(str(e.args[0].value), e.args[1:])
        if name in ("likely", "unlikely"):
            return self.expression(e.args[0])
        return self._unary(e, name)

    def _unary(self, e: Any, name: str) -> str:
        if name == "reinterpret":
            return self._reinterpret(e)
        if name == "isnan":
            return self._helper(f"not_a_number_{self._of(e.args[0])}", e.args[0])
        if name in LIBRARY_CALLS:
            return self._library(name + ("f" if self._of(e) == "float" else ""), e.args)
        raise InternalError(self.subject, f"{e.op.name} has no form in C.")

    def _choice(self, e: Any) -> str:
        """One branch is computed, the other is not: it may read where there is nothing."""
        condition = self.expression(e.args[0])
        before, self.lines = self.lines, []
        sides = []
        self.depth += 1
        for side in e.args[1:]:
            text = self.expression(side)
            sides.append((self.lines, text))
            self.lines = []
        self.depth -= 1
        self.lines = before
        (yes_lines, yes), (no_lines, no) = sides
        if not yes_lines and not no_lines:
            return self._cast_back(e, f"({condition} ? {yes} : {no})")
        name = self._fresh("chosen")
        self._line(f"{self._of(e)} {name};")
        self._line(f"if ({_bare(condition)}) {{")
        self.lines += [*yes_lines, f"{'    ' * (self.depth + 1)}{name} = {yes};"]
        self._line("} else {")
        self.lines += [*no_lines, f"{'    ' * (self.depth + 1)}{name} = {no};"]
        self._line("}")
        return name

    def _reinterpret(self, e: Any) -> str:
        source, result = self._of(e.args[0]), self._of(e)
        if source == result:
            return self.expression(e.args[0])
        return self._helper(f"bits_{source}_to_{result}", e.args[0])

    def _library(self, name: str, arguments: Sequence[Any]) -> str:
        if name in ("fabsf", "fabs"):
            return self._helper(f"magnitude_{'float' if name == 'fabsf' else 'double'}", arguments[0])
        self.calls.add(name)
        return f"{name}({', '.join(map(self.expression, arguments))})"

    def _helper(self, name: str, *arguments: Any) -> str:
        self.helpers.add(name)
        return f"{name}({', '.join(map(self.expression, arguments))})"

    def _element(self, buffer: Any, indices: Sequence[Any]) -> str:
        if len(indices) != 1:
            raise InternalError(self.subject, f"'{buffer.name}' has {len(indices)} dimensions where one is left.")
        name = self._known(buffer)
        self.used.add(name)
        return f"{name}[{_bare(self.expression(indices[0]))}]"

    def _define(self, variable: Any, value: Any) -> None:
        text = self.expression(value)
        name = self._name(variable)
        line = f"const {self._type(str(variable.ty.dtype))} {name} = {self._stored(variable, text)};"
        self.lines.append(_Definition(name, "    " * self.depth + line))

    def _stored(self, variable: Any, text: str) -> str:
        return f"(uint8_t)({text})" if str(variable.ty.dtype) == "bool" else _bare(text)

    def _cast_back(self, e: Any, text: str) -> str:
        kind = self._of(e)
        return f"({kind}){text}" if kind in NARROW and str(e.ty.dtype) != "bool" else text

    def _of(self, e: Any) -> str:
        return self._type(str(e.ty.dtype))

    def _type(self, dtype: str) -> str:
        if dtype not in C_TYPES:
            raise InternalError(self.subject, f"type {dtype} has no form in C99.")
        return C_TYPES[dtype]

    def _known(self, thing: Any) -> str:
        return self.names[thing]

    def _name(self, thing: Any, wanted: str = "") -> str:
        hint = wanted or str(getattr(thing, "name", None) or getattr(thing, "name_hint", "v"))
        self.names[thing] = self._fresh(hint)
        return self.names[thing]

    def _fresh(self, hint: str) -> str:
        """A name of its own: short, and no word of C or macro, because it ends in a number or an underscore."""
        base = re.sub(r"\W", "_", hint, flags=re.ASCII)[:20].strip("_") or "v"
        base = f"v{base}" if base[0].isdigit() else base
        name = base if base in ("task_begin", "task_end") else f"{base}_"
        count = 1
        while name in self.taken:
            count += 1
            name = f"{base}_{count}"
        self.taken.add(name)
        return name

    def _block(self, opening: str, body: Any) -> None:
        self._line(opening)
        self.depth += 1
        self.statement(body)
        self.depth -= 1
        self._line("}")

    def _line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)


def _is_prefetch(call: Any) -> bool:
    """Whether a call only asks for memory that will be read soon."""
    if call.op.name != "tirx.call_llvm_intrin":
        return False
    return str(llvm_get_intrinsic_name(int(call.args[0].value))).startswith("llvm.prefetch")


def integer(value: int, dtype: str) -> str:
    """A literal of exactly that type."""
    if dtype == "bool":
        return str(value)
    if dtype in ("int32", "int64"):
        macro = f"INT{dtype[3:]}_C"
        smallest = value == -(1 << (int(dtype[3:]) - 1))
        plain = str(value) if abs(value) < 1 << 15 and dtype == "int32" else f"{macro}({abs(value)})"
        if smallest:
            return f"(-{macro}({-(value + 1)}) - 1)"
        return f"(-{plain.lstrip('-')})" if value < 0 else plain
    if dtype in ("uint32", "uint64"):
        return f"UINT{dtype[4:]}_C({value})"
    return f"({C_TYPES[dtype]}){f'({value})' if value < 0 else value}"


def _bare(text: str) -> str:
    """Without the parentheses that enclose all of it."""
    if not (text.startswith("(") and text.endswith(")")):
        return text
    depth = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and index < len(text) - 1:
            return text
    return text[1:-1]
