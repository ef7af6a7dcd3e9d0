"""Writes infra/cost.md: what the serverless core costs per 1,000 operations and in an idle month.

    make cost

The calls are counted while one operation is submitted, by a whole request, and finished, and one sweep made,
over the adapters of AWS on moto. Prices and assumptions come from tools/prices.toml, which says that they
were given.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tensafe.auth.waits import SharedWaits
from tensafe.metrics.port import Metric
from tensafe_gpu.trainer.worker_settings import WorkerSettings
from tests.contract.emulators import Wire, moto_in_process
from tests.contract.test_edge_calls import edge_over
from tests.support.templates import CORE, OBSERVABILITY, read_template, resources

ROOT: Final = Path(__file__).resolve().parent.parent
MONTH_MINUTES: Final = 30 * 24 * 60
PAGE: Final = ROOT / "infra/cost.md"


@dataclass(frozen=True, slots=True)
class Calls:
    """What was called: names with their numbers, and DynamoDB's units (of 1 KB written, 4 KB read)."""

    names: Mapping[str, int] = field(default_factory=dict)
    write_units: int = 0
    read_units: int = 0

    def count(self, name: str) -> int:
        return self.names.get(name, 0)


def calls_of(called: Sequence[str], sent: Sequence[Mapping[str, Any]]) -> Calls:
    """From what went over the wire. A transaction's units count twice; a consistent read is one per 4 KB."""
    names = [name.rpartition(".")[2] for name in called]
    write = read = 0
    for name, request in zip(names, sent, strict=True):
        if name == "TransactWriteItems":
            write += sum(2 * _kilobytes(action) for action in request["TransactItems"])
        elif name in ("PutItem", "UpdateItem", "DeleteItem"):
            write += _kilobytes(request)
        elif name in ("GetItem", "Query"):
            read += 1
        elif name == "BatchGetItem":
            read += sum(len(table["Keys"]) for table in request["RequestItems"].values())
    return Calls(Counter(names), write, read)


def _kilobytes(request: Mapping[str, Any]) -> int:
    return max(1, math.ceil(len(json.dumps(request)) / 1024))


def counted() -> dict[str, Calls]:
    """A credential looked up; submit, finish and sweep, each on its own."""
    with moto_in_process(), Wire().between() as wire:
        edge = edge_over(wire)
        world = edge.world

        def calls(act: Callable[[], object]) -> Calls:
            wire.forget()
            act()
            return calls_of(wire.called, wire.sent)

        edge.optim_step(1)
        world.later(1.0)  # more than a remembered key is good for
        found = {
            "credential": calls(lambda: edge.services.callers.authenticate(edge.key)),
            "submit": calls(lambda: edge.optim_step(2)),
        }
        services = world.services

        def finish() -> None:
            """What the trainer's loop does, held to it by tests/contract/test_trainer_calls.py."""
            ((operation, payload),) = services.outcomes.ahead(edge.run.stream_id, 1, 1)
            services.outcomes.payload(edge.run, 1, operation, payload)
            world.complete(edge.run, operation)

        found["finish"] = calls(finish)
        found["look"] = calls(lambda: services.outcomes.ahead(edge.run.stream_id, 3, 1))
        lease = world.claim(edge.run)
        found["heartbeat"] = calls(lambda: services.leases.extend(lease))
        places = SharedWaits(services.ports.items, 10)
        found["wait"] = calls(lambda: places.end("tenant", places.begin("tenant")))
        found["sweep"] = calls(lambda: (services.sweeper.sweep(), services.retention.purge()))
        return found


