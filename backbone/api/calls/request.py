"""The envelope form of the data calls: a request goes in, one response comes out, both plain data with a JSON form.

For callers that are not at a prompt: queues, sockets, other processes. `run` makes the same calls as the client's
methods; it decides only what their answers look like as records. Invariant: whatever the venue, the disk or the words
of a request do wrong, there is a response with ``success=False`` and the error's facts; what arrived nevertheless is
in ``data``. Only what is no request at all raises (`InputError`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

import msgspec
import pyarrow as pa

from backbone.api import frames as shaping
from backbone.api.arguments import TimeLike, as_python, in_zone, parse_integer, parse_markets, parse_priority
from backbone.api.calls.candles import candles
from backbone.api.calls.realtime import orderbooks, tickers, trades
from backbone.api.session import Session
from backbone.errors import BackboneError, IncompleteError, InputError
from backbone.model import DataType, Priority, Span

__all__ = ["BackboneMetadata", "BackboneRequest", "BackboneResponse", "error_facts", "run"]


def _to_json(self: BackboneRequest | BackboneResponse) -> str:
    """`to_dict` as JSON text."""
    return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True, init=False)
class BackboneRequest:
    """One question. Equal requests ask the same; the form is fixed at once, the meaning is judged by the call.

    Parameters
    ----------
    data_type : a `DataType` or its name: ``"candle"``, ``"ticker"``, ``"orderbook"``, ``"trade"``.
    symbols : a market or several; for tickers also one quote currency (``"KRW"``).
    timeframe : candles only; None is one minute.
    start_time, end_time : candles and trades, half-open; kept as ISO text (naive: in the client's zone).
    count : candles and trades: the newest that many of each market. Order books: levels a side.
    priority : a `Priority` or its name.
    request_id : comes back in the response; made up where None.

    Raises
    ------
    InputError for an unknown data type or priority, and for what has no JSON form. Unknown markets, timeframes and
    counts are the call's business: they make a response with ``success=False``.

    Examples
    --------
    >>> BackboneRequest("candles", "KRW-BTC", "1m", count=3, request_id="a1").to_dict()["symbols"]
    ['KRW-BTC']
    """

    data_type: DataType
    symbols: tuple[str, ...]
    timeframe: str | None
    start_time: str | None
    end_time: str | None
    count: int | None
    priority: Priority
    request_id: str

    def __init__(
        self,
        data_type: DataType | str,
        symbols: str | Iterable[str],
        timeframe: str | None = None,
        start_time: TimeLike | None = None,
        end_time: TimeLike | None = None,
        count: int | None = None,
        priority: Priority | str = Priority.NORMAL,
        request_id: str | None = None,
    ) -> None:
        fixed = {
            "data_type": _parse_data_type(data_type),
            "symbols": _parse_symbols(symbols),
            "timeframe": _parse_text("timeframe", timeframe),
            "start_time": _parse_moment("start_time", start_time),
            "end_time": _parse_moment("end_time", end_time),
            "count": None if count is None else parse_integer("count", count),
            "priority": parse_priority(priority),
            "request_id": _parse_text("request_id", request_id) or shaping.new_request_id(),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: enums by their value, symbols as a list, times as text."""
        return {**msgspec.to_builtins(self), "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The request of `to_dict`; what may be None may be missing. Raises `InputError` for names it does not know."""
        names = [each.name for each in fields(cls)]
        if not isinstance(data, Mapping) or not {"data_type", "symbols"} <= set(data) <= set(names):
            raise InputError("request", data, "an object with data_type, symbols and any of " + ", ".join(names[2:]))
        given = {name: value for name, value in data.items() if value is not None}
        return cls(**given)

    to_json = _to_json

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The request of `to_json`. Raises `InputError`."""
        return cls.from_dict(_load("request", text))


@dataclass(frozen=True)
class BackboneMetadata:
    """Where an answer came from and what it took; the frames' ``attrs`` carry the same facts.

    ``source_layer`` is the rows' one source, or ``"mixed"``, or ``"none"``; ``cache_hit`` says that no request was
    made; ``split_info`` says how the request was divided: ``markets requests pages quiet unknown`` and ``sources``
    (rows by source).
    """

    source_layer: str
    cache_hit: bool
    processing_time_ms: float
    data_count: int
    priority_used: str
    split_info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackboneResponse:
    """One answer. ``data`` is a list of plain records, times as ISO text in the client's zone, NaN as None.

    Candles: ``market time open high low close volume value``; the other kinds have their frames' columns. Where
    ``success`` is False, ``error`` has ``type`` and ``message`` and the error's own facts, and ``data`` what arrived.
    """

    success: bool
    data: list[dict[str, Any]]
    metadata: BackboneMetadata
    error: dict[str, Any] | None
    request_id: str

    def to_dict(self) -> dict[str, Any]:
        """Plain data, all the way down."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The response of `to_dict`; further names are ignored. Raises `InputError` where one is missing."""
        try:
            return msgspec.convert(dict(data), cls)  # msgspec knows some mappings only
        except (msgspec.ValidationError, TypeError, ValueError) as exc:
            raise InputError("response", data, f"an object made by BackboneResponse.to_dict ({exc})") from exc

    to_json = _to_json

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The response of `to_json`. Raises `InputError`."""
        return cls.from_dict(_load("response", text))


# -- words of a request ------------------------------------------------------------------------------------------


def _parse_data_type(value: object) -> DataType:
    if isinstance(value, DataType):
        return value
    name = value.strip().lower() if isinstance(value, str) else ""
    for kind in DataType:
        if name in (kind.value, f"{kind.value}s"):
            return kind
    raise InputError("data_type", value, "one of " + ", ".join(kind.name for kind in DataType))


def _parse_symbols(value: object) -> tuple[str, ...]:
    symbols = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else ()
    if not symbols or not all(isinstance(symbol, str) for symbol in symbols):
        raise InputError("symbols", value, "a market such as KRW-BTC, or a list of them")
    return symbols


def _parse_text(argument: str, value: object) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise InputError(argument, value, "text, or None")


def _parse_moment(argument: str, value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if (moment := as_python(value)) is not None:
        return moment.isoformat()
    raise InputError(argument, value, "a date or time such as 2024-03-01T09:00:00Z, a datetime, or 3d (that long ago)")


def _load(argument: str, text: str | bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as exc:
        raise InputError(argument, text[:200] if isinstance(text, str | bytes) else text, "JSON text") from exc
    if not isinstance(data, dict):
        raise InputError(argument, data, "a JSON object")
    return data


# -- the call ----------------------------------------------------------------------------------------------------


def run(session: Session, request: BackboneRequest) -> BackboneResponse:
    """See `Backbone.request`."""
    if not isinstance(request, BackboneRequest):
        raise InputError("request", request, "a BackboneRequest")
    began = session.clock.monotonic()
    failure: BackboneError | None = None
    table: Any = None
    try:
        _refuse_the_meaningless(request)
        table = _CALLS[request.data_type](session, request)
    except BackboneError as exc:
        failure = exc
        table = getattr(exc, "frame", None)
    data = [] if table is None else shaping.records(table, session.tz)
    elapsed_ms = (session.clock.monotonic() - began) * 1000
    known = {} if table is None else shaping.attrs_of(table)
    return BackboneResponse(
        success=failure is None,
        data=data,
        metadata=_metadata(request, known, len(data), elapsed_ms),
        error=None if failure is None else error_facts(failure, session.tz),
        request_id=request.request_id,
    )


_MEANINGLESS = {
    DataType.CANDLE: (),
    DataType.TICKER: ("timeframe", "start_time", "end_time", "count"),
    DataType.ORDERBOOK: ("timeframe", "start_time", "end_time"),
    DataType.TRADE: ("timeframe",),
}


def _refuse_the_meaningless(request: BackboneRequest) -> None:
    for name in _MEANINGLESS[request.data_type]:
        value = getattr(request, name)
        if value is not None:
            raise InputError(name, value, f"None: it means nothing for {request.data_type.value}")


def _candles(session: Session, request: BackboneRequest) -> pa.Table:
    return candles(
        session,
        request.symbols,
        request.timeframe or "1m",
        request.start_time,
        request.end_time,
        count=request.count,
        priority=request.priority,
        frames="arrow",
        progress=False,
    )


def _tickers(session: Session, request: BackboneRequest) -> pa.Table:
    markets = request.symbols[0] if len(request.symbols) == 1 else request.symbols
    return tickers(session, markets, priority=request.priority, frames="arrow")


def _orderbooks(session: Session, request: BackboneRequest) -> pa.Table:
    depth = 30 if request.count is None else request.count
    return orderbooks(session, request.symbols, depth=depth, priority=request.priority, frames="arrow")


def _trades(session: Session, request: BackboneRequest) -> pa.Table:
    markets = parse_markets(request.symbols, session.home)
    tables: list[pa.Table] = []
    for i, market in enumerate(markets):
        try:
            table = trades(
                session,
                market,
                request.count,
                start=request.start_time,
                end=request.end_time,
                priority=request.priority,
                frames="arrow",
            )
        except BackboneError as exc:
            part = getattr(exc, "frame", None)
            if not tables:
                raise
            arrived = _joined([*tables, *([] if part is None else [part])])
            missing = ", ".join(markets[i:])
            raise IncompleteError(
                f"trades: {missing} could not be had: {exc}", gaps=markets[i:], causes=[exc], frame=arrived
            ) from exc
        tables.append(table)
    return _joined(tables)


_CALLS: dict[DataType, Callable[[Session, BackboneRequest], pa.Table]] = {
    DataType.CANDLE: _candles,
    DataType.TICKER: _tickers,
    DataType.ORDERBOOK: _orderbooks,
    DataType.TRADE: _trades,
}


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Several answers as one, their facts added up."""
    known = [shaping.attrs_of(table) for table in tables]
    sources = shaping.added_up(one["sources"] for one in known)
    whole = {
        **known[0],
        "source": shaping.only_source(sources),
        "cache_hit": all(one["cache_hit"] for one in known),
        "sources": sources,
        **{name: sum(one[name] for one in known) for name in ("data_count", "requests", "pages", "quiet", "unknown")},
    }
    table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables])
    return table.replace_schema_metadata({b"backbone": json.dumps(whole).encode()})


