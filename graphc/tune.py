"""Choosing kernels by measuring them, and remembering what was chosen in a file that the user can commit.

    distinct kernels of the graph -> candidates (graphc/backends/candidates.py) -> built and timed here -> the fastest

Kernels that no schedule rule takes, such as transposed convolutions, have no candidates; for them `thorough` asks TVM's
MetaSchedule (graphc/backends/search.py) for tiles, and again for better ones once the first are measured.

A database is JSON: per target and per kernel what was chosen, with its time and the cost model's. What it holds is not
measured again, on any machine; what it lacks is measured where the target is the machine at hand, and is left to the
cost model elsewhere. Given the database, a build is a function of it.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from graphc.backends import toolchain
from graphc.backends.build import build_program, integerized, lowered
from graphc.backends.cache import Cache
from graphc.backends.candidates import candidates
from graphc.backends.choices import BY_MODEL, RULES, Choice, Choices, Tiles, decoder, kernel_id
from graphc.backends.float_products import narrowed
from graphc.backends.layout import channels_last
from graphc.backends.program import Program
from graphc.backends.searchable import loops, usable
from graphc.backends.targets import Target, resolve
from graphc.backends.widen import widened
from graphc.backends.worker import Job, Server
from graphc.errors import InputError, UnsupportedError
from graphc.ir import Graph, Node
from graphc.progress import Progress, silent
from graphc.runner import Runner
from graphc.samples import seeded

Effort: TypeAlias = Literal["quick", "thorough"]
Measure: TypeAlias = Callable[[Graph, Node, Sequence[Choice]], Sequence[float]]
"""(graph, node, choices) -> seconds of the node's kernels with each choice."""
Search: TypeAlias = Callable[[Graph, Node, Mapping[Tiles, float]], Sequence[Tiles]]
"""(graph, node, seconds of the tiles tried so far) -> tiles to try."""

SEARCH = "graphc.backends.search:search_job"
ROUNDS, TRIALS = 2, 12
"""How often tiles are searched for a kernel, and how many each time."""
FORMAT = 1
GAIN = 0.03
"""Part of its time that a choice must save to be preferred to the cost model's: less is noise."""
PLACES = 3
"""Copies of the fastest and of the cost model's that are measured once more."""
SECONDS, FEWEST_RUNS = 0.2, 9
"""How long the candidates of one kernel run, about, after one run that warms them."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a target of a spec asks for; `database` is where choices are kept."""

    effort: Effort
    database: Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One kernel: what was chosen of how many candidates, its seconds, and those of the cost model's choice."""

    choice: Choice
    effort: Effort
    seconds: float
    by_model: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """Choices for a build, and a sentence about them for its report."""

    choices: Choices
    note: str


