"""Owns what moto's Auto Scaling lacks: instances that come and go slowly, hooks, refreshes.

moto's groups change in an instant. Here an instance is Pending until its machine runs, waits for
the group's lifecycle hooks, stays visible while it leaves, and is only terminated once its machine
is off. Machines themselves belong to `lab.cloud.actuator`. Every function and every API call holds
`LOCK`, so a caller always sees a whole state; moto itself has no locking.
"""

import base64
import copy
import hashlib
import ipaddress
import itertools
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from moto.autoscaling.exceptions import AutoscalingClientError, ValidationError
from moto.autoscaling.models import (
    AutoScalingBackend,
    FakeAutoScalingGroup,
    InstanceState,
    autoscaling_backends,
)
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.exceptions import DependencyViolationError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance, MetadataOptions
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.utils import parse_user_data
from moto.iam.models import iam_backends

ACCOUNT: Final = "123456789012"
"""The account moto puts every caller in."""

LAUNCHING: Final = "autoscaling:EC2_INSTANCE_LAUNCHING"
TERMINATING: Final = "autoscaling:EC2_INSTANCE_TERMINATING"

DEFAULT_MINIMUM_HEALTHY_PERCENTAGE: Final = 90
DEFAULT_MAXIMUM_HEALTHY_PERCENTAGE: Final = 100
"""Both from the API reference of StartInstanceRefresh."""

LOCK: Final = threading.RLock()

_log = logging.getLogger("lab.cloud")
_first_address = ipaddress.IPv4Address("10.64.8.10")


@dataclass(kw_only=True)
class Record:
    """What the lab remembers of one instance, kept on moto's own object and saved with it."""

    template_version: int | None
    template: dict[str, Any]
    waiting: dict[str, float] = field(default_factory=dict)
    """Lifecycle hook → when its heartbeat ends, in seconds since the epoch."""
    in_service_at: float | None = None
    machine_seen: bool = False


@dataclass(kw_only=True)
class Refresh:
    """One instance refresh of a group."""

    identifier: str
    group: str
    minimum_percent: int
    maximum_percent: int
    warmup_seconds: int
    remaining: set[str]
    total: int
    preferences: dict[str, Any]
    desired_configuration: dict[str, Any]
    started_at: datetime
    status: str = "InProgress"
    reason: str | None = None
    ended_at: datetime | None = None

    def answer(self) -> dict[str, Any]:
        """The shape DescribeInstanceRefreshes gives."""
        done = self.total - len(self.remaining)
        return {
            "InstanceRefreshId": self.identifier,
            "AutoScalingGroupName": self.group,
            "Status": self.status,
            "StatusReason": self.reason,
            "StartTime": self.started_at,
            "EndTime": self.ended_at,
            "PercentageComplete": 100 * done // self.total if self.total else 100,
            "InstancesToUpdate": len(self.remaining),
            "Preferences": self.preferences,
            "DesiredConfiguration": self.desired_configuration or None,
        }


@dataclass(frozen=True, kw_only=True)
class Guest:
    """One instance as the actuator sees it: it must have a machine, or must lose it."""

    instance_id: str
    region: str
    group: str
    address: str
    mac: str
    lifecycle_state: str
    leaving: bool
    """Termination has begun."""
    powered: bool
    """Its machine should be on: always, unless it leaves and no hook is waited for any more."""


@dataclass(frozen=True, kw_only=True)
class View:
    """One instance as its own metadata service describes it."""

    instance_id: str
    image_id: str
    instance_type: str
    region: str
    availability_zone: str
    address: str
    mac: str
    host_name: str
    vpc_id: str
    vpc_cidr: str
    subnet_id: str
    subnet_cidr: str
    interface_id: str
    security_groups: tuple[str, ...]
    security_group_ids: tuple[str, ...]
    role: str | None
    profile_arn: str | None
    profile_id: str | None
    user_data: bytes
    launched_at: datetime
    leaving: bool


def mac_address(address: str) -> str:
    """The MAC address, in QEMU's range, of whoever has this IPv4 address.

    It follows from the address and not from the instance: dnsmasq refuses an address that another
    card's lease still holds, and a machine whose plug is pulled gives nothing back.
    """
    last_three = ipaddress.IPv4Address(address).packed[1:]
    return ":".join(("52", "54", "00", *(f"{octet:02x}" for octet in last_three)))


