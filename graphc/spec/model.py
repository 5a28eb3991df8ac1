"""The spec as frozen pydantic models: one class per section of the file, unknown keys refused.

Validated with a context `{"folder": Path}`, every path becomes relative to that folder (the spec's own).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationInfo,
    model_validator,
)

from graphc.passes.registry import union
from graphc.spec.units import Bytes, Count, Hertz, PerChannel, Seconds, expected

if TYPE_CHECKING:
    from graphc.passes.protocol import Pass as AnyPass
else:
    AnyPass = union()

METRICS = ("top1", "top5", "mse", "auc", "perplexity", "agreement")
"""The metrics graphc has; any other is written `module:function`."""


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _beside_spec(path: Path, info: ValidationInfo) -> Path:
    if not info.context:
        return path
    found = Path(info.context["folder"]) / path
    if not found.is_file():
        raise expected("a file that exists", f"There is none at {found}.")
    return found


def _folder_beside_spec(path: Path, info: ValidationInfo) -> Path:
    found = Path(info.context["folder"]) / path if info.context else path
    if info.context and not found.is_dir():
        raise expected("a folder that exists", f"There is none at {found}.")
    return found


def _metric(name: str) -> str:
    if name in METRICS or _is_function(name):
        return name
    raise expected(f"one of {', '.join(METRICS)}, or module:function")


def _function(name: str) -> str:
    if _is_function(name):
        return name
    raise expected("module:function")


def _is_function(name: str) -> bool:
    module, colon, function = name.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), function])


FilePath: TypeAlias = Annotated[Path, AfterValidator(_beside_spec)]
"""A path; relative ones start at the spec's folder."""
FolderPath: TypeAlias = Annotated[Path, AfterValidator(_folder_beside_spec)]
"""The same for folders."""
SOURCES = ("path", "images", "function", "random")
"""Where samples come from."""
Name: TypeAlias = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]
"""A name that is also a C identifier and a file name: lower case letters, digits, underscores."""
BoardId: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
"""A board's name: lower case letters, digits, dashes."""
CpuId: TypeAlias = Literal[
    "native", "x86-64-v2", "x86-64-v3", "x86-64-v4", "zen4", "alderlake",
    "aarch64", "cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72", "cortex-a76", "cortex-a78",
    "neoverse-n1", "neoverse-v1", "cortex-a7", "cortex-a8", "cortex-a9",
    "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55", "cortex-m85",
]  # fmt: skip
"""The processors that `graphc.backends.targets` knows (a test says so): messages get a line, editors a list."""
Shape: TypeAlias = tuple[Annotated[int, Field(ge=0)], ...]


class Model(Section):
    """The network to compress. `inputs` fixes dimensions that the file leaves open: input name -> shape."""

    path: FilePath
    inputs: dict[str, Shape] = Field(default_factory=dict)


