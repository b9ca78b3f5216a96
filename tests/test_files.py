"""Atomic writing, digests and canonical JSON, with processes that are really killed and writes that really fail."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bakeoff import files
from bakeoff.errors import StoreError, UsageError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process with `code` and return once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leftover(path: Path, state: str, pid: int, host: str = files._HOST, process: str = "0" * 8) -> Path:
    return path.parent / f".{path.name}.{host}.{pid}.{process}-0.{state}"


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".partial", ".replaced")]


def limit_file_size(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class TestWrite:
    def test_content_and_missing_parents(self, tmp_path: Path) -> None:
        path = tmp_path / "a" / "b" / "c"
        files.write_bytes(path, b"\x00\xff")
        assert path.read_bytes() == b"\x00\xff"
        files.write_text(path, "größer")
        assert path.read_text(encoding="utf-8") == "größer"
        files.write_json(path, {"z": (1, 2.5), "a": None})
        assert path.read_text() == '{\n  "z": [\n    1,\n    2.5\n  ],\n  "a": null\n}\n'
        assert list(path.parent.iterdir()) == [path]

    def test_link_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "target")
        files.write_text(tmp_path / "link", "new")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "target").read_text() == "new"

    def test_mode_follows_umask(self, tmp_path: Path) -> None:
        (tmp_path / "plain").write_text("")
        files.write_text(tmp_path / "atomic", "")
        assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode

    @pytest.mark.parametrize("call", ["open", "fsync", "replace"])
    @pytest.mark.parametrize(
        ("number", "says"),
        [
            (errno.ENOSPC, "disk is full; free some space"),
            (errno.EDQUOT, "quota"),
            (errno.EROFS, "read-only; choose another folder"),
            (errno.EACCES, "permission is denied; choose a folder"),
            (errno.EFBIG, "ulimit -f"),
            (errno.EIO, os.strerror(errno.EIO)),
        ],
    )
    def test_failure_keeps_old_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, says: str
    ) -> None:
        path = tmp_path / "file"
        path.write_text("old")

        def fail(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(StoreError, match=says) as caught:
                files.write_text(path, "new")
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_interrupt_removes_temporary(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write_text(tmp_path / "file", "new")
        assert not list(tmp_path.iterdir())

    def test_real_write_failure_keeps_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"
        path.write_text("old")
        code = "import sys; from bakeoff.files import write_bytes; write_bytes(sys.argv[1], bytes(100_000))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit_file_size(4096),
        )
        assert "StoreError: cannot write" in done.stderr
        assert "ulimit -f" in done.stderr
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_really_full_device(self) -> None:
        if not os.path.exists("/dev/full"):
            pytest.skip("no /dev/full here")
        with (
            pytest.raises(StoreError, match="disk is full"),
            files.writing("/dev/full"),
            open("/dev/full", "wb") as full,
        ):
            full.write(bytes(10))

    def test_parent_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("old")
        with pytest.raises(StoreError, match="check the path"):
            files.write_text(tmp_path / "file" / "below", "new")
        assert (tmp_path / "file").read_text() == "old"

    def test_target_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(StoreError, match="directory"):
            files.write_text(tmp_path / "folder", "new")
        assert list(tmp_path.iterdir()) == [tmp_path / "folder"]

    def test_killed_writer_leaves_whole_files(self, tmp_path: Path) -> None:
        code = (
            "import sys, itertools; from bakeoff.files import write_bytes; print('ready', flush=True)\n"
            "for n in itertools.count(): write_bytes(sys.argv[1], bytes([n % 256]) * 200_000)"
        )
        path = tmp_path / "file"
        files.write_bytes(path, b"\x00" * 200_000)
        draw = random.Random(0)
        survivors = 0
        for _ in range(20):
            process = start(code, path)
            end = time.monotonic() + draw.uniform(0, 0.05)
            while time.monotonic() < end:
                data = path.read_bytes()
                assert len(data) == 200_000
                assert len(set(data)) == 1
            kill(process)
            data = path.read_bytes()
            assert len(data) == 200_000
            assert len(set(data)) == 1
            survivors += bool(temporaries(tmp_path))
            files.clean_temporaries(tmp_path)
            assert list(tmp_path.iterdir()) == [path]
        assert survivors, "no kill fell into a write, so the test has shown nothing"

    def test_threads_write_the_same_file(self, tmp_path: Path) -> None:
        path = tmp_path / "file"

        def write(content: bytes) -> None:
            for _ in range(10):
                files.write_bytes(path, content)

        contents = [bytes([number]) * 9999 for number in range(4)]
        threads = [threading.Thread(target=write, args=(content,)) for content in contents]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert path.read_bytes() in contents
        assert list(tmp_path.iterdir()) == [path]


REPLACE_FOR_EVER = """
import sys, itertools
from bakeoff.files import replace_folder
print('ready', flush=True)
for n in itertools.count():
    with replace_folder(sys.argv[1]) as folder:
        for name in 'abc':
            (folder / name).write_text(str(n) * 1000)
