"""The C compiler that turns generated C and kernel objects into libraries: the system's, or the one that pip brings.

Everything runs in one folder with relative names, so that a library's bytes do not depend on where it was built.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from graphc.backends.targets import Target
from graphc.errors import ToolchainError

TIMEOUT = 600
"""Seconds that one run of a compiler may take; zig builds its own runtime library in its first run."""

GLIBC = "2.17"
"""The oldest C library that libraries linked by zig run on (2012)."""

COMPILE = (
    "-std=c99",
    "-O2",
    "-g0",
    "-fPIC",
    "-ffunction-sections",
    "-Wall",
    "-Wextra",
    "-Wconversion",
)
FREESTANDING = (
    "-std=c99",
    "-Os",
    "-g0",
    "-ffreestanding",
    "-ffunction-sections",
    "-fdata-sections",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-Wall",
    "-Wextra",
    "-Wconversion",
)
"""Where there is no operating system."""
LINK = (
    "-shared",
    "-O2",
    "-Wl,--version-script=exports.map",
    "-Wl,--build-id=none",
    "-Wl,--strip-debug",
    "-Wl,--as-needed",
    "-Wl,-z,defs",
    "-Wl,-z,noexecstack",
)


@dataclass(frozen=True)
class Toolchain:
    """A compiler (which also assembles and links) and an archiver, as command lines that other arguments follow."""

    name: str
    version: str
    compiler: tuple[str, ...]
    archiver: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def compile(self, source: str, output: str, folder: Path, flags: Sequence[str] = COMPILE) -> None:
        """C or assembler text -> object file. Raises ToolchainError with the compiler's words."""
        self._run([*self.compiler, *flags, "-c", source, "-o", output], folder)

    def link(self, objects: Sequence[str], output: str, exports: Sequence[str], folder: Path) -> None:
        """Objects -> dynamic library that shows nothing but `exports` and needs nothing but the C library."""
        (folder / "exports.map").write_text(f"{{ global: {' '.join(f'{name};' for name in exports)} local: *; }};\n")
        listed = _response_file(objects, folder)
        name = f"-Wl,-soname,{output}"
        self._run([*self.compiler, *LINK, name, "-o", output, listed, "-lpthread", "-lm"], folder)

    def for_programs(self) -> "Toolchain":
        """The toolchain that links static programs: zig has glibc for dynamic ones only, and musl for these.

        C that names types of the C library, such as threads', must then be compiled with it again.
        """
        if self.name != "zig":
            return self
        gnu = re.compile(r"-linux-gnu(eabihf|eabi|)[.\d]*$")
        return replace(self, compiler=tuple(gnu.sub(r"-linux-musl\1", part) for part in self.compiler))

    def link_program(self, objects: Sequence[str], output: str, folder: Path) -> None:
        """Objects and static libraries -> a program that needs no files of the system it was linked for."""
        self._run([*self.compiler, "-static", "-O2", "-o", output, *objects, "-lpthread", "-lm"], folder)

    def link_device(self, objects: Sequence[str], script: str, output: str, folder: Path) -> None:
        """Objects and static libraries -> a program for a board without an operating system."""
        library = [] if self.name == "zig" else ["-lgcc"]
        layout = ["-nostdlib", "-Wl,--gc-sections", "-Wl,--build-id=none", f"-Wl,-T,{script}"]
        self._run([*self.compiler, *layout, "-o", output, *objects, *library], folder)

    def archive(self, objects: Sequence[str], output: str, folder: Path) -> None:
        """Objects -> static library, without times and owners."""
        (folder / output).unlink(missing_ok=True)
        self._run([*self.archiver, "rcsD", output, _response_file(objects, folder)], folder)

    def _run(self, command: Sequence[str], folder: Path) -> None:
        environment = {**os.environ, "LC_ALL": "C", "TMPDIR": ".", **self.environment}  # its own files stay here too
        output, code = _capture(command, folder, environment, TIMEOUT)
        if code != 0:
            raise ToolchainError(
                f"{self.name} {self.version}",
                f"`{shlex.join(command)}` failed ({code}):\n{output.strip()}\n",
                "If the compiler is sound, this is a bug in graphc: report it with the lines above.",
            )


def find_for(target: Target, cache: Path) -> Toolchain:
    """The toolchain for `target`, `find`'s or, without an operating system, `find_bare`'s. Raises ToolchainError."""
    if not target.triple.startswith("thumb"):
        return find(target.triple, cache, compiler=target.compiler)
    from graphc.backends.toolchain_bare import find_bare  # it is made of what is here

    return find_bare(target, cache)