def system_uuid(instance_id: str) -> str:
    """The SMBIOS system UUID of an instance.

    It begins with ec2: that alone makes ds-identify and cloud-init's identify_aws see EC2.
    """
    digits = "ec2" + hashlib.sha256(instance_id.encode()).hexdigest()[:29]
    return str(uuid.UUID(digits))


def guests() -> list[Guest]:
    """Every instance of every group that is not terminated."""
    with LOCK:
        return [_guest(instance) for _, instance in _living()]


def view(address: str) -> View | None:
    """The instance that has this address, None when no instance has it."""
    with LOCK:
        for region, instance in _living():
            if instance.private_ip == address:
                return _view(region, instance)
    return None


def machine_started(instance_id: str) -> None:
    """Its machine runs: it waits for the launching hooks, or is in service."""
    with LOCK:
        instance = _find(instance_id)
        if instance is None:
            return
        group, record = instance.autoscaling_group, instance.lab
        record.machine_seen = True
        state = _state_of(group, instance_id)
        if state is None or state.lifecycle_state != "Pending":
            return
        record.waiting = _deadlines(group, LAUNCHING)
        if record.waiting:
            state.lifecycle_state = "Pending:Wait"
            _log.info("%s waits for %s", instance_id, ", ".join(record.waiting))
        else:
            _enter_service(state)


def machine_gone(instance_id: str, why: str) -> None:
    """Its machine is off for good: it is terminated, and replaced when its group still wants it."""
    with LOCK:
        instance = _find(instance_id)
        if instance is None:
            return
        group = instance.autoscaling_group
        state = _state_of(group, instance_id)
        instance.lab.waiting = {}
        if state is not None:
            group.instance_states.remove(state)
        _terminate_now(instance)
        leaving = _leaving(group)
        leaving[:] = [other for other in leaving if other.instance.id != instance_id]
        _log.info("%s terminated: %s", instance_id, why)
        if state is not None:
            _top_up(group)
        if getattr(group, "status", None) is not None and not leaving:
            group.autoscaling_backend.autoscaling_groups.pop(group.name, None)
            _log.info("group %s deleted", group.name)


def take_back(instance_id: str, why: str) -> None:
    """Terminate an instance without asking its hooks, as EC2 does at the end of a spot notice."""
    with LOCK:
        instance = _find(instance_id)
        if instance is None:
            return
        state = _state_of(instance.autoscaling_group, instance_id)
        if state is not None:
            _replace(state, why)
        instance.lab.waiting = {}


def advance(now: float) -> None:
    """Let time act: hooks run out, unhealthy instances are replaced, refreshes go on.

    Parameters:
        now: seconds since the epoch.
    """
    with LOCK:
        for group in [
            group for backend in _backends() for group in backend.autoscaling_groups.values()
        ]:
            for state in list(group.instance_states):
                _advance_member(state, now)
            for state in _leaving(group):
                _advance_leaver(state, now)
            for refresh in _refreshes(group):
                if refresh.status == "InProgress":
                    _advance_refresh(group, refresh, now)


def use_addresses_from(first: str) -> None:
    """Give instances the lowest free address from this one on."""
    global _first_address
    _first_address = ipaddress.IPv4Address(first)


def _backends() -> list[AutoScalingBackend]:
    return list(autoscaling_backends[ACCOUNT].values())


def _living() -> Iterator[tuple[str, Any]]:
    for backend in _backends():
        for instance in backend.ec2_backend.all_instances():
            if hasattr(instance, "lab") and instance.state != "terminated":
                yield backend.region_name, instance


def _find(instance_id: str) -> Any:
    return next((instance for _, instance in _living() if instance.id == instance_id), None)


def _state_of(group: Any, instance_id: str) -> Any:
    return next((s for s in group.instance_states if s.instance.id == instance_id), None)


def _leaving(group: Any) -> list[Any]:
    states: list[Any] = group.__dict__.setdefault("lab_leaving", [])
    return states


def _refreshes(group: Any) -> list[Refresh]:
    refreshes: list[Refresh] = group.__dict__.setdefault("lab_refreshes", [])
    return refreshes


