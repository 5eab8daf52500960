"""A server's figures for Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["EdgeMetrics"]

# Upper ends in seconds: what a fast picture takes on two cores, and what one waits behind many others.
_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28)


class EdgeMetrics(Collector):
    """Counts what a server does; read when Prometheus asks.

    Attributes:
        waiting: pictures that wait for their turn, or have it.
        turned_away: pictures refused because too many waited.
        refused: pictures refused because of what they are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pictures: Counter[str] = Counter()
        self._in_bucket: dict[str, list[int]] = {}
        self._seconds: Counter[str] = Counter()
        self.waiting = self.turned_away = self.refused = 0

    @property
    def pictures(self) -> int:
        """All that were looked at."""
        with self._lock:
            return self._pictures.total()

    def count(self, source: str, seconds: float) -> None:
        """One picture of a source ("request", "live", "job", "stream") took so long."""
        with self._lock:
            self._pictures[source] += 1
            self._seconds[source] += seconds  # type: ignore[assignment]  # Counter adds floats as well
            buckets = self._in_bucket.setdefault(source, [0] * len(_BUCKETS))
            for place, end in enumerate(_BUCKETS):
                buckets[place] += seconds <= end

    def collect(self) -> Iterable[Metric]:
        """For Prometheus."""
        times = HistogramMetricFamily("manyeyes_picture_seconds", "from the picture to its boxes", labels=["source"])
        with self._lock:
            for source, count in sorted(self._pictures.items()):
                ends = [(str(end), n) for end, n in zip(_BUCKETS, self._in_bucket[source], strict=True)]
                times.add_metric([source], [*ends, ("+Inf", count)], self._seconds[source])
        yield times
        yield GaugeMetricFamily("manyeyes_pictures_waiting", "pictures waiting or looked at now", value=self.waiting)
        for name, text, value in (
            ("turned_away", "pictures refused because too many waited", self.turned_away),
            ("refused", "pictures refused because of what they are", self.refused),
        ):
            yield CounterMetricFamily(f"manyeyes_pictures_{name}", text, value=value)
