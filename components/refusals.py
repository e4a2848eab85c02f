"""What AWS would refuse of a fleet, told before anything is declared.

Owns the checks that need the provider's package or the finished texts. What settings alone show is
refused in `settings` and `plan`.
"""

import difflib
import enum

import pulumi
import pulumi_aws as aws

from components.burst_fleet import JOINING_HOOK, LEAVING_HOOK
from plan.mesh import FleetPlan
from plan.names import fleet_names, function_name, group_name
from render.member import HIGH_VERSION, LONG_FACTS, user_data
from settings import DatabaseSettings, FleetSettings, Settings, SettingsError


def refuse_unfit(settings: Settings, plan: FleetPlan, database: DatabaseSettings) -> None:
    """Refuse a fleet that AWS would refuse while it is made.

    Parameters:
        settings: the stack's settings.
        plan: the fleet's slots.
        database: which database its members read.

    Raises:
        SettingsError: with value, rule, reason and remedy.
    """
    fleet = settings.fleets[plan.name]
    project, stack = pulumi.get_project(), pulumi.get_stack()
    refuse_unknown_names(plan.name, fleet)
    for function in fleet.functions:
        function_name(project, stack, plan.name, function)
    user_data(
        facts=LONG_FACTS,
        fleet=fleet,
        plan=plan,
        names=fleet_names(project, stack, plan.name, plan.generation),
        group_name=group_name(project, stack, plan.name),
        launch_hook=JOINING_HOOK,
        terminate_hook=LEAVING_HOOK,
        workload=settings.workload,
        database=database,
        secrets_version=HIGH_VERSION,
    )


def refuse_unknown_names(name: str, fleet: FleetSettings) -> None:
    """Refuse a region or an instance type that AWS does not have.

    The provider's package lists them, so nobody needs to be asked. Another API (endpoint-url) may
    have names of its own.

    Raises:
        SettingsError: with the names that look alike.
    """
    if fleet.endpoint_url is not None:
        return
    asked: list[tuple[str, str, type[enum.Enum]]] = [("region", fleet.region, aws.Region)]
    asked += [("instance-types", kind, aws.ec2.InstanceType) for kind in fleet.instance_types]
    for setting, value, known in asked:
        names = [str(one.value) for one in known]
        if value in names:
            continue
        alike = ", ".join(difflib.get_close_matches(value, names))
        msg = (
            f"settings.fleets.{name}.{setting}: {value!r} is in no list of AWS's that pulumi-aws "
            "has, so nothing could be made with it. Correct it"
            f"{f' (alike: {alike})' if alike else ''}; if it is newer than the "
            "pulumi-aws in requirements.txt, raise that"
        )
        raise SettingsError(msg)
