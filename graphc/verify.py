"""Does an artifact compute what its model says? Value by value, on the same inputs.

    integers, and floats made of them by exact operators:  equal to the reference, every element
    all other floats:  |y - reference| <= 1e-4 * largest |reference| of that output (5e-2 of float16 arithmetic)
    what lies behind a quantization of such floats, and all floats of bfloat16 arithmetic:
        at most 3 times as far as rounding alone moves the reference on the same inputs (graphc.noise)

The reference is onnxruntime without graph optimizations on the build's model.onnx. Quantized regions are computed by
graphc.backends.reference instead: onnxruntime rounds them differently from one optimization level to the next.
"""

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from graphc import artifact
from graphc.artifact import Manifest
from graphc.backends.integer import integerize
from graphc.backends.integer_region import DOMAIN
from graphc.backends.reference import Reference
from graphc.emulated_board import EmulatedBoard
from graphc.emulator import open_anywhere
from graphc.errors import VerificationError
from graphc.execute import Session
from graphc.importer import load
from graphc.ir import Array, Graph
from graphc.measure import by_name
from graphc.noise import MARGIN, RUNS, Shaken, exact_values, rounded_products, stepping_values
from graphc.progress import Progress, silent
from graphc.quality import Difference, Model
from graphc.runner import Opened
from graphc.samples import Inputs, inputs_for, model_beside

TOLERANCE = {"float32": 1e-4, "bf16": 1e-4, "fp16": 5e-2}
"""Of the largest magnitude of a float output, by the arithmetic of the target's products, and never less than this of
what has its limit from rounding. (fp16: each rounds its operands by up to 2^-11 of themselves, and sums of up to 32
products by as much at each step. The largest error of a good model was MobileNetV2's, whose depthwise layers take
differences of nearly equal numbers: 1.2e-2 for its operands rounded to float16 alone.)
"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One value over all inputs. `limit`: what `error` may be, of the largest magnitude; 0: no bit may differ."""

    name: str
    limit: float
    elements: int
    differing: int
    error: float

    @property
    def agrees(self) -> bool:
        return self.differing == 0 or (self.limit > 0 and self.error <= self.limit)


@dataclass(frozen=True, slots=True)
class OnBoard:
    """What a run on an emulated board took: `instructions`, all and by entry of `manifest.steps` (to `tick` of them),
    and bytes of stack, beside what the build said they are at most."""

    board: str
    instructions: int
    steps: tuple[int, ...]
    tick: float
    stack: int
    stack_bound: int


@dataclass(frozen=True, slots=True)
class Verification:
    """`inputs` says what was fed; `integer_nodes` counts the nodes of the integer arithmetic. `on_board` is there for
    artifacts without an operating system."""

    inputs: str
    integer_nodes: int
    outputs: tuple[Comparison, ...]
    on_board: OnBoard | None = None

    @property
    def agrees(self) -> bool:
        return all(output.agrees for output in self.outputs)


@dataclass(frozen=True)
class Subject:
    """An artifact with what it was built from."""

    folder: Path
    manifest: Manifest
    graph: Graph
    """The build's model, in the integer arithmetic."""
    inputs: Inputs


def subject(folder: Path, samples: int, real: bool = False) -> Subject:
    """Read an artifact, the model beside it, and inputs for both: with `real` only those of the spec's data.

    Raises InputError where the model, or data that is asked for, is gone.
    """
    folder = artifact.find(folder)
    manifest = artifact.read(folder)
    model = load(model_beside(folder))
    return Subject(folder, manifest, integerize(model), inputs_for(folder, model, samples, real))


def verify(folder: Path, samples: int, threads: int = 1, progress: Progress = silent) -> Verification:
    """Run the artifact in `folder` and its reference on the same `samples` inputs.

    An artifact for another Linux processor, or for a board without a system, runs in an emulator (graphc.emulator).
    Raises InputError where the artifact or its model is missing, UnsupportedError where it cannot run on this machine,
    ToolchainError where the emulator is missing.
    """
    return compare_subject(subject(folder, samples), threads, progress)


