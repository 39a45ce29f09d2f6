"""A client's metrics for Prometheus, served on loopback only.

What is decided here: how the plain values of `Metrics.snapshot` are named and labelled on the wire. The snapshot is
taken when somebody scrapes, never in between. One thread, ``backbone-metrics``, serves, from `serve_metrics` until
`close`. Needs the extra ``backbone[metrics]``.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from backbone.errors import ClosedError, InputError

__all__ = ["MetricsServer", "serve_metrics"]

HOST: Final = "127.0.0.1"
_QUANTILES: Final = (("0.5", "p50_s"), ("0.95", "p95_s"), ("0.99", "p99_s"))


class MetricsServer:
    """The running endpoint: ``port``, ``url`` and `close`. A context manager."""

    def __init__(self, server: Any, thread: Any) -> None:
        self._server = server
        self._thread = thread
        self.port = int(server.server_port)
        self._is_closed = False

    @property
    def url(self) -> str:
        """The address that Prometheus is to scrape."""
        return f"http://{HOST}:{self.port}/metrics"

    def __repr__(self) -> str:
        return f"MetricsServer({'closed' if self._is_closed else self.url})"

    def _repr_html_(self) -> str:
        return f'Metrics: <a href="{self.url}">{self.url}</a>{" (closed)" if self._is_closed else ""}'

    def close(self) -> None:
        """Stop serving and join the thread. Calling it twice is fine."""
        if self._is_closed:
            return
        self._is_closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> MetricsServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def serve_metrics(port: int, snapshot: Callable[[], Mapping[str, Any]]) -> MetricsServer:
    """Serve `snapshot` as Prometheus text on ``http://127.0.0.1:<port>/metrics``.

    Parameters
    ----------
    port : 0 picks a free one; see ``port`` of what is returned.
    snapshot : asked on every scrape; see `Metrics.snapshot`: ``counters`` (numbers by name) and ``times`` (records
        with ``kind``, ``group``, ``priority``, ``count``, ``mean_s``, ``p50_s``, ``p95_s``, ``p99_s``).

    Returns
    -------
    MetricsServer  ``close()`` ends it.

    Raises
    ------
    InputError   a port that is none, or that is taken.
    ImportError  prometheus-client is not installed.
    """
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise InputError("port", port, "0 to 65535 (0: any free one)")
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise ImportError("serve_metrics needs prometheus-client: pip install 'backbone[metrics]'") from error
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    try:
        server, thread = start_http_server(port, addr=HOST, registry=registry)
    except OSError as error:
        raise InputError("port", port, f"a free port on {HOST} ({error.strerror or error})") from error
    thread.name = "backbone-metrics"
    return MetricsServer(server, thread)


class _Collector:
    """Turns a snapshot into metric families at the moment of a scrape."""

    def __init__(self, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Any]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterable[Any]:
        from prometheus_client.core import GaugeMetricFamily

        snapshot: Mapping[str, Any] | None = None
        with contextlib.suppress(ClosedError):
            snapshot = self._snapshot()
        yield GaugeMetricFamily("backbone_up", "1 while the client answers.", value=float(snapshot is not None))
        if snapshot is not None:
            yield from _counters(snapshot["counters"])
            yield from _times(snapshot["times"])


def _name(text: str) -> str:
    """A metric name of ours: letters, digits and underscores."""
    return "backbone_" + re.sub(r"[^a-zA-Z0-9]+", "_", text).strip("_").lower()


def _counters(numbers: Mapping[str, int]) -> Iterable[Any]:
    """The counters; two whose names become the same one would invalidate the scrape: they are added up."""
    from prometheus_client.core import CounterMetricFamily

    added: Counter[str] = Counter()
    for name, number in numbers.items():
        added[_name(name).removesuffix("_total")] += number
    for name, number in added.items():
        yield CounterMetricFamily(name, "Counted since the client was made.", value=number)


def _times(records: Iterable[Mapping[str, Any]]) -> Iterable[Any]:
    """One summary a kind, labelled by group and priority; quantiles go beside it, since a summary family carries none.

    A record with one of the two is a total of others: Prometheus adds up by itself, and twice would be wrong.
    """
    from prometheus_client.core import GaugeMetricFamily, SummaryMetricFamily

    labels = ["group", "priority"]
    sums: dict[str, Any] = {}
    quantiles: dict[str, Any] = {}
    for record in records:
        kind, name = record["kind"], _name(f"{record['kind']}_seconds")
        values = [record["group"], record["priority"]]
        if bool(record["group"]) != bool(record["priority"]):
            continue
        if name not in sums:
            sums[name] = SummaryMetricFamily(name, f"How long requests {kind}.", labels=labels)
            text = f"How long requests {kind}: quantiles since the client was made."
            quantiles[name] = GaugeMetricFamily(f"{name}_quantile", text, labels=[*labels, "quantile"])
        count = record["count"]
        sums[name].add_metric(values, count_value=count, sum_value=record["mean_s"] * count if count else 0.0)
        for quantile, key in _QUANTILES:
            if math.isfinite(record[key]):
                quantiles[name].add_metric([*values, quantile], record[key])
    yield from sums.values()
    yield from quantiles.values()