def _metadata(request: BackboneRequest, known: Mapping[str, Any], rows: int, elapsed_ms: float) -> BackboneMetadata:
    return BackboneMetadata(
        source_layer=known.get("source", "none"),
        cache_hit=known.get("cache_hit", False),
        processing_time_ms=round(elapsed_ms, 3),
        data_count=rows,
        priority_used=known.get("priority", request.priority.value),
        split_info={
            "markets": len(request.symbols),
            **{name: known.get(name, 0) for name in ("requests", "pages", "quiet", "unknown")},
            "sources": known.get("sources", {}),
        },
    )


_NOT_PLAIN = ("value", "gaps", "causes", "frame", "reply_facts")


def error_facts(error: BaseException, zone: str) -> dict[str, Any]:
    """``type`` and ``message`` of an error and the attributes that say what to do next, JSON-safe."""
    facts: dict[str, Any] = {"type": type(error).__name__, "message": str(error)}
    for name, value in (vars(error) if isinstance(error, BackboneError) else {}).items():
        if value is not None and name not in _NOT_PLAIN:
            facts[name] = value if isinstance(value, bool | int | float | str) else str(value)
    if isinstance(error, InputError):
        facts["value"] = error.value if isinstance(error.value, bool | int | str | None) else repr(error.value)
    if isinstance(error, IncompleteError):
        facts["gaps"] = [_gap(gap, zone) for gap in error.gaps]
        facts["causes"] = [error_facts(cause, zone) for cause in error.causes]
    return facts


def _gap(gap: object, zone: str) -> list[str] | str:
    if isinstance(gap, Span):
        return [in_zone(gap.start, zone).isoformat(), in_zone(gap.end, zone).isoformat()]
    return str(gap)
