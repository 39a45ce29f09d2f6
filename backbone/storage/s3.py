"""The store on object storage (``s3://bucket/prefix``): the same keys and bytes, safe for writers on many hosts.

There is no lock that dies with its holder, so there is none: every write says what it was made from. `exclusive` opens
a transaction: the first stat or read of a key pins the version that the caller works from, and `replace` puts only if
the object still has that version (create-if-absent, or compare-and-swap on the etag). Whoever was overtaken gets
`OvertakenError`, with nothing changed, and does it again in a new transaction. A put is atomic, so a killed writer
leaves nothing behind, and rows and their coverage are still one object.

Outside a transaction, a listing of the series' folder answers `stat` for a second, and objects read lately come from a
bounded local cache, by etag, each checked before it is used. Reads may thus be a second old; writes never are.

The address comes from the settings, endpoint and credentials from the standard environment (``AWS_…``, or the role of
the host); they are neither kept nor shown here. `_lock` guards the listings and the series locks of this process's
threads; no request is made while it is held.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from backbone.clock import Clock
from backbone.errors import InputError, StoreBusyError, StoreError
from backbone.locks import RUN_LOCK, renew_after_fork
from backbone.settings import cache_folder, from_environment, is_address, parse_place
from backbone.storage.coverage import Coverage
from backbone.storage.files import Blob, Files, LocalFiles, Version
from backbone.storage.layout import (
    CANDLES,
    QUIET,
    SNAPSHOTS,
    parse_partition_key,
    parse_sidecar_key,
)
from backbone.storage.partition import Partition, encode_coverage, encode_partition
from backbone.storage.series_locks import OvertakenError

__all__ = ["LocalCache", "ObjectFiles", "open_files", "scan_options"]

_FRESH_S = 1.0  # how old a listing may be that answers a reader
_TIMEOUT_S = 30.0
_RETRIES = 3
_FEW_FOLDERS = 8  # of more, one listing of all is cheaper
_BLANK_BYTES = 8192  # a blank is smaller than this


def open_files(data_dir: str, clock: Clock, *, cache_bytes: int = 4 << 30) -> Files:
    """The files at `data_dir`, a folder or ``s3://bucket/prefix``.

    Raises `InputError` without the extra, and `StoreError` for a bucket that is not there or refuses.
    """
    if not is_address(data_dir):
        return LocalFiles(Path(data_dir), clock)
    folder = cache_folder("objects", f"{_endpoint() or ''} {data_dir.rstrip('/')}")
    files = ObjectFiles(data_dir, clock, LocalCache(folder, cache_bytes))
    files.check()
    return files


def scan_options(data_dir: str) -> dict[str, str] | None:
    """What another engine needs to read `data_dir` as we do (never credentials); None for a folder."""
    if not is_address(data_dir):
        return None
    endpoint = _endpoint()
    if endpoint is None:
        return {}
    return {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}


def _endpoint() -> str | None:
    return from_environment("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class LocalCache:
    """Whole objects on the local disk, by key and etag; bounded, oldest use first out. Losing it costs requests.

    Processes may share it: a file is written under another name and renamed. What is read back is checked, since the
    disk is not the store's. A disk that refuses is done without.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._added = limit_bytes // 8  # what earlier processes left is counted at the first put

    def get(self, key: str, version: Version) -> bytes | None:
        """The object's bytes; None where they are not here, or not what was put."""
        path = self._path(key, version)
        try:
            data = path.read_bytes()
            if len(data) < 4 or zlib.crc32(data[4:]) != int.from_bytes(data[:4], "big"):
                path.unlink(missing_ok=True)
                raise FileNotFoundError
            os.utime(path)
        except OSError:
            return None
        return data[4:]

    def put(self, key: str, version: Version, data: bytes | memoryview) -> None:
        """Keep an object."""
        path = self._path(key, version)
        tmp = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        with suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            tmp.write_bytes(zlib.crc32(data).to_bytes(4, "big") + data)
            tmp.replace(path)
            self._trim(len(data))

    def _path(self, key: str, version: Version) -> Path:
        return self._folder / hashlib.blake2b(f"{key} {version[0]}".encode(), digest_size=16).hexdigest()

    def _trim(self, added: int) -> None:
        self._added += added
        if self._added < self._limit // 8:
            return
        self._added = 0
        found = []
        for path in self._folder.iterdir():
            with suppress(OSError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, facts.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._limit * 7 // 8:
                return
            path.unlink(missing_ok=True)
            total -= size


class _Transaction:
    """What one holder of a series works from: the version of each key that it asked for, pinned."""

    def __init__(self) -> None:
        self.folders: set[str] = set()
        self.pinned: dict[str, Version | None] = {}


class _Listing(NamedTuple):
    """The objects of one folder at one time."""

    versions: dict[str, Version]
    at_s: float


class ObjectFiles(Files):
    """Files under one address. Constructing connects to nothing; `check` says whether it can be used.

    One class because every method shares the connection, the listings and the transactions.
    """

    def __init__(self, url: str, clock: Clock, cache: LocalCache, *, lock_timeout_s: float = 30.0) -> None:
        self._url = parse_place(url)
        super().__init__(clock, lock_timeout_s, is_snapshot=self._url.split("/")[-2] == SNAPSHOTS)
        self._cache = cache
        self._store: Any = None
        self._pid = os.getpid()
        self._renew()
        renew_after_fork(self, ObjectFiles._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._listings: dict[str, _Listing] = {}
        self._series_locks: dict[str, Any] = {}
        self._open = threading.local()  # the transaction of each thread
        self._blanks: dict[Version, bool] = {}  # objects that are small enough to be one

    @contextmanager
    def _service(self, verb: str, key: str = "") -> Iterator[Any]:
        """The store of `obstore`, connected on first use, whose errors inside are a `StoreError`: cannot `verb` it."""
        store = self._connected()
        from obstore.exceptions import BaseError

        try:
            with RUN_LOCK.waiting():
                yield store
        except (BaseError, OSError, ValueError) as exc:
            raise StoreError(f"cannot {verb} {self.address(key)}: {_reason(exc)}", path=self.address(key)) from exc

    def _connected(self) -> Any:
        if self._store is not None and self._pid != os.getpid():
            raise StoreError(
                f"{self._url} was opened before this process was forked, and its connections do not cross a fork: "
                'start workers with "spawn", or make the client in them',
                path=self._url,
            )
        if self._store is None:
            try:
                from obstore.store import S3Store
            except ImportError as exc:
                allowed = "available only with the extra: pip install 'backbone[s3]'"
                raise InputError("data_dir", "s3://…", allowed) from exc
            limit, where = timedelta(seconds=_TIMEOUT_S), dict[str, Any]()
            options: Any = {"timeout": limit, "connect_timeout": timedelta(seconds=5)}
            if (endpoint := _endpoint()) is not None:
                where["endpoint"] = endpoint
                options["allow_http"] = endpoint.startswith("http://")
            retries: Any = {"max_retries": _RETRIES, "retry_timeout": limit}
            self._store = S3Store.from_url(self._url, client_options=options, retry_config=retries, **where)
            self._pid = os.getpid()
        return self._store

    def check(self) -> None:
        """See that the bucket is there and lets us list; raises one `StoreError` that says which is wrong."""
        with self._service("use") as store:
            store.list_with_delimiter(prefix=CANDLES)

    # -- reading -------------------------------------------------------------------------------------------------

    def address(self, key: str) -> str:
        return f"{self._url}/{key}" if key else self._url

    def stat(self, key: str) -> Version | None:
        """The version of an object; None where there is none, or a blank. Inside `exclusive` it is pinned."""
        version = self._version(key)
        return None if version is None or self._is_blank(key, version) else version

    def _is_blank(self, key: str, version: Version) -> bool:
        """Whether an object is what `move` leaves behind: it holds nothing, and only writers need to know of it."""
        if version[2] > _BLANK_BYTES:
            return False
        known = self._blanks.get(version)
        if known is None:
            blank, blob = _blank(key), None
            if blank is not None and len(blank) == version[2]:
                blob = self._bytes(key, version)
            known = self._blanks[version] = blob is not None and blob.data == blank
        return known

    def _version(self, key: str) -> Version | None:
        mine = self._transaction()
        if mine is None:
            return self._listing(_folder_of(key)).versions.get(key)
        if key not in mine.pinned:
            folder = _folder_of(key)
            if folder not in mine.folders:
                mine.pinned = {**self._listing(folder, max_age_s=-1.0).versions, **mine.pinned}
                mine.folders.add(folder)
            mine.pinned.setdefault(key, None)
        return mine.pinned[key]

    def _listing(self, folder: str, max_age_s: float = _FRESH_S) -> _Listing:
        now = self.clock.monotonic()
        with self._lock:
            known = self._listings.get(folder)
        if known is not None and now - known.at_s <= max_age_s:
            return known
        versions: dict[str, Version] = {}
        with self._service("list", folder) as store:
            for batch in store.list(prefix=folder):
                versions |= {found["path"]: (str(found["e_tag"]), 0, int(found["size"])) for found in batch}
        listing = _Listing(versions, now)
        with self._lock:
            self._listings[folder] = listing
        return listing

    def read(self, key: str) -> Blob | None:
        version = self._version(key)
        return None if version is None else self._bytes(key, version)

    def _bytes(self, key: str, version: Version) -> Blob | None:
        """An object's bytes, from the local cache or the service; None where there is none any more."""
        cached = self._cache.get(key, version)
        if cached is not None:
            return Blob(cached, version)
        with self._service("read", key) as store, suppress(FileNotFoundError):
            answer = store.get(key)
            data = answer.bytes().to_bytes()
            version = str(answer.meta["e_tag"]), 0, len(data)
            self._cache.put(key, version, data)
            self._remember(key, version)
            return Blob(data, version)
        self._remember(key, None)
        return None

    def part(self, key: str, offset: int, most: int) -> Blob | None:
        version = self._version(key)
        if version is None:
            return None
        size = version[2]
        start = min(offset, size) if offset >= 0 else max(0, size + offset)
        end = min(start + most, size)
        cached = self._cache.get(key, version)
        if cached is not None or start == end:
            return Blob((cached or b"")[start:end], version)
        with self._service("read", key) as store, suppress(FileNotFoundError):
            answer = store.get(key, options={"range": (start, end)})
            return Blob(answer.bytes().to_bytes(), (str(answer.meta["e_tag"]), 0, answer.meta["size"]))
        return None

    def list(self, folder: str) -> list[str]:
        if folder.startswith(f"{CANDLES}/") and _folder_of(f"{folder}/x") == folder:
            depth = len(folder) + 1
            return sorted({key[depth:].split("/")[0] for key in self._listing(folder).versions})
        with self._service("list", folder) as store:
            found = store.list_with_delimiter(prefix=folder)
        names = [*found["common_prefixes"], *(item["path"] for item in found["objects"])]
        return sorted(name.rsplit("/", 1)[-1] for name in names)

    def refresh(self, folder: str = "") -> None:
        with self._lock:
            for name in [name for name in self._listings if name.startswith(folder)]:
                del self._listings[name]

    def walk(self, folder: str) -> Iterator[str]:
        """Keys of all objects below a folder, blanks left out, sorted."""
        for key, version in sorted(self._listing(folder, max_age_s=-1.0).versions.items()):
            if not self._is_blank(key, version):
                yield key

    def blanks(self, keys: Iterable[str]) -> Sequence[str]:
        """Those of `keys` that hold a blank, no older than this call."""
        wanted = list(keys)
        folders = {_folder_of(key) for key in wanted}
        if len(folders) > _FEW_FOLDERS:
            folders = {posixpath.commonpath(folders)}
        versions: dict[str, Version] = {}
        for folder in folders:
            versions |= self._listing(folder, max_age_s=-1.0).versions
        return [key for key in wanted if key in versions and self._is_blank(key, versions[key])]

    def series_folders(self, folder: str) -> Iterator[str]:
        """The folders of series below an exchange's; one listing of it all, since blanks have folders too."""
        yield from sorted({key.rsplit("/", 2)[0] for key in self.walk(folder)})

    # -- changing ------------------------------------------------------------------------------------------------

    def replace(
        self, key: str, data: bytes | memoryview, on_version: Callable[[Version], object] | None = None
    ) -> Version:
        """Make `data` the object's content, if it still has the version that is pinned. Call it inside `exclusive`.

        `on_version` is called with the new version, which the service makes up.

        Raises `OvertakenError` where another writer was faster, and `StoreError`; nothing is changed then.
        """
        self._refuse_snapshot("write", key)
        pinned = self._version(key)
        mode = "create" if pinned is None else {"e_tag": pinned[0]}
        content = bytes(data)
        with self._service("write", key) as store:
            from obstore.exceptions import AlreadyExistsError, PreconditionError

            try:
                done = store.put(key, content, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as exc:
                self._forget(key)
                raise OvertakenError(
                    f"{self.address(key)} was changed by another writer meanwhile",
                    path=self.address(key),
                    holder="another host or process",
                ) from exc
        version = str(done["e_tag"]), 0, len(content)
        self._cache.put(key, version, content)
        self._remember(key, version)
        if on_version is not None:
            on_version(version)
        return version

    def _remember(self, key: str, version: Version | None) -> None:
        """What is now known of a key, for readers of this process and for the transaction that is open."""
        mine = self._transaction()
        if mine is not None:
            mine.pinned[key] = version
        with self._lock:
            listing = self._listings.get(_folder_of(key))
            if listing is not None and version is not None:
                listing.versions[key] = version
            elif listing is not None:
                listing.versions.pop(key, None)

    def _forget(self, key: str) -> None:
        with self._lock:
            self._listings.pop(_folder_of(key), None)

    @contextmanager
    def exclusive(self, lock_key: str, timeout_s: float | None = None) -> Iterator[None]:
        """A transaction: one thread of this process at a time; other processes are noticed when writing."""
        self._refuse_snapshot("lock", lock_key)
        timeout_s = self._lock_timeout_s if timeout_s is None else timeout_s
        with self._lock:
            mine = self._series_locks.setdefault(lock_key, threading.RLock())
        if not mine.acquire(timeout=timeout_s):
            path = self.address(lock_key)
            raise StoreBusyError(f"{path} is held by another thread", path=path, holder=f"process {os.getpid()}")
        outer = self._transaction()
        self._open.transaction = outer or _Transaction()
        try:
            yield
        finally:
            self._open.transaction = outer
            mine.release()

    def _transaction(self) -> _Transaction | None:
        open_one: _Transaction | None = getattr(self._open, "transaction", None)
        return open_one

    def append(self, key: str, data: bytes) -> None:
        """Add `data` to the end of an object, by writing it anew. Call it inside `exclusive`."""
        blob = self.read(key)
        self.replace(key, (b"" if blob is None else blob.data) + data)

    def link(self, key: str, target: str) -> None:
        with self._service("link", key) as store:
            store.copy(key, target)
        self._forget(target)

    def move(self, key: str, target: str) -> None:
        """Copy an object to another key and leave one that covers nothing: removing could hit a newer one.

        Call it inside `exclusive`. What is not ours is removed.
        """
        self.link(key, target)
        blank = _blank(key)
        if blank is None:
            self.remove(key)
        else:
            self.replace(key, blank)

    def remove(self, key: str) -> None:
        self._refuse_snapshot("remove", key)
        with self._service("remove", key) as store, suppress(FileNotFoundError):
            store.delete(key)
        self._remember(key, None)

    def __repr__(self) -> str:
        return f"ObjectFiles({self._url!r})"


def _folder_of(key: str) -> str:
    """The folder that is listed to answer for `key`: a whole series, or the key's own."""
    parts = key.split("/")
    depth = 4 if parts[0] == CANDLES and len(parts) > 4 else 3 if parts[0] == QUIET and len(parts) > 3 else -1
    return "/".join(parts[:depth])


def _blank(key: str) -> bytes | None:
    """An object that takes a key's place and covers nothing; None for a key that is not ours."""
    place = parse_partition_key(key)
    if place is not None:
        return bytes(encode_partition(Partition.empty(), *place).data)
    quiet = parse_sidecar_key(key) if key.startswith(f"{QUIET}/") else None
    return None if quiet is None else encode_coverage(Coverage(), quiet)


def _reason(exc: BaseException) -> str:
    """What is wrong, in one line, from what the server or the connection said."""
    text = str(exc)
    for sign, meaning in (
        ("NoSuchBucket", "the bucket does not exist"),
        ("InvalidAccessKeyId", "the credentials are refused (unknown access key)"),
        ("SignatureDoesNotMatch", "the credentials are refused (wrong secret key)"),
        ("ExpiredToken", "the credentials have expired"),
        ("AccessDenied", "the credentials are not allowed to"),
        ("401", "the credentials are refused"),
        ("403", "the credentials are refused, or not allowed to"),
        ("error trying to connect", "the endpoint does not answer"),
        ("HTTP error", "the endpoint does not answer"),
    ):
        if sign in text:
            return meaning
    return text.split("\n", 1)[0][:300]
