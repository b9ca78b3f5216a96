"""The store: damaged files, killed writers, contending processes, remote places and queries."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bakeoff import files
from bakeoff.errors import StoreError, UsageError
from bakeoff.store import Busy, Store, address, print_notice

RECORD = {"method": "lora", "args": {"rank": 8}, "seed": 0, "metrics": {"loss": 2.5, "note": None}, "ok": True}


@pytest.fixture(params=["local", "file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    return {
        "local": str(tmp_path / "store"),
        "file": f"file://{tmp_path}/store",
        "memory": f"memory://{uuid.uuid4()}/results",
    }[request.param]


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notices: list[str]) -> Store:
    return Store(tmp_path / "store", notice=notices.append)


def path_of(store: Store, kind: str, key: str) -> Path:
    return store.local / kind / f"{key}.json"


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process with `code` and return once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline(), process.communicate()[1]
    return process


class TestAddress:
    def test_is_half_of_a_sha256(self) -> None:
        # printf '{"a":1}' | sha256sum
        assert address({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad808"

    @settings(deadline=None)
    @given(st.dictionaries(st.text(), st.integers(), min_size=1))
    def test_every_part_matters(self, made_by: dict[str, int]) -> None:
        assert address(dict(reversed(made_by.items()))) == address(made_by)
        for key in made_by:
            assert address({**made_by, key: made_by[key] + 1}) != address(made_by)


class TestPlace:
    def test_default_and_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("BAKEOFF_STORE", raising=False)
        assert Store().local == tmp_path / ".bakeoff"
        monkeypatch.setenv("BAKEOFF_STORE", str(tmp_path / "other"))
        assert Store().local == tmp_path / "other"
        assert Store().url == str(tmp_path / "other")
        assert Store("given").local == tmp_path / "given"
        assert not list(tmp_path.iterdir()), "opening a store must not write"

    def test_remote_keeps_artifacts_local(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = Store("memory://somewhere")
        assert store.url == "memory://somewhere"
        assert store.local == tmp_path / ".bakeoff"
        assert store.work("trials", "k").is_relative_to(tmp_path / ".bakeoff")

    def test_a_later_change_of_folder_does_not_move_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        store = Store("store")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.put("trials", "k", RECORD)
        assert (tmp_path / "store" / "trials" / "k.json").exists()

    def test_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "store").write_text("mine")
        with pytest.raises(StoreError, match=r"store is a file.*--store"):
            Store(tmp_path / "store")
        with pytest.raises(StoreError, match="--store"):
            Store(tmp_path / "store" / "below").put("trials", "k", RECORD)
        assert (tmp_path / "store").read_text() == "mine"

    def test_unknown_protocol(self) -> None:
        with pytest.raises(UsageError, match=r"nope://x is unknown; use one of .*memory.*s3"):
            Store("nope://x")

    def test_missing_package(self) -> None:
        if importlib.util.find_spec("s3fs"):
            pytest.skip("s3fs is installed here")
        with pytest.raises(UsageError, match="pip install s3fs"):
            Store("s3://bucket/results")

    def test_unreachable_remote(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError("no credentials")

        store = Store(f"memory://{uuid.uuid4()}")
        for call in ("cat_file", "pipe_file", "ls"):
            monkeypatch.setattr(MemoryFileSystem, call, fail)
        for use in (
            lambda: store.get("trials", "k"),
            lambda: store.put("trials", "k", {}),
            lambda: store.keys("trials"),
        ):
            with pytest.raises(
                StoreError, match=r"cannot be reached: RuntimeError: no credentials; check .*BAKEOFF_STORE"
            ):
                use()

    def test_default_notice(self, capsys: pytest.CaptureFixture[str]) -> None:
        print_notice("a sentence")
        assert capsys.readouterr().err == "bakeoff: a sentence\n"


class TestRecords:
    def test_round_trip(self, url: str) -> None:
        store = Store(url)
        assert store.get("trials", "k") is None
        assert store.keys("trials") == []
        assert list(store.records("trials")) == []
        store.put("trials", "k", RECORD)
        store.put("trials", "j", {"seed": 1})
        store.put("comparisons", "k", {})
        assert Store(url).get("trials", "k") == RECORD
        assert store.keys("trials") == ["j", "k"]
        assert list(store.records("trials")) == [{"seed": 1}, RECORD]
        store.put("trials", "j", {"seed": 2})
        assert store.get("trials", "j") == {"seed": 2}
        assert store.get("comparisons", "k") == {}

    def test_fields_stand_at_the_top_of_the_file(self, store: Store) -> None:
        store.put("trials", "k", RECORD)
        content = json.loads(path_of(store, "trials", "k").read_text())
        assert {"schema", "checksum", *RECORD} == set(content)
        assert content["args"] == {"rank": 8}

    @pytest.mark.parametrize("field", ["schema", "checksum", "Method", "", "a b"])
    def test_field_names(self, store: Store, field: str) -> None:
        with pytest.raises(UsageError, match="cannot name a field"):
            store.put("trials", "k", {field: 1})

    def test_no_json(self, store: Store) -> None:
        with pytest.raises(UsageError, match=r"\['loss'\] is nan"):
            store.put("trials", "k", {"loss": float("nan")})
        assert store.keys("trials") == []

    @pytest.mark.parametrize(
        ("kind", "key"),
        [
            ("../up", "k"),
            ("trials", "../k"),
            ("trials", ".k"),
            ("trials", "a/b"),
            ("", "k"),
            ("work", "k"),
            ("Trials", "k"),
        ],
    )
    def test_names(self, store: Store, kind: str, key: str) -> None:
        for use in (store.get, store.work, store.artifact, store.discard_work):
            with pytest.raises(UsageError, match="cannot name"):
                use(kind, key)

    def test_newer_schema_is_refused_and_stays(self, store: Store, notices: list[str]) -> None:
        store.put("trials", "k", {"seed": 1})
        content = {"schema": 2, "something": "new"}
        checksum = hashlib.sha256(files.canonical(content)).hexdigest()
        path_of(store, "trials", "k").write_bytes(files.canonical({**content, "checksum": checksum}))
        before = path_of(store, "trials", "k").read_bytes()
        with pytest.raises(StoreError, match="newer bakeoff; update"):
            store.get("trials", "k")
        assert path_of(store, "trials", "k").read_bytes() == before
        assert not notices


class TestDamage:
    """A damaged record is either seen, and kept aside, or it still holds the same."""

    def check(self, store: Store, notices: list[str], damaged: bytes) -> bool:
        path = path_of(store, "trials", "k")
        path.write_bytes(damaged)
        notices.clear()
        found = store.get("trials", "k")
        if found is not None:
            assert found == RECORD
            assert not notices
            return False
        assert not path.exists()
        (kept,) = [entry for entry in path.parent.iterdir() if ".damaged-" in entry.name]
        assert kept.name == "k.json.damaged-1"
        assert kept.read_bytes() == damaged
        assert len(notices) == 1
        assert "damaged-1" in notices[0]
        kept.unlink()
        return True

    @pytest.fixture
    def whole(self, store: Store) -> bytes:
        store.put("trials", "k", RECORD)
        return path_of(store, "trials", "k").read_bytes()

    def test_truncated_at_every_byte(self, store: Store, notices: list[str], whole: bytes) -> None:
        seen = [self.check(store, notices, whole[:length]) for length in range(len(whole))]
        assert all(seen[:-1])  # only the final line break can go without loss

    def test_every_bit_flipped(self, store: Store, notices: list[str], whole: bytes) -> None:
        seen = []
        for bit in range(8 * len(whole)):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            seen.append(self.check(store, notices, bytes(flipped)))
        assert all(seen)

    @pytest.mark.parametrize(
        "damaged",
        [b"", b"null", b"[]", b"{}", b'{"a":NaN}', b'{"a":1e999}', b"\xff\xfe", b"[" * 100_000, b'{"a":"\\ud83d"}'],
    )
    def test_other_contents(self, store: Store, notices: list[str], whole: bytes, damaged: bytes) -> None:
        assert self.check(store, notices, damaged)

    def test_swapped_with_zeros(self, store: Store, notices: list[str], whole: bytes) -> None:
        assert self.check(store, notices, bytes(len(whole)))

    def test_each_is_kept(self, url: str, notices: list[str]) -> None:
        store = Store(url, notice=notices.append)
        for number in (1, 2, 3):
            store._place.write("trials/k.json", b"%d" % number)
            assert store.get("trials", "k") is None
        assert [store._place.read(f"trials/k.json.damaged-{number}") for number in (1, 2, 3)] == [b"1", b"2", b"3"]
        assert store.keys("trials") == []
        store.put("trials", "k", RECORD)
        assert store.get("trials", "k") == RECORD

    def test_read_only(self, store: Store, notices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        (store.local / "trials").mkdir(parents=True)
        path_of(store, "trials", "k").write_text("damaged")

        def fail(*_: object) -> None:
            raise OSError(errno.EROFS, "read-only")

        monkeypatch.setattr(os, "rename", fail)
        assert store.get("trials", "k") is None
        assert "left where it is" in notices[0]
        assert path_of(store, "trials", "k").read_text() == "damaged"


class TestFailingDisk:
    @pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
    def test_nothing_is_lost(self, store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        store.put("trials", "k", RECORD)
        real = os.open

        def fail(path: Any, flags: int, *rest: Any, **options: Any) -> int:
            if flags & os.O_CREAT:
                raise OSError(number, os.strerror(number), path)
            return real(path, flags, *rest, **options)

        def fail_mkdir(path: Any, *_: object, **__: object) -> None:
            raise OSError(number, os.strerror(number), path)

        with monkeypatch.context() as patch:
            patch.setattr(os, "open", fail)
            patch.setattr(os, "mkdir", fail_mkdir)
            for use in (lambda: store.put("trials", "k", {}), lambda: store.work("trials", "k")):
                with pytest.raises(StoreError, match=r"cannot write .*store.*--store DIR or set BAKEOFF_STORE"):
                    use()
            with pytest.raises(StoreError, match="BAKEOFF_STORE"), store.lock("trials", "k"):
                pytest.fail("there is no lock")
        assert store.get("trials", "k") == RECORD

    def test_real_write_failure(self, store: Store) -> None:
        store.put("trials", "k", RECORD)
        code = (
            "import sys; from bakeoff.store import Store\n"
            "Store(sys.argv[1]).put('trials', 'k', {'text': 'x' * 100_000})"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(store.local)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        )
        assert "StoreError: cannot write" in done.stderr
        assert store.get("trials", "k") == RECORD
        assert os.listdir(store.local / "trials") == ["k.json"]

    def test_killed_writer(self, store: Store, notices: list[str]) -> None:
        code = """