class Calibration(Section):
    """Samples for statistics, from one of four sources.

    - `path`: an .npz with one array per model input, or an .npy where the model has one input.
    - `images`: a folder of pictures for the model's one input, as `color`, `fit` to its size: `stretch`, or `crop` the
      middle of what covers it. They become rows of 8-bit NHWC, which `preprocess` says more about. Folders in it are
      classes in alphabetical order, and so labels.
    - `function`: `module:function`, called without arguments, gives the arrays that an .npz would hold, by name.
    - `random`: numbers, where there is no data at all. Ranges found with them say nothing about the model; reports
      mark them.

    `count`: so many, evenly spread; absent: all.
    """

    path: FilePath | None = None
    images: FolderPath | None = None
    color: Literal["rgb", "bgr", "gray"] | None = None
    fit: Literal["stretch", "crop"] | None = None
    function: Annotated[str, AfterValidator(_function)] | None = None
    random: Literal["normal", "uniform"] | None = None
    count: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        given = [key for key in SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise expected(f"one of {', '.join(SOURCES)}")
        for key in ("color", "fit"):
            if (getattr(self, key) is None) == (given == ["images"]):
                raise expected(f"`{key}` beside `images`, and nowhere else", at=(key,))
        if self.random is not None and self.count is None:
            raise expected("a count of random samples", at=("count",))
        return self


class Evaluation(Calibration):
    """Held-out samples and the metric that judges every step. `output` names the one to read among several."""

    metric: Annotated[str, AfterValidator(_metric)]
    output: str | None = None

    @model_validator(mode="after")
    def _is_real(self) -> Self:
        if self.random is not None:
            raise expected("real data: random numbers judge nothing", at=("random",))
        return self


class Preprocess(Section):
    """From raw data to what the model takes: `(raw.transpose() * scale - mean) / std`, each part only where given.

    `layout` is the raw data's layout and `model_layout` the model's; `dtype` is the raw input's element type (absent:
    the model's own); `input` names the one it applies to among several. `fold: true` makes all this part of
    the model, so that the artifact takes raw data; `fold: false` applies it to the data files only.
    """

    fold: bool
    layout: Literal["nhwc", "nchw"] | None = None
    model_layout: Literal["nhwc", "nchw"] = "nchw"
    dtype: Literal["uint8", "int8", "uint16", "int16", "float32"] | None = None
    scale: PerChannel | None = None
    mean: PerChannel | None = None
    std: PerChannel | None = None
    input: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        given = [value for value in (self.scale, self.mean, self.std) if isinstance(value, tuple)]
        if given and self.layout is None:
            raise expected("`layout: nhwc` or `layout: nchw` beside values per channel")
        if len({len(value) for value in given}) > 1:
            raise expected("as many values in scale, mean and std as there are channels")
        if self.std is not None and 0.0 in (self.std if isinstance(self.std, tuple) else (self.std,)):
            raise expected("values other than 0", at=("std",))
        return self


class Data(Section):
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    preprocess: Preprocess | None = None


Compiler: TypeAlias = Annotated[str, Field(min_length=1)]
"""The command of a C compiler, such as `aarch64-linux-gnu-gcc-12`; absent: one is found."""
Storage: TypeAlias = Literal["plain", "coded", "streamed"]
"""How weights lie in an artifact: as kernels read them; entropy-coded, and decoded into the arena by init; or coded,
and decoded before each call that reads them, into memory that calls share: less of it, and slower."""


Arithmetic: TypeAlias = Literal["float32", "bf16", "fp16"]
"""What floats of convolutions and matrix products are multiplied as."""

Emit: TypeAlias = Literal["objects", "c"]
"""`objects`: machine code. `c`: portable C99 as well, one thread, for whatever compiler (a target `<id>-c`)."""


Patches: TypeAlias = Annotated[int, Field(ge=1, le=64)]
"""In how many patches, one after another, the first layers of high resolution are computed without an operating system:
less RAM at the peak, the same bits, some products twice. 1: never; absent: as few as it takes to fit the board."""


class Cpu(Section):
    """A processor by its id: this machine (`native`), or one that `graphc targets` lists.

    `winograd: off` keeps 3x3 convolutions of floats to the direct sum, which takes longer and rounds less (see
    `graphc.backends.winograd`: errors of at most 6e-6 of a layer's largest result with it). `compiler` is the C
    compiler to use.

    `arithmetic: bf16` multiplies floats of convolutions and matrix products as bfloat16 and adds in float32, on
    processors that have matrix tiles for it (AMX) or vdpbf16ps (AVX512_BF16): up to several times as fast, and every
    operand rounded by up to 2^-8 of itself (see `graphc.backends.narrow_bf16`). Layers that would not gain stay in
    float32; the report says which, and why. `arithmetic: fp16` multiplies them as float16, on Arm processors with
    FEAT_FP16: twice as many at once, each rounded by up to 2^-11 of itself, and sums of at most 32 of them too (see
    `graphc.backends.narrow_fp16`); numbers beyond 65504 overflow.

    `tune` measures a few ways to compute each kernel (`thorough`: more of them) where this machine runs the target's
    code, and keeps the fastest in the file `tuning`, by default tuning.json beside the spec. What that file holds is
    used without measuring, on any machine: commit it, and builds are repeatable. `thorough` also searches convolutions
    that graphc has no schedule of its own for (transposed ones, grouped ones of integers) with TVM's MetaSchedule,
    about a minute for each that is different.
    """

    cpu: CpuId
    winograd: bool = True
    weights: Storage = "plain"
    arithmetic: Arithmetic = "float32"
    compiler: Compiler | None = None
    emit: Emit = "objects"
    patches: Patches | None = None
    tune: Literal["quick", "thorough"] | None = None
    tuning: Path = Path("tuning.json")

    @property
    def id(self) -> str:
        """Names the target and its folder in the build."""
        return self.cpu + ("-c" if self.emit == "c" else "")


class Memory(Section):
    """A run of addresses on a board; a size alone is taken to start where Arm's M profile has that kind of memory."""

    address: Annotated[int, Field(ge=0, lt=1 << 32)]
    size: Bytes


def _starting_at(address: int) -> BeforeValidator:
    def read(value: object) -> object:
        return {"address": address, "size": value} if isinstance(value, str | int) else value

    return BeforeValidator(read)


def _each_memory(value: object) -> object:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class OwnBoard(Section):
    """A board that graphc has no entry for.

    `ram` is a size, `{address: 0x20000000, size: 64KiB}`, or a list of such, that for the arena first; `flash` is
    absent where an operating system loads programs. `fpu` where the chip's is not the core's usual one; `emulator` is
    QEMU's machine for it, where there is one.
    """

    name: BoardId
    cpu: CpuId
    ram: Annotated[
        tuple[Annotated[Memory, _starting_at(0x20000000)], ...], BeforeValidator(_each_memory), Field(min_length=1)
    ]
    flash: Annotated[Memory, _starting_at(0)] | None = None
    clock: Hertz | None = None
    fpu: Literal["none", "single", "double"] | None = None
    emulator: str | None = None


class Board(Section):
    """A board by its id, such as raspberry-pi-4 or stm32h743, or described. `compiler` is the C compiler to use.

    The other keys are those of a `cpu`: `arithmetic: fp16` is for a Raspberry Pi 5 and later cores.
    """

    board: Annotated[
        Annotated[BoardId, Tag("id")] | Annotated[OwnBoard, Tag("ownboard")],
        Discriminator(lambda value: "id" if isinstance(value, str) else "ownboard"),
    ]
    winograd: bool = True
    weights: Storage = "plain"
    arithmetic: Arithmetic = "float32"
    compiler: Compiler | None = None
    emit: Emit = "objects"
    patches: Patches | None = None

    @property
    def id(self) -> str:
        """Names the target and its folder in the build."""
        return (self.board if isinstance(self.board, str) else self.board.name) + ("-c" if self.emit == "c" else "")


class Gpu(Section):
    """A CUDA architecture and the machine that drives it."""

    gpu: Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}[a-z]?$")]
    host: Annotated[str, Field(pattern=r"^[a-z0-9_]+-[a-z0-9_-]+$")]

    @property
    def id(self) -> str:
        """Names the target and its folder in the build."""
        return f"{self.gpu}-{self.host}"


