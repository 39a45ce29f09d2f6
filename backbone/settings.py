"""Where the package's defaults live: one frozen record, each value with its unit and reason.

`resolve` reads the environment: an argument wins over it, and it wins over the default. Settings travel to other hosts
and into messages, so what must not travel is not part of them: credentials, this machine's name, the folders of its
ledger and caches. Those are read by `from_environment` at the moment of use; no other module reads the environment.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from backbone.errors import InputError
from backbone.venues import VENUES, ArchiveHosts, Venue, parse_exchange

__all__ = ["FRAMES", "Settings", "from_environment", "parse_place", "parse_zone", "resolve"]

ARCHIVE_WORD = "accept-terms"

FRAMES = ("pandas", "polars", "arrow")
_LONGEST_GRACE_S = 60.0


@dataclass(frozen=True)
class Settings:
    """Everything a client is made of; a client pickles to this."""

    exchange: str
    data_dir: str
    rest_url: str
    ws_url: str
    tz: str
    frames: str

    close_grace_s: float = 3.0
    """A candle counts as closed this long after its end: late trades were seen 54 ms past it; seconds cost nothing."""

    settle_s: float = 120.0
    """A candle fetched within this time of its close is asked once more later: late corrections happen."""

    settle_after_s: float = 600.0
    """How long after the first ask that second ask is due."""

    group_commit_s: float = 0.8
    """Finished pages reach the disk at the latest this much later: at 10 pages a second, eight a write."""

    memory_bytes: int = 256 << 20
    """Bound of the decoded partitions held in memory: some five years of 1-minute candles."""

    memo_rows: int = 20_000
    """Below this, reading Parquet is faster than loading a memoised frame."""

    markets_fresh_s: float = 600.0
    """The market list is asked again after this time; listings are rare, and a refusal refreshes it at once."""

    object_cache_bytes: int = 4 << 30
    """Bound of the local copies of objects that were read from an object store."""

    quota: str | None = None
    """Address, without a password, of the Redis that keeps one quota for several hosts; None: this machine's ledger."""

    archive: ArchiveHosts | None = None
    """The venue's bulk archive, where the user accepted its terms."""

    @property
    def venue(self) -> Venue:
        """The record of the exchange: what it serves, how fast and for how long."""
        return VENUES[self.exchange]

    @property
    def is_remote(self) -> bool:
        """Whether the candles are kept on object storage and not in a folder."""
        return is_address(self.data_dir)

    @property
    def is_overridden(self) -> bool:
        """Whether another host than the exchange's own answers (an embedded exchange, a proxy, a recording)."""
        return self.rest_url != self.venue.rest_url

    @property
    def title(self) -> str:
        """The exchange, and the host that answers in its place."""
        return f"{self.exchange} at {self.rest_url}" if self.is_overridden else self.exchange

    @property
    def store_exchange(self) -> str:
        """The store's exchange partition; candles of an overridden host never mix with the venue's own."""
        if not self.is_overridden:
            return self.exchange
        parts = urlsplit(self.rest_url)
        place = "-".join(str(part) for part in (parts.hostname, parts.port) if part)
        return f"{self.exchange}-at-" + "".join(c if c.isalnum() or c in ".-" else "-" for c in place)


def is_address(place: str) -> bool:
    """Whether candles at `place` are kept on object storage and not in a folder."""
    return "://" in place


def from_environment(*names: str) -> str | None:
    """The value of the first of these variables that is set and not empty, or None."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def is_loopback(url: str) -> bool:
    """Whether an address is this machine's own."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_of(url: str) -> str | None:
    """The proxy that the environment names for an ``http``, ``https``, ``ws`` or ``wss`` address.

    None for this machine's own addresses, whatever the variables say, and for the hosts of ``NO_PROXY``. The answer may
    hold a user and a password: never show it.
    """
    is_direct = is_loopback(url) or urllib.request.proxy_bypass(urlsplit(url).hostname or "")
    return None if is_direct else named_proxy(url)


def named_proxy(url: str) -> str | None:
    """The proxy that the environment names for addresses such as this one, whether or not it is used for this one."""
    scheme, proxies = urlsplit(url).scheme, urllib.request.getproxies()
    proxy = proxies.get({"ws": "http", "wss": "https"}.get(scheme, scheme)) or proxies.get("all")
    return proxy if not proxy or "://" in proxy else f"http://{proxy}"


