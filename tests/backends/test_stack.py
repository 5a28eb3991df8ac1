"""The bound on stack that is read from instructions, on C whose frames are known."""

from pathlib import Path

import pytest

from graphc.backends.stack import LIBRARY, stack_bound
from graphc.backends.toolchain import FREESTANDING
from graphc.errors import InternalError
from tests.backends.c_programs import bare_toolchain

USE = "void use(volatile char *p) { p[0] = 1; }\n"


def bound(text: str, folder: Path, root: str = "root", cpu: str = "cortex-m4") -> int:
    (folder / "code.c").write_text(text)
    bare_toolchain(cpu).compile("code.c", "code.o", folder, (*FREESTANDING, "-fno-inline", "-Wno-infinite-recursion"))
    return stack_bound([(folder / "code.o").read_bytes()], [root])


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m55"])
@pytest.mark.parametrize("size", [40, 400, 5000, 70000])
def test_a_frame_holds_its_local_array(cpu: str, size: int, tmp_path: Path) -> None:
    text = f"{USE}void root(void); void root(void) {{ char local[{size}]; use(local); }}"
    found = bound(text.replace("void use", "void use(volatile char *p);\nvoid use", 1), tmp_path, cpu=cpu)
    assert size <= found <= size + 64


def test_the_deepest_chain_counts(tmp_path: Path) -> None:
    functions = "".join(
        f"void {name}(void); void {name}(void) {{ volatile char local[{size}]; local[0] = 1; {callee} }}\n"
        for name, size, callee in [("c", 800, ""), ("b", 100, ""), ("a", 200, "c();"), ("root", 8, "a(); b();")]
    )
    assert 1008 <= bound(functions, tmp_path) <= 1008 + 96


def test_a_call_through_a_pointer_reaches_what_the_object_names(tmp_path: Path) -> None:
    text = """
static void small(void) { volatile char a[16]; a[0] = 1; }
static void large(void) { volatile char a[640]; a[0] = 1; }
void (*const TABLE[])(void) = {small, large};
void root(int i);
void root(int i) { TABLE[i](); TABLE[i + 1](); }
"""
    assert 640 <= bound(text, tmp_path) <= 640 + 64


def test_what_no_object_defines_is_the_compilers_library(tmp_path: Path) -> None:
    text = "double root(double a, double b); double root(double a, double b) { return a / b + a; }"
    assert LIBRARY < bound(text, tmp_path) <= LIBRARY + 64


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("int root(int n); int root(int n) { return n ? root(n - 1) * n + root(n - 2) : 1; }", "calls itself"),
        (f"{USE}void root(int n); void root(int n) {{ char local[n]; use(local); }}", "depends on data"),
        ("void other(void); void other(void) { }", "no object defines it"),
    ],
)
def test_what_has_no_bound_is_refused(text: str, problem: str, tmp_path: Path) -> None:
    text = text.replace("void use", "void use(volatile char *p);\nvoid use", 1)
    with pytest.raises(InternalError, match=problem):
        bound(text, tmp_path)
