"""Who may call, over the table of items alone: all that the authorizer's role lets it read."""

from __future__ import annotations

from tensafe.auth.callers import Callers
from tensafe.auth.keys import ApiKeys
from tensafe.auth.oidc import token_verifier
from tensafe.cloud.settings import CloudSettings
from tensafe.storage.aws_clients import aws_client
from tensafe.storage.dynamodb_items import DynamoDbItems


def cloud_callers(settings: CloudSettings) -> Callers:
    """Keys from the table and tokens of the configured issuer. Raises ConfigurationError; calls nothing."""
    tokens = token_verifier(
        settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_scope_claim
    )
    return Callers(ApiKeys(DynamoDbItems(aws_client("dynamodb"), settings.table)), tokens)
