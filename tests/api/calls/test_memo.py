"""Large frames kept ready: equal, writable, never stale, and only where it pays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from backbone import Backbone
from backbone.api.cli.main import main
from backbone.api.frames import attrs_of
from backbone.clock import SystemClock
from backbone.model import Span
from backbone.settings import memo_folder, resolve
from backbone.storage.store import CandleStore
from tests.storage.helpers import MAY, MINUTE, MINUTE_US, minutes, span

LIMIT = 500  # the quota is not what is tested here

ROWS = 25_200  # 420 hours
OTHER = "KRW-ETH"  # a frame takes more than its own file, and may not take more than all of them
START, END = (pd.Timestamp(t, unit="us", tz="UTC") for t in span(0, ROWS))


def kept_in(client: Backbone) -> Path:
    """The cache folder of a client's remembered frames."""
    folder = memo_folder(str(client.data_dir))
    assert folder is not None
    return folder


def put(
    folder: Path,
    first: int,
    last: int,
    salt: int = 0,
    provisional: tuple[Span, int] | None = None,
    market: str = "KRW-BTC",
) -> None:
    settings = resolve("upbit", data_dir=folder, rest_url=None, ws_url=None, tz=None, frames="pandas")
    store = CandleStore(folder, settings.store_exchange, clock=SystemClock())
    rows = minutes(first, last, salt)
    store.put(market, MINUTE, rows, span(first, last), provisional=provisional, now_us=MAY + last * MINUTE_US)
    store.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Backbone]:
    """A client that holds `ROWS` minutes, of another market too, and reaches no venue."""
    put(tmp_path, 0, ROWS)
    put(tmp_path, 0, 8 * ROWS, market=OTHER)
    with Backbone(data_dir=tmp_path) as made:
        yield made


def ask(client: Backbone, timeframe: str = "1m", **words: Any) -> tuple[pd.DataFrame, dict[str, int]]:
    frame = client.candles("KRW-BTC", timeframe, START, END, offline=True, **words)
    return frame, attrs_of(frame)["sources"]


def assert_same(found: pd.DataFrame, right: pd.DataFrame) -> None:
    """To the last digit; pandas' own comparison boxes each of 25,200 times."""
    assert found.equals(right)
    assert list(found.columns) == list(right.columns)
    assert (found.index.name, found.index.dtype) == (right.index.name, right.index.dtype)


def test_remember_frame_asked_twice_comes_ready_the_third_time(client: Backbone) -> None:
    """The same frame, its index and zone included, with facts of its own; the next client has it at once."""
    first, _ = ask(client)
    assert not (kept_in(client)).exists(), "what is asked once only is not kept"
    ask(client)
    third, sources = ask(client)
    assert sources == {"memo": ROWS}
    assert_same(third, first)
    said, before = attrs_of(third), attrs_of(first)
    assert said["request_id"] != before["request_id"]
    assert {k: said[k] for k in ("requests", "cache_hit", "data_count", "quiet", "unknown", "source")} == {
        "requests": 0, "cache_hit": True, "data_count": ROWS, "quiet": 0, "unknown": 0, "source": "memo",
    }  # fmt: skip
    with Backbone(data_dir=client.data_dir) as later:
        again, sources = ask(later)
    assert sources == {"memo": ROWS}
    assert_same(again, first)


def test_remember_frame_may_be_written_to(client: Backbone) -> None:
    """What a caller does to its frame, another caller does not see."""
    for _ in range(4):
        frame, _ = ask(client)
        assert frame.iloc[0, 0] != -1.0
        frame.iloc[0, 0] = -1.0
        frame["more"] = 1


def test_remember_changed_partition_is_never_served_stale(client: Backbone) -> None:
    """A row that is replaced, in this process or another, is in the next answer."""
    for _ in range(3):
        old, _ = ask(client)
    put(client.data_dir, 100, 200, salt=5)
    new, sources = ask(client)
    assert "memo" not in sources
    changed = (new["close"].to_numpy() != old["close"].to_numpy()).nonzero()[0]
    assert changed.tolist() == list(range(100, 200))
    ask(client)
    kept, sources = ask(client)
    assert sources == {"memo": ROWS}
    assert_same(kept, new)