import sys, itertools
from bakeoff.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
for n in itertools.count(): store.put("trials", f"k{n % 3}", {"numbers": [n] * 5000})
"""
        store.put("trials", "k0", {"numbers": [0] * 5000})
        draw = random.Random(0)
        for _ in range(20):
            process = start(code, store.local)
            time.sleep(draw.uniform(0, 0.05))
            process.kill()
            process.communicate()
            for record in store.records("trials"):
                assert len(record["numbers"]) == 5000
                assert len(set(record["numbers"])) == 1
        assert not notices
        Store(store.local)
        assert set(os.listdir(store.local / "trials")) <= {"k0.json", "k1.json", "k2.json"}


HOLD = """
import sys, time
from bakeoff.store import Store
with Store(sys.argv[1]).lock("trials", "k"):
    print("held", flush=True)
    time.sleep(60)
"""

COUNT = """
import os, sys, time
from bakeoff.store import Store
store = Store(sys.argv[1], notice=lambda sentence: None)
print("ready", flush=True)
for _ in range(20):
    with store.lock("trials", "k"):
        alone = os.open(sys.argv[2], os.O_CREAT | os.O_EXCL)
        record = store.get("trials", "k") or {"count": 0}
        time.sleep(0.002)
        store.put("trials", "k", {"count": record["count"] + 1})
        os.close(alone)
        os.unlink(sys.argv[2])
