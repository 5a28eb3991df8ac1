"""The command `graphc`: each subcommand parses its options here and calls one function of the library.

Exit codes: 0 done; 1 a bug in graphc; 2 the user's spec, model or data; 3 over a budget; 4 verification failed;
5 a toolchain is missing. Everything heavy is imported inside the commands, so that `graphc --help` is quick.
"""

import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command

from graphc.errors import GraphcError, InputError, InternalError
from graphc.version import VERSION

BUG = f"""This is a bug in graphc {VERSION}. Please report it with the command, the spec and, if you can share it, the
model. `graphc --debug ...` prints what happened where; add that."""
INTERRUPTED = 130


class Commands(TyperGroup):
    """The border where errors become messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except GraphcError as error:
            _fail(str(error), error.exit_code, bug=isinstance(error, InternalError))
        except KeyboardInterrupt:
            _fail("stopped.", INTERRUPTED)
        except MemoryError as error:
            _fail(f"out of memory: {error}. Use smaller inputs, or a machine with more memory.", InputError.exit_code)
        except BrokenPipeError:
            raise
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}. Check the path and its permissions.", InputError.exit_code)


def _fail(message: str, code: int, *, bug: bool = False) -> NoReturn:
    if _DEBUG:
        sys.__excepthook__(*_current())
    sys.stderr.write(f"error: {message}\n" + (f"{BUG}\n" if bug else ""))
    raise typer.Exit(code)


def _current() -> tuple[type[BaseException], BaseException, TracebackType | None]:
    kind, error, trace = sys.exc_info()
    assert kind is not None and error is not None
    return kind, error, trace


def _unforeseen(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The hook for exceptions that nothing in graphc foresaw; Python exits with 1 after it."""
    if _DEBUG:
        sys.__excepthook__(kind, error, trace)
    sys.stderr.write(f"error: {kind.__name__}: {error}\n{BUG}\n")


_DEBUG: list[bool] = []
"""Holds something when tracebacks are wanted."""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 a bug in graphc; 2 a mistake in spec, model or data; 3 over the budget; "
    "4 verification failed; 5 a compiler or engine is missing.",
)

SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The spec, a YAML file.")]
Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="A target's folder, such as build/digits/native.")]
RealData = Annotated[
    bool, typer.Option("--data", help="On the spec's data or not at all: where it is gone, no random inputs.")
]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON.")]


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print a traceback with every error.")] = False,
) -> None:
    """Make a neural network small and fast from one spec file: ONNX in, a compressed model and native code out."""
    _DEBUG[:] = [True] if debug else []
    if version:
        typer.echo(f"graphc {VERSION}")
        raise typer.Exit


@app.command()
def build(
    spec: SpecFile,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Write to DIR/NAME.")] = Path("build"),
    target: Annotated[
        list[str] | None, typer.Option("--target", metavar="T", help="Build this target of the spec only.")
    ] = None,
    stop_after: Annotated[
        int | None, typer.Option("--stop-after", metavar="N", min=0, help="Stop after the N-th pass.")
    ] = None,
    json: Json = False,
) -> None:
    """Build what a spec asks for, for each of its targets.

    Writes DIR/NAME/model.onnx, report.json and a folder per target.
    """
    from graphc.cli_build import build_spec

    build_spec(spec, out, target or [], stop_after, json)


@app.command()
def check(spec: SpecFile, json: Json = False) -> None:
    """Check a spec, its model, data and targets; build nothing."""
    from graphc.cli_build import check_spec

    check_spec(spec, json)


@app.command()
def show(
    thing: Annotated[Path, typer.Argument(metavar="MODEL_OR_ARTIFACT", help="An ONNX file or an artifact's folder.")],
    text: Annotated[bool, typer.Option("--text", help="Print the whole graph of a model.")] = False,
    json: Json = False,
) -> None:
    """Show what is in a model or an artifact."""
    from graphc.show import show_any

    show_any(thing, text, json)


@app.command()
def run(
    artifact: Artifact,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Write one .npy per output into DIR.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE.npy", help="An input; once for each.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads to run on.")] = 1,
) -> None:
    """Run an artifact once on .npy files."""
    from graphc.cli_artifact import run_artifact

    run_artifact(artifact, inputs or [], output, threads)