class Database:
    """The file. Entries of other targets stay as they are; those measured under other rules are left out."""

    def __init__(self, path: Path) -> None:
        """Read it where it exists. Raises InputError where it is no database."""
        self.path = path
        self._data: dict[str, Any] = {"format": FORMAT, "rules": RULES, "targets": {}}
        if path.exists():
            self._data = _read(path)

    def entries(self, target: Target) -> dict[str, Entry]:
        """Kernel -> what is known for the target."""
        section = self._data["targets"].get(_target_id(target), {"kernels": {}})
        try:
            return {kernel: _entry(each) for kernel, each in section["kernels"].items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                str(self.path), f"an entry is damaged: {error!r}.", "Restore or delete the file."
            ) from error

    def keep(self, target: Target, entries: Mapping[str, Entry]) -> None:
        """Write the entries of a target, beside the file and renamed."""
        kernels = {kernel: _data(entry) for kernel, entry in sorted(entries.items())}
        self._data["targets"][_target_id(target)] = {"target": _described(target), "kernels": kernels}
        beside = self.path.with_name(f".{self.path.name}.part")
        beside.write_text(json.dumps(self._data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(self.path)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(path), f"is no tuning database: {error}.", "Restore or delete the file.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("targets"), dict):
        raise InputError(str(path), f"is no tuning database of format {FORMAT}.", "Restore or delete the file.")
    return data if data.get("rules") == RULES else {"format": FORMAT, "rules": RULES, "targets": {}}


def _described(target: Target) -> dict[str, Any]:
    """What decides a kernel's code: not what the target is called, nor the C compiler."""
    named = ("id", "compiler", "board", "library_ending", "archive_ending")
    return {name: value for name, value in target.description().items() if name not in named}


def _target_id(target: Target) -> str:
    digest = hashlib.sha256(json.dumps(_described(target), sort_keys=True).encode()).hexdigest()
    return f"{target.cpu} {digest[:12]}"


def _entry(data: Mapping[str, Any]) -> Entry:
    if data["effort"] not in ("quick", "thorough"):
        raise ValueError(data["effort"])
    return Entry(Choice.read(data["choice"]), data["effort"], float(data["seconds"]), float(data["by_model"]))


def _data(entry: Entry) -> dict[str, Any]:
    times = {name: float(f"{getattr(entry, name):.4g}") for name in ("seconds", "by_model")}
    return {"choice": entry.choice.data(), "effort": entry.effort, **times}


def laid_out(graph: Graph, target: Target) -> Graph:
    """A graph as it is lowered: choices are by the results of its nodes."""
    return narrowed(channels_last(widened(integerized(graph))), target).graph


def tuned(
    graph: Graph,
    target: Target,
    tuning: Tuning | None,
    measure: Measure | None,
    search: Search | None = None,
    progress: Progress = silent,
) -> Tuned:
    """The choices for `graph`, none where nothing is asked for; `measure` is None where the target does not run here.

    Without `search` kernels that no schedule rule takes are left to the generic one, unless the database has tiles.
    Raises InputError for a damaged database. Tiles that are none for their kernel are left out, and the note says so.
    """
    if tuning is None:
        return Tuned({}, "")
    graph = laid_out(graph, target)
    database = Database(tuning.database)
    entries = database.entries(target)
    thorough = tuning.effort == "thorough"
    kernels, options = _kernels(graph, target, entries, thorough, search if thorough else None)
    unfit = [k for k, node in kernels.items() if k in entries and not usable(graph, node, target, entries[k].choice)]
    entries = {kernel: entry for kernel, entry in entries.items() if kernel not in unfit}
    missing = [k for k in kernels if k not in entries or (thorough and entries[k].effort == "quick")]
    if measure is not None:
        for position, kernel in enumerate(missing):
            progress(f"tune {target.id}", position / len(missing))
            measured = partial(measure, graph, kernels[kernel])
            if kernel in options or not thorough or search is None:
                tried = options.get(kernel, [BY_MODEL])
                seconds = measured(tried)
            else:
                tried, seconds = searched(partial(search, graph, kernels[kernel]), measured)
            entries[kernel] = confirmed(chosen(tried, seconds, tuning.effort), measured)
            database.keep(target, entries)  # at once: an interrupted build goes on where it was
        progress(f"tune {target.id}", 1.0)
    choices = {
        node.outputs[0]: entries[kernel].choice
        for node in graph.nodes
        if (kernel := kernel_id(graph, node)) in kernels and kernel in entries
    }
    note = _note(kernels, missing, measure, tuning, target) + _note_of_unfit(unfit, tuning)
    return Tuned({k: v for k, v in choices.items() if v != BY_MODEL}, note)


def _kernels(
    graph: Graph, target: Target, entries: Mapping[str, Entry], thorough: bool, search: Search | None
) -> tuple[dict[str, Node], dict[str, list[Choice]]]:
    """(kernel -> the first node that is one, kernel -> candidates): without these where it is for a search."""
    kernels: dict[str, Node] = {}
    options: dict[str, list[Choice]] = {}
    for node in graph.nodes:
        kernel = kernel_id(graph, node)
        if kernel in kernels:
            continue
        if found := candidates(graph, node, target, thorough):
            kernels[kernel], options[kernel] = node, found
        elif loops(graph, node, target) and (kernel in entries or search):
            kernels[kernel] = node
    return kernels, options


def searched(
    search: Callable[[Mapping[Tiles, float]], Sequence[Tiles]], measure: Callable[[Sequence[Choice]], Sequence[float]]
) -> tuple[list[Choice], list[float]]:
    """(choices, seconds): the cost model's, then all tiles that were searched, each round knowing those before it."""
    tried: list[Choice] = []
    seconds: list[float] = []
    for _ in range(ROUNDS):
        known = {choice.tiles: each for choice, each in zip(tried, seconds, strict=True) if choice.tiles}
        found = [*([] if tried else [BY_MODEL]), *(Choice(tiles=tiles) for tiles in search(known))]
        seconds += measure(found) if found else ()
        tried += found
    return tried, seconds


def chosen(options: Sequence[Choice], seconds: Sequence[float], effort: Effort) -> Entry:
    """The fastest; the cost model's, which comes first, unless another saves `GAIN` of its time."""
    best = min(range(len(options)), key=lambda index: seconds[index])
    best = best if seconds[best] < (1 - GAIN) * seconds[0] else 0
    return Entry(options[best], effort, seconds[best], seconds[0])


def confirmed(found: Entry, measure: Callable[[Sequence[Choice]], Sequence[float]]) -> Entry:
    """`found` if it is faster than the cost model's choice once more, from several places in memory each.

    The fastest of many is often the luckiest: where weights lie decides about as much as a tile does.
    """
    if found.choice == BY_MODEL:
        return found
    by_model, seconds = measure([BY_MODEL, found.choice] * PLACES)[:2]
    return chosen([BY_MODEL, found.choice], [by_model, seconds], found.effort)


def _note(
    kernels: Mapping[str, Node], missing: Sequence[str], measure: Measure | None, tuning: Tuning, target: Target
) -> str:
    known = f"{len(kernels) - len(missing)} of {len(kernels)} kernels chosen by {tuning.database.name}"
    if not missing:
        return known
    if measure is not None:
        return f"{known}, {len(missing)} measured now and added to it"
    where = f"Build once with `tune: {tuning.effort}` on a machine that runs {target.id}, and keep the file."
    return f"{known}; {len(missing)} left to the cost model: {target.id} does not run here. {where}"


def _note_of_unfit(unfit: Sequence[str], tuning: Tuning) -> str:
    if not unfit:
        return ""
    return f"; {len(unfit)} had tiles in {tuning.database.name} that do not multiply to its loops: {unfit[0]}"


def runs_here(target: Target) -> bool:
    """Whether this machine executes the target's code."""
    try:
        host = resolve({"cpu": "native"})
    except UnsupportedError:
        return False
    return target.triple == host.triple and target.instructions <= host.instructions


def timer(target: Target, server: Server, cache: Cache) -> Measure | None:
    """Measures on this machine with one thread; None for a target that does not run here."""
    if not runs_here(target):
        return None

    def measure(graph: Graph, node: Node, choices: Sequence[Choice]) -> Sequence[float]:
        copies, by_result = copied(graph, node, [BY_MODEL, *choices])  # the first one finds nothing in the caches
        program = in_one_place(lowered(copies, target, server, by_result))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "tune"
            build_program(program, target, folder, server, cache, toolchain.find(target.triple, cache.folder))
            with Runner(folder) as runner:
                return _seconds(runner, copies)[1:]

    return measure


def searcher(target: Target, server: Server, trials: int = TRIALS) -> Search:
    """MetaSchedule in the compile server, `trials` tiles at a time."""

    def search(graph: Graph, node: Node, measured: Mapping[Tiles, float]) -> Sequence[Tiles]:
        kernel, _ = copied(graph, node, [BY_MODEL])
        arguments = (kernel, target, loops(graph, node, target), dict(measured), trials)
        found: Sequence[Tiles] = server.run([Job(SEARCH, arguments, node.label)])[0]
        return found

    return search


def copied(graph: Graph, node: Node, choices: Sequence[Choice]) -> tuple[Graph, Choices]:
    """A graph of one copy of `node` per choice, all on the same inputs, and decoders of the same weights."""
    decoders = tuple(dict.fromkeys(each for name in node.reads for each in decoder(graph, name)))
    made_here = {name for each in decoders for name in each.results}
    read = dict.fromkeys(name for each in (*decoders, node) for name in each.reads if name not in made_here)
    inputs = tuple(name for name in read if name not in graph.constants)
    results = [tuple(f"{name}.{index}" if name else "" for name in node.outputs) for index in range(len(choices))]
    nodes = tuple(
        Node(node.op, node.inputs, outputs, node.attributes, f"candidate {index}", node.domain)
        for index, outputs in enumerate(results)
    )
    constants = {name: graph.constants[name] for name in read if name in graph.constants}
    types = {name: graph.types[name] for name in (*read, *made_here)}
    for outputs in results:
        types |= {new: graph.types[old] for old, new in zip(node.outputs, outputs, strict=True) if new}
    made = tuple(name for outputs in results for name in outputs if name)
    by_result = {outputs[0]: choice for outputs, choice in zip(results, choices, strict=True)}
    return Graph("tune", inputs, made, (*decoders, *nodes), types, constants), by_result


def in_one_place(program: Program) -> Program:
    """The results of all copies but the first in the arena, each over the one before.

    What a network's kernel writes lies in a cache, for the next one to read; results side by side would not.
    """
    kept, rest = program.outputs[:1], set(program.outputs[1:])
    buffers = {
        name: replace(buffer, role="scratch") if name in rest else buffer for name, buffer in program.buffers.items()
    }
    return replace(program, buffers=buffers, outputs=kept)


def _seconds(runner: Runner, copies: Graph) -> list[float]:
    """The least seconds that each copy's kernels take together; copies run in turns, so they drift together.

    Choices that come to the same kernels share the least of their times: they differ by noise alone.
    """
    feeds = seeded({name: copies.types[name] for name in copies.inputs}, 1).feeds[0]
    given = [np.require(feeds[tensor.name], requirements=("C", "A")) for tensor in runner.inputs]
    runner.profile(*given)
    runs: list[list[int]] = []
    end = time.perf_counter() + SECONDS
    while len(runs) < FEWEST_RUNS or time.perf_counter() < end:
        runs.append(runner.profile(*given))
    steps = runner.manifest.steps
    made = [node for node in copies.nodes if not set(node.results).isdisjoint(copies.outputs)]
    of_copy = [[i for i, step in enumerate(steps) if node.name in step.nodes] for node in made]
    kernels = [tuple(steps[i].kernel for i in own) for own in of_copy]
    least: dict[tuple[str, ...], float] = {}
    for names, own in zip(kernels, of_copy, strict=True):
        seconds = min(sum(run[i] for i in own) for run in runs) * 1e-9
        least[names] = min(seconds, least.get(names, seconds))
    return [least[names] for names in kernels]
