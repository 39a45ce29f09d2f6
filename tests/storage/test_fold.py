"""Longer candles from minutes, against arithmetic and against the venue's own."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backbone.model import CANDLE_COLUMNS, CANDLE_SCHEMA, empty_candles
from backbone.storage.fold import decimal_sums, fold
from backbone.timeframe import Timeframe, parse_timeframe
from tests.recordings import recordings  # noqa: F401
from tests.storage.helpers import MAY, MINUTE_US, candles, rows_of

LONGER = [parse_timeframe(name) for name in ("3m", "5m", "10m", "15m", "30m", "1h", "4h", "1d", "1w", "1M")]


def plainly(table: pa.Table, timeframe: Timeframe) -> dict[int, tuple[float, ...]]:
    """The same fold, one candle at a time, with exact sums."""
    groups: dict[int, list[tuple[float, ...]]] = {}
    for open_us, row in rows_of(table).items():
        groups.setdefault(timeframe.floor(open_us), []).append(row)
    return {
        open_us: (
            rows[0][0],
            max(row[1] for row in rows),
            min(row[2] for row in rows),
            rows[-1][3],
            float(sum(Decimal(repr(row[4])) for row in rows)),
            float(sum(Decimal(repr(row[5])) for row in rows)),
        )
        for open_us, rows in groups.items()
    }


@given(st.sets(st.integers(0, 4000), max_size=60), st.sampled_from(LONGER))
def test_folded_minutes_agree_with_folding_one_by_one(slots: set[int], timeframe: Timeframe) -> None:
    """Open first, high highest, low lowest, close last, sums exact; no candle where nothing was traded."""
    table = candles(MAY + n * MINUTE_US for n in sorted(slots))
    for at, name, places in ((5, "volume", 8), (6, "value", 5)):  # what the venue sends are decimals
        table = table.set_column(at, CANDLE_SCHEMA.field(name), pa.array(np.round(table[name].to_numpy(), places)))
    found, wanted = rows_of(fold(table, timeframe)), plainly(table, timeframe)
    assert list(found) == sorted(wanted)
    for open_us, row in found.items():
        assert row == wanted[open_us]


@given(
    st.lists(st.integers(0, 10**15), min_size=1, max_size=40),
    st.integers(0, 16),
    st.integers(1, 9),
)
def test_decimal_sums_are_the_nearest_to_the_sum_of_decimals(digits: list[int], places: int, group: int) -> None:
    """Decimals of up to fifteen digits, at any place of the point: summed as decimals, rounded once."""
    decimals = [Decimal(number).scaleb(-places) for number in digits]
    values = np.array([float(number) for number in decimals])
    first = np.arange(0, len(values), group)
    wanted = [float(sum(decimals[at : at + group])) for at in first]
    assert decimal_sums(values, first).tolist() == wanted


def test_turnover_in_bitcoin_is_summed_to_its_last_place() -> None:
    """Addends with seventeen digits behind the point, as the venue prints them, lose none of them."""
    texts = ["0.0016396683270618001", "0.008470288059716601", "0.0048777392547456", "9.286645302e-05", "1.5"]
    sums = decimal_sums(np.array([float(text) for text in texts]), np.array([0, 3]))
    assert sums.tolist() == [float(sum(map(Decimal, texts[:3]))), float(sum(map(Decimal, texts[3:])))]


def test_decimal_sums_of_what_is_not_known_are_not_known() -> None:
    """A turnover that a file did not keep makes its group's unknown, and no other."""
    found = decimal_sums(np.array([0.1, np.nan, 0.1, 0.2]), np.array([0, 2]))
    assert np.isnan(found[0])
    assert found[1] == 0.3


def test_fold_of_nothing_is_nothing_typed() -> None:
    """Zero minutes are zero candles with the pinned schema."""
    assert fold(empty_candles(), LONGER[0]).schema == CANDLE_SCHEMA
    assert fold(empty_candles(), LONGER[0]).num_rows == 0


def test_fold_takes_a_table_of_many_chunks() -> None:
    """What a read over several partitions returns is folded as it is."""
    whole = candles(MAY + n * MINUTE_US for n in range(300))
    parts = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 100), whole.slice(107)])
    assert fold(parts, LONGER[3]).equals(fold(whole, LONGER[3]))


