"""How the parts of the templates fit together and to the application: each rule returns what breaks it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tests.support.templates import Template, referred, resources

_STALE_S: Final = 120
"""A call of a schedule that comes later than this has been overtaken."""


def queues_without_an_end(template: Template, max_receives: int) -> list[str]:
    """Queues without a dead queue of their kind, or whose messages do not outlive the source's there."""
    wrong = []
    queues = resources(template, "AWS::SQS::Queue")
    ends = {
        referred(one["RedrivePolicy"]["deadLetterTargetArn"])
        for one in queues.values()
        if "RedrivePolicy" in one
    }
    for invocation in resources(template, "AWS::Lambda::EventInvokeConfig").values():
        ends.add(referred(invocation["DestinationConfig"]["OnFailure"]["Destination"]))
    for name, queue in queues.items():
        if queue.get("SqsManagedSseEnabled") is not True and "KmsMasterKeyId" not in queue:
            wrong.append(f"{name}: not encrypted")
        if name in ends:
            continue
        if "RedrivePolicy" not in queue:
            wrong.append(f"{name}: no dead queue")
            continue
        dead = queues[referred(queue["RedrivePolicy"]["deadLetterTargetArn"]) or ""]
        if queue["RedrivePolicy"]["maxReceiveCount"] != max_receives:
            wrong.append(f"{name}: moves after {queue['RedrivePolicy']['maxReceiveCount']} receives")
        if dead.get("FifoQueue", False) is not queue.get("FifoQueue", False):
            wrong.append(f"{name}: its dead queue is of the other kind")
        if dead["MessageRetentionPeriod"] <= queue["MessageRetentionPeriod"]:
            wrong.append(f"{name}: its dead letters do not outlive it")
    return wrong


def unread_dead_queues(template: Template) -> list[str]:
    """Dead queues that no function reads message by message."""
    read = {
        referred(one["EventSourceArn"])
        for one in resources(template, "AWS::Lambda::EventSourceMapping").values()
        if one.get("FunctionResponseTypes") == ["ReportBatchItemFailures"]
    }
    dead = {
        referred(one["RedrivePolicy"]["deadLetterTargetArn"])
        for one in resources(template, "AWS::SQS::Queue").values()
        if "RedrivePolicy" in one
    }
    return sorted(str(name) for name in dead - read)


def missing_variables(
    template: Template, tasks: Template, wanted: Mapping[str, bool], of_holder: Mapping[str, bool]
) -> list[str]:
    """Variables that the settings require and a function or task is not given; and unknown ones.

    `wanted` has every variable of the service's settings, `of_holder` those of the adapter holder's, and
    whether it must be there.
    """
    wrong = []
    given: dict[str, set[str]] = {}
    common = set(template["Globals"]["Function"]["Environment"]["Variables"])
    for name, function in resources(template, "AWS::Serverless::Function").items():
        given[name] = common | set(function.get("Environment", {}).get("Variables", {}))
    for name, task in resources(tasks, "AWS::ECS::TaskDefinition").items():
        for container in task["ContainerDefinitions"]:
            given[name] = {one["Name"] for one in container["Environment"]}
    for name, variables in given.items():
        known = of_holder if name.startswith("AdapterHolder") else wanted
        ours = {one for one in variables if one.startswith("TENSAFE_")}
        wrong += [
            f"{name}: {one} is not given" for one, needed in known.items() if needed and one not in ours
        ]
        wrong += [f"{name}: {one} is no setting" for one in sorted(ours - set(known))]
    return wrong


def routes_apart(template: Template, application: Mapping[str, bool]) -> list[str]:
    """Routes of the application that the API lacks, the API's own, and those with the wrong credential."""
    routes = {one["RouteKey"]: one for one in resources(template, "AWS::ApiGatewayV2::Route").values()}
    wrong = [f"{key} is not in template.yaml" for key in application if key not in routes]
    wrong += [f"{key} is not in the application" for key in routes if key not in application]
    for key, needs_credential in application.items():
        route = routes.get(key, {})
        kind = route.get("AuthorizationType", "CUSTOM" if needs_credential else "NONE")
        if (kind == "CUSTOM") is not needs_credential or (
            needs_credential and not route.get("AuthorizerId", 1)
        ):
            wrong.append(f"{key}: {'needs' if needs_credential else 'must not need'} a credential")
    return wrong