def _is_leaving(instance: Any) -> bool:
    return any(s.instance.id == instance.id for s in _leaving(instance.autoscaling_group))


def _guest(instance: Any) -> Guest:
    group = instance.autoscaling_group
    leaver = next((s for s in _leaving(group) if s.instance.id == instance.id), None)
    state = leaver or _state_of(group, instance.id)
    return Guest(
        instance_id=instance.id,
        region=instance.ec2_backend.region_name,
        group=group.name,
        address=instance.private_ip,
        mac=mac_address(instance.private_ip),
        lifecycle_state=state.lifecycle_state if state is not None else "Detached",
        leaving=leaver is not None,
        powered=leaver is None or bool(instance.lab.waiting),
    )


def _view(region: str, instance: Any) -> View:
    backend = instance.ec2_backend
    subnet = backend.get_subnet(instance.subnet_id)
    vpc = backend.get_vpc(subnet.vpc_id)
    profile = _profile(instance.lab.template)
    return View(
        instance_id=instance.id,
        image_id=instance.image_id,
        instance_type=instance.instance_type,
        region=region,
        availability_zone=subnet.availability_zone,
        address=instance.private_ip,
        mac=mac_address(instance.private_ip),
        host_name=instance.private_dns_name,
        vpc_id=vpc.id,
        vpc_cidr=vpc.cidr_block,
        subnet_id=subnet.id,
        subnet_cidr=subnet.cidr_block,
        interface_id=instance.nics[0].id,
        security_groups=tuple(group.name for group in instance.security_groups),
        security_group_ids=tuple(group.id for group in instance.security_groups),
        role=profile.roles[0].name if profile is not None and profile.roles else None,
        profile_arn=profile.arn if profile is not None else None,
        profile_id=profile.id if profile is not None else None,
        user_data=base64.b64decode(instance.user_data.as_bytes()) if instance.user_data else b"",
        launched_at=instance.launch_time,
        leaving=_is_leaving(instance),
    )


def _profile(template: dict[str, Any]) -> Any:
    wanted = template.get("IamInstanceProfile") or {}
    name = wanted.get("Name") or wanted.get("Arn", "").rpartition("/")[2]
    profiles = iam_backends[ACCOUNT]["aws"].instance_profiles.values()
    return next((profile for profile in profiles if profile.name == name), None)


def _deadlines(group: Any, transition: str) -> dict[str, float]:
    now = time.time()
    hooks = group.autoscaling_backend.describe_lifecycle_hooks(group.name)
    return {
        hook.name: now + hook.heartbeat_timeout
        for hook in hooks
        if hook.lifecycle_transition == transition
    }


def _enter_service(state: Any) -> None:
    state.lifecycle_state = "InService"
    state.instance.lab.in_service_at = time.time()
    _log.info("%s in service in %s", state.instance.id, state.auto_scaling_group_name)


def _replace(state: Any, why: str) -> None:
    group = state.instance.autoscaling_group
    _log.info("%s is replaced: %s", state.instance.id, why)
    group.instance_states.remove(state)
    group.autoscaling_backend.ec2_backend.terminate_instances([state.instance.id])
    _top_up(group)


def _top_up(group: Any) -> None:
    missing = (group.desired_capacity or 0) - len(group.active_instances())
    if missing > 0:
        group.replace_autoscaling_group_instances(missing, group.get_propagated_tags())


def _set_desired_capacity(group: Any, new_capacity: int | None) -> None:
    # moto's own rounds an on-demand percentage so that an instance can be missing. Weights are not
    # modelled. AWS's default policy: the oldest launch template goes first.
    group.desired_capacity = group.min_size if new_capacity is None else new_capacity
    surplus = len(group.active_instances()) - (group.desired_capacity or 0)
    candidates = [s for s in group.active_instances() if not s.protected_from_scale_in]
    candidates.sort(key=lambda s: (s.instance.lab.template_version or 0, s.instance.launch_time))
    for state in candidates[: max(0, surplus)]:
        group.instance_states.remove(state)
        group.autoscaling_backend.ec2_backend.terminate_instances([state.instance.id])
    _top_up(group)


