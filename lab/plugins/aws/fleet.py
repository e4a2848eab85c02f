"""Owns the rows for the fleet: launch template, Auto Scaling group, scaling policy, hook."""

import re
from collections.abc import Mapping
from typing import Any, Final

from lab.plugins.aws import shapes
from lab.plugins.aws.cloud import NOT_IMPLEMENTED, Cloud, RefusedError
from lab.plugins.aws.kinds import Change, Kind, only, pick, words
from lab.plugins.aws.network import retag, tag_on_creation
from lab.plugins.values import Properties

TEMPLATE: Final = "aws:ec2/launchTemplate:LaunchTemplate"
GROUP: Final = "aws:autoscaling/group:Group"
POLICY: Final = "aws:autoscaling/policy:Policy"
HOOK: Final = "aws:autoscaling/lifecycleHook:LifecycleHook"

DELETE_SECONDS: Final = 600.0
"""The official provider's bound for a group delete."""

TEMPLATE_NAMES: Final[Mapping[str, str]] = {
    "networkInterfaces.securityGroups": "Groups",
    "vpcSecurityGroupIds": "SecurityGroupIds",
}
TEMPLATE_DATA: Final = (
    "blockDeviceMappings creditSpecification disableApiStop disableApiTermination ebsOptimized"
    " iamInstanceProfile imageId instanceInitiatedShutdownBehavior instanceMarketOptions"
    " instanceType kernelId keyName maintenanceOptions metadataOptions monitoring"
    " networkInterfaces placement privateDnsNameOptions ramDiskId tagSpecifications userData"
    " vpcSecurityGroupIds"
)


def _template_data(cloud: Cloud, inputs: Properties) -> dict[str, Any]:
    wanted = pick(inputs, TEMPLATE_DATA)
    return shapes.request(
        cloud, "ec2", "CreateLaunchTemplate", wanted, TEMPLATE_NAMES, "LaunchTemplateData"
    )


def _create_template(cloud: Cloud, inputs: Properties) -> str:
    parameters: dict[str, Any] = {
        "LaunchTemplateName": inputs["name"],
        "LaunchTemplateData": _template_data(cloud, inputs),
        "TagSpecifications": tag_on_creation(cloud, "launch-template", inputs),
    }
    if inputs.get("description"):
        parameters["VersionDescription"] = inputs["description"]
    made = cloud.call("ec2", "create_launch_template", **parameters)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


