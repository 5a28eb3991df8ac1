"""The C that runs a model, under the tools that watch C: warnings, address and thread sanitizers, many threads."""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphc import runner
from graphc.backends import emit_c
from graphc.backends.emit_cpu_x86 import FEATURES, LEVELS, cpu_check
from graphc.backends.plan import plan
from graphc.backends.x86 import EXTENSIONS
from graphc.backends.x86 import LEVELS as X86_LEVELS
from graphc.errors import UnsupportedError
from tests.backends import c_programs
from tests.backends.c_programs import TARGET, build, call, compile_and_run, demo, demo_reference, make, toolchain

MAIN = """
#include <pthread.h>

static void *caller(void *argument)
{
    const int32_t threads = *(const int32_t *)argument;
    float x[DEMO_X_ELEMENTS], y[DEMO_Y_ELEMENTS];
    double total = 0, first = 0;
    demo_options options = {0};
    uint8_t *memory = malloc(SIZE + DEMO_ARENA_ALIGNMENT);
    uint8_t *arena = memory + (DEMO_ARENA_ALIGNMENT - (uintptr_t)memory % DEMO_ARENA_ALIGNMENT);
    options.threads = threads;
    for (int i = 0; i < DEMO_X_ELEMENTS; ++i) x[i] = (float)(i * threads) / 8;
    for (int round = 0; round < 3; ++round) {
        if (demo_init(arena, &options) != DEMO_OK) abort();
        for (int run = 0; run < 40; ++run) {
            if (demo_run(arena, x, y, &total) != DEMO_OK) abort();
            if (round == 0 && run == 0) first = total;
            if (total != first) abort();
        }
        demo_close(arena);
    }
    free(memory);
    return NULL;
}

int main(void)
{
    static int32_t threads[4] = {1, 2, 3, 5};
    pthread_t callers[4];
    for (int i = 0; i < 4; ++i) {
        if (pthread_create(&callers[i], NULL, caller, &threads[i]) != 0) return 1;
    }
    for (int i = 0; i < 4; ++i) pthread_join(callers[i], NULL);
    puts("done");
    return 0;
}
"""


def needs(flag: str, work: Path) -> None:
    """Skip where the compiler lacks a sanitizer."""
    (work / "probe.c").write_text("int main(void) { return 0; }\n")
    command = [*toolchain().compiler, flag, "probe.c", "-o", "probe"]
    built = subprocess.run(command, cwd=work, check=False, capture_output=True, timeout=300)
    if built.returncode or subprocess.run([work / "probe"], check=False, capture_output=True).returncode:
        pytest.skip(f"{toolchain().name} has no working {flag}")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    build(demo(), tmp_path / "demo")
    return tmp_path / "demo"


def test_the_c_has_no_warnings(artifact: Path, tmp_path: Path) -> None:
    main = MAIN.replace("SIZE", "DEMO_ARENA_BYTES")
    flags = ("-pedantic", "-Wshadow", "-Wstrict-prototypes", "-Wmissing-prototypes", "-Wno-overlength-strings")
    kernels_lack_prototypes = tuple(flag for flag in flags if flag != "-Wmissing-prototypes")
    assert compile_and_run(main, artifact, tmp_path, *kernels_lack_prototypes, kernels_as_c=True) == "done\n"
    work = tmp_path / "strict"
    work.mkdir()
    compile_ = [*toolchain().compiler, "-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", *flags, "-c"]
    subprocess.run([*compile_, artifact / "demo.c", "-o", "demo.o"], cwd=work, check=True, timeout=300)


