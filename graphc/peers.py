"""The engines that graphc is measured against, set up as their own documentation says for one stream of requests.

A peer runs an ONNX file on given inputs. It is imported only when it is asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from graphc import ort
from graphc.errors import InputError, ToolchainError, UnsupportedError
from graphc.ir.graph import Array

Run = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Peer:
    """`start(model, feeds, threads)` returns a function that runs the model once on those feeds."""

    module: str
    install: str
    start: Callable[[Path, Mapping[str, Array], int], Run]


def find(name: str) -> Peer:
    """A peer by its name. Raises InputError for a name that is none, ToolchainError where it is not installed."""
    if name not in PEERS:
        raise InputError("--against", f"unknown engine '{name}'.", f"Known: {', '.join(PEERS)}.")
    peer = PEERS[name]
    if find_spec(peer.module) is None:
        raise ToolchainError(name, "is not installed.", peer.install)
    return peer


def start(name: str, model: Path, feeds: Mapping[str, Array], threads: int) -> Run:
    """A peer, ready to run `model` on `feeds` with `threads` threads.

    Raises what `find` does, and UnsupportedError where the peer cannot run the model.
    """
    return find(name).start(model, feeds, threads)


def _onnxruntime(model: Path, feeds: Mapping[str, Array], threads: int) -> Run:
    onnxruntime = ort.onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # Its threads spin while it runs, as they do by default, but not after: they would slow down whoever runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        # Outputs are allocated once, by a first run, and written in place from then on.
        names = [output.name for output in session.get_outputs()]
        for name, array in zip(names, session.run(names, dict(feeds)), strict=True):
            binding.bind_ortvalue_output(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    except ort.refusals() as error:
        raise UnsupportedError(f"onnxruntime: {model}", f"cannot run it: {_first_line(error)}.") from error
    return lambda: session.run_with_iobinding(binding)


def _openvino(model: Path, feeds: Mapping[str, Array], threads: int, precision: str = "f32") -> Run:
    """`precision`: f32, for some machines would get bf16 without being asked; or bf16."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": precision,
    }
    try:
        compiled = openvino.Core().compile_model(str(model), "CPU", settings)
        request = compiled.create_infer_request()
        for name, array in feeds.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        request.infer()
    except RuntimeError as error:
        raise UnsupportedError(f"openvino: {model}", f"cannot run it: {_first_line(error)}.") from error
    run: Run = request.infer
    return run


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")


OPENVINO = "Install it with: pip install 'graphc[bench]'."
PEERS: Mapping[str, Peer] = {
    "onnxruntime": Peer("onnxruntime", "pip install onnxruntime", _onnxruntime),
    "openvino": Peer("openvino", OPENVINO, _openvino),
    "openvino-bf16": Peer("openvino", OPENVINO, partial(_openvino, precision="bf16")),
}