def alarms_apart(templates: list[Template], runbooks: set[str]) -> list[str]:
    """Alarms without a runbook that exists, and runbooks of no alarm."""
    wrong, named = [], set()
    for template in templates:
        for name, alarm in resources(template, "AWS::CloudWatch::Alarm").items():
            found = re.findall(r"infra/runbooks/([a-z0-9-]+)\.md", str(alarm.get("AlarmDescription", "")))
            named |= set(found)
            if not found or not set(found) <= runbooks:
                wrong.append(f"{name}: no runbook {', '.join(found)}")
    return wrong + [f"infra/runbooks/{name}.md: no alarm names it" for name in sorted(runbooks - named)]


def unwatched(core: Template, seen: Template) -> list[str]:
    """Dead queues and functions that fail where no alarm looks.

    A letter is out of sight while its function has it, and after each of its failures: an alarm has to count
    those in flight too. What the API's function does wrong, its gateway counts.
    """
    watched = [
        {
            (one["Namespace"], one["MetricName"], str(dimension["Value"]))
            for one in metrics
            for dimension in one["Dimensions"]
        }
        for metrics in map(_metrics, resources(seen, "AWS::CloudWatch::Alarm").values())
    ]
    handed = core["Resources"]["Observability"]["Properties"]["Parameters"]
    names = {referred(value): str({"Ref": name}) for name, value in handed.items()}
    wrong = []
    for queue in resources(core, "AWS::SQS::Queue").values():
        if "RedrivePolicy" not in queue:
            continue
        dead = referred(queue["RedrivePolicy"]["deadLetterTargetArn"])
        both = {
            ("AWS/SQS", f"ApproximateNumberOfMessages{kind}", names.get(dead, ""))
            for kind in ("Visible", "NotVisible")
        }
        if not any(both <= one for one in watched):
            wrong.append(f"{dead}: no alarm counts its letters, seen and in flight")
    for name, function in resources(core, "AWS::Serverless::Function").items():
        errors = ("AWS/Lambda", "Errors", str(function["FunctionName"]))
        if name != "ApiFunction" and not any(errors in one for one in watched):
            wrong.append(f"{name}: no alarm counts its errors")
    return wrong


def schedules_unwatched(core: Template, seen: Template) -> list[str]:
    """Schedules whose calls can be lost unseen: late or refused ones are kept nowhere, or none is missed."""
    wrong = []
    functions = resources(core, "AWS::Serverless::Function")
    missed = [
        str(dimension["Value"])
        for one in resources(seen, "AWS::CloudWatch::Alarm").values()
        if one.get("MetricName") == "Invocations"
        and (one["ComparisonOperator"], one["Threshold"]) == ("LessThanThreshold", 1)
        and one["TreatMissingData"] == "breaching"
        for dimension in one["Dimensions"]
    ]
    aged = {
        str(referred(one["FunctionName"]))
        for one in resources(core, "AWS::Lambda::EventInvokeConfig").values()
        if one.get("MaximumEventAgeInSeconds", 21600) <= _STALE_S
    }
    for name, rule in resources(core, "AWS::Events::Rule").items():
        for target in rule["Targets"]:
            kept = referred(target.get("DeadLetterConfig", {}).get("Arn"))
            called = str(referred(target["Arn"]))
            holds = {
                "its calls are retried for too long": target["RetryPolicy"]["MaximumEventAgeInSeconds"]
                <= _STALE_S,
                "what reaches nothing is dropped": kept is not None,
                "it may not keep what reaches nothing": str(rule["Name"]["Fn::Sub"]) in _senders(core, kept),
                "what is refused an execution waits for hours": called in aged,
                "nobody misses its calls": str(functions[called]["FunctionName"]) in missed,
            }
            wrong += [f"{name}: {what}" for what, held in holds.items() if not held]
    return wrong


UNRESERVED: Final = 100
"""Executions of an account that Lambda lets nobody reserve."""


def reserved(core: Template) -> dict[str, int]:
    """The executions that each function reserves by default, if the deployment reserves any.

    Raises ValueError for one that reserves them in an account that has none to give.
    """
    found = {}
    for name, function in resources(core, "AWS::Serverless::Function").items():
        condition, number, otherwise = function["ReservedConcurrentExecutions"].get("Fn::If", (None,) * 3)
        if (condition, otherwise) != ("Reserved", {"Ref": "AWS::NoValue"}):
            raise ValueError(f"{name} reserves executions whether or not the account has them")
        parameter = referred(number)
        found[name] = int(core["Parameters"][parameter]["Default"] if parameter else number)
    return found