def test_sum_of_many_small_volumes_is_not_worn_down() -> None:
    """A day of minutes sums to within 1e-15 of the exact sum, whatever the sizes."""
    table = candles(MAY + n * MINUTE_US for n in range(1440))
    values = pa.array([1e16 if n % 480 == 0 else 0.1 for n in range(1440)])
    table = table.set_column(5, CANDLE_SCHEMA.field("volume"), values)
    found = fold(table, parse_timeframe("1d"))["volume"][0].as_py()
    assert found == pytest.approx(math.fsum(values.to_pylist()), rel=1e-15)


# -- the venue's own candles


def recorded(path: Path, market: str) -> pa.Table:
    """Recorded candles of one market; turnover that the source did not keep is zero."""
    table = pq.read_table(path, filters=[("market", "=", market)]).sort_by("timestamp")
    columns = [table["timestamp"].cast(pa.timestamp("us", tz="UTC"))]
    columns += [pc.fill_null(table[name].cast(pa.float64()), 0.0) for name in CANDLE_COLUMNS]
    return pa.table(columns, schema=CANDLE_SCHEMA)


def compare(folded: pa.Table, venue: pa.Table, columns: tuple[str, ...]) -> tuple[int, list[Any]]:
    """How many candles both know, and where they differ."""
    ours, theirs = rows_of(folded), rows_of(venue)
    at = [CANDLE_COLUMNS.index(name) for name in columns]
    common = sorted(set(ours) & set(theirs))
    wrong = []
    for open_us in common:
        for i in at:
            a, b = ours[open_us][i], theirs[open_us][i]
            if a != b:
                wrong.append((open_us, CANDLE_COLUMNS[i], a, b))
    return len(common), wrong


def whole_candles(table: pa.Table, timeframe: Timeframe) -> pa.Table:
    """Without the first and last candle, whose minutes the recording may not have whole."""
    return table.slice(1, max(0, table.num_rows - 2))


@pytest.mark.parametrize(
    ("source", "target", "short", "long", "markets"),
    [
        ("1m_majors_2025-09", "1h_majors_2025-08_2026-01_with-value", "1m", "1h", ("KRW-BTC",)),
        ("5m_majors_2026-01", "15m_majors_2026-01", "5m", "15m", ("KRW-BTC", "KRW-ETH", "KRW-SOL")),
        ("5m_majors_2026-01", "15m_majors_2026-01", "5m", "15m", ("KRW-XRP",)),
        ("5m_majors_2026-01", "1h_majors_2025-08_2026-01_with-value", "5m", "1h", ("KRW-BTC", "KRW-ETH", "KRW-SOL")),
        ("5m_majors_2026-01", "1h_majors_2025-08_2026-01_with-value", "5m", "1h", ("KRW-XRP",)),
        ("15m_majors_2026-01", "1h_majors_2025-08_2026-01_with-value", "15m", "1h", ("KRW-BTC", "KRW-ETH", "KRW-SOL")),
        ("15m_majors_2026-01", "1h_majors_2025-08_2026-01_with-value", "15m", "1h", ("KRW-XRP",)),
        ("1h_majors_2025-08_2026-01_with-value", "1d_merged", "1h", "1d", ("KRW-BTC", "KRW-ETH")),
        ("1m_majors_2021-05", "1d_btc_2021_2025_downloaded-2025-03", "1m", "1d", ("KRW-BTC",)),
    ],
)
def test_folded_recordings_are_the_venues_own_candles(
    recordings: Path,  # noqa: F811
    source: str,
    target: str,
    short: str,
    long: str,
    markets: tuple[str, ...],
) -> None:
    """Real candles folded are the real longer ones, to the last digit: prices, volume, and turnover where a float64
    holds its decimals (that of KRW-XRP has seven behind up to eleven before the point)."""
    timeframe = parse_timeframe(long)
    for market in markets:
        folded = fold(recorded(recordings / "candles" / f"{source}.parquet", market), timeframe)
        venue = recorded(recordings / "candles" / f"{target}.parquet", market)
        has_turnover = source.endswith("2026-01") and market != "KRW-XRP"
        columns = CANDLE_COLUMNS if has_turnover else CANDLE_COLUMNS[:5]
        if source == "1m_majors_2021-05":  # the venue's sums were not additive then, by up to 1e-5
            columns = CANDLE_COLUMNS[:4]
        count, wrong = compare(whole_candles(folded, timeframe), venue, columns)
        assert count > 5, (market, source, target)
        assert wrong == []
