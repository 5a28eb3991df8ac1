"""The cache: what is found again, what is not, and what happens on disks and in company that misbehave."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graphc.backends import cache as module
from graphc.backends.cache import Cache, default_folder, kernel_key, key
from graphc.backends.targets import resolve


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def entries(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("??/*"))


def test_what_was_put_is_found_again(cache: Cache) -> None:
    assert cache.get("k") is None
    cache.put("k", b"value")
    cache.put("empty", b"")
    assert (cache.get("k"), cache.get("empty"), cache.get("other")) == (b"value", b"", None)
    assert Cache(cache.folder).get("k") == b"value"


def test_a_second_value_takes_the_place_of_the_first(cache: Cache) -> None:
    cache.put("k", b"first")
    cache.put("k", b"second")
    assert cache.get("k") == b"second"
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("damage", [b"", b"graphc1\n", b"rubbish"])
def test_a_damaged_entry_counts_as_absent(cache: Cache, damage: bytes) -> None:
    cache.put("k", b"value")
    entries(cache)[0].write_bytes(damage)
    assert cache.get("k") is None
    assert entries(cache) == []
    cache.put("k", b"value")
    assert cache.get("k") == b"value"


def test_one_flipped_bit_is_noticed(cache: Cache) -> None:
    cache.put("k", bytes(1000))
    data = bytearray(entries(cache)[0].read_bytes())
    data[-1] ^= 1
    entries(cache)[0].write_bytes(data)
    assert cache.get("k") is None


def test_an_entry_under_the_wrong_name_is_noticed(cache: Cache) -> None:
    cache.put("a", b"for a")
    cache.put("b", b"for b")
    first, second = entries(cache)
    second.write_bytes(first.read_bytes())
    assert {cache.get("a"), cache.get("b")} & {None}


def test_a_folder_that_cannot_be_made_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "cache")
    cache.put("k", b"value")
    assert cache.get("k") is None
    assert cache.scratch() is None
    assert cache.problem is not None
    assert str(cache.folder) in cache.problem


def test_the_entries_unused_for_longest_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name in "abcd":
        cache.put(name, bytes(1000))
    ages = dict(zip(entries(cache), (1, 2, 3, 4), strict=True))
    for path, when in ages.items():
        os.utime(path, (when, when))
    oldest, second, *rest = ages
    used = next(name for name in "abcd" if cache._path(name) == oldest)
    assert cache.get(used) is not None
    Cache(tmp_path, limit=3500).prune()
    assert entries(cache) == sorted([oldest, *rest])
    assert second not in entries(cache)


def test_writing_keeps_the_folder_within_its_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    for index in range(100):
        cache.put(str(index), bytes(1000))
    assert sum(path.stat().st_size for path in entries(cache)) <= 10_000 + 10_000 // 8 + 2000
    assert cache.get("99") is not None


def test_what_a_killed_writer_left_is_removed(cache: Cache) -> None:
    cache.put("k", b"value")
    left, recent = (entries(cache)[0].parent / f"{module.PARTIAL}{name}" for name in "ab")
    for path in (left, recent):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    cache.prune()
    assert not left.exists()
    assert recent.exists()
    assert cache.get("k") == b"value"


WRITER = """
import sys
from pathlib import Path
from graphc.backends.cache import Cache
cache = Cache(Path(sys.argv[1]), limit=200_000)
for round in range(30):
    for name in range(10):
        value = bytes([name]) * (1000 * name)
        assert cache.get(str(name)) in (None, value)
        cache.put(str(name), value)
assert cache.problem is None, cache.problem
"""


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert Cache(tmp_path).get("9") == bytes([9]) * 9000


def test_keys_tell_apart_what_decides_the_content() -> None:
    v3, v4 = resolve({"cpu": "x86-64-v3"}), resolve({"cpu": "x86-64-v4"})
    different = {
        kernel_key("tir", "f", v3),
        kernel_key("tir2", "f", v3),
        kernel_key("tir", "g", v3),
        kernel_key("tir", "f", v4),
        key("calibration", "tir", "f"),
        key("calibration", "ti", "rf"),
        key("calibration", b"tir", "f"),
        key("calibration", {"a": 1, "b": 2}),
        key("evaluation", {"a": 1, "b": 2}),
    }
    assert len(different) == 9
    assert key("calibration", {"b": 2, "a": 1}) == key("calibration", {"a": 1, "b": 2})


def test_a_key_is_the_same_in_every_process() -> None:
    code = (
        "from graphc.backends.cache import key; import sys; assert 'tvm' not in sys.modules; print(key('x', {'a': 1}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == key("x", {"a": 1})


def test_where_the_folder_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRAPHC_CACHE", str(tmp_path / "mine"))
    assert default_folder() == tmp_path / "mine"
    monkeypatch.delenv("GRAPHC_CACHE")
    monkeypatch.setattr(module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "graphc"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".cache" / "graphc"