def test_remember_hours_folded_from_minutes(client: Backbone) -> None:
    """Few rows that cost many to fold are kept as well, and fall with a change of the minutes."""
    for _ in range(3):
        frame, sources = ask(client, "1h")
    assert sources == {"memo": len(frame)}
    put(client.data_dir, 0, 60, salt=5)
    new, sources = ask(client, "1h")
    assert sources == {"derived:1m": len(new)}
    assert new["close"].iloc[0] != frame["close"].iloc[0]
    assert new["close"].iloc[1:].equals(frame["close"].iloc[1:])


def test_remember_provisional_rows_are_not_kept(tmp_path: Path) -> None:
    """What is to be asked once more is no final answer."""
    put(tmp_path, 0, ROWS, provisional=(span(ROWS - 2, ROWS), 1 << 60))
    with Backbone(data_dir=tmp_path) as client:
        assert all("memo" not in ask(client)[1] for _ in range(4))


@pytest.mark.parametrize(
    "words", [{"frames": "polars"}, {"frames": "arrow"}, {"fill": "ffill"}, {"include_forming": True}]
)
def test_remember_other_forms_are_made_anew(client: Backbone, words: dict[str, Any]) -> None:
    """Frames that are cheap to make, or depend on more than the range, are not kept."""
    assert all("memo" not in ask(client, **words)[1] for _ in range(4))


def test_remember_small_ranges_skip_it(client: Backbone) -> None:
    """Some thousand rows are faster read than mapped."""
    for _ in range(4):
        frame = client.candles("KRW-BTC", "1m", START, START + pd.Timedelta("10D"), offline=True)
        assert "memo" not in attrs_of(frame)["sources"]
    assert not (kept_in(client)).exists()


def test_remember_keeps_other_arguments_apart(client: Backbone) -> None:
    """Another zone, another fill or several markets are other frames."""
    for _ in range(3):
        plain, _ = ask(client)
    filled, sources = ask(client, fill="nan")
    assert "memo" not in sources
    assert "synthetic" in filled
    many = client.candles(["KRW-BTC"], "1m", START, END, offline=True)
    assert many.columns[0] == "market"
    with Backbone(data_dir=client.data_dir, tz="UTC") as other:
        frame, sources = ask(other)
    assert "memo" not in sources
    assert str(frame.index.tz) == "UTC"
    assert plain.index.equals(frame.index.tz_convert("Asia/Seoul"))


def test_remember_folder_that_is_not_private_is_not_used(client: Backbone, tmp_path: Path) -> None:
    """Unpickling is only of what this user alone could have written; without it, answers are made as ever."""
    kept_in(client).parent.mkdir(parents=True, exist_ok=True)
    kept_in(client).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    assert all("memo" not in ask(client)[1] for _ in range(4))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_remembering_is_turned_off_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With BACKBONE_MEMO=off no folder is named, and so none is written."""
    assert memo_folder(str(tmp_path)) is not None
    monkeypatch.setenv("BACKBONE_MEMO", "off")
    assert memo_folder(str(tmp_path)) is None


def test_remembered_frames_never_take_more_than_the_candles(client: Backbone, capsys: Any) -> None:
    """Twelve overlapping ranges, each asked twice; size, status and the command line report what they take."""
    for hours in range(12):
        for _ in range(2):
            client.candles("KRW-BTC", "1m", START + pd.Timedelta(hours=hours), END, offline=True)
    size = client.store.size()
    kept = sum(path.stat().st_size for path in kept_in(client).rglob("*") if path.is_file())
    assert 0 < kept <= size["bytes"]
    assert size["memo_bytes"] == attrs_of(client.status())["memo_bytes"] == kept
    words = ["--data-dir", str(client.data_dir)]
    assert main(["status", *words]) == 0
    assert "memo size" in capsys.readouterr().out
    client.store.remove(OTHER)
    assert client.store.size()["memo_bytes"] <= client.store.size()["bytes"]
    assert main(["clear", *words]) == 0
    assert client.store.size()["memo_bytes"] < 4096
    assert not list(kept_in(client).rglob("output.pkl"))


def test_remembering_that_is_off_writes_nothing(client: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call is answered as ever, and size and status say 0."""
    monkeypatch.setenv("BACKBONE_MEMO", "off")
    with Backbone(data_dir=client.data_dir) as plain:
        assert all("memo" not in ask(plain)[1] for _ in range(4))
        assert plain.store.size()["memo_bytes"] == attrs_of(plain.status())["memo_bytes"] == 0
    monkeypatch.delenv("BACKBONE_MEMO")
    assert not kept_in(client).exists()