def _advance_member(state: Any, now: float) -> None:
    record, group = state.instance.lab, state.instance.autoscaling_group
    for name in [name for name, deadline in record.waiting.items() if deadline <= now]:
        hooks = group.autoscaling_backend.describe_lifecycle_hooks(group.name, [name])
        if not hooks or hooks[0].default_result == "CONTINUE":
            record.waiting.pop(name)
        else:
            _replace(state, f"nobody completed launching hook {name} in time")
            return
    if state.lifecycle_state == "Pending:Wait" and not record.waiting:
        _enter_service(state)
    if state.health_status == "Unhealthy":
        _replace(state, "it is marked unhealthy")


def _advance_leaver(state: Any, now: float) -> None:
    instance = state.instance
    waiting = instance.lab.waiting
    for name in [name for name, deadline in waiting.items() if deadline <= now]:
        waiting.pop(name)
        _log.info("%s: nobody completed terminating hook %s in time", instance.id, name)
    if not waiting and state.lifecycle_state != "Terminating:Proceed":
        state.lifecycle_state = "Terminating:Proceed"
        _shut_down(instance)


def _shut_down(instance: Any) -> None:
    instance._state.name, instance._state.code = "shutting-down", 32


def _advance_refresh(group: Any, refresh: Refresh, now: float) -> None:
    old = [state for state in group.instance_states if state.instance.id in refresh.remaining]
    refresh.remaining = {state.instance.id for state in old}
    for state in group.instance_states:
        served = state.instance.lab.in_service_at
        if state not in old and (served is None or now < served + refresh.warmup_seconds):
            return
    desired = group.desired_capacity
    if not old:
        _end(refresh, "Successful")
        return
    surplus = len(group.instance_states) - desired
    minimum = math.ceil(desired * refresh.minimum_percent / 100)
    maximum = max(desired, math.floor(desired * refresh.maximum_percent / 100))
    if surplus <= 0 and minimum >= desired and maximum > desired:
        count = min(len(old), maximum - desired)
        group.replace_autoscaling_group_instances(count, group.get_propagated_tags())
        return
    # AWS replaces one at a time when the percentage leaves no room at all.
    batch = old[: surplus if surplus > 0 else max(1, desired - minimum)]
    for state in batch:
        _replace(state, f"instance refresh {refresh.identifier}")


def _end(refresh: Refresh, status: str) -> None:
    refresh.status, refresh.ended_at = status, datetime.now(UTC)
    _log.info("group %s: instance refresh %s: %s", refresh.group, refresh.identifier, status)


_terminate_now: Final = Instance.terminate
_launch_now: Final = FakeAutoScalingGroup.replace_autoscaling_group_instances
_delete_group_now: Final = AutoScalingBackend.delete_auto_scaling_group
_describe_instances: Final = AutoScalingBackend.describe_auto_scaling_instances
_create_hook: Final = AutoScalingBackend.create_lifecycle_hook
_create_version: Final = LaunchTemplate.create_version
_delete_subnet: Final = EC2Backend.delete_subnet
_delete_security_group: Final = EC2Backend.delete_security_group
_create_group: Final = AutoScalingResponse.create_auto_scaling_group


def _terminate(instance: Any) -> Any:
    if not hasattr(instance, "lab"):
        return _terminate_now(instance)
    previous = copy.copy(instance._state)
    if instance.state == "terminated" or _is_leaving(instance):
        return previous
    group = instance.autoscaling_group
    instance.lab.waiting = _deadlines(group, TERMINATING) if instance.lab.machine_seen else {}
    state = InstanceState(instance, lifecycle_state="Terminating:Wait")
    if not instance.lab.waiting:
        state.lifecycle_state = "Terminating:Proceed"
        _shut_down(instance)
    _leaving(group).append(state)
    hooks = ", ".join(instance.lab.waiting)
    _log.info("%s leaves %s%s", instance.id, group.name, f", waits for {hooks}" if hooks else "")
    return previous


def _launch(group: Any, count_needed: int, propagated_tags: dict[str, str]) -> None:
    known = {state.instance.id for state in group.instance_states}
    _launch_now(group, count_needed, propagated_tags)
    for state in group.instance_states:
        if state.instance.id not in known:
            state.lifecycle_state = "Pending"
            _complete_launch(group, state.instance)


