"""The exchange's own clock, and the spellings of ``to``."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from backbone.clock import SystemClock
from backbone.errors import InputError
from backbone.simulator.server.clock import ExchangeClock, parse_instant, parse_to

NOW_US = 1_755_853_200_000_000


def test_frozen_clock_moves_by_advance_and_set_only() -> None:
    """Two looks at a frozen clock are equal; jumps are exact to the microsecond."""
    clock = ExchangeClock("2025-08-22T09:00:00Z", frozen=True)
    assert clock.now_us() == clock.now_us() == NOW_US
    clock.advance(1.5)
    assert clock.now_us() == NOW_US + 1_500_000
    clock.set(NOW_US - 7)
    assert clock.now_us() == NOW_US - 7


class Machine(SystemClock):
    """A machine whose time stands until a test moves it."""

    mono = 100.0

    def monotonic(self) -> float:
        return self.mono


def test_running_clock_runs_as_fast_as_asked() -> None:
    """One real second is `speed` exchange seconds."""
    machine = Machine()
    clock = ExchangeClock(NOW_US, speed=60, machine=machine)
    machine.mono = 102.0
    assert clock.now_us() == NOW_US + 120_000_000


def test_clock_stopped_and_let_go_runs_on_from_where_it_stood() -> None:
    """Freezing loses no time and invents none."""
    machine = Machine()
    clock = ExchangeClock(NOW_US, machine=machine)
    machine.mono = 101.0
    clock.freeze()
    machine.mono = 105.0
    assert clock.now_us() == NOW_US + 1_000_000
    clock.freeze(False)
    machine.mono = 106.0
    assert clock.now_us() == NOW_US + 2_000_000


def test_listener_is_called_at_every_jump() -> None:
    """The stream looks at once when the clock is moved."""
    clock, seen = ExchangeClock(NOW_US, frozen=True), []
    clock.on_jump(lambda: seen.append(clock.now_us()))
    clock.advance(1)
    clock.set(NOW_US)
    assert seen == [NOW_US + 1_000_000, NOW_US]


@pytest.mark.parametrize(
    "value",
    [NOW_US, "2025-08-22T09:00:00Z", "2025-08-22 09:00", "2025-08-22T18:00:00+09:00",
     datetime(2025, 8, 22, 9, tzinfo=UTC)],
)  # fmt: skip
def test_instant_is_read_in_every_spelling(value: object) -> None:
    """No zone is UTC."""
    assert parse_instant(value) == NOW_US


@pytest.mark.parametrize("kwargs", [{"now": "yesterday"}, {"speed": 0}, {"speed": -1}])
def test_clock_of_nonsense_is_an_input_error(kwargs: dict[str, object]) -> None:
    """The argument is named."""
    with pytest.raises(InputError) as caught:
        ExchangeClock(**kwargs)  # type: ignore[arg-type]
    assert caught.value.argument == next(iter(kwargs))


@pytest.mark.parametrize(
    "text",
    ["2025-08-22T09:00:00Z", "2025-08-22T09:00:00", "2025-08-22 09:00:00", "2025-08-22T18:00:00+09:00",
     "2025-08-22T04:00:00-0500", "2025-08-22T09:00:00.000Z", "2025-08-22 18:00:00+09:00"],
)  # fmt: skip
def test_to_is_read_in_every_spelling_of_the_venue(text: str) -> None:
    """Z, an offset, none (UTC), T or space, with or without a fraction."""
    assert parse_to(text) == NOW_US


def test_to_keeps_its_fraction() -> None:
    """Milliseconds count."""
    assert parse_to("2025-08-22T09:00:00.25Z") == NOW_US + 250_000


@pytest.mark.parametrize(
    "text",
    ["", "now", "2025-08-22", "2025-08-22T09:00", "2025-08-22T18:00:00 09:00", "2025-13-01T00:00:00Z", "1755853200"],
)  # fmt: skip
def test_to_that_the_venue_would_not_read_is_none(text: str) -> None:
    """An unescaped plus arrives as a space, and is refused."""
    assert parse_to(text) is None
