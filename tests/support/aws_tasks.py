"""The services of infra/tasks.yaml as the emulator's ECS has them: counts, and no containers.

Real ECS starts as many tasks as its service says. Here `follow` tells the keeper of the tasks' processes.
"""

from __future__ import annotations

from typing import Any, Final

from tests.support.aws_service import AwsService
from tests.support.templates import TASKS, read_template, resources

CLUSTER: Final = "tensafe"
RUN_HERE: Final = ("trainer", "sampler")


class EcsServices:
    """Cluster and services by the template's names; the trainer and the sampler at one task each."""

    def __init__(self, service: AwsService) -> None:
        self._tasks = service.stack.tasks
        self._ecs = service.stack.emulator.client("ecs")
        self._ecs.create_cluster(clusterName=CLUSTER)
        for one in resources(read_template(TASKS), "AWS::ECS::Service").values():
            name = one["ServiceName"]
            container = {"name": name, "image": "none", "memory": 512}
            self._ecs.register_task_definition(family=name, containerDefinitions=[container])
            self._ecs.create_service(
                cluster=CLUSTER,
                serviceName=name,
                taskDefinition=name,
                desiredCount=1 if name in RUN_HERE else 0,
            )

    def described(self, role: str) -> Any:
        (one,) = self._ecs.describe_services(cluster=CLUSTER, services=[role])["services"]
        return one

    def desired(self, role: str) -> int:
        return int(self.described(role)["desiredCount"])

    def set_desired(self, role: str, count: int) -> None:
        """What Application Auto Scaling would do."""
        self._ecs.update_service(cluster=CLUSTER, service=role, desiredCount=count)
        self.follow(role)

    def follow(self, role: str) -> None:
        """As many processes as the service asks for, of which there can be one here."""
        self._tasks.scale(role, min(1, self.desired(role)))

    def running(self, role: str) -> int:
        """RunningTaskCount: processes, not what the emulator believes."""
        return 0 if self._tasks.pid(role) is None else 1