def _complete_launch(group: Any, instance: Any) -> None:
    template = group.ec2_launch_template
    version = template.get_version(group.launch_template_version) if template is not None else None
    instance.region_name = instance.ec2_backend.region_name
    instance.lab = Record(
        template_version=version.number if version is not None else None,
        template=version.data if version is not None else {},
    )
    if version is not None:
        # moto notes the default version, whatever the group asked for.
        instance.add_tags({"aws:ec2launchtemplate:version": str(version.number)})
        if options := version.data.get("MetadataOptions"):
            instance.metadata_options = MetadataOptions(options)
    if not instance.instance_type and group.mixed_instances_policy:
        overrides = group.mixed_instances_policy["LaunchTemplate"].get("Overrides") or [{}]
        instance.instance_type = overrides[0].get("InstanceType", "")
    taken = {other.private_ip for _, other in _living() if other is not instance}
    address = next(
        candidate
        for offset in itertools.count()
        if (candidate := str(_first_address + offset)) not in taken
    )
    interface = instance.nics[0]
    interface.private_ip_address = address
    interface.private_ip_addresses = [{"Primary": True, "PrivateIpAddress": address}]
    interface.mac_address = mac_address(address)
    _log.info("%s launched by %s, address %s", instance.id, group.name, address)


def _active(group: Any) -> list[Any]:
    return [
        s for s in group.instance_states if s.lifecycle_state.startswith(("Pending", "InService"))
    ]


def _visible(group: Any) -> list[Any]:
    return [*group.instance_states, *_leaving(group)]


def _template_of(state: Any) -> dict[str, Any] | None:
    template, record = (
        state.auto_scaling_group.ec2_launch_template,
        state.instance.__dict__.get("lab"),
    )
    if template is None or record is None:
        return None
    return {
        "LaunchTemplateId": template.id,
        "LaunchTemplateName": template.name,
        "Version": str(record.template_version),
    }


def _describe_with_leaving(backend: Any, instance_ids: list[str]) -> list[Any]:
    leaving = [
        state
        for group in backend.autoscaling_groups.values()
        for state in _leaving(group)
        if not instance_ids or state.instance.id in instance_ids
    ]
    return [*_describe_instances(backend, instance_ids), *leaving]


def _delete_group(backend: Any, group_name: str) -> None:
    group = backend.autoscaling_groups.get(group_name)
    _delete_group_now(backend, group_name)
    for hook in backend.describe_lifecycle_hooks(group_name):
        backend.delete_lifecycle_hook(group_name, hook.name)
    for policy in backend.describe_policies(group_name):
        backend.delete_policy(policy.name)
    if _leaving(group):
        group.status = "Delete in progress"
        backend.autoscaling_groups[group_name] = group


def _create_quiet_hook(backend: Any, *arguments: Any, **named: Any) -> Any:
    hook: Any = _create_hook(backend, *arguments, **named)
    # moto answers with invented ones, which a program would take for drift.
    hook.role_arn = hook.notification_target_arn = None
    return hook


def _create_version_with_user_data(template: Any, data: dict[str, Any], description: str) -> Any:
    # moto does so for a template's first version only, and fails when a later one is used.
    if isinstance(data.get("UserData"), bytes | str):
        data = {**data, "UserData": parse_user_data(data["UserData"])}
    return _create_version(template, data, description)


def _refuse_subnet_in_use(backend: Any, subnet_id: str) -> Any:
    if any(instance.subnet_id == subnet_id for _, instance in _living()):
        message = f"The subnet '{subnet_id}' has dependencies and cannot be deleted."
        raise DependencyViolationError(message)
    return _delete_subnet(backend, subnet_id)


def _refuse_security_group_in_use(
    backend: Any, name: str | None = None, group_id: str | None = None
) -> None:
    if any(group.id == group_id for _, instance in _living() for group in instance.security_groups):
        message = f"resource {group_id} has a dependent object"
        raise DependencyViolationError(message)
    _delete_security_group(backend, name, group_id)


def _group_named(response: Any) -> Any:
    name = response._get_param("AutoScalingGroupName")
    group = response.autoscaling_backend.autoscaling_groups.get(name)
    if group is None:
        message = f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found"
        raise ValidationError(message)
    return group


def _waiting_instance(response: Any) -> tuple[Any, str]:
    group, hook = _group_named(response), response._get_param("LifecycleHookName")
    instance_id = response._get_param("InstanceId")
    for state in _visible(group):
        if state.instance.id == instance_id and hook in state.instance.lab.waiting:
            return state, hook
    message = f"No active Lifecycle Action found with instance ID {instance_id}"
    raise ValidationError(message)