def per_thousand_operations(calls: Mapping[str, Calls], given: Mapping[str, Any]) -> dict[str, float]:
    """Dollars for 1,000 operations: one request submits, one long poll takes the result, one worker works.

    Both requests are let in by the authorizer, and each function looks at their credential.
    """
    price, assume = given["prices"], given["assumptions"]
    reads = calls["submit"].read_units + calls["finish"].read_units + 4 * calls["credential"].read_units
    reads += math.ceil(assume["poll_s"] * assume["result_reads_per_poll_s"])
    reads += calls["wait"].read_units
    writes = calls["submit"].write_units + calls["finish"].write_units + calls["wait"].write_units
    api_gb_s = assume["api_memory_gb"] * (assume["request_s"] + assume["poll_s"])
    authorizer_gb_s = 2 * assume["authorizer_memory_gb"] * assume["authorizer_s"]
    # The message is sent, received and deleted.
    messages = calls["submit"].count("SendMessage") * 3
    one = {
        "API Gateway, 2 requests": 2 * price["http_api_per_million"] / 1e6,
        "Lambda, 2 requests and their authorizer": 4 * price["lambda_per_million"] / 1e6
        + (api_gb_s + authorizer_gb_s) * price["lambda_per_gb_s"],
        f"DynamoDB, {writes} write units": writes * price["dynamodb_write_units_per_million"] / 1e6,
        f"DynamoDB, {reads} read units": reads * price["dynamodb_read_units_per_million"] / 1e6,
        f"SQS, {messages} requests": messages * price["sqs_fifo_per_million"] / 1e6,
        "logs": 2 * assume["log_bytes_per_request"] * price["logs_per_gb"] / 1e9,
        "X-Ray, 4 traces": 4 * price["xray_traces_per_million"] / 1e6,
    }
    return {name: 1000 * dollars for name, dollars in one.items()}


def per_idle_month(
    calls: Mapping[str, Calls],
    given: Mapping[str, Any],
    *,
    alarm_metrics: int,
    custom_metrics: int,
    keys: int,
    queues_read: int,
) -> dict[str, float]:
    """Dollars for 30 days in which nobody comes and no GPU runs."""
    price, assume = given["prices"], given["assumptions"]
    sweep = calls["sweep"]
    polls = queues_read * assume["idle_polls_per_minute"] * MONTH_MINUTES
    lambda_each = price["lambda_per_million"] / 1e6
    sweep_gb_s = assume["sweeper_memory_gb"] * assume["sweep_s"]
    return {
        f"{keys} KMS keys": keys * price["kms_key_per_month"],
        f"alarms over {alarm_metrics} metrics": alarm_metrics * price["alarm_metric_per_month"],
        "dashboard": price["dashboard_per_month"],
        f"{custom_metrics} metrics of the service": custom_metrics * price["custom_metric_per_month"],
        "the sweeper, once a minute": MONTH_MINUTES * (lambda_each + sweep_gb_s * price["lambda_per_gb_s"]),
        f"its {sweep.read_units} reads": MONTH_MINUTES
        * sweep.read_units
        * price["dynamodb_read_units_per_million"]
        / 1e6,
        "Lambda's polls of the dead queues": polls * price["sqs_standard_per_million"] / 1e6,
        "logs": MONTH_MINUTES * assume["log_bytes_per_sweep"] * price["logs_per_gb"] / 1e9,
        "X-Ray, a trace of each sweep": MONTH_MINUTES * price["xray_traces_per_million"] / 1e6,
    }


def per_waiting_hour(calls: Mapping[str, Calls], given: Mapping[str, Any]) -> dict[str, float]:
    """Dollars for an hour in which a trainer holds one run and has nothing to do.

    It looks at its queue and at the run's log, and extends the run's lease and message.
    """
    price, settings = given["prices"], WorkerSettings()
    looks, beats = 3600 / settings.look_every_s, 3600 / settings.heartbeat_s
    reads = looks * calls["look"].read_units + beats * calls["heartbeat"].read_units
    writes = beats * calls["heartbeat"].write_units
    return {
        f"SQS, {looks:.0f} looks at the queue": looks * price["sqs_fifo_per_million"] / 1e6,
        f"SQS, {beats:.0f} extensions of a message": beats * price["sqs_fifo_per_million"] / 1e6,
        f"DynamoDB, {reads:.0f} read units": reads * price["dynamodb_read_units_per_million"] / 1e6,
        f"DynamoDB, {writes:.0f} write units": writes * price["dynamodb_write_units_per_million"] / 1e6,
    }


