"""Where things lie in a data folder: keys computed from names, never discovered; and back again, for audits.

A key is a path relative to the data folder, with ``/`` on every system. ``candles/`` holds nothing but
partitions, so that any engine can be pointed at it; coverage of quiet spans, locks, unfinished writes and damaged
files lie beside it. Names are checked here, so that no market can leave the folder.
"""

from __future__ import annotations

import re
from functools import cached_property, lru_cache

import msgspec
import numpy as np

from backbone.errors import InputError
from backbone.model import Span
from backbone.timeframe import TIMEFRAMES, Timeframe, period_name, period_of

__all__ = [
    "CANDLES",
    "DAMAGED",
    "EVENTS",
    "GENERATIONS",
    "LISTED",
    "LOCKS",
    "QUARANTINE",
    "QUIET",
    "SIDECARS",
    "SNAPSHOTS",
    "TMP",
    "Series",
    "is_exchange_name",
    "is_market_name",
    "parse_partition_key",
    "parse_period",
    "parse_series",
    "parse_sidecar_key",
    "series_of",
    "tmp_key",
]

CANDLES = "candles"
QUIET, LOCKS, TMP, QUARANTINE = "_quiet", "_locks", "_tmp", "_quarantine"  # names that other engines skip
TAKEN, LISTED = "_taken", "_listed"
SIDECARS = (QUIET, TAKEN, LISTED)  # each with a file a series
EVENTS, SNAPSHOTS = "_events", "_snapshots"
GENERATIONS = "_generations"
DAMAGED = "damaged"  # the part of the quarantine that holds single files
FILE_NAME = "candles.parquet"

_MARKET = re.compile(r"[A-Z0-9]{1,32}-[A-Z0-9._]{1,64}")
_EXCHANGE = re.compile(r"[a-z0-9][a-z0-9._@-]{0,127}")
_BY_DIRECTORY = {timeframe.directory: timeframe for timeframe in TIMEFRAMES.values()}
_PERIOD = re.compile(r"(day|month|year)-(\d{4}(?:-\d\d){0,2})")


def is_market_name(text: str) -> bool:
    """Whether `text` can be stored: an upper-case pair such as ``KRW-BTC``."""
    return _MARKET.fullmatch(text) is not None and not text.endswith(".")


def is_exchange_name(text: str) -> bool:
    """Whether `text` can name an exchange partition."""
    return _EXCHANGE.fullmatch(text) is not None and not text.endswith(".")


class Series(msgspec.Struct, frozen=True, dict=True):
    """One market's candles of one timeframe on one exchange: the unit of locking."""

    exchange: str
    market: str
    timeframe: Timeframe

    def __post_init__(self) -> None:
        if not is_exchange_name(self.exchange):
            raise InputError("exchange", self.exchange, "lower-case letters, digits and . _ @ -")
        if not is_market_name(self.market):
            raise InputError("market", self.market, 'a pair such as "KRW-BTC" (letters, digits, dots)')

    @cached_property
    def name(self) -> str:
        """The hive path of this series below ``candles/``."""
        return f"exchange={self.exchange}/market={self.market}/timeframe={self.timeframe.directory}"

    @property
    def folder(self) -> str:
        return f"{CANDLES}/{self.name}"

    @property
    def quiet_key(self) -> str:
        """The sidecar that holds coverage of periods without any candle."""
        return f"{QUIET}/{self.name}.json"

    @property
    def taken_key(self) -> str:
        """The sidecar that notes which files of a bulk archive were taken."""
        return f"{TAKEN}/{self.name}.json"

    @property
    def listed_key(self) -> str:
        """The sidecar that notes which periods were written."""
        return f"{LISTED}/{self.name}.json"

    @property
    def sidecar_keys(self) -> list[str]:
        """Everything of this series that is no partition; coverage first."""
        return [f"{folder}/{self.name}.json" for folder in SIDECARS]

    @property
    def lock_key(self) -> str:
        return f"{LOCKS}/{self.name}.lock"

    @property
    def claims_key(self) -> str:
        """Who fetches what of it at this moment."""
        return f"{LOCKS}/{self.name}.claims"

    def key(self, period: Span) -> str:
        """The partition file of one period."""
        return f"{CANDLES}/{self.name}/period={period_name(self.timeframe, period)}/{FILE_NAME}"

    def __str__(self) -> str:
        return f"{self.market} {self.timeframe.name}"


series_of = lru_cache(maxsize=4096)(Series)
"""`Series`, remembered: its names are checked once."""


@lru_cache(maxsize=4096)
def parse_period(timeframe: Timeframe, name: str) -> Span | None:
    """The period that a directory's value names; None where it names none of this timeframe."""
    if timeframe.period == "all":
        return period_of(timeframe, 0) if name == "all" else None
    match = _PERIOD.fullmatch(name)
    if match is None or match.group(1) != timeframe.period:
        return None
    try:
        start = int(np.datetime64(match.group(2), "us").astype(np.int64))
    except ValueError:
        return None
    period = period_of(timeframe, start)
    return period if period_name(timeframe, period) == name else None


def parse_partition_key(key: str) -> tuple[Series, Span] | None:
    """The series and period of a partition file's key; None for anything else."""
    parts = key.split("/")
    if len(parts) != 6 or parts[0] != CANDLES or parts[5] != FILE_NAME:
        return None
    series = parse_series(parts[1:4])
    if series is None or not parts[4].startswith("period="):
        return None
    period = parse_period(series.timeframe, parts[4].removeprefix("period="))
    return None if period is None else (series, period)


def parse_sidecar_key(key: str) -> Series | None:
    """The series of any of its sidecars' keys; None for anything else."""
    parts = key.split("/")
    if len(parts) != 4 or parts[0] not in SIDECARS or not parts[3].endswith(".json"):
        return None
    return parse_series([parts[1], parts[2], parts[3].removesuffix(".json")])


def parse_series(parts: list[str]) -> Series | None:
    """The series that three folders of a key name; None where they name none."""
    names = [part.partition("=")[0] for part in parts]
    if names != ["exchange", "market", "timeframe"]:
        return None
    exchange, market, directory = (part.partition("=")[2] for part in parts)
    timeframe = _BY_DIRECTORY.get(directory)
    if timeframe is None or not is_market_name(market) or not is_exchange_name(exchange):
        return None
    return Series(exchange, market, timeframe)


def tmp_key(key: str) -> str:
    """Where an unfinished write of `key` lies: below its exchange, so that no name is too long for a disk."""
    top, _, rest = key.partition("/")
    exchange, _, rest = rest.partition("/") if rest.startswith("exchange=") and "/" in rest else ("other", "", rest)
    return f"{TMP}/{exchange}/{top}+{rest.replace('/', '+')}"