def complete_lifecycle_action(response: Any) -> EmptyResult:
    """CompleteLifecycleAction: by instance id; a token is not needed."""
    state, hook = _waiting_instance(response)
    result = response._get_param("LifecycleActionResult")
    if result not in ("CONTINUE", "ABANDON"):
        message = f"LifecycleActionResult is {result!r}; it must be CONTINUE or ABANDON"
        raise ValidationError(message)
    instance = state.instance
    instance.lab.waiting.pop(hook)
    _log.info("%s completed %s: %s", instance.id, hook, result)
    if _is_leaving(instance):
        _advance_leaver(state, time.time())
    elif result == "ABANDON":
        _replace(state, f"launching hook {hook} was abandoned")
    else:
        _advance_member(state, time.time())
    return EmptyResult()


def record_lifecycle_action_heartbeat(response: Any) -> EmptyResult:
    """RecordLifecycleActionHeartbeat: the hook's time starts anew."""
    state, name = _waiting_instance(response)
    group = state.instance.autoscaling_group
    for hook in group.autoscaling_backend.describe_lifecycle_hooks(group.name, [name]):
        state.instance.lab.waiting[name] = time.time() + hook.heartbeat_timeout
    return EmptyResult()


def set_instance_health(response: Any) -> EmptyResult:
    """SetInstanceHealth: ignored within the group's grace period unless told otherwise."""
    instance_id = response._get_param("InstanceId")
    health = response._get_param("HealthStatus")
    respect = response._get_bool_param("ShouldRespectGracePeriod", True)
    instance = _find(instance_id)
    state = _state_of(instance.autoscaling_group, instance_id) if instance is not None else None
    if state is None:
        message = f"Instance Id not found - No managed instance found for instance ID {instance_id}"
        raise ValidationError(message)
    if health not in ("Healthy", "Unhealthy"):
        message = f"HealthStatus is {health!r}; it must be Healthy or Unhealthy"
        raise ValidationError(message)
    served = instance.lab.in_service_at
    grace = instance.autoscaling_group.health_check_grace_period or 0
    if respect and (served is None or time.time() < served + grace):
        _log.info("%s says %s within its grace period of %s s: ignored", instance_id, health, grace)
    else:
        state.health_status = health
        _log.info("%s is marked %s", instance_id, health)
    return EmptyResult()


def start_instance_refresh(response: Any) -> ActionResult:
    """StartInstanceRefresh: rolling only; checkpoints, bake time and rollback are not modelled."""
    group = _group_named(response)
    if any(refresh.status == "InProgress" for refresh in _refreshes(group)):
        code, message = "InstanceRefreshInProgress", "An Instance Refresh is already in progress"
        raise AutoscalingClientError(code, message)
    preferences = response._get_param("Preferences", {}) or {}
    desired = response._get_param("DesiredConfiguration", {}) or {}
    if desired:
        group._set_launch_configuration(
            None, desired.get("LaunchTemplate"), desired.get("MixedInstancesPolicy")
        )
    current = None
    if group.ec2_launch_template is not None:
        current = group.ec2_launch_template.get_version(group.launch_template_version).number
    skip = str(preferences.get("SkipMatching", False)).lower() == "true"
    remaining = {
        state.instance.id
        for state in group.instance_states
        if not (skip and state.instance.lab.template_version == current)
    }
    warmup = preferences.get("InstanceWarmup")
    refresh = Refresh(
        identifier=str(uuid.uuid4()),
        group=group.name,
        minimum_percent=int(
            preferences.get("MinHealthyPercentage", DEFAULT_MINIMUM_HEALTHY_PERCENTAGE)
        ),
        maximum_percent=int(
            preferences.get("MaxHealthyPercentage", DEFAULT_MAXIMUM_HEALTHY_PERCENTAGE)
        ),
        warmup_seconds=int(group.health_check_grace_period if warmup is None else warmup),
        remaining=remaining,
        total=len(remaining),
        preferences=preferences,
        desired_configuration=desired,
        started_at=datetime.now(UTC),
    )
    _refreshes(group).append(refresh)
    _log.info("group %s: refresh %s of %d instances", group.name, refresh.identifier, refresh.total)
    return ActionResult({"InstanceRefreshId": refresh.identifier})