"""


class TestReplaceFolder:
    def test_new_and_replaced(self, tmp_path: Path) -> None:
        path = tmp_path / "models" / "best"
        for content in ("one", "two"):
            with files.replace_folder(path) as folder:
                assert folder.parent == path.parent
                (folder / "deep").mkdir()
                (folder / "deep" / content).write_text(content)
            assert [entry.name for entry in (path / "deep").iterdir()] == [content]
            assert list(path.parent.iterdir()) == [path]

    def test_failing_block_keeps_old(self, tmp_path: Path) -> None:
        path = tmp_path / "best"
        path.mkdir()
        (path / "old").write_text("old")
        with pytest.raises(RuntimeError, match="mine"), files.replace_folder(path) as folder:
            raise RuntimeError(f"mine {folder.name}")
        assert [entry.name for entry in path.iterdir()] == ["old"]
        assert list(tmp_path.iterdir()) == [path]

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "best").write_text("old")
        with pytest.raises(StoreError, match="best"), files.replace_folder(tmp_path / "best"):
            pytest.fail("the block must not run")
        assert (tmp_path / "best").read_text() == "old"

    @pytest.mark.parametrize("failing", [1, 2])
    def test_failing_rename_keeps_old(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int) -> None:
        path = tmp_path / "best"
        path.mkdir()
        (path / "old").write_text("old")
        rename, calls = os.rename, iter(range(1, 10))

        def fail_once(source: str, target: str) -> None:
            if next(calls) == failing:
                raise OSError(errno.EROFS, "read-only")
            rename(source, target)

        monkeypatch.setattr(os, "rename", fail_once)
        with pytest.raises(StoreError, match="read-only"), files.replace_folder(path) as folder:
            (folder / "new").write_text("new")
        assert [entry.name for entry in path.iterdir()] == ["old"]
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), Exception("I/O error: full (os error 28)")])
    def test_full_disk_within_block(self, tmp_path: Path, error: Exception) -> None:
        with pytest.raises(StoreError, match="disk is full"), files.replace_folder(tmp_path / "best"):
            raise error
        assert not list(tmp_path.iterdir())

    def test_safetensors_that_cannot_be_written(self, tmp_path: Path) -> None:
        path = tmp_path / "best"
        path.mkdir()
        (path / "old").write_text("old")
        code = (
            "import sys, numpy; from safetensors.numpy import save_file; from bakeoff.files import replace_folder\n"
            "with replace_folder(sys.argv[1]) as folder: save_file({'a': numpy.zeros(99999)}, folder / 'a.safetensors')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=limit_file_size(4096),
        )
        assert "StoreError: cannot write" in done.stderr
        assert [entry.name for entry in path.iterdir()] == ["old"]
        assert list(tmp_path.iterdir()) == [path]

    def test_killed_at_random_moments(self, tmp_path: Path) -> None:
        path = tmp_path / "best"
        path.mkdir()
        for name in "abc":
            (path / name).write_text("first")
        draw = random.Random(0)
        for _ in range(20):
            process = start(REPLACE_FOR_EVER, path)
            time.sleep(draw.uniform(0, 0.05))
            kill(process)
            files.clean_temporaries(tmp_path)
            assert list(tmp_path.iterdir()) == [path]
            contents = {entry.name: entry.read_text() for entry in path.iterdir()}
            assert set(contents) == set("abc")
            assert len(set(contents.values())) == 1

    @pytest.mark.parametrize("renames", [0, 1, 2])
    def test_killed_after_each_rename(self, tmp_path: Path, renames: int) -> None:
        path = tmp_path / "best"
        path.mkdir()
        (path / "old").write_text("old")
        code = """
import os, sys
from bakeoff.files import replace_folder
rename, done = os.rename, 0
def counted(source, target):
    global done
    if done == int(sys.argv[2]): os.kill(os.getpid(), 9)
    rename(source, target)
    done += 1
def removed(*_, **__):
    os.kill(os.getpid(), 9)
