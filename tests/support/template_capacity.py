"""What instances of infra/tasks.yaml come, stay and go by."""

from __future__ import annotations

from tests.support.templates import Template, referred, resources


def capacity_apart(tasks: Template) -> list[str]:
    """What instances come, stay and go by, where it is not as scaling and Spot need it.

    Scaling divides by a count that Container Insights alone tells; an instance with a task on it stays, which
    takes both the provider's protection and the group's; one that Spot takes is drained by its own agent.
    """
    (cluster,) = resources(tasks, "AWS::ECS::Cluster").values()
    ((provider, capacity),) = resources(tasks, "AWS::ECS::CapacityProvider").items()
    ((group_name, group),) = resources(tasks, "AWS::AutoScaling::AutoScalingGroup").items()
    (associated,) = resources(tasks, "AWS::ECS::ClusterCapacityProviderAssociations").values()
    of_group = capacity["AutoScalingGroupProvider"]
    alone = [{"CapacityProvider": {"Ref": provider}, "Weight": 1}]
    agent = _agent_configuration(tasks)
    stops = {
        f"{container.get('StopTimeout')}s"
        for task in resources(tasks, "AWS::ECS::TaskDefinition").values()
        for container in task["ContainerDefinitions"]
    }
    holds = {
        "running tasks are not counted": {"Name": "containerInsights", "Value": "enabled"}
        in cluster.get("ClusterSettings", []),
        "the provider has another group": referred(of_group["AutoScalingGroupArn"]) == group_name,
        "instances do not follow the tasks": of_group.get("ManagedScaling", {}).get("Status") == "ENABLED"
        and of_group["ManagedScaling"].get("TargetCapacity") == 100,
        "an instance with tasks is scaled in": of_group.get("ManagedTerminationProtection") == "ENABLED"
        and group.get("NewInstancesProtectedFromScaleIn") is True,
        "an instance that goes is not drained": of_group.get("ManagedDraining") == "ENABLED",
        "instances never go to zero": (group["MinSize"], group.get("DesiredCapacity")) == ("0", None),
        "the cluster has another provider": associated["CapacityProviders"] == [{"Ref": provider}],
        "services run elsewhere": all(
            one.get("CapacityProviderStrategy") == alone
            for one in resources(tasks, "AWS::ECS::Service").values()
        ),
        "Spot takes an instance whose tasks are not told": agent.get("ECS_ENABLE_SPOT_INSTANCE_DRAINING")
        == "true",
        "an instance joins another cluster": {"Fn::Sub": agent.get("ECS_CLUSTER")}
        == {"Fn::Sub": "${ServiceName}"}
        and cluster["ClusterName"] == {"Ref": "ServiceName"},
        "the agent gives no GPU": agent.get("ECS_ENABLE_GPU_SUPPORT") == "true",
        "the agent gives another time to stop": stops == {agent.get("ECS_CONTAINER_STOP_TIMEOUT")},
    }
    return [what for what, held in holds.items() if not held]


def _agent_configuration(tasks: Template) -> dict[str, str]:
    """What an instance writes for its agent of ECS."""
    (launch,) = resources(tasks, "AWS::EC2::LaunchTemplate").values()
    script = str(launch["LaunchTemplateData"]["UserData"]["Fn::Base64"]["Fn::Sub"][0])
    written = script.partition(">> /etc/ecs/ecs.config <<'END'\n")[2].partition("\nEND")[0]
    return dict(line.split("=", 1) for line in written.splitlines())
