"""Which instances the GPU tasks get, worked out from what whoever deploys may say."""

from __future__ import annotations

import re

import pytest

from tests.support.templates import CORE, TASKS, read_template
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