os.rename = counted
import shutil; shutil.rmtree = removed
with replace_folder(sys.argv[1]) as folder: (folder / "new").write_text("new")
"""
        done = subprocess.run([sys.executable, "-c", code, str(path), str(renames)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.exists() == (renames != 1)
        with pytest.raises(RuntimeError), files.replace_folder(path):
            raise RuntimeError
        assert [entry.name for entry in path.iterdir()] == ["new" if renames == 2 else "old"]
        assert list(tmp_path.iterdir()) == [path]


class TestRemoveFolder:
    def test_removed(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)
        files.remove_folder(tmp_path / "a")
        files.remove_folder(tmp_path / "a")
        assert not list(tmp_path.iterdir())

    def test_half_removed_is_no_longer_under_its_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a" / "b").mkdir(parents=True)

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "broken")

        monkeypatch.setattr("shutil.rmtree", fail)
        with pytest.raises(StoreError, match="a"):
            files.remove_folder(tmp_path / "a")
        assert not (tmp_path / "a").exists()


class TestCleanTemporaries:
    @pytest.mark.parametrize("state", ["partial", "replaced"])
    def test_only_what_the_dead_left(self, tmp_path: Path, state: str) -> None:
        target = tmp_path / "x.json"
        target.write_text("{}")
        kept = [
            target,
            tmp_path / "mine.partial",
            leftover(target, state, os.getppid()),
            leftover(target, state, os.getpid(), process=files._PROCESS),
            leftover(target, state, dead_pid(), host="00000000"),
        ]
        gone = [
            leftover(target, state, dead_pid()),
            leftover(target, state, os.getpid()),
            leftover(target, state, 10**30),
        ]
        for path in kept + gone:
            path.write_text("")
        files.clean_temporaries(tmp_path)
        assert sorted(tmp_path.iterdir()) == sorted(kept)

    def test_other_host_after_a_day(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        leftover(tmp_path / "x", "partial", 1, host="00000000").mkdir()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
        files.clean_temporaries(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_replaced_is_put_back(self, tmp_path: Path) -> None:
        aside = leftover(tmp_path / "best", "replaced", dead_pid())
        aside.mkdir()
        (aside / "old").write_text("old")
        files.clean_temporaries(tmp_path)
        assert (tmp_path / "best" / "old").read_text() == "old"

    def test_missing_folder(self, tmp_path: Path) -> None:
        files.clean_temporaries(tmp_path / "none")


class TestDigest:
    def test_file(self, tmp_path: Path) -> None:
        (tmp_path / "abc").write_bytes(b"abc")
        # the example of FIPS 180-2, appendix B.1
        assert files.digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

    def make(self, root: Path, contents: dict[str, str]) -> Path:
        for name, text in contents.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return root

    def test_folder_is_its_names_and_contents(self, tmp_path: Path) -> None:
        same = [
            self.make(tmp_path / "1", {"a": "x", "b/c": "y"}),
            self.make(tmp_path / "2", {"b/c": "y", "a": "x"}),
        ]
        (tmp_path / "2" / "empty").mkdir()
        others = [
            self.make(tmp_path / "3", {"a": "x", "b/d": "y"}),
            self.make(tmp_path / "4", {"a": "y", "b/c": "x"}),
            self.make(tmp_path / "5", {"a": "xy", "b/c": ""}),
            self.make(tmp_path / "6", {"a": "x"}),
        ]
        assert len({files.digest(path) for path in same}) == 1
        assert len({files.digest(path) for path in same + others}) == 1 + len(others)

    def test_links_count_as_content(self, tmp_path: Path) -> None:
        plain = self.make(tmp_path / "plain", {"a": "x", "b/c": "y"})
        linked = self.make(tmp_path / "linked", {})
        linked.mkdir()
        (linked / "a").symlink_to(plain / "a")
        (linked / "b").symlink_to(plain / "b")
        assert files.digest(linked) == files.digest(plain)

    def test_errors(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="none"):
            files.digest(tmp_path / "none")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match="pipe is neither"):
            files.digest(tmp_path)
        (tmp_path / "pipe").unlink()
        (tmp_path / "broken").symlink_to(tmp_path / "none")
        with pytest.raises(UsageError, match="broken"):
            files.digest(tmp_path)
        (tmp_path / "broken").unlink()
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "loop").symlink_to(tmp_path)
        with pytest.raises(UsageError, match="loop"):
            files.digest(tmp_path)


def typed(value: Any) -> Any:
    """A value whose equality also tells 1 from 1.0 and True, and 0.0 from -0.0."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [typed(item) for item in value]
    return type(value), repr(value)


class TestCanonical:
    def test_example(self) -> None:
        assert files.canonical({"b": [1, 2.5, None, True], "a": "é"}) == '{"a":"é","b":[1,2.5,null,true]}'.encode()

    @UNTIMED
    @given(VALUES)
    def test_reads_back(self, value: Any) -> None:
        assert typed(json.loads(files.canonical(value))) == typed(value)

    @UNTIMED
    @given(st.dictionaries(st.text(), VALUES), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, value: dict[str, Any], draw: random.Random) -> None:
        items = list(value.items())
        draw.shuffle(items)
        assert files.canonical(dict(items)) == files.canonical(value)

    @UNTIMED
    @given(VALUES, VALUES)
    def test_different_values_differ(self, one: Any, other: Any) -> None:
        assert (files.canonical(one) == files.canonical(other)) == (typed(one) == typed(other))

    def test_tuples_are_lists(self) -> None:
        assert files.canonical((1, (2,))) == files.canonical([1, [2]])

    @pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("write", [files.canonical, lambda value: files.write_json("never-written.json", value)])
    def test_no_nan(self, number: float, write: Callable[[Any], object]) -> None:
        with pytest.raises(UsageError, match=r"\['args'\]\[1\] is -?(nan|inf)"):
            write({"args": [1, number]})

    @pytest.mark.parametrize(
        ("value", "says"),
        [
            ({1: 2}, "key 1, which is not text"),
            (Path("x"), "Path"),
            ({"a": {1}}, r"\['a'\] is a set"),
            (b"x", "bytes"),
            ("\ud83d", "valid Unicode"),
            ({"\ud83d": 1}, "valid Unicode"),
        ],
    )
    def test_refuses(self, value: Any, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            files.canonical(value)
