"""Is this machine ready? A line a check, with what to do where something is wrong.

The lines are made to be pasted into a bug report: folders below the home folder begin with ``~``, addresses come
without user and password, and neither host name, markets nor candles are in them. The checks cost about ten requests.
"""

from __future__ import annotations

import codecs
import contextlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import filelock

import backbone
from backbone.api.session import Session
from backbone.coordinator.quota.ledger import MachineLimiter
from backbone.errors import BackboneError, RateLimitedError, UnreachableError
from backbone.model import Priority
from backbone.routing.wire import tickers_ask
from backbone.settings import named_proxy, proxy_of
from backbone.storage.files import why_no_folder_sync, why_no_sync
from backbone.storage.layout import CANDLES
from backbone.storage.series_locks import why_no_locks

__all__ = ["Check", "examine"]

_PACKAGES = (
    "numpy", "pandas", "polars", "pyarrow", "requests", "websocket-client", "joblib", "ratelimit", "msgspec",
    "filelock", "platformdirs", "tqdm", "tzdata",
)  # fmt: skip
_WIDGETS = ("ipywidgets", "anywidget", "IPython")
_PROBE_BYTES = 4 << 20
_LITTLE_SPACE = 1 << 30
_NO_SPACE = 64 << 20
_CLOCK_NOTE_S, _CLOCK_WRONG_S = 1.5, 30.0
_TRIES = 5
_SLOW_S = 0.5
_CONNECT_S = 5.0  # what a socket may take to open


@dataclass(frozen=True)
class Check:
    """One line. ``state`` is ``"ok"``, ``"note"`` (works, but not as well as it could) or ``"wrong"``.

    ``found`` is what was seen; ``advice`` is what to do, empty where nothing is to be done.
    """

    name: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}[self.state]
        return f"{mark}  {self.name:<10}  {self.found}" + (f"\n       {'':<10}  → {self.advice}" if self.advice else "")


def examine(session: Session) -> Iterator[Check]:
    """The checks of this machine, one after the other, as they are made.

    Parameters
    ----------
    session : of the client whose exchange, folder and quota are checked.

    Examples
    --------
    >>> from backbone import Backbone
    >>> with Backbone.demo() as demo:
    ...     checks = list(examine(demo.session))
    >>> [check.name for check in checks if check.state == "wrong"]
    []
    """
    for name, check in _CHECKS.items():
        try:
            yield from check(session)
        except BackboneError as exc:
            yield Check(name, "wrong", _private(str(exc)), _advice(exc))


def _advice(error: BackboneError) -> str:
    if isinstance(error, UnreachableError):
        return "check the network, the proxy and its certificates; --rest-url names another host"
    if isinstance(error, RateLimitedError):
        return f"wait {error.retry_after_s:.0f} s; another program may use this address's quota"
    return "see the message"


def _private(text: str) -> str:
    """Without the name of the user and of this machine."""
    home, host = str(Path.home()), platform.node()
    text = text.replace(home, "~") if len(home) > 1 else text
    return text.replace(host, "this machine") if len(host) > 2 else text


# -- Python and packages -----------------------------------------------------------------------------------------


def _python(_: Session) -> Iterator[Check]:
    where = f"{platform.system()} {platform.release()} {platform.machine()}"
    yield Check("python", "ok", f"Python {platform.python_version()} on {where}")  # an older one cannot import this


def _installed(check: str, names: tuple[str, ...], state: str, why: str) -> Check:
    """What is installed, with its version; in `state` where something is not."""
    held, missing = [], []
    for name in names:
        try:
            held.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(check, state, f"not installed: {', '.join(missing)}", f"{why}pip install {' '.join(missing)}")
    return Check(check, "ok", ", ".join(held))


def _packages(_: Session) -> Iterator[Check]:
    where = _private(str(Path(backbone.__file__).parent))
    yield Check("backbone", "ok", f"{backbone.__version__} in {where}")
    yield _installed("packages", _PACKAGES, "wrong", "")


