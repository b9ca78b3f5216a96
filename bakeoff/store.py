"""The store: results, models and unfinished work, kept on disk and addressed by what made them.

A store is a folder:

    KIND/KEY.json             one record; `read_json_auto('trials/*.json', union_by_name=true)` of DuckDB reads them
    KIND/KEY.json.damaged-1   a record that could not be read, moved aside
    artifacts/KIND/KEY/       a finished model
    work/KIND/KEY/            checkpoints of what is not finished
    locks/KIND/KEY.lock       held by the process that works on it

Records may stand at any fsspec URL instead (`s3://bucket/results`); the last three always stay in a local folder, so
locks guard processes that share that folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from bakeoff import files
from bakeoff.errors import StoreError, UsageError

if TYPE_CHECKING:
    import duckdb

DEFAULT_FOLDER = ".bakeoff"
KINDS = ("trials", "comparisons", "studies")  # those that `query` knows even before the first record

_SCHEMA = 1  # of a record's file; the rule of its checksum stays the same in every version
_LOCAL_KINDS = ("artifacts", "work", "locks")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_ELSEWHERE = "to use another store give --store DIR or set BAKEOFF_STORE"


class Busy(StoreError):
    """Another process, or another thread, holds the lock that was asked for without waiting."""


def address(made_by: Mapping[str, Any]) -> str:
    """The key of what `made_by` describes in full: 32 hexadecimal digits of the sha256 of its canonical JSON.

    Errors: UsageError for a value that `files.canonical` does not take.
    """
    return hashlib.sha256(files.canonical(made_by)).hexdigest()[:32]


def print_notice(sentence: str) -> None:
    """Print a sentence to standard error."""
    print(f"bakeoff: {sentence}", file=sys.stderr)


class Store:
    """Records, artifacts and unfinished work of several processes at once.

    Args:
        url: a folder or any fsspec URL; without it, that of the environment variable BAKEOFF_STORE, else `.bakeoff`.
        notice: called with a sentence about what the user should know and need not act on: a damaged record moved
            aside, a wait for another process.
    Errors: UsageError for a URL of an unknown or not installed protocol; StoreError for a path that is a file. Every
        method raises StoreError if the store cannot be read or written, and UsageError for a malformed kind or key.
        Nothing is written before the first method that writes.
    """

    url: str
    local: Path
    """The folder of artifacts, work and locks: the store itself, or `.bakeoff` where the store is remote."""

    def __init__(
        self, url: str | os.PathLike[str] | None = None, *, notice: Callable[[str], None] = print_notice
    ) -> None:
        url = os.fspath(url or os.environ.get("BAKEOFF_STORE") or DEFAULT_FOLDER)
        self.notice = notice
        self._place: _Place
        protocol, separator, path = url.partition("://")
        if separator and protocol not in ("file", "local"):
            self.local = Path(DEFAULT_FOLDER).absolute()
            self.url = url
            self._place = _Remote(url)
        else:
            self.local = Path(path if separator else url).expanduser().absolute()
            self.url = str(self.local)
            self._place = _Folder(self.local)
        if self.local.exists() and not self.local.is_dir():
            raise StoreError(f"the store {self.local} is a file, not a folder; {_ELSEWHERE}")
        self._clean()

    def _clean(self) -> None:
        for parent in (self.local, *(self.local / kind for kind in _LOCAL_KINDS)):
            with contextlib.suppress(OSError):
                for folder in parent.iterdir():
                    files.clean_temporaries(folder)

    def put(self, kind: str, key: str, record: Mapping[str, Any]) -> None:
        """Write a record, in place of an older one of the same key.

        Errors: UsageError for a field whose name is not in lower case, as it is a column of `query`, or is `schema` or
            `checksum`, which the file adds; for a value that is no JSON.
        """
        for field in record:
            if not _NAME.fullmatch(field) or field in ("schema", "checksum"):
                raise UsageError(f"{field!r} cannot name a field of a record; use a name that matches {_NAME.pattern}")
        content = {**record, "schema": _SCHEMA}
        self._place.write(_record_name(kind, key), files.canonical({**content, "checksum": _checksum(content)}) + b"\n")

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record, its fields sorted by name, or None where there is none that can be used.

        A truncated or altered file is moved aside, never deleted, and `notice` is told; the answer is then None.
        Errors: StoreError for a record that a newer version wrote.
        """
        name = _record_name(kind, key)
        data = self._place.read(name)
        if data is None:
            return None
        try:
            record = _decode(data)
        except (ValueError, RecursionError, UsageError):
            self._set_aside(kind, name)
            return None
        if record.pop("schema") > _SCHEMA:
            raise StoreError(
                f"{name} in the store {self.url} was written by a newer bakeoff; update bakeoff to read it"
            )
        return record

    def _set_aside(self, kind: str, name: str) -> None:
        taken = {f"{kind}/{entry}" for entry in self._place.names(kind)}
        number = next(n for n in range(1, len(taken) + 2) if f"{name}.damaged-{n}" not in taken)
        try:
            self._place.rename(name, f"{name}.damaged-{number}")
            where = f"kept as {name}.damaged-{number}"
        except StoreError:
            where = "left where it is, as it could not be moved aside"
        self.notice(f"{name} in the store {self.url} is damaged, {where}; what it held will be made again")

    def keys(self, kind: str) -> list[str]:
        """The sorted keys of the records of a kind."""
        _check(_NAME, kind)
        found = (name.removesuffix(".json") for name in self._place.names(kind) if name.endswith(".json"))
        return sorted(key for key in found if _KEY.fullmatch(key))

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of a kind, in the order of their keys; damaged ones are treated as in `get`."""
        for key in self.keys(kind):
            if (record := self.get(kind, key)) is not None:
                yield record

    @contextlib.contextmanager
    def lock(self, kind: str, key: str, *, blocking: bool = True) -> Iterator[None]:
        """Hold the only right, among processes and threads that share `local`, to work on this key.

        The operating system frees it when the process ends, however it ends. `notice` is told before a wait.
        Errors: Busy, with `blocking=False`, if another holds it.
        """
        import filelock

        path = self._local_path("locks", kind, f"{key}.lock")
        with _store_advice(), files.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path, fallback_to_soft=False)  # a soft lock would outlive a killed process
            try:
                lock.acquire(blocking=False)
            except filelock.Timeout:
                if not blocking:
                    raise Busy(f"another process is working on {kind}/{key}; wait until it has finished") from None
                self.notice(f"another process is working on {kind}/{key}; waiting for it")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def work(self, kind: str, key: str) -> Path:
        """The local folder, made if need be, of what is not finished."""
        path = self._local_path("work", kind, key)
        with _store_advice(), files.writing(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    def discard_work(self, kind: str, key: str) -> None:
        """Remove the folder of `work`, if there is one."""
        with _store_advice():
            files.remove_folder(self._local_path("work", kind, key))

    def artifact(self, kind: str, key: str) -> Path:
        """The local path of a finished model: whole or not there, if it is written through `files.replace_folder`."""
        return self._local_path("artifacts", kind, key)

    def _local_path(self, folder: str, kind: str, key: str) -> Path:
        _check(_NAME, kind)
        _check(_KEY, key)
        return self.local / folder / kind / key

    def query(self, sql: str) -> duckdb.DuckDBPyRelation:
        """The result of an SQL query (DuckDB's dialect), for example `SELECT method, seed FROM trials`.

        Each kind of record is a table, with a row for each record that is whole and a column for each field, plus `key`
        (unless the records have a field of that name). Text stays text, also where it looks like a date; a field with
        values of different types is JSON; a kind in `KINDS` without records has no column but `key`.
        Errors: UsageError for SQL that cannot be run.
        """
        import duckdb

        connection = duckdb.connect(
            config={"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        )
        found = [kind for kind in self._place.names("") if _NAME.fullmatch(kind) and kind not in _LOCAL_KINDS]
        counts = {kind: self._make_table(connection, kind) for kind in sorted({*KINDS, *found})}
        try:
            relation: duckdb.DuckDBPyRelation | None = connection.sql(sql)
            if relation is None:
                raise UsageError("the SQL has no result; write a SELECT")
            return relation.materialize()
        except duckdb.Error as error:
            tables = ", ".join(f"{kind} ({count} records)" for kind, count in counts.items())
            reason = str(error).splitlines()[0]
            raise UsageError(f"the SQL cannot be run: {reason}; correct it, the tables are {tables}") from error

    def _make_table(self, connection: duckdb.DuckDBPyConnection, kind: str) -> int:
        records = ((key, self.get(kind, key)) for key in self.keys(kind))
        rows = [files.canonical({"key": key, **record}).decode() for key, record in records if record is not None]
        if not rows:
            connection.execute(f'CREATE TABLE "{kind}" (key VARCHAR)')
            return 0
        connection.execute("CREATE TEMP TABLE record AS SELECT unnest($1::VARCHAR[])::JSON AS content", [rows])
        (structure,) = connection.execute("SELECT json_group_structure(content) FROM record").fetchall()[0]
        types = {field: _column_type(field_type) for field, field_type in json.loads(structure).items()}
        quoted = json.dumps(types).replace("'", "''")
        connection.execute(f"CREATE TABLE \"{kind}\" AS SELECT unnest(json_transform(content, '{quoted}')) FROM record")
        connection.execute("DROP TABLE record")
        return len(rows)


def _column_type(structure: Any) -> Any:
    """The structure with JSON in place of objects whose names differ in case only, which SQL cannot tell apart."""
    if isinstance(structure, list):
        return [_column_type(item) for item in structure]
    if isinstance(structure, dict):
        if len({name.lower() for name in structure}) < len(structure) or "" in structure:
            return "JSON"
        return {name: _column_type(item) for name, item in structure.items()}
    return structure


def _check(pattern: re.Pattern[str], name: str) -> None:
    if not pattern.fullmatch(name) or name in _LOCAL_KINDS:
        raise UsageError(f"{name!r} cannot name a record or its kind; use a name that matches {pattern.pattern}")


def _record_name(kind: str, key: str) -> str:
    _check(_NAME, kind)
    _check(_KEY, key)
    return f"{kind}/{key}.json"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(files.canonical(content)).hexdigest()


def _decode(data: bytes) -> dict[str, Any]:
    """The fields of a record's file, with `schema`. Errors: ValueError, RecursionError, UsageError if it is damaged."""
    content = json.loads(data.decode())
    if not isinstance(content, dict) or content.pop("checksum", None) != _checksum(content):
        raise ValueError("not a record with the checksum of its content")
    if not isinstance(content.get("schema"), int):
        raise ValueError("no schema version")
    return content


@contextlib.contextmanager
def _store_advice() -> Iterator[None]:
    try:
        yield
    except Busy:
        raise
    except StoreError as error:
        raise StoreError(f"{error}; {_ELSEWHERE}") from error


class _Place(Protocol):
    """Where records are. Names are relative, with `/`."""

    def read(self, name: str) -> bytes | None: ...

    def write(self, name: str, data: bytes) -> None: ...

    def names(self, folder: str) -> list[str]:
        """What is directly in a folder; nothing where there is no such folder."""

    def rename(self, name: str, new: str) -> None:
        """Move a file. No error if another process has moved it already."""


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, name: str) -> bytes | None:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(
                f"cannot read {self.root / name}: {error.strerror}; check the disk and permissions"
            ) from error

    def write(self, name: str, data: bytes) -> None:
        with _store_advice():
            files.write_bytes(self.root / name, data)

    def names(self, folder: str) -> list[str]:
        try:
            return os.listdir(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StoreError(f"cannot read {self.root / folder}: {error.strerror}; check the permissions") from error

    def rename(self, name: str, new: str) -> None:
        with files.writing(self.root / new), contextlib.suppress(FileNotFoundError):
            os.rename(self.root / name, self.root / new)


class _Remote:
    """A place that fsspec reaches. Object stores replace a file whole; elsewhere a torn one fails its checksum."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self.system, root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or error.name or "the package that fsspec names"
            raise UsageError(f"the store {url} needs a package that is missing: pip install {missing}") from error
        except ValueError as error:
            if "protocol" not in str(error).lower():
                raise UsageError(f"the store {url} cannot be used: {error}; correct it, or {_ELSEWHERE}") from error
            known = ", ".join(sorted(fsspec.available_protocols()))
            raise UsageError(f"the protocol of the store {url} is unknown; use one of {known}") from error
        except Exception as error:  # what a file system raises without credentials or connection is its own affair
            self._fail(error)
        self.root = root.rstrip("/")

    def _fail(self, error: Exception) -> NoReturn:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(
            f"the store {self.url} cannot be reached: {reason}; check address and credentials, or {_ELSEWHERE}"
        )

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(self.system.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return None
        except Exception as error:
            self._fail(error)

    def write(self, name: str, data: bytes) -> None:
        path = f"{self.root}/{name}"
        try:
            self.system.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.system.pipe_file(path, data)
        except Exception as error:
            self._fail(error)

    def names(self, folder: str) -> list[str]:
        path = f"{self.root}/{folder}".rstrip("/")
        try:
            self.system.invalidate_cache(path)
            return [entry.rstrip("/").rpartition("/")[2] for entry in self.system.ls(path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            self._fail(error)

    def rename(self, name: str, new: str) -> None:
        try:
            self.system.mv(f"{self.root}/{name}", f"{self.root}/{new}")
        except FileNotFoundError:
            pass
        except Exception as error:
            self._fail(error)
