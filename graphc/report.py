"""What a build reports: sizes, work and error after each step, and what each target needs and takes. `report.json`.

Everything but measured times is a function of the spec, the model and the data.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from graphc.errors import InputError
from graphc.staging import REPORT


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Quality(Record):
    """How good a graph is on some data, and how far from the original float model.

    `sqnr` is the signal to quantization noise ratio of the worst output, 10 log10(sum(ref^2) / sum((ref - y)^2)) in dB;
    none where nothing differs. `error` is the largest |ref - y| over the largest |ref|, of the worst output. `kl` is
    the mean divergence of its scores from the original's, in nats (graphc.relative_entropy), of the worst output; none
    where no output has scores.
    """

    samples: int
    data: Literal["evaluation", "calibration", "random"]
    metric: str | None
    value: float | None
    sqnr: float | None
    error: float
    kl: float | None = None


class Skipped(Record):
    node: str
    operator: str
    reason: str


class Noted(Record):
    """What a pass did to a node: figures that the pass's own text explains."""

    node: str
    operator: str
    figures: dict[str, float]


class Step(Record):
    """The graph after one pass; step 0 is the model as it was loaded. `bytes` are those of its constants.

    `compared`: what else the pass could have come to, such as a cut without repair, judged on the same data.
    """

    index: int
    kind: str
    options: dict[str, Any]
    nodes: int
    bytes: int
    parameters: int
    macs: int | None
    quality: Quality | None
    compared: dict[str, Quality] = {}
    skips: tuple[Skipped, ...]
    notes: tuple[Noted, ...] = ()


class Latency(Record):
    """Seconds of one run: median, minimum, 10th and 90th percentile. `measured` is when, in UTC."""

    engine: str
    threads: int
    median: float
    minimum: float
    low: float
    high: float
    measured: str


class Decided(Record):
    """Which kernel multiplies weights with zeros, and how fast skipping them is beside the dense kernel, expected."""

    node: str
    kernel: Literal["sparse", "dense"]
    speed: float


class PreparedLayer(Record):
    """What `nodes` make of constants alone: so many bytes of the arena, filled `once`, by init, or at every run."""

    nodes: tuple[str, ...]
    bytes: int
    once: bool


class Multiplied(Record):
    """Under `arithmetic: bf16` or `fp16`, what multiplies a node's floats: an instruction, or "float32"; and why."""

    node: str
    instruction: str
    reason: str


class StoredLayer(Record):
    """Bytes of the weights of `nodes`: as fp32, as kernels read them, as they are stored, and the entropy of theirs."""

    nodes: tuple[str, ...]
    raw: int
    packed: int
    stored: int
    bound: float


class TargetReport(Record):
    """`flash`: bytes of code and weights. `ram`: bytes of the arena, and of the stack without an operating
    system. `quality`: of the artifact, where it runs. `weights`: layer by layer, the total last (without nodes), where
    the target has them coded. `tuning` says which kernels were chosen by measuring, where the spec asks for it.
    """

    id: str
    flash: int
    ram: int
    ram_lower_bound: int
    kernels: int
    calls: int
    decisions: tuple[Decided, ...] = ()
    prepared: tuple[PreparedLayer, ...] = ()
    multiplied: tuple[Multiplied, ...] = ()
    quality: Quality | None
    latency: Latency | None
    weights: tuple[StoredLayer, ...] = ()
    tuning: str


class Limit(Record):
    """One line of the budget: what was allowed and what came. `target` is empty for the model as a whole."""

    key: str
    target: str
    allowed: float
    actual: float | None

    @property
    def missed(self) -> bool:
        return self.actual is not None and self.actual > self.allowed


class Report(Record):
    """A build. `model`: where the original came from; `types`: element types of its inputs and outputs; `folder`: where
    the spec lay, beside which its `module:function`s are found.
    """

    graphc: str
    name: str
    model: str
    spec: dict[str, Any]
    folder: str
    types: dict[str, str]
    model_bytes: int
    steps: tuple[Step, ...]
    targets: tuple[TargetReport, ...]
    before: Latency | None
    budget: tuple[Limit, ...]

    def text(self) -> str:
        """The content of `report.json`."""
        return self.model_dump_json(indent=1) + "\n"


def read_report(build: Path) -> Report:
    """The report of a build folder. Raises InputError where there is none, or it was altered."""
    path = build / REPORT
    try:
        return Report.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(str(build), f"holds no {REPORT}, so it is no finished build.", "Build it again.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}", f"{first['msg']}.", "Build it again.") from error
