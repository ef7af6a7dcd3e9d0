"""Conditions, trusts, defaults and reasons in the templates; each rule sees its own planted bug."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import template_bounds as rules
from tests.support.template_access import policy_statement, properties, role_statements
from tests.support.templates import CORE, OBSERVABILITY, TASKS, Template, listed, read_template

Rule = Callable[[Template], list[str]]


@pytest.mark.parametrize("path", [CORE, TASKS, OBSERVABILITY], ids=lambda path: path.name)
@pytest.mark.parametrize(
    "rule",
    [rules.unbound, rules.open_trusts, rules.permissions_for_all, rules.skips_without_reason],
    ids=lambda rule: rule.__name__,
)
def test_every_template_keeps_the_rule(rule: Rule, path: Path) -> None:
    assert rule(read_template(path)) == []


@pytest.mark.parametrize(
    "rule",
    [rules.strangers_as_tasks, rules.other_defaults, rules.unlimited_stages],
    ids=lambda rule: rule.__name__,
)
def test_the_core_keeps_the_rule(rule: Rule) -> None:
    assert rule(read_template(CORE)) == []


def trust(template: Template, role: str) -> Any:
    (statement,) = properties(template, role)["AssumeRolePolicyDocument"]["Statement"]
    return statement


def without_condition(template: Template, action: str) -> None:
    for _, statement in role_statements(template):
        if action in listed(statement.get("Action", [])):
            statement.pop("Condition")


def conditioned(template: Template, action: str) -> Any:
    return next(
        one["Condition"] for _, one in role_statements(template) if action in listed(one.get("Action", []))
    )


PLANTED: dict[str, tuple[Rule, Path, Callable[[Template], object]]] = {
    "any event source": (
        rules.unbound, CORE, lambda t: without_condition(t, "lambda:UpdateEventSourceMapping"),
    ),
    "the tasks of every cluster": (rules.unbound, CORE, lambda t: without_condition(t, "ecs:ListTasks")),
    "an agent of every cluster": (rules.unbound, TASKS, lambda t: without_condition(t, "ecs:Poll")),
    "agents of a cluster of any name": (
        rules.unbound, TASKS, lambda t: conditioned(t, "ecs:Poll")["ArnEquals"].update({"ecs:cluster": "*"}),
    ),
    "a role for two": (
        rules.open_trusts, CORE, lambda t: trust(t, "OperatorRole").update(Principal={"AWS": ["a", "b"]}),
    ),
    "a task of any account": (rules.open_trusts, CORE, lambda t: trust(t, "TrainerRole").pop("Condition")),
    "a role for everybody": (
        rules.open_trusts, CORE, lambda t: trust(t, "OperatorRole").update(Principal={"AWS": "*"}),
    ),
    "a function's role for a machine": (
        rules.strangers_as_tasks, CORE,
        lambda t: trust(t, "ApiRole").update(Principal={"Service": "ec2.amazonaws.com"}),
    ),
    "any gateway invokes": (
        rules.permissions_for_all, CORE, lambda t: properties(t, "ApiPermission").pop("SourceArn"),
    ),
    "a skip without a word": (
        rules.skips_without_reason, CORE,
        lambda t: t["Resources"]["ApiFunction"]["Metadata"]["checkov"]["skip"].append({"id": "CKV_AWS_1"}),
    ),
    "tables that go with the stack": (
        rules.other_defaults, CORE, lambda t: t["Parameters"]["DeletionProtection"].update(Default="false"),
    ),
    "no environment of production": (
        rules.other_defaults, CORE, lambda t: t["Parameters"]["Environment"].update(Default="development"),
    ),
    "a table that ignores the parameter": (
        rules.unlimited_stages, CORE,
        lambda t: properties(t, "ItemsTable").update(DeletionProtectionEnabled=False),
    ),
    "a gateway without a rate": (
        rules.unlimited_stages, CORE,
        lambda t: properties(t, "HttpStage")["DefaultRouteSettings"].pop("ThrottlingRateLimit"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_seen(bug: str) -> None:
    rule, path, plant = PLANTED[bug]
    template = read_template(path)
    assert rule(template) == []
    plant(template)
    assert rule(template) != []


def test_what_is_said_to_be_bound_is_allowed_somewhere() -> None:
    templates = [read_template(CORE), read_template(TASKS)]
    actions = {
        action
        for template in templates
        for _, statement in role_statements(template)
        for action in listed(statement.get("Action", []))
    }
    assert rules.BOUND_BY.keys() <= actions
    assert policy_statement(templates[0], "ApiPolicy")