def find(triple: str, cache: Path, *, compiler: str = "", environment: Mapping[str, str] | None = None) -> Toolchain:
    """The toolchain for `triple`: the spec's `compiler`, the environment's, the system's, then zig from pip.

    In the environment $CC counts for this machine's own processor, $CC_aarch64_linux_gnu and its like for others. zig
    keeps the runtime library it builds under `cache`.
    Raises ToolchainError that says what to install.
    """
    environment = os.environ if environment is None else environment
    path = environment.get("PATH", os.defpath)
    own, cross = is_host(triple), _gnu_triple(triple)
    prefix = "" if own else f"{cross}-"
    suffix = "" if own else f"_{cross.replace('-', '_')}"
    archivers = _archivers(prefix, environment.get(f"AR{suffix}"))
    if compiler:
        return system_toolchain(shlex.split(compiler), archivers, path, "the spec's `compiler`")
    if given := environment.get(f"CC{suffix}"):
        return system_toolchain(shlex.split(given), archivers, path, f"$CC{suffix}")
    for name in ("cc", "gcc", "clang") if own else (f"{cross}-gcc",):
        if shutil.which(name, path=path):
            return system_toolchain([name], archivers, path)
    if zig := find_zig():
        return zig_toolchain(zig, triple, cache)
    system = "gcc" if own else f"gcc-{cross}"
    raise ToolchainError(
        f"target {triple}",
        f"no C compiler was found ($CC{suffix}, {'cc, gcc, clang' if own else f'{cross}-gcc'}, or zig from pip).",
        f"Run `{sys.executable} -m pip install 'graphc[cross]'`, or `apt install {system}`.",
    )


def find_zig() -> Path | None:
    """The compiler that the package `ziglang` brings, None where it is not installed."""
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        return None
    zig = Path(spec.origin).parent / ("zig.exe" if os.name == "nt" else "zig")
    return zig if zig.is_file() else None


def is_host(triple: str) -> bool:
    """Whether `triple` names the processor and system that this Python runs on."""
    machine, system = sysconfig.get_platform().rsplit("-", 1)[-1], sysconfig.get_platform().split("-", 1)[0]
    names = {"amd64": "x86_64", "arm64": "aarch64", "armv7l": "armv7"}
    return triple.startswith(f"{names.get(machine, machine)}-") and system in triple


def _gnu_triple(triple: str) -> str:
    """As compilers are named: x86_64-unknown-linux-gnu -> x86_64-linux-gnu, armv7-... -> arm-..."""
    machine, *parts = triple.split("-")
    return "-".join(["arm" if machine == "armv7" else machine, *(p for p in parts if p not in ("unknown", "pc"))])


def _archivers(prefix: str, given: str | None) -> list[list[str]]:
    chosen = [shlex.split(given)] if given else []
    return [*chosen, *([f"{prefix}{name}"] for name in ("ar", "gcc-ar")), ["llvm-ar"]]


def system_toolchain(
    compiler: Sequence[str], archivers: Sequence[Sequence[str]], path: str, chosen: str = ""
) -> Toolchain:
    """A compiler of the system's; `chosen` says who named it, where the user did."""
    program = shutil.which(compiler[0], path=path) if compiler else None
    if program is None:
        raise ToolchainError(f"{chosen} '{' '.join(compiler)}'", "no such program.", f"Correct or remove {chosen}.")
    zig = find_zig()
    archiver = next(
        ((str(found), *rest) for name, *rest in archivers if (found := shutil.which(name, path=path))),
        (str(zig), "ar") if zig else None,
    )
    if archiver is None:
        raise ToolchainError(compiler[0], "there is no `ar` beside this compiler.", "Run `apt install binutils`.")
    command = (program, *compiler[1:])
    banner, code = _capture([*command, "--version"], Path.cwd(), {**os.environ, "LC_ALL": "C", "PATH": path}, 60)
    version = re.findall(r"\d+\.\d+(?:\.\d+)?", banner.partition("\n")[0])
    if code != 0 or not version:
        raise ToolchainError(
            " ".join(compiler), f"`--version` failed ({code}): {banner.strip()}", f"Correct {chosen}." if chosen else ""
        )
    name = "clang" if "clang" in banner else "gcc" if "Free Software Foundation" in banner else Path(program).name
    return Toolchain(name, version[-1], command, archiver, {"PATH": path})


def zig_toolchain(zig: Path, triple: str, cache: Path) -> Toolchain:
    """zig with an explicit target: the same bytes on every machine, whatever C library it has."""
    folder = str(cache / "zig") if _is_writable(cache / "zig") else "zig-cache"  # in the folder it works in, at worst
    environment = {"ZIG_GLOBAL_CACHE_DIR": folder, "ZIG_LOCAL_CACHE_DIR": folder}
    target = _gnu_triple(triple)
    target += f".{GLIBC}" if target.endswith(("-gnu", "-gnueabihf", "-gnueabi")) else ""
    output, code = _capture([str(zig), "version"], Path.cwd(), {**os.environ, **environment}, 60)
    if code != 0:
        raise ToolchainError("zig", f"`zig version` failed ({code}): {output.strip()}", "Reinstall `ziglang`.")
    compiler = (str(zig), "cc", "-target", target, "-fno-sanitize=undefined")
    return Toolchain("zig", output.strip(), compiler, (str(zig), "ar"), environment)


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _response_file(objects: Sequence[str], folder: Path) -> str:
    """Names in a file: a large model has more objects than fit on a command line."""
    (folder / "objects.txt").write_text("".join(f"{name}\n" for name in objects))
    return "@objects.txt"


def _capture(command: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float) -> tuple[str, int]:
    """What a command prints, and its exit code. On a timeout it ends with all that it started."""
    subject = Path(command[0]).name
    try:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ToolchainError(subject, f"cannot be started: {error}.") from error
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise ToolchainError(subject, f"`{shlex.join(command)}` ran longer than {timeout} s.") from error
            raise
    return output.decode(errors="replace"), process.returncode