def _shadow(_: Session) -> Iterator[Check]:
    """A folder or file of the package's name in the working folder is imported in its place."""
    own = Path(backbone.__file__).resolve().parent
    for there in (Path("backbone.py"), Path("backbone/__init__.py")):
        if not there.is_file() or there.resolve().parent == own:
            continue
        place = f"{there if there.name == 'backbone.py' else there.parent} in the working folder is"
        if (there.parent / Path(__file__).relative_to(own)).is_file():
            found = f"{place} a checkout, which programs that start here import"
            yield Check("shadow", "note", found, "pip install -e . makes both the same")
        else:
            advice = "rename it, or start programs in another folder"
            yield Check("shadow", "wrong", f"{place} imported instead of the package", advice)
        return
    yield Check("shadow", "ok", "nothing in the working folder takes the package's name")


def _widgets(_: Session) -> Iterator[Check]:
    yield _installed("notebook", _WIDGETS, "note", "for live tables and charts in notebooks: ")


def _console(_: Session) -> Iterator[Check]:
    name = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        "한글 · →".encode(codecs.lookup(name).name)
    except (UnicodeEncodeError, LookupError):
        yield Check("console", "note", f"{name} lacks characters: they are replaced", "set PYTHONUTF8=1")
    else:
        yield Check("console", "ok", name)


# -- the folder --------------------------------------------------------------------------------------------------