@app.command()
def verify(
    artifact: Artifact,
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Inputs to compare on.")] = 16,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads to run on.")] = 1,
    accuracy: Annotated[
        int, typer.Option("--accuracy", metavar="N", min=0, help="Measure the spec's metric too, on N samples.")
    ] = 0,
    data: RealData = False,
    layers: Annotated[
        bool, typer.Option("--layers", help="On an emulated board: the instructions of each call.")
    ] = False,
    json: Json = False,
) -> None:
    """Compare an artifact with its model, value by value; code for another processor runs in an emulator.

    Where they differ, name the first node whose result does, and exit with 4.
    """
    from graphc.cli_artifact import verify_artifact

    verify_artifact(artifact, samples, threads, accuracy, real=data, layers=layers, as_json=json)


@app.command()
def bench(
    artifact: Artifact,
    *,
    against: Annotated[
        str, typer.Option("--against", metavar="ENGINES", help="Of onnxruntime,openvino,openvino-bf16.")
    ] = "",
    threads: Annotated[str, typer.Option("--threads", metavar="N,...", help="Numbers of threads to run on.")] = "1",
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0, help="How long to measure, per number of threads.")
    ] = 2.0,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="What the engines run, if not the build's model.onnx."),
    ] = None,
    data: RealData = False,
    layers: Annotated[bool, typer.Option("--layers", help="Time every kernel call as well.")] = False,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to FILE.")] = None,
) -> None:
    """Time an artifact, in turns with other engines.

    All run on the same input; ratios are taken round by round.
    """
    from graphc.cli_artifact import bench_artifact

    bench_artifact(
        artifact,
        against=against,
        threads=threads,
        seconds=seconds,
        model=model,
        real=data,
        layers=layers,
        file=json,
    )


@app.command()
def sensitivity(
    spec: SpecFile,
    *,
    weights: Annotated[
        str, typer.Option("--weights", metavar="FORMATS", help="Formats to try, such as int8,int4; else the spec's.")
    ] = "",
    sparsity: Annotated[
        str, typer.Option("--sparsity", metavar="SHARES", help="Shares to prune, such as 0,0.3,0.5; else the spec's.")
    ] = "",
    samples: Annotated[int, typer.Option("--samples", metavar="N", min=1, help="Judge on so many samples.")] = 64,
    size: Annotated[str, typer.Option("--size", metavar="BYTES", help="Choose for this size: 200KiB.")] = "",
    average_bits: Annotated[
        float | None, typer.Option("--average-bits", metavar="BITS", help="Choose formats of so many bits on average.")
    ] = None,
    accuracy_drop: Annotated[
        float | None, typer.Option("--accuracy-drop", metavar="D", help="Choose the coarsest within this drop.")
    ] = None,
    latency: Annotated[str, typer.Option("--latency", metavar="TIME", help="Choose for this time: 2ms.")] = "",
    macs: Annotated[str, typer.Option("--macs", metavar="COUNT", help="Choose for so many MACs: 60M.")] = "",
    by: Annotated[
        str, typer.Option("--by", metavar="MEASURE", help="Compare layers by: sqnr, kl (of the scores) or metric.")
    ] = "sqnr",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="FILE", help="Write the chosen spec there (SPEC_mixed.yaml).")
    ] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw it (extra `report`).")] = None,
    json: Json = False,
) -> None:
    """Measure what quantizing or pruning each layer alone costs, and choose per layer under a limit."""
    from graphc.cli_sensitivity import Tried, limits_of, measure_of, show_sensitivity

    limits = limits_of(size, average_bits, accuracy_drop, latency, macs)
    tried = Tried(*([name for name in text.split(",") if name] for text in (weights, sparsity)))
    show_sensitivity(spec, tried, samples, limits, by=measure_of(by), json=json, plot=plot, out=out)


@app.command()
def schema() -> None:
    """Print the JSON Schema of spec files, for editors."""
    from graphc.cli_lists import print_schema

    print_schema()


@app.command()
def targets(json: Json = False) -> None:
    """List the targets that specs can name."""
    from graphc.cli_lists import list_targets

    list_targets(json)


@app.command()
def passes(json: Json = False) -> None:
    """List the passes that specs can name, with their options."""
    from graphc.cli_lists import list_passes

    list_passes(json)


def main() -> None:
    """Entry point of the console script."""
    sys.excepthook = _unforeseen
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in models may be what this terminal cannot show
    signal.signal(
        signal.SIGTERM, lambda number, _frame: sys.exit(128 + number)
    )  # an exception, so that files are removed
    get_command(app)()