def test_bare_metal_c_has_no_warnings(tmp_path: Path) -> None:
    build(demo(), tmp_path / "demo", target=replace(TARGET, hosted=False, library_ending=""))
    flags = ["-std=c99", "-ffreestanding", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-pedantic", "-Werror"]
    command = [*toolchain().compiler, *flags, "-c", "demo/demo.c", "-o", "demo.o"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)


def test_the_archive_serves_many_callers_at_once(artifact: Path, tmp_path: Path) -> None:
    assert compile_and_run(MAIN.replace("SIZE", "DEMO_ARENA_BYTES"), artifact, tmp_path) == "done\n"


@pytest.mark.parametrize("missing", [0, 64])
def test_a_run_stays_within_its_arena(artifact: Path, tmp_path: Path, missing: int) -> None:
    """An arena that is `missing` bytes short must be noticed: the sanitizer sees what it should."""
    needs("-fsanitize=address", tmp_path)
    main = MAIN.replace("SIZE", f"(DEMO_ARENA_BYTES - {missing})").replace(" + DEMO_ARENA_ALIGNMENT)", ")")
    main = main.replace("malloc(", "aligned_alloc(DEMO_ARENA_ALIGNMENT, ").replace(
        "memory + (DEMO_ARENA_ALIGNMENT - (uintptr_t)memory % DEMO_ARENA_ALIGNMENT)", "memory"
    )
    flags = ("-std=c11", "-fsanitize=address", "-fno-omit-frame-pointer")
    if missing:
        with pytest.raises(AssertionError, match="heap-buffer-overflow"):
            compile_and_run(main, artifact, tmp_path, *flags, kernels_as_c=True)
    else:
        assert compile_and_run(main, artifact, tmp_path, *flags, kernels_as_c=True) == "done\n"


@pytest.mark.parametrize("planted", [False, True])
def test_threads_share_nothing_without_order(artifact: Path, tmp_path: Path, planted: bool) -> None:
    """Without the barrier the sanitizer must complain: it sees what it should."""
    needs("-fsanitize=thread", tmp_path)
    main = MAIN.replace("SIZE", "DEMO_ARENA_BYTES")
    if not planted:
        assert compile_and_run(main, artifact, tmp_path, "-fsanitize=thread", kernels_as_c=True) == "done\n"
        return
    source = artifact / "demo.c"
    pause = "{ const struct timespec pause = {0, 2000000}; (void)barrier; nanosleep(&pause, NULL); }"
    source.write_text(source.read_text().replace(") barrier(s);", f") {pause}"))
    assert pause in source.read_text()
    with pytest.raises(AssertionError, match="data race"):
        compile_and_run(main.replace("abort()", "exit(1)"), artifact, tmp_path, "-fsanitize=thread", kernels_as_c=True)


def test_misuse_gives_an_error_code(artifact: Path, tmp_path: Path) -> None:
    main = """
    static uint8_t arena[DEMO_ARENA_BYTES + 64] __attribute__((aligned(64)));
    int main(void) {
        float x[DEMO_X_ELEMENTS] = {0}, y[DEMO_Y_ELEMENTS];
        double total;
        uint64_t ticks[DEMO_CALLS];
        demo_options options = {0};
        printf("%d ", demo_init(NULL, NULL));
        printf("%d ", demo_init(arena + 1, NULL));
        options.arena_bytes = DEMO_ARENA_BYTES - 1;
        printf("%d ", demo_init(arena, &options));
        options.arena_bytes = sizeof arena;
        options.threads = DEMO_MAX_THREADS + 1;
        printf("%d ", demo_init(arena, &options));
        options.threads = -1;
        printf("%d ", demo_init(arena, &options));
        options.threads = 0;
        options.build = DEMO_BUILD + 1;
        printf("%d ", demo_init(arena, &options));
        options.build = DEMO_BUILD;
        options.checksum = 1;
        printf("| %d ", demo_run(arena, x, y, &total));
        demo_close(arena);
        printf("%d ", demo_init(arena, &options));
        printf("%d ", demo_run(NULL, x, y, &total));
        printf("%d ", demo_run(arena, NULL, y, &total));
        printf("%d ", demo_run(arena, x, y, (double *)(void *)((char *)&total + 1)));
        printf("%d ", demo_profile(arena, NULL, x, y, &total));
        printf("%d ", demo_profile(arena, ticks, x, y, &total));
        demo_close(arena);
        demo_close(arena);
        demo_close(NULL);
        printf("| %d", demo_run(arena, x, y, &total));
        return 0;
    }"""
    assert compile_and_run(main, artifact, tmp_path) == "1 2 3 4 4 10 | 8 0 1 1 2 1 0 | 8"


def test_two_models_link_into_one_program(tmp_path: Path) -> None:
    build(demo("first"), tmp_path / "first")
    build(demo("second"), tmp_path / "second")
    main = """#include "../second/second.h"
    static uint8_t one[FIRST_ARENA_BYTES] __attribute__((aligned(64)));
    static uint8_t two[SECOND_ARENA_BYTES] __attribute__((aligned(64)));
    int main(void) {
        float x[64] = {1, 2, 3}, y[64];
        double a = 0, b = 1;
        if (first_init(one, NULL) || second_init(two, NULL)) return 1;
        if (first_init(two, NULL) || second_run(two, x, y, &b) != SECOND_ERROR_CLOSED) return 2;
        if (second_init(two, NULL) || first_run(one, x, y, &a) || second_run(two, x, y, &b)) return 3;
        return a != b;
    }"""
    compile_and_run(main, tmp_path / "first", tmp_path, str(tmp_path / "second/libsecond.a"))


def test_inputs_and_outputs_may_lie_in_the_arena(tmp_path: Path) -> None:
    written = build(demo(), tmp_path / "demo", io_in_arena=True)
    body = """
        float *x = (float *)(void *)(arena + DEMO_X_OFFSET), *y = (float *)(void *)(arena + DEMO_Y_OFFSET);
        double *total = (double *)(void *)(arena + DEMO_TOTAL_OFFSET);"""
    elsewhere = "float x[64], y[64]; double sum, *total = &sum;"
    printed = []
    for declarations in (body, elsewhere):
        main = f"""
        static uint8_t arena[DEMO_ARENA_BYTES] __attribute__((aligned(64)));
        int main(void) {{
            {declarations}
            if (demo_init(arena, NULL)) return 1;
            for (int i = 0; i < 64; ++i) x[i] = (float)i / 8;
            if (demo_run(arena, x, y, total)) return 2;
            for (int i = 0; i < 64; ++i) printf("%.9g ", (double)y[i]);
            printf("%.17g", *total);
            return 0;
        }}"""
        printed.append(compile_and_run(main, tmp_path / "demo", tmp_path))
    assert printed[0] == printed[1]
    expected = demo_reference((np.arange(64, dtype=np.float32) / 8).reshape(4, 16))
    assert [float(text) for text in printed[0].split()][:64] == expected["y"].reshape(-1).tolist()
    assert written.arena.lower_bound >= 2 * 256


def cpuinfo_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    lines = [line for line in path.read_text().splitlines() if line.startswith("flags")] if path.exists() else []
    if not lines:
        pytest.skip("no /proc/cpuinfo with flags")
    return set(lines[0].split(":")[1].split())


def test_the_processor_check_agrees_with_the_kernel(tmp_path: Path) -> None:
    """Each level and each feature alone, against Linux's own list."""
    flags = cpuinfo_flags()
    needed = {level.name: level.flags for level in X86_LEVELS}
    texts, expected = [], []
    for index, level in enumerate(LEVELS):
        below = list(LEVELS)[: index + 1]
        texts.append(cpu_check(replace(TARGET, cpu=level, features=())))
        expected.append(all(needed[name] <= flags for name in below))
    for flag, feature in EXTENSIONS.items():
        if feature in FEATURES and not feature.startswith("amx"):
            texts.append(cpu_check(replace(TARGET, cpu="x86-64-v2", features=(f"+{feature}",))))
            expected.append(flag in flags)
    rows = []
    for index, check in enumerate(texts):
        cpuid = "".join(f"        {{{', '.join(f'{value:#x}u' for value in row)}}},\n" for row in check.cpuid)
        text = emit_c.fill(emit_c.template("cpu_x86.c.in"), cpuid=cpuid, xcr0=f"{check.xcr0:#x}")
        text = text.replace("tiles_are_granted", f"tiles_{index}")
        rows.append(text.replace("cpu_is_sufficient", f"check_{index}"))
    calls = " ".join(f'printf("%d", check_{index}());' for index in range(len(rows)))
    source = "#include <cpuid.h>\n#include <stdint.h>\n#include <stdio.h>\n#include <stddef.h>\n" + "\n".join(rows)
    (tmp_path / "check.c").write_text(f"{source}\nint main(void) {{ {calls} return 0; }}\n")
    subprocess.run([*toolchain().compiler, "-std=c99", "check.c", "-o", "check"], cwd=tmp_path, check=True, timeout=300)
    printed = subprocess.run([tmp_path / "check"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert [digit == "1" for digit in printed] == expected


def test_code_for_another_processor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEATURES, "gfni", (1, 0, "ecx", 16))  # a bit that no processor sets
    build(demo(), tmp_path / "demo", target=replace(TARGET, features=("+gfni",)))
    with pytest.raises(UnsupportedError, match="lacks instructions"):
        runner.open(tmp_path / "demo")
    build(demo(), tmp_path / "demo")
    runner.open(tmp_path / "demo").close()


def test_threads_wake_after_they_slept(artifact: Path) -> None:
    import time

    x = np.ones((4, 16), np.float32)
    expected = demo_reference(x)["y"]
    with runner.open(artifact, threads=4) as model:
        for pause in (0, 0.001, 0.05, 0.2):
            time.sleep(pause)
            assert np.array_equal(model(x)["y"], expected)


def test_one_task_per_step_starts_no_thread(tmp_path: Path) -> None:
    calls = [call("total", "x", "y", tasks=1)]
    build(make(calls, {"x": c_programs.FLOATS, "y": ("float64", ())}), tmp_path / "model")
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        pytest.skip("no /proc")
    before = len(list(tasks.iterdir()))
    with runner.open(tmp_path / "model", threads=8) as model:
        assert model(np.ones((4, 16), np.float32)) == 64
        assert len(list(tasks.iterdir())) == before
    assert plan(demo()).calls[-1].tasks == 1
