"""Composition root of AWS: DynamoDB, SQS, S3 and KMS, whichever function or task starts."""

from __future__ import annotations

from tensafe.auth.oidc import token_verifier
from tensafe.cloud.settings import CloudSettings
from tensafe.metrics.emf import EmfMetrics
from tensafe.metrics.port import Metrics
from tensafe.operations.doorbell import queue_specs
from tensafe.services import Ports, Services, wire
from tensafe.storage.aws_clients import LazyClient, aws_client
from tensafe.storage.dynamodb_anchors import DynamoDbAnchors
from tensafe.storage.dynamodb_items import DynamoDbItems
from tensafe.storage.kms_ring import KmsRing
from tensafe.storage.kms_signer import KmsSigner
from tensafe.storage.process_bell import ProcessBell
from tensafe.storage.s3_blobs import S3Blobs
from tensafe.storage.sqs_queues import SqsQueues
from tensafe.storage.sqs_urls import QueueUrls
from tensafe.tracing.endpoint import tracer_to
from tensafe.tracing.port import Tracer


def cloud_services(
    settings: CloudSettings, *, metrics: Metrics | None = None, tracer: Tracer | None = None
) -> Services:
    """The rooms over the adapters that the settings name. Raises ConfigurationError.

    Calls nothing: a cold start waits for no answer, and what a role may not use is refused when it is
    used. There is no other key ring here than KMS, whatever the environment is called. Numbers go to
    standard output in CloudWatch's format unless `metrics` takes them, and spans to the
    collector of the settings unless `tracer` does.
    """
    specs = tuple(queue_specs(model.name for model in settings.models))
    # Nearly every event reads the table: its client is made while a start has a whole core.
    dynamodb, sqs, kms = aws_client("dynamodb"), LazyClient("sqs"), LazyClient("kms")
    ports = Ports(
        items=DynamoDbItems(dynamodb, settings.table),
        queues=SqsQueues(sqs, specs, QueueUrls(sqs, specs, prefix=settings.queue_prefix)),
        blobs=S3Blobs(LazyClient("s3"), settings.bucket, kms_key_id=settings.kms_key_id),
        keyring=KmsRing(kms, settings.kms_key_id),
        bell=ProcessBell(),
        signer=KmsSigner(kms, settings.signing_key_id),
        anchors=DynamoDbAnchors(dynamodb, settings.anchor_table),
        queue_specs=specs,
    )
    models = {model.name: model for model in settings.models}
    tokens = token_verifier(
        settings.oidc_issuer, settings.oidc_audience, settings.oidc_tenant_claim, settings.oidc_scope_claim
    )
    return wire(
        ports,
        models,
        lease_s=settings.lease_s,
        tokens=tokens,
        metrics=metrics or EmfMetrics(settings.service_name),
        tracer=tracer or tracer_to(settings.otlp_endpoint),
    )