def page(calls: Mapping[str, Calls], given: Mapping[str, Any], idle: Mapping[str, float]) -> str:
    """The document."""
    thousand, waiting = per_thousand_operations(calls, given), per_waiting_hour(calls, given)
    hour, done = given["prices"]["gpu_instance_per_hour"], given["assumptions"]["operations_per_gpu_hour"]
    counts = "\n".join(f"| {name} | {_called(one)} |" for name, one in calls.items())
    return f"""# What it costs

Written by `tools/cost.py` (`make cost`); do not edit. Calls are counted over moto: one credential looked
up, one operation submitted by a whole request to a warm process, waited for, and finished when it came alone,
one look of a trainer at a log that has nothing, one heartbeat of a lease, and one sweep.
Prices are list prices of {given["region"]} in US dollars, given on {given["date"]} and not fetched; they and
what is assumed stand in `tools/prices.toml`. No bill was ever compared with this. Not in it: requests of S3
and KMS, a trainer's claims and snapshots, the ledger of private steps, and up to 4 calls more for an
operation of a client that submits seldom (docs/aws.md, "Calls"). A sample reads its session too, and for
each 3 s that it lasts the operation once more, and asks SQS for as much time.

| counted | calls |
|---|---|
{counts}

## 1,000 operations: ${sum(thousand.values()):.4f} without the GPU

{_table(thousand, 5)}

A GPU at ${hour:.2f} an hour that does {done} operations in it adds ${1000 * hour / done:.2f}, most of it.

A trainer that holds one run and waits for an hour adds ${sum(waiting.values()):.4f}, and each further run its
looks and heartbeats; a run that nobody uses is let go after {WorkerSettings().idle_release_s:.0f} s:

{_table(waiting, 5)}

## An idle month: ${sum(idle.values()):.2f}

{_table(idle, 2)}

No task runs then. Stored data cost extra, the table, its backup and the bucket by their size; so do the
scaling alarms of the GPU tasks, where those are deployed. A metric costs while it is told: of the
service's, an idle month has the age of operations alone. X-Ray is priced as if it kept every call; Lambda
hands it the first of each second and 5 % of the others, and `Tracing=PassThrough` none.
"""


def _called(calls: Calls) -> str:
    names = ", ".join(f"{count} {name}" for name, count in sorted(calls.names.items()))
    return f"{names}; {calls.write_units} write units, {calls.read_units} read units"


def _table(rows: Mapping[str, float], digits: int) -> str:
    lines = [f"| {name} | {dollars:.{digits}f} |" for name, dollars in rows.items()]
    return "\n".join(["| | $ |", "|---|---|", *lines])


def resources_of_the_core() -> dict[str, int]:
    """Metrics that the core's alarms watch, those that are told of its own, its keys, the queues it reads."""
    core = read_template(CORE)
    return {
        "alarm_metrics": sum(
            sum("MetricStat" in metric for metric in alarm["Metrics"]) if "Metrics" in alarm else 1
            for alarm in resources(read_template(OBSERVABILITY), "AWS::CloudWatch::Alarm").values()
        ),
        "custom_metrics": len(Metric) + len(resources(core, "AWS::Logs::MetricFilter")),
        "keys": len(resources(core, "AWS::KMS::Key")),
        "queues_read": len(resources(core, "AWS::Lambda::EventSourceMapping")),
    }


def written() -> str:
    """The page as it has to be now."""
    given = tomllib.loads((ROOT / "tools/prices.toml").read_text(encoding="utf-8"))
    calls = counted()
    return page(calls, given, per_idle_month(calls, given, **resources_of_the_core()))


def main() -> None:
    PAGE.write_text(written(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
