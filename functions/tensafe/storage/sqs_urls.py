"""Where the queues of a deployment are: their URLs, found by their names."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from tensafe.storage.aws_clients import AwsClient, aws_errors_made_ours
from tensafe.storage.checks import declared_queues
from tensafe.storage.ports import QueueSpec

_STORE: Final = "queue service"


class QueueUrls(Mapping[str, str]):
    """The URLs of a deployment's queues by our names: each is asked for when it is first used, and kept.

    A queue is called PREFIX, then its name, then `.fifo` if it is one.
    """

    def __init__(self, client: AwsClient, specs: Sequence[QueueSpec], *, prefix: str) -> None:
        """`client` is `aws_client("sqs")`. Nothing is called yet."""
        self._client = client
        self._names = {
            name: f"{prefix}{name}{'.fifo' if spec.fifo else ''}"
            for name, (spec, _) in declared_queues(specs).items()
        }
        self._lock = threading.Lock()
        self._urls: dict[str, str] = {}

    def __getitem__(self, queue: str) -> str:
        """Raises KeyError for an undeclared queue, Unavailable if SQS does not know it (now)."""
        with self._lock:
            if queue not in self._urls:
                with aws_errors_made_ours(_STORE):
                    answer = self._client.get_queue_url(QueueName=self._names[queue])
                self._urls[queue] = answer["QueueUrl"]
            return self._urls[queue]

    def __contains__(self, queue: object) -> bool:
        """Whether it was declared; SQS is not asked."""
        return queue in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