def _senders(core: Template, queue: str | None) -> set[str]:
    """The rules of EventBridge whose events the queue takes, by their names."""
    return {
        statement["Condition"]["ArnEquals"]["aws:SourceArn"]["Fn::Sub"].rpartition(":rule/")[2]
        for policy in resources(core, "AWS::SQS::QueuePolicy").values()
        if queue in {referred(one) for one in policy["Queues"]}
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Principal"] == {"Service": "events.amazonaws.com"}
        and statement["Action"] == "sqs:SendMessage"
        and referred(statement["Resource"]) == queue
    }


def _metrics(alarm: Template) -> list[Template]:
    """What an alarm watches: one metric, or those that its expression is worked out from."""
    if "MetricName" in alarm:
        return [alarm]
    return [one["MetricStat"]["Metric"] for one in alarm["Metrics"] if "MetricStat" in one]


def loose_containers(tasks: Template) -> list[str]:
    """Containers that are root, may write their image, are not watched, or carry secrets or privileges."""
    wrong = []
    for name, task in resources(tasks, "AWS::ECS::TaskDefinition").items():
        for container in task["ContainerDefinitions"]:
            user = str(container.get("User", "root")).partition(":")[0]
            if user in ("root", "0"):
                wrong.append(f"{name}: runs as root")
            wrong += [
                f"{name}: {what}"
                for what, holds in {
                    "may write its image": container.get("ReadonlyRootFilesystem") is True,
                    "is privileged": container.get("Privileged") is False,
                    "has no health check": "HealthCheck" in container,
                    "keeps capabilities": container["LinuxParameters"]["Capabilities"] == {"Drop": ["ALL"]},
                    "has too little time to stop": container.get("StopTimeout") == 120,
                    "is given secrets": "Secrets" not in container and not _secret_names(container),
                }.items()
                if not holds
            ]
    return wrong


def gpus_apart(tasks: Template) -> list[str]:
    """Tasks whose GPUs are not what they compute on: one for each that is told cuda, and none for another.

    Which GPU it is, the agent says; a container that says it itself sees those of others.
    """
    wrong = []
    for name, task in resources(tasks, "AWS::ECS::TaskDefinition").items():
        for container in task["ContainerDefinitions"]:
            told = {one["Name"]: one["Value"] for one in container["Environment"]}
            wanted = [{"Type": "GPU", "Value": "1"}] if told.get("TENSAFE_DEVICE") == "cuda" else []
            if container.get("ResourceRequirements", []) != wanted:
                wrong.append(f"{name}: its GPUs are not {wanted}")
            if "NVIDIA_VISIBLE_DEVICES" in told:
                wrong.append(f"{name}: names its GPU itself")
            if wanted and container["LinuxParameters"].get("SharedMemorySize", 0) < 1024:
                wrong.append(f"{name}: has too little shared memory for an engine beside its adapters")
    return wrong


def _secret_names(container: Template) -> list[str]:
    pattern = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY", re.IGNORECASE)
    return [one["Name"] for one in container["Environment"] if pattern.search(str(one["Name"]))]


def parameters_apart(parent: Template, logical_id: str, child: Template) -> list[str]:
    """Parameters of a nested stack that it is not given, or does not have, or that bound what it is given.

    Whoever deploys reaches no nested stack: what its parent does not hand on is fixed, whatever its default,
    and what the parent takes and it refuses is refused halfway through.
    """
    given = parent["Resources"][logical_id]["Properties"]["Parameters"]
    known: dict[str, Any] = child["Parameters"]
    wrong = [f"{name} is not given" for name in sorted(set(known) - set(given))]
    wrong += [f"{name} is unknown" for name in sorted(set(given) - set(known))]
    for name, value in given.items():
        taken = parent["Parameters"].get(value.get("Ref")) if isinstance(value, dict) else None
        bounds = {key: known.get(name, {}).get(key) for key in _BOUNDS}
        if taken and any(bound not in (None, taken.get(key)) for key, bound in bounds.items()):
            wrong.append(f"{name} takes less than what is given")
    return wrong


_BOUNDS: Final = ("AllowedPattern", "AllowedValues", "MinValue", "MaxValue", "MinLength", "MaxLength")
