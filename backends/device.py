"""Programs for boards without an operating system, as text: start-up code, linker script, and a main of each kind.

example     runs a model again and again: what a user starts from
verify      takes inputs and gives outputs, times and stack use through a debugger (semihosting): what
            `graphc verify` runs in an emulator
"""

from collections.abc import Sequence

from graphc.artifact import Manifest, Tensor
from graphc.backends.boards import Board, Memory
from graphc.backends.emit_c import c_type, fill, template
from graphc.backends.emit_names import comment
from graphc.errors import BudgetError

STACK = 1024
"""Bytes that a program keeps for the stack beside what the model needs."""
LINKER = 4096
"""Bytes of flash for start-up code and main."""


def start() -> str:
    """`start.c`: vector table, memory, then main."""
    return template("device_start.c")


PICO = {"rp2040": "pico", "rp2350": "pico2"}
"""Start-up family -> the board as Raspberry Pi's SDK calls it, which brings start-up code and linker script."""


def example(manifest: Manifest, board: Board, flags: Sequence[str]) -> dict[str, str]:
    """A project that runs the model on `board`, by file name; `flags` tell its compiler the processor."""
    common = {"title": comment(manifest.name), "name": board.name, "prefix": manifest.identifier}
    common |= {"PREFIX": manifest.identifier.upper(), "flash_with": board.flash_with or "the board's own tool"}
    tensors = (*manifest.inputs, *manifest.outputs)
    main = fill(
        template("device_example.c.in"),
        **common,
        tensors="".join(_tensor(common["PREFIX"], tensor) for tensor in tensors),
        inputs=", ".join(tensor.identifier for tensor in manifest.inputs) or "none",
        outputs=", ".join(tensor.identifier for tensor in manifest.outputs),
        arguments="".join(f", {tensor.identifier}" for tensor in tensors),
    )
    if board.startup in PICO:
        cmake = fill(template("device_example_pico.txt.in"), **common, pico=PICO[board.startup])
        return {"main.c": main, "CMakeLists.txt": cmake}
    cmake = fill(template("device_example_cmake.txt.in"), **common, flags=" ".join(flags))
    script = linker_script(manifest, board)
    return {"main.c": main, "start.c": start(), "board.ld": script, "CMakeLists.txt": cmake}


def verify_main(manifest: Manifest) -> str:
    """`main.c` of a program that answers requests."""
    upper, tensors = manifest.identifier.upper(), (*manifest.inputs, *manifest.outputs)

    def transfers(what: str, chosen: tuple[Tensor, ...]) -> str:
        lines = (f"        {what}, {t.identifier}, {upper}_{t.identifier.upper()}_BYTES);\n" for t in chosen if t.bytes)
        return "".join(lines)

    return fill(
        template("device_verify.c.in"),
        title=comment(manifest.name),
        prefix=manifest.identifier,
        PREFIX=upper,
        tensors="".join(_tensor(upper, tensor) for tensor in tensors),
        get=transfers("get(requests", manifest.inputs),
        put=transfers("put(answers", manifest.outputs),
        arguments="".join(f", {tensor.identifier}" for tensor in tensors),
    )


def linker_script(manifest: Manifest, board: Board) -> str:
    """`board.ld`: code and weights in flash, arena and stack in RAM.

    Where the first RAM or the flash is too small the largest RAM is taken: an emulator loads a program there as well.
    Raises BudgetError where no memory is large enough.
    """
    assert manifest.footprint is not None and board.flash is not None
    memories = {"FLASH": board.flash, **{f"RAM{i or ''}": memory for i, memory in enumerate(board.ram)}}
    stack = manifest.footprint.stack + STACK
    left = {name: memory.bytes for name, memory in memories.items()}
    left["RAM"] -= stack
    left["FLASH"] -= manifest.footprint.code + LINKER
    arena = _place(left, ("RAM", *left), manifest.arena.bytes, "the arena", board)
    weights = _place(left, ("FLASH", *left), manifest.weights.bytes, "the weights", board)
    return fill(
        template("device_link.ld.in"),
        name=board.name,
        memories="".join(f"  {name} (rwx) : {_range(memory)}\n" for name, memory in memories.items()),
        prefix=manifest.identifier,
        weights=weights,
        arena=arena,
        stack=str(stack),
    )


def _place(left: dict[str, int], names: tuple[str, ...], size: int, what: str, board: Board) -> str:
    """The first memory named with room for `size` bytes, else the largest; the room is taken."""
    for name in (names[0], *sorted(names[1:], key=lambda name: -left[name])):
        if left[name] >= size:
            left[name] -= size
            return name
    problem = f"no memory has room for {what} of {size} bytes."
    raise BudgetError(f"board {board.id}", problem, "Verify it on a board with more memory.")


def _range(memory: Memory) -> str:
    return f"ORIGIN = {memory.address:#x}, LENGTH = {memory.bytes:#x}"


def _tensor(upper: str, tensor: Tensor) -> str:
    """A pointer named as the tensor, into the arena where it may lie there."""
    kind, name = c_type(tensor.dtype), tensor.identifier
    if tensor.offset is not None:
        place = f"({kind} *)(void *)(arena + {upper}_{name.upper()}_OFFSET)"
        return f"static {kind} *const {name} = {place};\n"
    elements = max(1, tensor.bytes)
    return f'__attribute__((section(".arena"), aligned(8))) static {kind} {name}[{elements}];\n'