def _family(target: object) -> str | None:
    if isinstance(target, Section):
        return type(target).__name__.lower()
    keys = ("cpu", "board", "gpu")
    return next((key for key in keys if isinstance(target, Mapping) and key in target), None)


Target: TypeAlias = Annotated[
    Annotated[Cpu, Tag("cpu")] | Annotated[Board, Tag("board")] | Annotated[Gpu, Tag("gpu")],
    Discriminator(_family, custom_error_type="family", custom_error_message="expected cpu, board or gpu"),
]


def _each_once(targets: tuple[Target, ...]) -> tuple[Target, ...]:
    ids = [target.id for target in targets]
    if twice := [name for name in dict.fromkeys(ids) if ids.count(name) > 1]:
        raise expected(f"each target once (twice: {', '.join(twice)})", "Remove one of them.")
    return targets


class Budget(Section):
    """Limits checked after the build. A missed one is an error that names by how much.

    `flash`, `ram`: bytes of code plus weights, and of the arena, per target. `size`: bytes of the exported model.
    `latency`: median of one run on the target, where it can be measured. `macs`: multiply-accumulates per run.
    `accuracy_drop`: how much worse than the original model the metric may be, in the metric's own unit.
    """

    flash: Bytes | None = None
    ram: Bytes | None = None
    size: Bytes | None = None
    latency: Seconds | None = None
    macs: Count | None = None
    accuracy_drop: Annotated[float, Field(ge=0)] | None = None


class Spec(Section):
    """A whole spec file. In Python `model` may be left out and given apart; `name` names the artifact."""

    name: Name | None = None
    model: Model | None = None
    data: Data = Data()
    passes: tuple[AnyPass, ...] = ()
    targets: Annotated[tuple[Target, ...], AfterValidator(_each_once)] = ()
    budget: Budget = Budget()

    _folder: Path = PrivateAttr(default=Path())

    def model_post_init(self, context: Any) -> None:
        if isinstance(context, Mapping):
            self._folder = context["folder"]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.budget.accuracy_drop is not None and self.data.evaluation is None:
            at, remedy = ("budget", "accuracy_drop"), "Say which data and metric it is measured with."
            raise expected("data.evaluation beside it", remedy, at)
        return self

    @property
    def folder(self) -> Path:
        """Where the spec lies: `module:function` metrics are found there."""
        return self._folder