def _read_template(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    found = cloud.call("ec2", "describe_launch_templates", LaunchTemplateIds=[resource_id])
    template = only(found["LaunchTemplates"])
    if template is None:
        return None
    latest = str(template["LatestVersionNumber"])
    version = cloud.call(
        "ec2",
        "describe_launch_template_versions",
        LaunchTemplateId=resource_id,
        Versions=[latest],
    )["LaunchTemplateVersions"][0]
    data = dict(version["LaunchTemplateData"])
    # moto adds the template's own tags to what it launches; AWS does not.
    data["TagSpecifications"] = [
        tags
        for tags in data.get("TagSpecifications", [])
        if tags["ResourceType"] != "launch-template"
    ]
    return shapes.state(TEMPLATE, data, TEMPLATE_NAMES) | {
        "arn": cloud.arn("ec2", cloud.account, f"launch-template/{resource_id}"),
        "description": version.get("VersionDescription", ""),
        "latestVersion": template["LatestVersionNumber"],
        "defaultVersion": template["DefaultVersionNumber"],
        "name": template["LaunchTemplateName"],
        "tagsAll": shapes.tag_map(template.get("Tags")),
    }


def _update_template(cloud: Cloud, resource_id: str, change: Change) -> None:
    inputs = change.inputs
    version = None
    if change.changed & words(TEMPLATE_DATA + " description"):
        parameters = {"LaunchTemplateData": _template_data(cloud, inputs)}
        if inputs.get("description"):
            parameters["VersionDescription"] = inputs["description"]
        version = cloud.call(
            "ec2", "create_launch_template_version", LaunchTemplateId=resource_id, **parameters
        )["LaunchTemplateVersion"]["VersionNumber"]
    default = inputs.get("defaultVersion") if "defaultVersion" in change.changed else None
    if inputs.get("updateDefaultVersion"):
        default = version or change.state["latestVersion"]
    if default:
        cloud.call(
            "ec2",
            "modify_launch_template",
            LaunchTemplateId=resource_id,
            DefaultVersion=str(default),
        )
    retag(cloud, resource_id, change)


def _delete_template(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call("ec2", "delete_launch_template", LaunchTemplateId=resource_id)


GROUP_NAMES: Final[Mapping[str, str]] = {
    "launchTemplate.id": "LaunchTemplateId",
    "launchTemplate.name": "LaunchTemplateName",
    "initialLifecycleHooks": "LifecycleHookSpecificationList",
    "initialLifecycleHooks.name": "LifecycleHookName",
    "protectFromScaleIn": "NewInstancesProtectedFromScaleIn",
    "targetGroupArns": "TargetGroupARNs",
}
GROUP_CHANGEABLE: Final = (
    "capacityRebalance defaultCooldown defaultInstanceWarmup desiredCapacity"
    " healthCheckGracePeriod healthCheckType instanceMaintenancePolicy launchTemplate"
    " maxInstanceLifetime maxSize minSize mixedInstancesPolicy protectFromScaleIn"
    " serviceLinkedRoleArn terminationPolicies"
)
GROUP_ONLY_HERE: Final = (
    "forceDelete forceDeleteWarmPool ignoreFailedScalingActivities instanceRefresh"
    " waitForCapacityTimeout"
)
GROUP_LISTS: Final = "enabledMetrics metricsGranularity suspendedProcesses tags"
REFRESHING: Final = words("launchTemplate mixedInstancesPolicy")
"""Changes that start an instance refresh without being named among its triggers."""


def _group_request(cloud: Cloud, operation: str, inputs: Properties) -> dict[str, Any]:
    return shapes.request(cloud, "autoscaling", operation, inputs, GROUP_NAMES)


def _create_group(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, GROUP_CHANGEABLE + " initialLifecycleHooks targetGroupArns")
    parameters = _group_request(cloud, "CreateAutoScalingGroup", wanted)
    parameters["AutoScalingGroupName"] = inputs["name"]
    if inputs.get("vpcZoneIdentifiers"):
        parameters["VPCZoneIdentifier"] = ",".join(inputs["vpcZoneIdentifiers"])
    elif inputs.get("availabilityZones"):
        parameters["AvailabilityZones"] = inputs["availabilityZones"]
    if inputs.get("tags"):
        parameters["Tags"] = _group_tags(inputs["name"], inputs["tags"])
    cloud.call("autoscaling", "create_auto_scaling_group", **parameters)
    return str(inputs["name"])


def _group_tags(name: str, tags: list[Properties]) -> list[dict[str, Any]]:
    return [
        {
            "ResourceId": name,
            "ResourceType": "auto-scaling-group",
            "Key": tag["key"],
            "Value": tag["value"],
            "PropagateAtLaunch": tag["propagateAtLaunch"],
        }
        for tag in tags
    ]


def _finish_group(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    if inputs.get("suspendedProcesses"):
        cloud.call(
            "autoscaling",
            "suspend_processes",
            AutoScalingGroupName=resource_id,
            ScalingProcesses=inputs["suspendedProcesses"],
        )
    if inputs.get("enabledMetrics"):
        _enable_metrics(cloud, resource_id, inputs)
    _wait_for_capacity(cloud, resource_id, inputs)


def _enable_metrics(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    cloud.call(
        "autoscaling",
        "enable_metrics_collection",
        AutoScalingGroupName=resource_id,
        Granularity=inputs.get("metricsGranularity", "1Minute"),
        Metrics=inputs["enabledMetrics"],
    )


def _group(cloud: Cloud, name: str) -> Any:
    groups = cloud.call("autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[name])
    return only(groups["AutoScalingGroups"])


def _wait_for_capacity(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    bound_seconds = _seconds(inputs.get("waitForCapacityTimeout", "10m"))
    if bound_seconds == 0:
        return
    wanted = inputs.get("desiredCapacity") or inputs["minSize"]

    def enough() -> bool:
        ready = [
            instance
            for instance in (_group(cloud, resource_id) or {}).get("Instances", [])
            if instance["LifecycleState"] == "InService" and instance["HealthStatus"] == "Healthy"
        ]
        return len(ready) >= int(wanted)

    what = f"group {resource_id}: waiting for {wanted} healthy instance(s) in service"
    cloud.wait(what, enough, bound_seconds)


def _seconds(duration: str) -> float:
    """A length of time as Go writes it: `10m`, `1h30m`, `0`."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", duration)
    if duration != "0" and "".join(number + unit for number, unit in parts) != duration:
        message = f"waitForCapacityTimeout {duration!r} is no duration; write it like 10m or 1h30m"
        raise RefusedError(message)
    return sum(float(number) * units[unit] for number, unit in parts)


def _read_group(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    group = _group(cloud, resource_id)
    if group is None:
        return None
    tags = [
        {"key": tag["Key"], "value": tag["Value"], "propagateAtLaunch": tag["PropagateAtLaunch"]}
        for tag in group.get("Tags", [])
        if not tag["Key"].startswith("aws:")
    ]
    metrics = group.get("EnabledMetrics", [])
    answer = {key: value for key, value in group.items() if key != "Tags"}
    return shapes.state(GROUP, answer, GROUP_NAMES) | {
        "arn": group["AutoScalingGroupARN"],
        "enabledMetrics": [metric["Metric"] for metric in metrics],
        "name": group["AutoScalingGroupName"],
        "suspendedProcesses": [
            process["ProcessName"] for process in group.get("SuspendedProcesses", [])
        ],
        "tags": tags,
        "vpcZoneIdentifiers": [
            subnet for subnet in group.get("VPCZoneIdentifier", "").split(",") if subnet
        ],
    }


def _update_group(cloud: Cloud, resource_id: str, change: Change) -> None:
    inputs, changed = change.inputs, change.changed
    parameters = _group_request(
        cloud,
        "UpdateAutoScalingGroup",
        pick(inputs, " ".join(changed & words(GROUP_CHANGEABLE))),
    )
    if "vpcZoneIdentifiers" in changed:
        parameters["VPCZoneIdentifier"] = ",".join(inputs.get("vpcZoneIdentifiers", []))
    if parameters:
        parameters["AutoScalingGroupName"] = resource_id
        cloud.call("autoscaling", "update_auto_scaling_group", **parameters)
    if "tags" in changed:
        _change_group_tags(cloud, resource_id, change)
    _change_group_lists(cloud, resource_id, change)
    refresh = inputs.get("instanceRefresh")
    if refresh and changed & (REFRESHING | set(refresh.get("triggers", []))):
        _start_refresh(cloud, resource_id, refresh)
    if changed & {"minSize", "desiredCapacity"}:
        _wait_for_capacity(cloud, resource_id, inputs)


def _change_group_tags(cloud: Cloud, resource_id: str, change: Change) -> None:
    wanted = change.inputs.get("tags", [])
    keys = {tag["key"] for tag in wanted}
    surplus = [tag for tag in change.state.get("tags", []) if tag["key"] not in keys]
    if surplus:
        cloud.call("autoscaling", "delete_tags", Tags=_group_tags(resource_id, surplus))
    if wanted:
        tags = _group_tags(resource_id, wanted)
        cloud.call("autoscaling", "create_or_update_tags", Tags=tags)


def _change_group_lists(cloud: Cloud, resource_id: str, change: Change) -> None:
    for name, on, off, parameter in (
        ("suspendedProcesses", "suspend_processes", "resume_processes", "ScalingProcesses"),
        ("enabledMetrics", "", "disable_metrics_collection", "Metrics"),
    ):
        wanted = set(change.inputs.get(name, []))
        present = set(change.state.get(name, []))
        if surplus := sorted(present - wanted):
            named = {"AutoScalingGroupName": resource_id, parameter: surplus}
            cloud.call("autoscaling", off, **named)
        if missing := sorted(wanted - present):
            if on:
                named = {"AutoScalingGroupName": resource_id, parameter: missing}
                cloud.call("autoscaling", on, **named)
            else:
                _enable_metrics(cloud, resource_id, change.inputs)


def _start_refresh(cloud: Cloud, resource_id: str, refresh: Properties) -> None:
    wanted = pick(refresh, "strategy preferences")
    parameters = _group_request(cloud, "StartInstanceRefresh", wanted)
    try:
        _begin_refresh(cloud, resource_id, parameters)
    except RefusedError as error:
        if error.code != NOT_IMPLEMENTED:
            raise
        cloud.warn(
            f"group {resource_id}: the API server knows no StartInstanceRefresh; "
            "running instances keep the old launch template until they are replaced"
        )


def _begin_refresh(cloud: Cloud, resource_id: str, parameters: Mapping[str, Any]) -> None:
    """A refresh that still runs is cancelled for the new one, as the official provider does."""
    name = {"AutoScalingGroupName": resource_id}
    try:
        cloud.call("autoscaling", "start_instance_refresh", **name, **parameters)
    except RefusedError as error:
        if error.code != "InstanceRefreshInProgress":
            raise
        cloud.call("autoscaling", "cancel_instance_refresh", **name)
        cloud.call_when_free("autoscaling", "start_instance_refresh", **name, **parameters)


def _delete_group(cloud: Cloud, resource_id: str, state: Properties) -> None:
    force = bool(state.get("forceDelete"))
    if not force and _group(cloud, resource_id) is not None:
        cloud.call(
            "autoscaling",
            "update_auto_scaling_group",
            AutoScalingGroupName=resource_id,
            MinSize=0,
            MaxSize=0,
            DesiredCapacity=0,
        )
        cloud.wait(
            f"group {resource_id}: waiting for its instances to end",
            lambda: not (_group(cloud, resource_id) or {}).get("Instances"),
            DELETE_SECONDS,
        )
    cloud.call(
        "autoscaling",
        "delete_auto_scaling_group",
        AutoScalingGroupName=resource_id,
        ForceDelete=force,
    )
    cloud.wait(
        f"group {resource_id}: waiting until it is gone",
        lambda: _group(cloud, resource_id) is None,
        DELETE_SECONDS,
    )


POLICY_NAMES: Final[Mapping[str, str]] = {
    "customizedMetricSpecification.metricDimensions": "Dimensions",
}
POLICY_INPUTS: Final = (
    "adjustmentType autoscalingGroupName cooldown enabled estimatedInstanceWarmup"
    " metricAggregationType minAdjustmentMagnitude policyType scalingAdjustment stepAdjustments"
    " targetTrackingConfiguration"
)


def _put_policy(cloud: Cloud, inputs: Properties) -> str:
    parameters = shapes.request(
        cloud, "autoscaling", "PutScalingPolicy", pick(inputs, POLICY_INPUTS), POLICY_NAMES
    )
    cloud.call("autoscaling", "put_scaling_policy", PolicyName=inputs["name"], **parameters)
    return str(inputs["name"])


def _read_policy(cloud: Cloud, resource_id: str, state: Properties) -> Properties | None:
    answers = cloud.call(
        "autoscaling",
        "describe_policies",
        AutoScalingGroupName=state["autoscalingGroupName"],
        PolicyNames=[resource_id],
    )["ScalingPolicies"]
    policy = only(answers)
    if policy is None:
        return None
    return shapes.state(POLICY, policy, POLICY_NAMES) | {
        "arn": policy["PolicyARN"],
        "name": policy["PolicyName"],
    }


def _update_policy(cloud: Cloud, _id: str, change: Change) -> None:
    _put_policy(cloud, change.inputs)


def _delete_policy(cloud: Cloud, resource_id: str, state: Properties) -> None:
    cloud.call(
        "autoscaling",
        "delete_policy",
        AutoScalingGroupName=state["autoscalingGroupName"],
        PolicyName=resource_id,
    )


HOOK_INPUTS: Final = (
    "autoscalingGroupName defaultResult heartbeatTimeout lifecycleTransition"
    " notificationMetadata notificationTargetArn roleArn"
)


def _put_hook(cloud: Cloud, inputs: Properties) -> str:
    parameters = shapes.request(
        cloud, "autoscaling", "PutLifecycleHook", pick(inputs, HOOK_INPUTS), {}
    )
    cloud.call("autoscaling", "put_lifecycle_hook", LifecycleHookName=inputs["name"], **parameters)
    return str(inputs["name"])


def _read_hook(cloud: Cloud, resource_id: str, state: Properties) -> Properties | None:
    answers = cloud.call(
        "autoscaling",
        "describe_lifecycle_hooks",
        AutoScalingGroupName=state["autoscalingGroupName"],
        LifecycleHookNames=[resource_id],
    )["LifecycleHooks"]
    hook = only(answers)
    return hook and shapes.state(HOOK, hook, {"name": "LifecycleHookName"})


def _update_hook(cloud: Cloud, _id: str, change: Change) -> None:
    _put_hook(cloud, change.inputs)


def _delete_hook(cloud: Cloud, resource_id: str, state: Properties) -> None:
    cloud.call(
        "autoscaling",
        "delete_lifecycle_hook",
        AutoScalingGroupName=state["autoscalingGroupName"],
        LifecycleHookName=resource_id,
    )


KINDS: Final[Mapping[str, Kind]] = {
    TEMPLATE: Kind(
        inputs=words(
            TEMPLATE_DATA + " name namePrefix description defaultVersion updateDefaultVersion tags"
        ),
        create=_create_template,
        read=_read_template,
        update=_update_template,
        delete=_delete_template,
        name="name",
        name_limit=128,
        sets=words("vpcSecurityGroupIds networkInterfaces.securityGroups"),
        moving=words("latestVersion defaultVersion"),
    ),
    GROUP: Kind(
        inputs=words(f"{GROUP_CHANGEABLE} {GROUP_ONLY_HERE} {GROUP_LISTS}")
        | words("name namePrefix availabilityZones initialLifecycleHooks targetGroupArns")
        | words("vpcZoneIdentifiers"),
        defaults={
            "forceDelete": False,
            "forceDeleteWarmPool": False,
            "healthCheckGracePeriod": 300,
            "ignoreFailedScalingActivities": False,
            "metricsGranularity": "1Minute",
            "protectFromScaleIn": False,
            "waitForCapacityTimeout": "10m",
        },
        create=_create_group,
        finish=_finish_group,
        read=_read_group,
        update=_update_group,
        delete=_delete_group,
        name="name",
        sets=words(
            "availabilityZones enabledMetrics suspendedProcesses tags targetGroupArns"
            " vpcZoneIdentifiers instanceRefresh.triggers"
        ),
        tagged=False,
    ),
    POLICY: Kind(
        inputs=words(POLICY_INPUTS + " name"),
        defaults={"enabled": True, "policyType": "SimpleScaling"},
        create=_put_policy,
        read=_read_policy,
        update=_update_policy,
        delete=_delete_policy,
        name="name",
        tagged=False,
    ),
    HOOK: Kind(
        inputs=words(HOOK_INPUTS + " name"),
        create=_put_hook,
        read=_read_hook,
        update=_update_hook,
        delete=_delete_hook,
        name="name",
        tagged=False,
    ),
}