"""


class TestLock:
    def test_two_processes_never_at_once(self, store: Store, tmp_path: Path) -> None:
        processes = [start(COUNT, store.local, tmp_path / "alone") for _ in range(2)]
        for process in processes:
            _, text = process.communicate(timeout=60)
            assert process.returncode == 0, text
        assert store.get("trials", "k") == {"count": 40}

    def test_busy_until_the_holder_is_killed(self, store: Store) -> None:
        holder = start(HOLD, store.local)
        with pytest.raises(Busy, match="working on trials/k"), store.lock("trials", "k", blocking=False):
            pytest.fail("the lock is held")
        with store.lock("trials", "another", blocking=False):
            pass
        holder.kill()
        holder.communicate()
        assert holder.returncode == -signal.SIGKILL
        with store.lock("trials", "k", blocking=False):
            pass

    def test_waiting_ends_when_the_holder_is_killed(self, store: Store) -> None:
        holder = start(HOLD, store.local)
        told = []

        def kill_holder(sentence: str) -> None:
            told.append(sentence)
            holder.kill()

        store.notice = kill_holder
        with store.lock("trials", "k"):
            assert holder.wait(timeout=10) == -signal.SIGKILL
        holder.communicate()
        assert len(told) == 1
        assert "waiting" in told[0]

    def test_threads(self, store: Store) -> None:
        inside, together, most = threading.Lock(), 0, 0

        def run() -> None:
            nonlocal together, most
            with store.lock("trials", "k"):
                with inside:
                    together += 1
                    most = max(most, together)
                time.sleep(0.01)
                with inside:
                    together -= 1

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_thread_is_busy(self, store: Store) -> None:
        found: list[BaseException] = []

        def run() -> None:
            try:
                with store.lock("trials", "k", blocking=False):
                    pass
            except Busy as error:
                found.append(error)

        with store.lock("trials", "k"):
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        assert len(found) == 1

    def test_freed_after_an_error(self, store: Store) -> None:
        with pytest.raises(RuntimeError), store.lock("trials", "k"):
            raise RuntimeError
        with store.lock("trials", "k", blocking=False):
            pass


class TestFolders:
    def test_work(self, store: Store) -> None:
        folder = store.work("trials", "k")
        assert folder.is_dir()
        (folder / "step-1").mkdir()
        assert store.work("trials", "k") == folder
        assert (folder / "step-1").is_dir()
        store.discard_work("trials", "k")
        assert not folder.exists()
        store.discard_work("trials", "k")

    def test_artifact(self, store: Store) -> None:
        path = store.artifact("trials", "k")
        assert not store.local.exists()
        with files.replace_folder(path) as folder:
            (folder / "model.safetensors").write_text("weights")
        assert [entry.name for entry in store.artifact("trials", "k").iterdir()] == ["model.safetensors"]

    def test_opening_puts_back_what_a_killed_process_moved_aside(self, store: Store) -> None:
        path = store.artifact("trials", "k")
        code = """
