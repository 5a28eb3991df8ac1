"""The compile server: results, and every way in which a job can fail to give one."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from graphc.backends.worker import Job, Server
from graphc.errors import GraphcError, InternalError, UnsupportedError


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where worker_jobs.py is: the server takes over this path
    with Server(jobs=2) as server:
        yield server


def job(name: str, *arguments: object, subject: str = "kernel k", seconds: float = 60) -> Job:
    return Job(
        f"{__package__}.worker_jobs:{name}" if __package__ else f"worker_jobs:{name}", arguments, subject, seconds
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float = 10) -> bool:
    end = time.monotonic() + within
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def test_results_come_in_order(server: Server) -> None:
    assert server.run([job("add", i, 100) for i in range(50)]) == [i + 100 for i in range(50)]


def test_nothing_starts_before_the_first_job(server: Server) -> None:
    assert server.run([]) == []
    assert not server.started


def test_several_runs_share_one_process(server: Server) -> None:
    first = server.run([job("surroundings")])[0]
    assert server.run([job("surroundings")])[0] == first
    assert first[:3] == ("1", "0", 1)


def test_a_graphc_error_arrives_as_itself(server: Server) -> None:
    with pytest.raises(UnsupportedError) as caught:
        server.run([job("add", 1, 1), job("refuse")])
    assert (caught.value.subject, caught.value.problem) == ("node 'x' (Scan)", "no kernel.")
    assert caught.value.remedy == "Remove it."
    assert server.run([job("add", 1, 1)]) == [2]


def test_a_crash_names_job_signal_and_place(server: Server) -> None:
    with pytest.raises(InternalError, match="kernel k: its process was ended by signal 6") as caught:
        server.run([job("crash")])
    assert "at node conv_7: LLVM ERROR: cannot select" in str(caught.value)


def test_a_segmentation_fault(server: Server) -> None:
    with pytest.raises(InternalError, match="signal 11") as caught:
        server.run([job("segfault")])
    assert any("string_at" in note for note in caught.value.__notes__)


def test_a_hang_is_ended_and_named(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(InternalError, match=r"no answer after 0.5 s at node lstm_1"):
        server.run([job("sleep", 600, str(file), seconds=0.5)])
    assert gone(int(file.read_text()))


def test_an_exception_names_its_kind_and_place(server: Server) -> None:
    with pytest.raises(InternalError, match="kernel k: ZeroDivisionError: division by zero at node div") as caught:
        server.run([job("divide", 1, 0)])
    assert any("Traceback" in note for note in caught.value.__notes__)


def test_an_early_end_without_a_result(server: Server) -> None:
    with pytest.raises(InternalError, match="ended with code 3 and no result"):
        server.run([job("leave", 3)])


def test_too_much_memory(server: Server) -> None:
    with (
        Server(jobs=1, memory_bytes=2 << 30) as small,
        pytest.raises(InternalError, match=r"out of memory \(limit 2.0"),
    ):
        small.run([job("allocate", 3 << 30)])


def test_going_on_after_errors(server: Server) -> None:
    results = server.run([job("crash"), job("add", 1, 2), job("refuse"), job("divide", 1, 2)], return_errors=True)
    assert [isinstance(result, GraphcError) for result in results] == [True, False, True, False]
    assert (results[1], results[3]) == (3, 0.5)


def test_large_arguments_and_results(server: Server) -> None:
    size = 5 << 20
    jobs = [job("large", size) for _ in range(6)] + [job("length", bytes(size)) for _ in range(6)]
    assert [len(each) if isinstance(each, bytes) else each for each in server.run(jobs)] == [size] * 12


def test_printing_does_not_reach_the_protocol(server: Server) -> None:
    assert server.run([job("shout", "x" * 100_000)] * 3) == ["x" * 100_000] * 3


def test_progress_tells_counts_and_notes(server: Server) -> None:
    seen: list[tuple[int, int, str]] = []
    server.run([job("divide", 1, 2), job("divide", 3, 2)], progress=lambda *args: seen.append(args))
    assert seen[-1] == (2, 2, "kernel k")
    assert (0, 2, "kernel k: node div") in seen


def test_an_interrupted_run_leaves_nothing_behind(server: Server) -> None:
    def interrupt(finished: int, total: int, text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.run([job("sleep", 600)], progress=interrupt)
    assert not server.started
    assert server.run([job("add", 1, 1)]) == [2]


def test_a_module_that_does_not_exist_is_named(server: Server) -> None:
    with pytest.raises(InternalError, match=r"compile server.*no_such_module"):
        server.run([Job("no_such_module:f", (), "kernel k")])


def test_a_job_that_is_killed_from_outside_is_one_failed_job(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    pid = os.fork()
    if pid == 0:
        while not file.exists() or not file.read_text():
            time.sleep(0.05)
        os.kill(int(file.read_text()), signal.SIGKILL)
        os._exit(0)
    with pytest.raises(InternalError, match="signal 9"):
        server.run([job("sleep", 600, str(file))])
    os.waitpid(pid, 0)


SCRIPT = """
    import signal
    import sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    from graphc.backends.worker import Job, Server
    sys.path.insert(0, sys.argv[1])
    with Server(jobs=2) as server:
        server.run([Job("worker_jobs:sleep", (600, name), "k") for name in sys.argv[2:]])
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_process_outlives_the_client(tmp_path: Path, ending: signal.Signals) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(Path(__file__).parent), *map(str, files)]
    client = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not all(file.exists() and file.read_text() for file in files):
        assert client.poll() is None
        time.sleep(0.05)
    children = [int(file.read_text()) for file in files]
    assert all(map(alive, children))
    client.send_signal(ending)
    client.wait()
    assert all(map(gone, children))


def test_a_users_main_module_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "theirs.py"
    script.write_text(
        "import sys\nprint('ran')\nfrom graphc.backends.worker import Job, Server\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "with Server(jobs=2) as server:\n    print(server.run([Job('worker_jobs:add', (1, 2), 'k')]))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout == "ran\n[3]\n"


def test_the_client_imports_no_tvm() -> None:
    code = "import sys, graphc.backends.worker; assert 'tvm' not in sys.modules and 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
