"""Which instances the GPU tasks get, by what whoever deploys may say, and how these come, stay and go."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.template_capacity import capacity_apart
from tests.support.templates import CORE, TASKS, Template, read_template
from tools.aws_local.template import Scope

DEFAULTS = {
    name: one["Default"] for name, one in read_template(CORE)["Parameters"].items() if "Default" in one
}


def instance_types(**given: str) -> list[str]:
    """Those of the group, in its order."""
    tasks = read_template(TASKS)
    scope = Scope(tasks, {**DEFAULTS, **given}, {})
    template = tasks["Resources"]["Instances"]["Properties"]["MixedInstancesPolicy"]["LaunchTemplate"]
    return [one["InstanceType"] for one in scope.value(template["Overrides"])]


def test_two_types_by_default_and_one_where_one_is_named() -> None:
    assert instance_types() == ["g6e.2xlarge", "g6e.4xlarge"]
    assert instance_types(InstanceType="p5.4xlarge", OtherInstanceType="") == ["p5.4xlarge"]
    assert instance_types(InstanceType="g6.2xlarge", OtherInstanceType="g5.2xlarge") == [
        "g6.2xlarge",
        "g5.2xlarge",
    ]


def test_a_group_is_given_no_type_twice() -> None:
    assert instance_types(OtherInstanceType="g6e.2xlarge") == ["g6e.2xlarge"]


@pytest.mark.parametrize("name", ["InstanceType", "OtherInstanceType"])
def test_what_is_no_type_is_refused_before_anything_is_made(name: str) -> None:
    parameter = read_template(CORE)["Parameters"][name]

    def taken(value: str) -> bool:
        return re.fullmatch(parameter["AllowedPattern"], value) is not None

    assert all(map(taken, ("g6e.2xlarge", "p5.4xlarge", "u-6tb1.56xlarge", "g7e.metal-48xl")))
    for list_or_nothing in ("g6e.2xlarge,g6e.4xlarge", "g6e.2xlarge g6e.4xlarge", "g6e", "ami-1"):
        assert not taken(list_or_nothing)
    assert taken("") is (name == "OtherInstanceType")


def _p(tasks: Template, name: str) -> Any:
    return tasks["Resources"][name]["Properties"]


def _provider(tasks: Template) -> Any:
    return _p(tasks, "CapacityProvider")["AutoScalingGroupProvider"]


def _agent_told(tasks: Template, old: str, new: str) -> None:
    script = _p(tasks, "InstanceTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"]
    assert old in script[0]
    script[0] = script[0].replace(old, new)


PLANTED: dict[str, Callable[[Template], object]] = {
    "running tasks that nobody counts": lambda t: _p(t, "Cluster").pop("ClusterSettings"),
    "instances that nobody starts": lambda t: _provider(t)["ManagedScaling"].update(Status="DISABLED"),
    "instances that are kept in reserve": lambda t: _provider(t)["ManagedScaling"].update(TargetCapacity=50),
    "instances scaled in with their tasks": lambda t: _provider(t).pop("ManagedTerminationProtection"),
    "a protection that the group does not give": lambda t: _p(t, "Instances").update(
        NewInstancesProtectedFromScaleIn=False
    ),
    "instances that go without being drained": lambda t: _provider(t).update(ManagedDraining="DISABLED"),
    "a group that is not the provider's": lambda t: _provider(t).update(AutoScalingGroupArn="arn:other"),
    "an instance that is always there": lambda t: _p(t, "Instances").update(MinSize="1"),
    "a cluster with another provider": lambda t: _p(t, "ClusterCapacity").update(
        CapacityProviders=["FARGATE"]
    ),
    "a service without the provider": lambda t: _p(t, "SamplerService").pop("CapacityProviderStrategy"),
    "tasks that are not told of Spot": lambda t: _agent_told(
        t, "SPOT_INSTANCE_DRAINING=true", "SPOT_INSTANCE_DRAINING=false"
    ),
    "instances of another cluster": lambda t: _agent_told(t, "=${ServiceName}", "=default"),
    "an agent that gives no GPU": lambda t: _agent_told(t, "ECS_ENABLE_GPU_SUPPORT=true\n", ""),
    "an agent that ends a task too soon": lambda t: _agent_told(t, "TIMEOUT=120s", "TIMEOUT=30s"),
}


def test_instances_come_stay_and_go_as_scaling_and_spot_need_it() -> None:
    assert capacity_apart(read_template(TASKS)) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_of_the_capacity_is_seen(name: str) -> None:
    tasks = read_template(TASKS)
    PLANTED[name](tasks)
    assert len(capacity_apart(tasks)) == 1
