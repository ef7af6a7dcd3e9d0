"""What bounds a right, a trust or a permission in the templates: each rule returns what lacks its bound."""

from __future__ import annotations

from typing import Final

from tests.support.template_access import role_statements
from tests.support.templates import Template, listed, resources, texts

BOUND_BY: Final = {
    "ecs:Poll": "ecs:cluster",
    "ecs:StartTelemetrySession": "ecs:cluster",
    "ecs:UpdateContainerInstancesState": "ecs:cluster",
    "ecs:ListTasks": "ecs:cluster",
    "lambda:UpdateEventSourceMapping": "lambda:FunctionArn",
}
"""Actions that are allowed on all resources of a kind because of the condition that is named here."""
OPEN_SERVICES: Final = frozenset({"lambda.amazonaws.com", "ec2.amazonaws.com"})
"""They take a role on behalf of whoever may pass it, and know no source."""
DEFAULTS: Final[dict[str, object]] = {
    "Environment": "production",
    "KeyAdminArn": "",
    "OperatorArn": "",
    "PublisherArn": "",
    "ReserveConcurrency": "true",
    "ApiConcurrency": 100,
    "WaitsPerTenant": 25,
    "AuthorizerConcurrency": 50,
    "RequestsPerSecond": 500,
    "RequestsBurst": 1000,
    "LogRetentionDays": 365,
    "RecoveryDays": 7,
    "DeletionProtection": "true",
    "DeployAlarms": "true",
    "DeployTasks": "false",
}
"""What somebody gets who says nothing: protected tables, logs of a year, bounded load, nobody with rights."""


def unbound(template: Template) -> list[str]:
    """Statements with an action of BOUND_BY that lack its condition."""
    return [
        f"{name}: {action} without {BOUND_BY[action]}"
        for name, statement in role_statements(template)
        for action in listed(statement.get("Action", []))
        if action in BOUND_BY and not _names_one(statement.get("Condition", {}), BOUND_BY[action])
    ]


def _names_one(condition: Template, key: str) -> bool:
    """Whether ArnEquals has it, with a value that is not every one."""
    values = listed(condition.get("ArnEquals", {}).get(key, []))
    return bool(values) and all("*" not in text for value in values for text in texts(value))


def open_trusts(template: Template) -> list[str]:
    """Roles that anybody may take: a wildcard, several principals, a service that works for any account."""
    wrong = []
    for name, role in resources(template, "AWS::IAM::Role").items():
        for statement in listed(role["AssumeRolePolicyDocument"]["Statement"]):
            principal = statement["Principal"]
            named = (
                [one for value in principal.values() for one in listed(value)] if principal != "*" else ["*"]
            )
            if len(named) != 1 or "*" in named:
                wrong.append(f"{name}: {principal}")
            elif "Service" in principal and principal["Service"] not in OPEN_SERVICES:
                equal = statement.get("Condition", {}).get("StringEquals", {})
                if equal.get("aws:SourceAccount") != {"Ref": "AWS::AccountId"}:
                    wrong.append(f"{name}: {principal['Service']} for any account")
    return wrong


def strangers_as_tasks(template: Template) -> list[str]:
    """Functions and tasks whose role trusts another service than the one that runs them."""
    functions = {
        one["Role"]["Fn::GetAtt"][0]: "lambda.amazonaws.com"
        for one in resources(template, "AWS::Serverless::Function").values()
    }
    tasks = dict.fromkeys(("TrainerRole", "SamplerRole", "AdapterHolderRole"), "ecs-tasks.amazonaws.com")
    roles = resources(template, "AWS::IAM::Role")
    return [
        name
        for name, service in {**functions, **tasks}.items()
        for statement in listed(roles[name]["AssumeRolePolicyDocument"]["Statement"])
        if statement["Principal"] != {"Service": service}
    ]


def permissions_for_all(template: Template) -> list[str]:
    """Permissions to invoke a function that name no source."""
    return [
        name
        for name, one in resources(template, "AWS::Lambda::Permission").items()
        if not one.get("SourceArn") or "*" in one["Principal"]
    ]


def skips_without_reason(template: Template) -> list[str]:
    """Checks of checkov that are skipped without a word."""
    return [
        f"{name}: {skip.get('id')}"
        for name, one in template["Resources"].items()
        for skip in one.get("Metadata", {}).get("checkov", {}).get("skip", [])
        if len(str(skip.get("comment", "")).split()) < 3
    ]


def other_defaults(template: Template) -> list[str]:
    """Parameters whose default is not the safe one."""
    found = {name: template["Parameters"][name].get("Default") for name in DEFAULTS}
    return [name for name, value in found.items() if value != DEFAULTS[name]]


def unlimited_stages(template: Template) -> list[str]:
    """Stages of the gateway without the two rates, or tables and logs that ignore their parameter."""
    rates = {
        "ThrottlingRateLimit": {"Ref": "RequestsPerSecond"},
        "ThrottlingBurstLimit": {"Ref": "RequestsBurst"},
    }
    stages = resources(template, "AWS::ApiGatewayV2::Stage")
    wrong = [name for name, one in stages.items() if not rates.items() <= one["DefaultRouteSettings"].items()]
    tables = resources(template, "AWS::DynamoDB::Table")
    wrong += [
        name for name, one in tables.items() if one["DeletionProtectionEnabled"] != _ref("DeletionProtection")
    ]
    logs = resources(template, "AWS::Logs::LogGroup")
    return wrong + [name for name, one in logs.items() if one["RetentionInDays"] != _ref("LogRetentionDays")]


def _ref(parameter: str) -> Template:
    return {"Ref": parameter}
