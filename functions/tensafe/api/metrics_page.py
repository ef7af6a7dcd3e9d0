"""`/metrics` for Prometheus: on a port of its own, on loopback, off unless a port is given.

A port of its own rather than a route: behind a proxy every client of the API looks like loopback, and a
key with the scope `admin` is a tenant's, while these numbers are the operator's. They name no tenant: a
privacy domain stands there as a digest. What workers count comes with their announcements, at most ten
seconds old; what lies in the store is read when somebody asks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from tensafe.contracts.errors import ConfigurationError, TensafeError
from tensafe.metrics.port import Metric
from tensafe.metrics.requests import Answered
from tensafe.operations.readings import oldest_operation_age_s
from tensafe.operations.streams import now_ms
from tensafe.services import Services

log = logging.getLogger(__name__)

NAMES: Final = {
    Metric.OPERATIONS_ENDED: ("tensafe_operations_ended", "Operations that ended, by kind and outcome."),
    Metric.LEASE_LOST: ("tensafe_leases_lost", "Runs that a trainer had to drop."),
    Metric.HE_UNAVAILABLE: ("tensafe_he_unavailable", "Requests refused because HE could not run."),
    Metric.DEAD_LETTERED: ("tensafe_dead_lettered", "Operations set aside as dead letters."),
    Metric.BUDGET_USED: ("tensafe_privacy_budget_used_ratio", "Epsilon of a domain over its run's limit."),
}
"""Name and help of each series; a counter's name gets `_total` behind it."""
_SECONDS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25)
_LETTERS_MAX: Final = 10_000


class PrometheusRequests:
    """Counts requests. Implements `RequestMeter`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("method", "route", "status")
        self._answered = Counter("tensafe_requests", "Requests answered.", labels, registry=registry)
        self._seconds = Histogram(
            "tensafe_request_seconds",
            "Time to answer, long polls included.",
            ("method", "route"),
            registry=registry,
            buckets=_SECONDS,
        )

    def answered(self, request: Answered) -> None:
        self._answered.labels(request.method, request.route, str(request.status)).inc()
        self._seconds.labels(request.method, request.route).observe(request.duration_s)


class StoreCollector(Collector):
    """Reads the store once for each scrape; a part that cannot be read is missing, and said to be."""

    def __init__(self, services: Services, *, clock_ms: Callable[[], int] = now_ms) -> None:
        self._services = services
        self._clock_ms = clock_ms

    def collect(self) -> Iterator[Family]:
        failed = GaugeMetricFamily(
            "tensafe_scrape_failed", "Parts of this page that could not be read.", labels=("part",)
        )
        for name, part in (("work", self._work), ("workers", self._workers)):
            try:
                yield from list(part())
                failed.add_metric((name,), 0)
            except TensafeError as error:
                log.warning("numbers not read: %s", error.code, extra={"part": name})
                failed.add_metric((name,), 1)
        yield failed

    def _work(self) -> Iterable[Family]:
        ports = self._services.ports
        yield GaugeMetricFamily(
            "tensafe_oldest_operation_age_seconds",
            "Since the oldest operation that has not ended was submitted.",
            value=oldest_operation_age_s(ports.items, self._clock_ms()),
        )
        yield GaugeMetricFamily(
            "tensafe_dead_letters",
            "Operations set aside.",
            value=len(self._services.dead_letters.list(limit=_LETTERS_MAX)),
        )
        depth = GaugeMetricFamily("tensafe_queue_messages", "Waiting or in flight.", labels=("queue",))
        for spec in ports.queue_specs:
            for queue in (spec.name, spec.dead_queue):
                depth.add_metric((queue,), ports.queues.depth(queue))
        yield depth

    def _workers(self) -> Iterable[Family]:
        alive = GaugeMetricFamily(
            "tensafe_workers", "Workers that said so in the last 30 s.", labels=("role", "base_model")
        )
        families: dict[Metric, Family] = {}
        counts: dict[tuple[str, str], int] = {}
        for worker in self._services.workers.list():
            counts[worker.role, worker.base_model] = counts.get((worker.role, worker.base_model), 0) + 1
            for one in worker.series:
                if one.metric in NAMES:
                    labels = {"role": worker.role, "instance": worker.owner, **dict(one.labels)}
                    family = families.setdefault(one.metric, _family(one.metric))
                    suffix = "" if one.metric.level else "_total"
                    family.add_sample(family.name + suffix, labels, one.value)
        for (role, model), count in counts.items():
            alive.add_metric((role, model), count)
        return [alive, *families.values()]


def _family(metric: Metric) -> Family:
    name, words = NAMES[metric]
    return GaugeMetricFamily(name, words) if metric.level else CounterMetricFamily(name, words)


def serve_metrics(services: Services, port: int) -> tuple[PrometheusRequests, int]:
    """Serve the page on 127.0.0.1 from a thread; what counts requests, and the port (0 takes a free one).

    Raises ConfigurationError if the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    requests = PrometheusRequests(registry)
    registry.register(StoreCollector(services))
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise ConfigurationError(
            f"cannot serve metrics on 127.0.0.1, port {port}: {error.strerror or error}"
        ) from error
    return requests, int(server.server_port)
