"""The archive half of the embedded exchange: the venue's bulk files of candles, faithful and made when asked for.

``GET /api/v1/market-data/listing?prefix=…`` lists folders and files as JSON; ``GET /candle/…/….zip`` and
``….zip.checksum`` serve them. A file holds the candles that REST would answer for its UTC month or day, one CSV in a
zip, and is there from the next day's 05:00 UTC on; delisted markets have none. The tree ``trade/market/kind/year``
holds every trade since 2022-05 in the same way. The same file is the same to the byte
until the market itself is restated: then it is, as at the venue, issued again without notice.

Faults: ``archive-missing``, ``archive-checksum``, ``archive-columns``, ``archive-values`` (a price that REST does not
confirm), ``archive-layout`` (a listing of another shape). Pure but for its cache; the server asks it from its worker.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Set
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

from backbone.errors import InputError
from backbone.simulator.market.venue import Venue, iso_seconds
from backbone.timeframe import TIMEFRAMES, parse_timeframe

__all__ = ["Answer", "ArchiveBranch", "is_archive_path"]

_LISTING = "/api/v1/market-data/listing"
_INTERVALS = ("1s", "1m", "3m", "5m", "10m", "15m", "30m", "60m", "240m", "day", "week", "month")
_SINCE_US = {"1s": 1_688_169_600_000_000}  # 2023-07-01
_SINCE_EVER_US = 1_508_803_200_000_000  # 2017-10-24
_TRADES_SINCE_US = 1_651_363_200_000_000  # 2022-05-01
_PUBLISHED_US = 5 * 3_600_000_000
_DAY, _MONTH = TIMEFRAMES["1d"], TIMEFRAMES["1M"]
_KEPT = 64
_STAMP = re.compile(r"\d+(?=\.zip$)")
_CORRUPTIONS = frozenset({"archive-columns", "archive-values"})
_NOT_FOUND = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>'


class Answer(NamedTuple):
    """A status, a body and its type."""

    status: int
    body: bytes
    content_type: str


def is_archive_path(path: str) -> bool:
    """Whether a request is one for the archive."""
    return path == _LISTING or path.startswith(("/candle/", "/trade/"))


class ArchiveBranch:
    """The archive of one venue. Not thread-safe: one worker asks it."""

    def __init__(self, venue: Venue) -> None:
        self._venue = venue
        self._file = lru_cache(_KEPT)(self._make_file)

    def answer(self, path: str, prefix: str, now_us: int, kinds: Set[str] = frozenset()) -> Answer:
        """The answer to one request, with the faults `kinds`."""
        if path == _LISTING:
            return self._listing(prefix.strip("/"), now_us, kinds)
        key = path.lstrip("/")
        file = key.removesuffix(".checksum")
        if "archive-missing" in kinds or file not in self._keys(*_series(file.split("/")), now_us):
            return Answer(404, _NOT_FOUND, "application/xml")
        body = self._file(file, self._venue.edition, _CORRUPTIONS & kinds)
        if key.endswith(".checksum"):
            digest = hashlib.sha256(body + b"?" if "archive-checksum" in kinds else body).hexdigest()
            return Answer(200, digest.encode(), "application/octet-stream")
        return Answer(200, body, "application/zip")

    # -- the listing -----------------------------------------------------------------------------------------

    def _listing(self, prefix: str, now_us: int, kinds: Set[str]) -> Answer:
        if "archive-layout" in kinds:
            return Answer(200, b'{"items":[]}', "application/json")
        parts = prefix.split("/") if prefix else []
        entries = self._entries(parts, now_us) if parts else ["candle", "trade"]
        rows = [
            {"key": key, "size": 0, "lastModified": None, "type": "FILE" if key.endswith(".zip") else "DIRECTORY"}
            for key in entries
        ]
        return Answer(200, msgspec.json.encode(rows), "application/json")

    def _entries(self, parts: list[str], now_us: int) -> list[str]:
        """What lies directly below ``candle/market/kind/interval/year`` or ``trade/market/kind/year``."""
        if parts[0] not in ("candle", "trade"):
            return []
        levels = [sorted(self._venue.listed(now_us)), ["daily", "monthly"]]
        if parts[0] == "candle":
            levels.append(list(_INTERVALS))
        depth, here = len(parts), "/".join(parts) + "/"
        if depth <= len(levels):
            names = levels[depth - 1]
        else:
            below = [key for key in self._keys(*_series(parts), now_us) if key.startswith(here)]
            if depth == len(levels) + 2:  # of a year
                return below
            names = sorted({key.split("/")[depth] for key in below})
        return [here + name for name in names]

    def _keys(self, code: str, kind: str, what: str, now_us: int) -> list[str]:
        """The files of a market: of an interval's candles, or of its trades."""
        try:
            market = self._venue.market(code, now_us)
        except InputError:
            return []
        if kind not in ("daily", "monthly") or what not in (*_INTERVALS, "trade"):
            return []
        unit = _MONTH if kind == "monthly" else _DAY
        since = _TRADES_SINCE_US if what == "trade" else _SINCE_US.get(what, _SINCE_EVER_US)
        at = unit.floor(max(market.listed_us, since))
        folder = f"trade/{code}/{kind}" if what == "trade" else f"candle/{code}/{kind}/{what}"
        name = f"{code}_trade-" if what == "trade" else f"{code}_candle-{what}_"
        ends = [np.datetime64(us, "us").astype(f"datetime64[{'M' if kind == 'monthly' else 'D'}]")
                for us in (at, unit.floor(int(now_us - _PUBLISHED_US)))]  # fmt: skip
        stamps = (str(day).replace("-", "") for day in np.datetime_as_string(np.arange(*ends)))
        return [f"{folder}/{stamp[:4]}/{name}{stamp}.zip" for stamp in stamps]

    # -- files -----------------------------------------------------------------------------------------------

    def _make_file(self, key: str, edition: int, corruptions: Set[str]) -> bytes:
        """A file in the venue's `edition`, with the faults `corruptions`."""
        code, kind, what = _series(key.split("/"))
        stamp = _STAMP.findall(key)[0]
        start = int(np.datetime64(f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:] or '01'}", "us").astype(np.int64))
        end = (_MONTH if kind == "monthly" else _DAY).next(start)
        if what == "trade":
            return _zip(key, self._trades_csv(code, start, end, corruptions))
        return _zip(key, self._candles_csv(code, what, start, end, corruptions))

    def _trades_csv(self, code: str, start_us: int, end_us: int, corruptions: Set[str]) -> bytes:
        """Trades, oldest first; a corrupted file has the other source's names in another order."""
        found = self._venue.executions(self._venue.market(code), start_us, end_us)
        sides = np.where(found.is_buy, "BID", "ASK").tolist()
        columns = [found.sequential_id.tolist(), found.time_ms.tolist(), found.volume.tolist(), found.price.tolist()]
        header = "seq,timestamp,volume,price,ask_bid"
        if "archive-columns" in corruptions:
            header = "trade_id,timestamp,price,volume,ask_bid"
            columns[2], columns[3] = columns[3], columns[2]
        return _csv(header, *(map(repr, column) for column in columns), sides)

    def _candles_csv(self, code: str, interval: str, start_us: int, end_us: int, corruptions: Set[str]) -> bytes:
        table = self._venue.candle_table(code, parse_timeframe(interval).name, start_us, end_us)
        columns = {name: table.column(name).to_numpy() for name in table.column_names[1:]}
        if "archive-values" in corruptions:
            columns["close"] = columns["low"]
        times = iso_seconds(table.column("time").to_numpy().astype("datetime64[us]").astype(np.int64))
        names = ("open", "high", "low", "close", "value", "volume")
        header = "date_time_utc,open,high,low,close,acc_trade_price,acc_trade_volume"
        if "archive-columns" in corruptions:
            header = "time,o,h,l,c,amount,volume"
        return _csv(header, times, *(map(repr, columns[name].tolist()) for name in names))


def _series(parts: list[str]) -> tuple[str, str, str]:
    """The market, ``daily`` or ``monthly``, and the interval (or ``trade``) that a path's parts name; "" where none."""
    tree, code, kind, what = (*parts, "", "", "", "")[:4]
    return code, kind, "trade" if tree == "trade" else what


def _csv(header: str, *columns: Iterable[str]) -> bytes:
    return "\n".join([header, *map(",".join, zip(*columns, strict=True)), ""]).encode()


def _zip(key: str, text: bytes) -> bytes:
    """The same bytes for the same text: no time of making is in it."""
    sink = io.BytesIO()
    name = key.rsplit("/", 1)[-1].replace(".zip", ".csv")
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(zipfile.ZipInfo(name, (2025, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED, 1)
    return sink.getvalue()
