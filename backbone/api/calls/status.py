"""The state of a client: `status` (now), `metrics` (since it was made), `health` (a verdict, and why), and a dashboard
of them all.

All of it is read from what is in memory, but for the sizes of the memo and, every ten seconds in the dashboard, of the
store.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from backbone.api import frames as shaping
from backbone.api.frames import REAL, TEXT, WHOLE

if TYPE_CHECKING:
    from backbone.api.notebook.dashboard import Dashboard
    from backbone.api.session import Session
    from backbone.coordinator.coordinator import Coordinator

__all__ = ["Health", "dashboard", "health", "memo_bytes", "metrics", "status", "status_facts"]

_GROUPS = ("market", "candles", "crix-trades", "ticker", "orderbook")
_PRIORITIES = ("critical", "high", "normal", "low")
_STORE_READ_S = 10.0  # the store's size is a walk over its files
_SOCKET = ("state", "age_s", "tables", "markets", "received", "reconnects", "polls")
_UNANSWERED = 3  # requests given up in a row from which on the venue counts as down
_STATUS = {"group": TEXT} | dict.fromkeys(("limit", "used", "left", "kept_for_critical"), WHOLE)
_STATUS |= dict.fromkeys((f"queued_{priority}" for priority in _PRIORITIES), WHOLE) | {"refused": WHOLE}
_STATUS |= {"stopped_s": REAL}
_METRICS = dict.fromkeys(("kind", "group", "priority"), TEXT) | {"count": WHOLE}
_METRICS |= dict.fromkeys(("mean_s", "p50_s", "p95_s", "p99_s", "max_s"), REAL)


@dataclass(frozen=True)
class Health:
    """``verdict`` is ``"ok"``, ``"degraded"`` (works, with a reason to look) or ``"down"``; ``reasons`` say why."""

    verdict: str
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.verdict == "ok"

    def __repr__(self) -> str:
        return f"<Health {self.verdict}{': ' + '; '.join(self.reasons) if self.reasons else ''}>"

    def _repr_html_(self) -> str:
        colour = {"ok": "#2e7d32", "degraded": "#b26a00", "down": "#b71c1c"}[self.verdict]
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in self.reasons)
        return f"<div><b style='color:{colour}'>{self.verdict}</b><ul>{reasons}</ul></div>"


def status_facts(session: Session, counters: dict[str, int] | None = None) -> dict[str, Any]:
    """Everything `status` shows and more, as one plain dict. `counters`: those of a snapshot that is at hand."""
    core = session.coordinator()
    if counters is None:
        counters = core.metrics.snapshot()["counters"]
    return {
        "exchange": session.settings.exchange,
        "rest_url": session.settings.rest_url,
        **core.scheduler.status(),
        "counters": counters,
        "memory": msgspec.structs.asdict(core.store.memory_stats()),
        "pending_rows": core.store.pending_rows(),
        "jobs": [f"{', '.join(j.markets[:3])} {j.timeframe}: {j.progress.state}" for j in core.jobs.running()],
        "clock_offset_s": core.venue.offset_s(),
        "stream": core.stream_facts(),
    }


def memo_bytes(core: Coordinator) -> int:
    """What the remembered frames take on disk; 0 where they are turned off."""
    return 0 if core.memo is None else core.memo.size()


def status(session: Session, frames: str) -> Any:
    """Now: one row a wire group, with the budget, the queue by priority, and refusals. See `Backbone.status`."""
    found = status_facts(session)
    rows = []
    for name in sorted({*_GROUPS, *found["quota"], *found["queued"]}):
        quota = {"limit": 10, "used": 0, "share": 0, "refused": 0, "stopped_s": 0.0, **found["quota"].get(name, {})}
        queued = [found["queued"].get(name, {}).get(priority, 0) for priority in _PRIORITIES]
        numbers = quota["limit"], quota["used"], quota.get("free", quota["limit"]), quota["share"]
        rows.append((name, *map(int, numbers), *queued, quota["refused"], quota["stopped_s"]))
    others = {key: value for key, value in found.items() if key not in ("quota", "queued")}
    attrs = shaping.local_facts(len(rows)) | others
    attrs["memo_bytes"] = memo_bytes(session.coordinator())
    table = shaping.table_of(_STATUS, rows)
    return shaping.deliver(table, frames, index="group", zone=session.tz, attrs=attrs)


def metrics(session: Session, frames: str) -> Any:
    """So far: times waited and answered by group and priority. See `Backbone.metrics`."""
    found = session.coordinator().metrics.snapshot()
    table = shaping.table_of(_METRICS, [[record[name] for name in _METRICS] for record in found["times"]])
    attrs = shaping.local_facts(table.num_rows) | {"counters": found["counters"]}
    return shaping.deliver(table, frames, index=None, zone=session.tz, attrs=attrs)


def health(session: Session, found: dict[str, Any] | None = None) -> Health:
    """A verdict and its reasons. See `Backbone.health`. `found`: status facts that are at hand."""
    core = session.coordinator()
    found = found or status_facts(session)
    counters = found["counters"]
    reasons: list[str] = []
    is_down = found["banned_s"] > 0
    if is_down:
        reasons.append(f"the venue blocks this address for another {found['banned_s']:.0f} s; nothing is sent before")
    refused = sum(int(q.get("refused", 0)) for q in found["quota"].values())
    if refused:
        reasons.append(f"{refused} requests were refused for the rate (429)")
    answered, failed = counters.get("answered", 0), counters.get("failed", 0)
    if failed > 0.001 * (answered + failed):
        reasons.append(f"{failed} of {answered + failed} questions were given up")
    if found["failures"] and (not answered or found["failures"] >= _UNANSWERED):
        reasons.append(f"the venue does not answer: {found['failures']} questions in a row were given up")
        is_down = True
    archive = core.archive
    if archive is not None and archive.fallbacks:
        some = "1 file" if archive.fallbacks == 1 else f"{archive.fallbacks} files"
        reasons.append(f"REST was asked instead of {some} of the archive")
    if found["last_error"]:
        reasons.append(f"last internal error: {found['last_error']}")
    if not core.limiter.is_shared:
        if core.settings.quota:
            reasons.append("the quota is this host's share alone: the Redis that hosts share is lost")
        else:
            reasons.append("the quota is kept for this process alone: the machine's ledger cannot be used")
    for incident in core.store.incidents():
        reasons.append(f"{incident.kind}: {incident.path} ({incident.detail})")
    offset = found["clock_offset_s"]
    if offset is not None and abs(offset) > 5:
        reasons.append(f"this machine's clock is {-offset:+.0f} s off the venue's; the venue's is used")
    stream = found["stream"]
    if stream and stream.get("state") not in (None, "streaming", "stopped", "idle"):
        reasons.append(f"the live stream is {stream['state']}")
    return Health("down" if is_down else "degraded" if reasons else "ok", tuple(reasons))


def dashboard(session: Session) -> Dashboard:
    """The client's dashboard. See `Backbone.dashboard`."""
    from backbone.api.notebook.dashboard import Dashboard

    view = Dashboard(_Panel(session), clock=session.coordinator().clock)
    view.refresh()
    return view