def _folder(session: Session) -> Iterator[Check]:
    if session.settings.is_remote:
        held = session.coordinator().store.size()
        yield Check("folder", "ok", f"object storage, {held['files']} files, {held['bytes'] / 1e6:.1f} MB")
        return
    folder = Path(session.settings.data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield from _on_disk(folder, session.clock.monotonic)
    except OSError as exc:
        is_read = (folder / CANDLES).is_dir()
        found = f"{folder} {'is for reading only' if is_read else 'cannot be written'}: {exc.strerror or exc}"
        advice = "choose another with --data-dir or $BACKBONE_DATA_DIR"
        if is_read:
            advice = f"what is stored is read, what is fetched is not kept; to keep it, {advice}"
        yield Check("folder", "note" if is_read else "wrong", _private(found), advice)


def _on_disk(folder: Path, now: Callable[[], float]) -> Iterator[Check]:
    probe = folder / f"_doctor-{secrets.token_hex(8)}"
    began = now()
    try:
        with probe.open("wb") as file:
            file.write(secrets.token_bytes(_PROBE_BYTES))
            file.flush()
            why = why_no_sync(file.fileno())
        rate = _PROBE_BYTES / 1e6 / max(now() - began, 1e-9)
        how = "with" if why is None else "without"
        yield Check("folder", "ok", _private(f"{folder} can be written, {rate:.0f} MB/s {how} sync"))
        yield _lock_check(probe.with_suffix(".lock"))
        yield _sync_check(folder) if why is None else _no_sync("files", why)
    finally:
        for left in (probe, probe.with_suffix(".lock")):
            with contextlib.suppress(FileNotFoundError):
                left.unlink()
    free = shutil.disk_usage(folder).free
    state = "ok" if free >= _LITTLE_SPACE else "note" if free >= _NO_SPACE else "wrong"
    advice = "" if state == "ok" else "free some, or choose another disk with --data-dir: a year of minutes takes 12 MB"
    yield Check("space", state, f"{free / 1e9:.1f} GB free", advice)


def _lock_check(path: Path) -> Check:
    why = why_no_locks(str(path.with_suffix(".probe")))
    with contextlib.ExitStack() as held:
        try:
            if why is None:
                held.enter_context(filelock.FileLock(path, timeout=0))
        except filelock.Timeout:
            why = "a free lock was refused"
        if why is not None:
            found = f"this disk has no locks ({why}): files with their owner's name serve instead"
            return Check("locks", "note", found, "a local disk is faster and surer")
        try:
            held.enter_context(filelock.FileLock(path, timeout=0))
        except filelock.Timeout:
            return Check("locks", "ok", "one writer at a time")
    return Check("locks", "wrong", "two holders of one lock at once", "keep the data folder on a local disk")


def _sync_check(folder: Path) -> Check:
    if not hasattr(os, "O_DIRECTORY"):
        return Check("sync", "ok", "files are synced; this system has no folder sync")
    why = why_no_folder_sync(str(folder))
    return Check("sync", "ok", "files and folders") if why is None else _no_sync("folders", why)


def _no_sync(what: str, why: str) -> Check:
    advice = "a power cut may cost the last seconds; a local disk keeps them"
    return Check("sync", "note", f"{what} cannot be synced here ({why})", advice)


# -- the venue ---------------------------------------------------------------------------------------------------


def _proxy(session: Session) -> Iterator[Check]:
    url = session.settings.rest_url
    named = named_proxy(url)
    if named is None:
        yield Check("proxy", "ok", "none")
    else:
        is_used = "not used" if proxy_of(url) is None else "used"
        yield Check("proxy", "ok", f"{_place(named)}, {is_used} for {urlsplit(url).hostname}")


def _place(url: str) -> str:
    """Scheme, host and port of an address: no user, no password, no path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or '?'}" + (f":{parts.port}" if parts.port else "")


def _reach(session: Session) -> Iterator[Check]:
    core, now = session.coordinator(), session.clock.monotonic
    code = core.markets.listed(fresh=True)[0].market
    taken = []
    for _ in range(_TRIES):
        began = now()
        core.request(tickers_ask([code]), Priority.CRITICAL)
        taken.append(now() - began)
    middle, place = statistics.median(taken), _place(session.settings.rest_url)
    found = f"{place} answers in {middle * 1000:.0f} ms, {_TRIES / sum(taken):.1f} requests/s one after the other"
    if middle > _SLOW_S:
        yield Check("venue", "note", found, "bulk downloads keep several requests in flight; live bots will be late")
    else:
        yield Check("venue", "ok", found)
    yield _clock_check(core.venue.offset_s(), is_own=not session.settings.is_overridden)


def _clock_check(offset_s: float | None, *, is_own: bool) -> Check:
    if offset_s is None:
        return Check("clock", "note", "the venue's replies carry no time")
    apart = abs(offset_s)
    way = "behind" if offset_s > 0 else "ahead of"
    found = f"{apart:.1f} s {way} the venue's" if apart > _CLOCK_NOTE_S else "agrees with the venue's"
    if apart <= _CLOCK_NOTE_S:
        return Check("clock", "ok", found)
    if not is_own:
        return Check("clock", "note", f"{found}, which is not the exchange's own host")
    state = "note" if apart <= _CLOCK_WRONG_S else "wrong"
    return Check("clock", state, found, "let the system set its clock (NTP); candles go by the venue's clock anyway")


def _socket(session: Session) -> Iterator[Check]:
    from backbone.api.calls.live import start_live

    core = session.coordinator()
    table = start_live(session, core.markets.listed()[0].market, ("ticker",))
    try:
        until = core.clock.monotonic() + _CONNECT_S
        while table.state != "streaming" and core.clock.monotonic() < until:
            table.wait(1, timeout_s=0.2)  # the first rows may have come from REST, before the socket was open
        state = table.state
    finally:
        table.stop()
    if state == "streaming":
        yield Check("socket", "ok", f"{_place(session.settings.ws_url)} streams")
    else:
        advice = "live tables poll instead; a proxy or firewall may stop WebSockets, see --ws-url"
        yield Check("socket", "note", f"{_place(session.settings.ws_url)}: {state}", advice)


def _quota(session: Session) -> Iterator[Check]:
    core = session.coordinator()
    now = core.scheduler.status()
    refused = sum(int(group.get("refused", 0)) for group in now["quota"].values())
    found = f"{refused} refused lately" if refused else "no refusals"
    if now["banned_s"] > 0:
        advice = f"wait {now['banned_s']:.0f} s; nothing is sent before"
        yield Check("quota", "wrong", "the venue blocks this address", advice)
    elif session.settings.quota is not None:
        yield Check("quota", "ok", f"shared by hosts through {_place(session.settings.quota)}, {found}")
    elif isinstance(core.limiter, MachineLimiter) and core.limiter.is_shared:
        yield Check("quota", "ok", _private(f"shared on this machine in {core.limiter.path.parent}, {found}"))
    else:
        advice = "set $BACKBONE_LEDGER_DIR to a folder that every program can write"
        yield Check("quota", "note", "kept for this process alone: the ledger's folder cannot be used", advice)


_CHECKS: dict[str, Callable[[Session], Iterator[Check]]] = {
    "python": _python,
    "packages": _packages,
    "shadow": _shadow,
    "notebook": _widgets,
    "console": _console,
    "folder": _folder,
    "proxy": _proxy,
    "venue": _reach,
    "socket": _socket,
    "quota": _quota,
}
