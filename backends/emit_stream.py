"""The C of a small program around an artifact's library: inputs come on standard input, outputs go to standard output.

It is what runs in an emulator, and on a board that has no Python.
"""

from math import prod

from graphc.artifact import Manifest, Tensor
from graphc.backends.emit_c import c_type, fill, template


def stream_program(manifest: Manifest) -> str:
    """The program for an artifact under an operating system; it is compiled beside the artifact's header."""
    prefix = manifest.identifier
    tensors = [*manifest.inputs, *manifest.outputs]
    read = [tensor for tensor in manifest.inputs if tensor.bytes]
    return fill(
        template("stream.c.in"),
        prefix=prefix,
        PREFIX=prefix.upper(),
        tensors="".join(_storage(tensor) for tensor in tensors),
        read="".join(_read(tensor, first=tensor is read[0]) for tensor in read) or _one_byte(),
        write="".join(_write(tensor) for tensor in manifest.outputs),
        arguments="".join(f", {tensor.identifier}_data" for tensor in tensors),
    )


def _storage(tensor: Tensor) -> str:
    """C has no empty arrays: a tensor without elements gets one that is not used."""
    elements = max(1, prod(tensor.shape))
    return f"static {c_type(tensor.dtype)} {tensor.identifier}_data[{elements}] __attribute__((aligned(64)));\n"


def _read(tensor: Tensor, first: bool) -> str:
    end = "count != 0" if first else "1"  # the end of all inputs is no error
    return (
        f"        count = fread({tensor.identifier}_data, 1, {tensor.bytes}, stdin);\n"
        f"        if (count != {tensor.bytes}) return {end};\n"
    )


def _one_byte() -> str:
    """A model that reads nothing runs once for each byte that comes in."""
    return "        if (getchar() == EOF) return 0;\n"


def _write(tensor: Tensor) -> str:
    return f"        if (fwrite({tensor.identifier}_data, 1, {tensor.bytes}, stdout) != {tensor.bytes}) return 1;\n"