import os, sys
from bakeoff.files import replace_folder
for text in "old", "new":
    with replace_folder(sys.argv[1]) as folder:
        (folder / "model").write_text(text)
        if text == "new":
            rename = os.rename
            os.rename = lambda *names: (rename(*names), os.kill(os.getpid(), 9))
"""
        done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not path.exists()
        Store(store.local)
        assert os.listdir(path.parent) == ["k"]
        assert (path / "model").read_text() == "old"


class TestQuery:
    def test_rows_and_columns(self, url: str) -> None:
        store = Store(url)
        store.put("trials", "k1", RECORD)
        store.put("trials", "k2", {**RECORD, "seed": 1, "metrics": {"loss": 3}, "date": "2026-01-01"})
        store.put("verdicts", "v", {"holds": True})
        rows = store.query("SELECT key, seed, metrics.loss, args.rank, date FROM trials ORDER BY seed")
        assert rows.fetchall() == [("k1", 0, 2.5, 8, None), ("k2", 1, 3.0, 8, "2026-01-01")]
        assert rows.columns == ["key", "seed", "loss", "rank", "date"]
        assert store.query("SELECT key, holds FROM verdicts").fetchall() == [("v", True)]

    def test_empty(self, url: str) -> None:
        store = Store(url)
        for kind in ("trials", "comparisons", "studies"):
            assert store.query(f"SELECT * FROM {kind}").fetchall() == []
        with pytest.raises(UsageError, match=r"trials \(0 records\)"):
            store.query("SELECT method FROM trials")

    def test_damaged_files_do_not_count(self, url: str, notices: list[str]) -> None:
        store = Store(url, notice=notices.append)
        store.put("trials", "whole", RECORD)
        store._place.write("trials/broken.json", b'{"seed": 3')
        store._place.write("trials/notes.txt", b"mine")
        store._place.write("readme", b"mine")
        for _ in range(2):
            assert store.query("SELECT key FROM trials").fetchall() == [("whole",)]
        assert len(notices) == 1

    def test_awkward_values(self, store: Store) -> None:
        awkward = {
            "text": 'it\'s "quoted" \x00 ß 𝄞',
            "names": {"it's": 1, 'a"b': 2},
            "cased": {"n": 1, "N": 2},
            "unnamed": {"": 1},
            "mixed": [1, "a", None],
            "large": 2**64 - 1,
            "empty": {},
            "when": "2026-01-01T00:00:00+00:00",
        }
        store.put("trials", "k", awkward)
        store.put("trials", "other", {"mixed": 3, "text": None, "key": "given"})
        (row,) = store.query("SELECT text, names, cased, large, \"when\" FROM trials WHERE key = 'k'").fetchall()
        assert row == (awkward["text"], awkward["names"], '{"N":2,"n":1}', 2**64 - 1, awkward["when"])
        assert store.query("SELECT count(*) FROM trials WHERE key = 'given'").fetchall() == [(1,)]

    @pytest.mark.parametrize("sql", ["SELEC", "", "SELECT * FROM nowhere", "SELECT nothing FROM trials"])
    def test_wrong_sql(self, store: Store, sql: str) -> None:
        with pytest.raises(UsageError) as caught:
            store.query(sql)
        assert "\n" not in str(caught.value)

    def test_nothing_is_fetched_from_the_network(self, store: Store) -> None:
        with pytest.raises(UsageError, match="httpfs"):
            store.query("SELECT * FROM 'https://example.invalid/a.csv'")

    def test_duckdb_reads_the_files_themselves(self, store: Store, notices: list[str]) -> None:
        store.put("trials", "k1", RECORD)
        store.put("trials", "k2", {"seed": 1, "other": 2})
        path_of(store, "trials", "k3").write_text("damaged")
        assert store.get("trials", "k3") is None
        sql = f"SELECT seed, method, other FROM read_json_auto('{store.local}/trials/*.json', union_by_name=true)"
        assert sorted(duckdb.connect().execute(sql).fetchall()) == [(0, "lora", None), (1, None, 2)]