def describe_instance_refreshes(response: Any) -> ActionResult:
    """DescribeInstanceRefreshes: newest first."""
    wanted = response._get_param("InstanceRefreshIds", [])
    refreshes = reversed(_refreshes(_group_named(response)))
    return ActionResult(
        {
            "InstanceRefreshes": [
                r.answer() for r in refreshes if not wanted or r.identifier in wanted
            ]
        }
    )


def cancel_instance_refresh(response: Any) -> ActionResult:
    """CancelInstanceRefresh: replacements already begun are not undone."""
    for refresh in _refreshes(_group_named(response)):
        if refresh.status == "InProgress":
            _end(refresh, "Cancelled")
            return ActionResult({"InstanceRefreshId": refresh.identifier})
    code, message = (
        "ActiveInstanceRefreshNotFound",
        "No in progress Instance Refresh found",
    )
    raise AutoscalingClientError(code, message)


def delete_auto_scaling_group(response: Any) -> EmptyResult:
    """DeleteAutoScalingGroup: with instances it needs ForceDelete and stays until they go."""
    name = response._get_param("AutoScalingGroupName")
    group = response.autoscaling_backend.autoscaling_groups.get(name)
    force = response._get_bool_param("ForceDelete", False)
    if group is not None and _visible(group) and not force:
        code = "ResourceInUse"
        message = "You cannot delete an AutoScalingGroup while there are instances in the group."
        raise AutoscalingClientError(code, message)
    response.autoscaling_backend.delete_auto_scaling_group(name)
    return EmptyResult()


def create_auto_scaling_group(response: Any) -> ActionResult:
    """CreateAutoScalingGroup: hooks given with the group already hold its first instances."""
    name = response._get_param("AutoScalingGroupName")
    backend = response.autoscaling_backend
    if name in backend.autoscaling_groups:
        code = "AlreadyExists"
        message = f"AutoScalingGroup by this name already exists - {name}"
        raise AutoscalingClientError(code, message)
    for hook in response._get_param("LifecycleHookSpecificationList", []) or []:
        backend.create_lifecycle_hook(
            name=hook["LifecycleHookName"],
            as_name=name,
            transition=hook["LifecycleTransition"],
            timeout=int(hook["HeartbeatTimeout"]) if "HeartbeatTimeout" in hook else None,
            result=hook.get("DefaultResult"),
        )
    result: ActionResult = _create_group(response)
    # moto takes 0, which means no grace, for not given.
    if response._get_int_param("HealthCheckGracePeriod") == 0:
        backend.autoscaling_groups[name].health_check_grace_period = 0
    return result


_CHANGES: Final[tuple[tuple[type, str, Any], ...]] = (
    (Instance, "terminate", _terminate),
    (InstanceState, "launch_template", property(_template_of)),
    (FakeAutoScalingGroup, "replace_autoscaling_group_instances", _launch),
    (FakeAutoScalingGroup, "set_desired_capacity", _set_desired_capacity),
    (FakeAutoScalingGroup, "active_instances", _active),
    (FakeAutoScalingGroup, "instances", property(_visible)),
    (AutoScalingBackend, "describe_auto_scaling_instances", _describe_with_leaving),
    (AutoScalingBackend, "delete_auto_scaling_group", _delete_group),
    (AutoScalingBackend, "create_lifecycle_hook", _create_quiet_hook),
    (LaunchTemplate, "create_version", _create_version_with_user_data),
    (EC2Backend, "delete_subnet", _refuse_subnet_in_use),
    (EC2Backend, "delete_security_group", _refuse_security_group_in_use),
    *(
        (AutoScalingResponse, call.__name__, call)
        for call in (
            complete_lifecycle_action,
            record_lifecycle_action_heartbeat,
            set_instance_health,
            start_instance_refresh,
            describe_instance_refreshes,
            cancel_instance_refresh,
            delete_auto_scaling_group,
            create_auto_scaling_group,
        )
    ),
)


def install() -> None:
    """Change moto's classes in this process; a second call does nothing new."""
    for owner, name, replacement in _CHANGES:
        setattr(owner, name, replacement)