def ca_bundle() -> str | None:
    """The certificate authorities to trust: a file that a company's machine names in its environment."""
    return from_environment("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


def memo_folder(data_dir: str) -> Path | None:
    """Where frames of `data_dir` are remembered: a cache folder of the user; None with ``$BACKBONE_MEMO=off``."""
    if (from_environment("BACKBONE_MEMO") or "on").lower() in ("off", "0", "no", "false"):
        return None
    return cache_folder("memo", data_dir)


def cache_folder(kind: str, place: str) -> Path:
    """Where a cache of `place` lies: a folder of its own below the user's cache folder."""
    root = from_environment("BACKBONE_CACHE_DIR")
    if not root:
        import platformdirs

        root = platformdirs.user_cache_dir("backbone", appauthor=False)
    return Path(root) / kind / hashlib.blake2b(place.encode(), digest_size=10).hexdigest()


def ledger_folder() -> Path:
    """Where the machine's quota ledgers lie: the same for every program, whatever its ``$TMPDIR``.

    ``$BACKBONE_LEDGER_DIR`` first: set it to a folder that both see where programs do not share the rest (containers).
    Then the machine's shared memory, which all its users have; the runtime folder of the user; a fixed folder of the
    user; and where the home cannot be written, the temporary folder.
    """
    named = from_environment("BACKBONE_LEDGER_DIR")
    if named:
        return Path(named)
    runtime = from_environment("XDG_RUNTIME_DIR")
    for named in ("/dev/shm", *([runtime] if runtime else []), ""):
        if not named:
            import platformdirs

            named = platformdirs.user_state_dir("backbone", appauthor=False)
        place = Path(named)
        there = next(each for each in (place, *place.parents) if each.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            return place / "backbone-quota"
    return Path(tempfile.gettempdir()) / "backbone-quota"


def resolve(
    exchange: str,
    *,
    data_dir: str | os.PathLike[str] | None,
    rest_url: str | None,
    ws_url: str | None,
    tz: str | None,
    frames: str,
    quota: str | None = None,
    archive: str | None = None,
    archive_url: str | None = None,
    close_grace: float | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from arguments, then the environment, then defaults. Raises `InputError`; opens nothing."""
    env = os.environ if environ is None else environ
    venue = parse_exchange(exchange)
    if frames not in FRAMES:
        raise InputError("frames", frames, "one of " + ", ".join(FRAMES))
    rest = _url("rest_url", rest_url or env.get("BACKBONE_REST_URL") or venue.rest_url, ("http", "https"))
    rest = rest.removesuffix("/v1")
    ws = ws_url or env.get("BACKBONE_WS_URL") or _socket_beside(rest)
    return Settings(
        exchange=venue.exchange,
        data_dir=parse_place(env.get("BACKBONE_DATA_DIR") or _default_folder() if data_dir is None else data_dir),
        rest_url=rest,
        ws_url=_url("ws_url", ws, ("ws", "wss")),
        tz=parse_zone(tz or env.get("BACKBONE_TZ") or "Asia/Seoul"),
        frames=frames,
        quota=_quota(quota or env.get("BACKBONE_QUOTA") or None),
        archive=_archive(archive or env.get("BACKBONE_ARCHIVE") or None, archive_url, venue, rest, env),
        close_grace_s=_grace(env.get("BACKBONE_CLOSE_GRACE") or None if close_grace is None else close_grace),
    )


def _grace(value: object) -> float:
    """Seconds after a candle's end until it counts as closed."""
    if value is None:
        return Settings.close_grace_s
    try:
        seconds = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _LONGEST_GRACE_S:
        raise InputError("close_grace", value, f"seconds from 0 to {_LONGEST_GRACE_S:g}")
    return seconds


def _archive(
    word: str | None, url: str | None, venue: Venue, rest_url: str, env: Mapping[str, str]
) -> ArchiveHosts | None:
    """The archive's hosts, once its terms are accepted; beside another host than the venue's own, that host's."""
    if word is None:
        return None
    own, other = venue.archive, urlsplit(rest_url).hostname != urlsplit(venue.rest_url).hostname
    terms = own.terms_url if own else rest_url
    if word != ARCHIVE_WORD:
        raise InputError("archive", word, f'"{ARCHIVE_WORD}", which says that you read the terms at {terms}')
    if own is None and not other:
        raise InputError("archive", word, f"None for {venue.exchange}: only the Korean exchange has an archive")
    hosts = ArchiveHosts(rest_url, rest_url, terms) if other or own is None else own
    files = url or env.get("BACKBONE_ARCHIVE_URL") or hosts.file_url
    lists = env.get("BACKBONE_ARCHIVE_LIST_URL") or url or env.get("BACKBONE_ARCHIVE_URL") or hosts.list_url
    return ArchiveHosts(
        _url("archive_url", files, ("http", "https")), _url("archive_url", lists, ("http", "https")), terms
    )


def parse_place(value: object) -> str:
    """A folder, absolute, so that it stays where it is; or the address of an object store, without credentials."""
    allowed = "a folder, or the text s3://bucket/prefix"
    if not isinstance(value, str | os.PathLike) or not isinstance(value := os.fspath(value), str) or not value:
        raise InputError("data_dir", value, allowed)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", value) is None:
        return str(Path(value).expanduser().absolute())
    parts = urlsplit(value)
    if "@" in parts.netloc or parts.query:
        raise InputError("data_dir", "(not shown)", f"{allowed} without credentials: those go into the environment")
    if parts.scheme != "s3" or not parts.hostname:
        raise InputError("data_dir", value, allowed)
    return value.rstrip("/")


def _quota(value: str | None) -> str | None:
    """A Redis address without credentials: those would be pickled, shown and logged with it."""
    if value is None:
        return None
    parts = urlsplit(value)
    allowed = "redis://host:port/0, rediss://… or unix://…"
    if "@" in parts.netloc or "password=" in parts.query:
        raise InputError("quota", "(not shown)", f"{allowed} without credentials: put them in $BACKBONE_QUOTA_PASSWORD")
    if parts.scheme not in ("redis", "rediss", "unix") or not (parts.hostname or parts.path):
        raise InputError("quota", value, allowed)
    return value


def _url(argument: str, value: object, schemes: tuple[str, ...]) -> str:
    allowed = f"an address that starts with {' or '.join(s + '://' for s in schemes)}"
    if not isinstance(value, str):
        raise InputError(argument, value, allowed)
    try:
        parts = urlsplit(value)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError as exc:  # a port that is none
        raise InputError(argument, value, allowed) from exc
    if not is_good:
        raise InputError(argument, value, allowed)
    return value.rstrip("/")


def _socket_beside(rest_url: str) -> str:
    parts = urlsplit(rest_url)
    return f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{parts.path}/websocket/v1"


def parse_zone(name: str) -> str:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError) as exc:
        raise InputError("tz", name, "an IANA time zone such as Asia/Seoul or UTC") from exc
    return name


def _default_folder() -> Path:
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / "data").is_dir():
        return checkout / "data"
    import platformdirs

    return Path(platformdirs.user_data_dir("backbone", appauthor=False))
