"""bfloat16 instructions of x86 as functions in LLVM's own language (imports TVM), which it links in and inlines.

    graphc.code.L    <L x float> -> <L x i16>                           vcvtneps2bf16: to nearest even
    graphc.dot.L     <L x float> + <L x i32> . <L x i32>, pairs of codes   vdpbf16ps

TVM cannot name <32 x bfloat>: what is bfloat16 in TIR its passes store as integers and widen to compute. Both treat
numbers below 2^-126 as 0. Source: Intel SDM volume 2.
"""

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

CODE = "graphc.code"
"""TVM's passes see this call, of one element or of a vector."""
PURE = 1
"""TVM's CallEffectKind of functions whose result depends on their arguments alone."""
tvm.ir.register_op_attr(CODE, "TCallEffectKind", PURE)
tvm.ir.register_op_attr(CODE, "TVectorizable", True)

_DOT = """
declare <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(<{n} x float>, <{codes} x bfloat>, <{codes} x bfloat>)
define <{n} x float> @graphc.dot.{n}(<{n} x float> %sums, <{n} x i32> %x, <{n} x i32> %w) {{
  %a = bitcast <{n} x i32> %x to <{codes} x bfloat>
  %b = bitcast <{n} x i32> %w to <{codes} x bfloat>
  %y = call <{n} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(
    <{n} x float> %sums, <{codes} x bfloat> %a, <{codes} x bfloat> %b)
  ret <{n} x float> %y
}}
"""
_CODE = """
define {int} @graphc.code.{n}({float} %x) {{
  %y = fptrunc {float} %x to {bfloat}
  %code = bitcast {bfloat} %y to {int}
  ret {int} %code
}}
"""


def code(x: Any) -> Any:
    """The code nearest to a float32 expression, ties to even."""
    return tirx.call_intrin("uint16", CODE, x)


def dot(sums: Any, x: Any, weights: Any, lanes: int) -> Any:
    """sums (float32 x lanes) plus the products of pairs of codes, each pair an int32."""
    return tirx.call_pure_extern(f"float32x{lanes}", f"graphc.dot.{lanes}", sums, x, weights)


def linked(function: Any) -> Any:
    """The lowered PrimFunc with the definitions of what it calls here."""
    texts: dict[str, str] = {}

    def defined(call: Any) -> Any:
        name = str(call.op.name) if isinstance(call.op, tvm.ir.Op) else ""
        lanes = int(tvm.DataType(str(call.ty.dtype)).lanes) if name in (CODE, "tirx.call_pure_extern") else 0
        if name == CODE:
            texts[f"{CODE}.{lanes}"] = _code_text(lanes)
            return tirx.call_pure_extern(str(call.ty.dtype), f"{CODE}.{lanes}", call.args[0])
        if name == "tirx.call_pure_extern" and str(call.args[0].value) == f"graphc.dot.{lanes}":
            texts[f"graphc.dot.{lanes}"] = _DOT.format(n=lanes, codes=2 * lanes, bits=32 * lanes)
        return call

    body = tvm_ffi.structural_map(function.body, (tvm.ir.Call, defined))
    for text in texts.values():
        body = tirx.AttrStmt(tirx.const(0), "pragma_import_llvm", tvm.ir.StringImm(text), body)
    return function.with_body(body) if texts else function


def _code_text(lanes: int) -> str:
    types = {"int": "i16", "float": "float", "bfloat": "bfloat"}
    if lanes > 1:
        types = {name: f"<{lanes} x {element}>" for name, element in types.items()}
    return _CODE.format(n=lanes, **types)