def compare_subject(subject: Subject, threads: int = 1, progress: Progress = silent) -> Verification:
    """`verify` for what `subject` has read."""
    taken: list[OnBoard] = []

    def count(runner: Opened, given: Mapping[str, Array]) -> None:
        if isinstance(runner, EmulatedBoard):
            taken.append(_on_board(runner, given))

    return Verification(
        inputs=subject.inputs.source,
        integer_nodes=sum(node.domain == DOMAIN for node in subject.graph.nodes),
        outputs=compare(subject, subject.folder, subject.graph, threads, progress, count),
        on_board=taken[0] if taken else None,
    )


def _on_board(runner: EmulatedBoard, given: Mapping[str, Array]) -> OnBoard:
    """One more run, each call apart."""
    steps = runner.profile(*(given[tensor.name] for tensor in runner.inputs))
    bound = runner.manifest.footprint.stack if runner.manifest.footprint else 0
    return OnBoard(runner.board.id, sum(steps), tuple(steps), runner.tick, runner.counts.stack, bound)


def compare(
    subject: Subject,
    folder: Path,
    graph: Graph,
    threads: int = 1,
    progress: Progress = silent,
    after: Callable[[Opened, Mapping[str, Array]], None] | None = None,
) -> tuple[Comparison, ...]:
    """Each output of the artifact in `folder` against `graph`'s: the subject's, or the same with other outputs.

    `after` gets the opened artifact, and the last inputs, when all have run.
    """
    reference, feeds = oracle(graph), subject.inputs.feeds
    tolerance = TOLERANCE[subject.manifest.target["arithmetic"]]
    exact, stepping = exact_values(graph), stepping_values(graph)
    judges = {name: _Judge(name, 0.0 if name in exact else tolerance) for name in graph.outputs}
    shaken = Shaken(graph) if not stepping.isdisjoint(graph.outputs) else None
    narrow = subject.manifest.target["arithmetic"] == "bf16" and not exact.issuperset(graph.outputs)
    rounded = oracle(rounded_products(graph)) if narrow else None
    with open_anywhere(folder, threads) as runner:
        run = by_name(runner)
        for done, given in enumerate(feeds):
            progress("verify", done / len(feeds))
            expected, actual = reference(given), run(given)
            for name, judge in judges.items():
                judge.add(actual[name], expected[name])
            if rounded is not None:
                _add_noise(judges, rounded(given), expected, judges.keys() - exact)
            for _ in range(RUNS if shaken else 0):
                moved = shaken.run(given) if shaken else {}
                _add_noise(judges, moved, expected, stepping.intersection(graph.outputs))
        if after is not None and feeds:
            after(runner, feeds[-1])
    progress("verify", 1.0)
    return tuple(judge.comparison() for judge in judges.values())


def _add_noise(
    judges: Mapping[str, "_Judge"], moved: Mapping[str, Array], expected: Mapping[str, Array], names: Set[str]
) -> None:
    for name in names:
        judges[name].noise.add(moved[name], expected[name])


def oracle(graph: Graph) -> Model:
    """What an integerized graph computes, by the definition of its arithmetic."""
    if any(node.domain == DOMAIN for node in graph.nodes):
        return Reference(graph).run
    return Session(graph).run


class _Judge:
    """Takes in one output, run by run."""

    def __init__(self, name: str, limit: float) -> None:
        self._name, self._limit = name, limit
        self._elements = self._differing = 0
        self._difference = Difference()
        self.noise = Difference()
        """What rounding does to it, where that is more than the limit."""

    def add(self, actual: Array, expected: Array) -> None:
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            got = f"{actual.dtype}{list(actual.shape)}, its model {expected.dtype}{list(expected.shape)}"
            raise VerificationError(f"output '{self._name}'", f"the artifact gives {got}.", "Build it again.")
        same = (actual == expected) | ((actual != actual) & (expected != expected))  # noqa: PLR0124 (NaN equals NaN here)
        self._elements += same.size
        self._differing += int(same.size - same.sum())
        self._difference.add(actual, expected)

    def comparison(self) -> Comparison:
        limit = max(self._limit, MARGIN * self.noise.error)
        return Comparison(self._name, limit, self._elements, self._differing, self._difference.error)