class _Panel:
    """What the dashboard pulls: `status_facts`, `metrics` and `health` in its words."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._store: dict[str, Any] = {}
        self._store_at_s = float("-inf")

    def __call__(self) -> dict[str, Any]:
        core = self._session.coordinator()
        snapshot = core.metrics.snapshot()
        found = status_facts(self._session, snapshot["counters"])
        verdict = health(self._session, found)
        stream = found["stream"]
        return {
            "title": self._session.settings.title,
            "state": {
                "level": {"ok": "ok", "degraded": "warn", "down": "bad"}[verdict.verdict],
                "text": "; ".join([verdict.verdict, *verdict.reasons]),
            },
            "quota": found["quota"],
            "queued": {group: depths for group, depths in found["queued"].items() if any(depths.values())},
            "in_flight": found["in_flight"],
            "times": snapshot["times"],
            "caches": _tiers(found),
            "socket": {name: stream[name] for name in _SOCKET if name in stream},
            "store": self._store_facts(found["pending_rows"]),
            "banned_s": found["banned_s"],
        }

    def _store_facts(self, pending_rows: int) -> dict[str, Any]:
        core = self._session.coordinator()
        now = core.clock.monotonic()
        if now - self._store_at_s >= _STORE_READ_S:
            self._store, self._store_at_s = core.store.size() | {"memo_bytes": memo_bytes(core)}, now
        names = ("markets", "files", "bytes", "memo_bytes")
        return {name: self._store[name] for name in names} | {"pending rows": pending_rows}


def _tiers(found: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Hits and misses of decoded candle files and, once a call asked for them, of the newest live rows."""
    prefix = "cache.realtime."
    newest = {name.removeprefix(prefix): n for name, n in found["counters"].items() if name.startswith(prefix)}
    return {"candle files": found["memory"], **({"realtime": newest} if newest else {})}
