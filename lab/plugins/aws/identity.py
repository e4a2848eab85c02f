"""Owns the rows for IAM: role and user, their inline policies, instance profile, access key."""

import json
from collections.abc import Mapping
from typing import Any, Final

from lab.plugins.aws import shapes
from lab.plugins.aws.cloud import Cloud, GoneError, RefusedError
from lab.plugins.aws.kinds import Change, Kind, pick, words
from lab.plugins.values import Properties


def _document(answer: Any) -> str:
    """A policy as text; boto3 has decoded what it can."""
    return answer if isinstance(answer, str) else json.dumps(answer)


def _retag(cloud: Cloud, kind: str, name: str, change: Change) -> None:
    wanted = cloud.all_tags(change.inputs.get("tags"))
    surplus = sorted(change.state.get("tagsAll", {}).keys() - wanted.keys())
    parameter = {
        "role": "RoleName",
        "instance_profile": "InstanceProfileName",
        "user": "UserName",
    }[kind]
    if surplus:
        cloud.call("iam", f"untag_{kind}", TagKeys=surplus, **{parameter: name})
    if wanted:
        cloud.call("iam", f"tag_{kind}", Tags=shapes.tag_list(wanted), **{parameter: name})


ROLE_NAMES: Final[Mapping[str, str]] = {
    "name": "RoleName",
    "assumeRolePolicy": "AssumeRolePolicyDocument",
}


def _create_role(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(
        inputs, "name assumeRolePolicy description maxSessionDuration path permissionsBoundary"
    )
    parameters = shapes.request(cloud, "iam", "CreateRole", wanted, ROLE_NAMES)
    tags = shapes.tag_list(cloud.all_tags(inputs.get("tags")))
    return str(cloud.call("iam", "create_role", Tags=tags, **parameters)["Role"]["RoleName"])


def _read_role(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    role = cloud.call("iam", "get_role", RoleName=resource_id)["Role"]
    return {
        "arn": role["Arn"],
        "assumeRolePolicy": _document(role["AssumeRolePolicyDocument"]),
        "createDate": role["CreateDate"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "description": role.get("Description", ""),
        "maxSessionDuration": role.get("MaxSessionDuration", 3600),
        "name": role["RoleName"],
        "path": role["Path"],
        "permissionsBoundary": role.get("PermissionsBoundary", {}).get(
            "PermissionsBoundaryArn", ""
        ),
        "uniqueId": role["RoleId"],
        "tagsAll": shapes.tag_map(role.get("Tags")),
    }


def _update_role(cloud: Cloud, resource_id: str, change: Change) -> None:
    inputs = change.inputs
    if "assumeRolePolicy" in change.changed:
        cloud.call(
            "iam",
            "update_assume_role_policy",
            RoleName=resource_id,
            PolicyDocument=inputs["assumeRolePolicy"],
        )
    if change.changed & {"description", "maxSessionDuration"}:
        cloud.call(
            "iam",
            "update_role",
            RoleName=resource_id,
            Description=inputs.get("description", ""),
            MaxSessionDuration=inputs["maxSessionDuration"],
        )
    if "permissionsBoundary" in change.changed:
        boundary = inputs.get("permissionsBoundary")
        if boundary:
            cloud.call(
                "iam",
                "put_role_permissions_boundary",
                RoleName=resource_id,
                PermissionsBoundary=boundary,
            )
        else:
            cloud.call("iam", "delete_role_permissions_boundary", RoleName=resource_id)
    _retag(cloud, "role", resource_id, change)


def _delete_role(cloud: Cloud, resource_id: str, state: Properties) -> None:
    held = cloud.call("iam", "list_instance_profiles_for_role", RoleName=resource_id)
    for profile in held["InstanceProfiles"]:
        cloud.call(
            "iam",
            "remove_role_from_instance_profile",
            InstanceProfileName=profile["InstanceProfileName"],
            RoleName=resource_id,
        )
    if state.get("forceDetachPolicies"):
        for name in cloud.call("iam", "list_role_policies", RoleName=resource_id)["PolicyNames"]:
            cloud.call("iam", "delete_role_policy", RoleName=resource_id, PolicyName=name)
    cloud.call("iam", "delete_role", RoleName=resource_id)


def _inline_policy(owner: str) -> Kind:
    """The row of an inline policy of a `role` or `user`; its id is OWNER:NAME."""
    parameter = f"{owner.capitalize()}Name"

    def put(cloud: Cloud, inputs: Properties) -> str:
        cloud.call(
            "iam",
            f"put_{owner}_policy",
            PolicyName=inputs["name"],
            PolicyDocument=inputs["policy"],
            **{parameter: inputs[owner]},
        )
        return f"{inputs[owner]}:{inputs['name']}"

    def ask(cloud: Cloud, verb: str, resource_id: str) -> Any:
        holder, _, name = resource_id.partition(":")
        named = {parameter: holder, "PolicyName": name}
        return cloud.call("iam", f"{verb}_{owner}_policy", **named)

    def read(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
        holder, _, name = resource_id.partition(":")
        found = ask(cloud, "get", resource_id)
        return {"name": name, "policy": _document(found["PolicyDocument"]), owner: holder}

    def update(cloud: Cloud, _id: str, change: Change) -> None:
        put(cloud, change.inputs)

    def delete(cloud: Cloud, resource_id: str, _state: Properties) -> None:
        ask(cloud, "delete", resource_id)

    return Kind(
        inputs=words(f"name namePrefix policy {owner}"),
        create=put,
        read=read,
        update=update,
        delete=delete,
        name="name",
        documents=words("policy"),
        tagged=False,
    )


USER_NAMES: Final[Mapping[str, str]] = {"name": "UserName"}


def _create_user(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, "name path permissionsBoundary")
    parameters = shapes.request(cloud, "iam", "CreateUser", wanted, USER_NAMES)
    tags = shapes.tag_list(cloud.all_tags(inputs.get("tags")))
    return str(cloud.call("iam", "create_user", Tags=tags, **parameters)["User"]["UserName"])


def _read_user(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    user = cloud.call("iam", "get_user", UserName=resource_id)["User"]
    return {
        "arn": user["Arn"],
        "name": user["UserName"],
        "path": user["Path"],
        "permissionsBoundary": user.get("PermissionsBoundary", {}).get(
            "PermissionsBoundaryArn", ""
        ),
        "uniqueId": user["UserId"],
        "tagsAll": shapes.tag_map(user.get("Tags")),
    }


def _update_user(cloud: Cloud, resource_id: str, change: Change) -> None:
    refused = change.changed & {"name", "path", "permissionsBoundary"}
    if refused and change.changed != frozenset(change.inputs):
        message = f"{', '.join(sorted(refused))}: the stand-in changes only a user's tags"
        raise RefusedError(message)
    _retag(cloud, "user", resource_id, change)


def _delete_user(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call("iam", "delete_user", UserName=resource_id)


def _create_key(cloud: Cloud, inputs: Properties) -> tuple[str, Properties]:
    made = cloud.call("iam", "create_access_key", UserName=inputs["user"])["AccessKey"]
    return str(made["AccessKeyId"]), {"secret": made["SecretAccessKey"]}


def _set_key_status(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    cloud.call(
        "iam",
        "update_access_key",
        UserName=inputs["user"],
        AccessKeyId=resource_id,
        Status=inputs["status"],
    )


def _read_key(cloud: Cloud, resource_id: str, state: Properties) -> Properties | None:
    answer = cloud.call("iam", "list_access_keys", UserName=state["user"])
    keys = {key["AccessKeyId"]: key for key in answer["AccessKeyMetadata"]}
    if resource_id not in keys:
        return None
    return {
        "createDate": keys[resource_id]["CreateDate"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "status": keys[resource_id]["Status"],
        "user": state["user"],
    }


def _update_key(cloud: Cloud, resource_id: str, change: Change) -> None:
    _set_key_status(cloud, resource_id, change.inputs)


def _delete_key(cloud: Cloud, resource_id: str, state: Properties) -> None:
    cloud.call("iam", "delete_access_key", UserName=state["user"], AccessKeyId=resource_id)


def _create_profile(cloud: Cloud, inputs: Properties) -> str:
    cloud.call(
        "iam",
        "create_instance_profile",
        InstanceProfileName=inputs["name"],
        Path=inputs["path"],
        Tags=shapes.tag_list(cloud.all_tags(inputs.get("tags"))),
    )
    return str(inputs["name"])


def _add_role(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    if inputs.get("role"):
        cloud.call(
            "iam",
            "add_role_to_instance_profile",
            InstanceProfileName=resource_id,
            RoleName=inputs["role"],
        )


def _remove_role(cloud: Cloud, resource_id: str, state: Properties) -> None:
    if not state.get("role"):
        return
    try:
        cloud.call(
            "iam",
            "remove_role_from_instance_profile",
            InstanceProfileName=resource_id,
            RoleName=state["role"],
        )
    except GoneError:
        cloud.say("the role it held is gone")


def _read_profile(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    profile = cloud.call("iam", "get_instance_profile", InstanceProfileName=resource_id)[
        "InstanceProfile"
    ]
    roles = [role["RoleName"] for role in profile.get("Roles", [])]
    return {
        "arn": profile["Arn"],
        "createDate": profile["CreateDate"].strftime("%Y-%m-%dT%H:%M:%SZ"),
        "name": profile["InstanceProfileName"],
        "path": profile["Path"],
        "role": roles[0] if roles else "",
        "uniqueId": profile["InstanceProfileId"],
        "tagsAll": shapes.tag_map(profile.get("Tags")),
    }


def _update_profile(cloud: Cloud, resource_id: str, change: Change) -> None:
    if "role" in change.changed:
        _remove_role(cloud, resource_id, change.state)
        _add_role(cloud, resource_id, change.inputs)
    _retag(cloud, "instance_profile", resource_id, change)


def _delete_profile(cloud: Cloud, resource_id: str, state: Properties) -> None:
    _remove_role(cloud, resource_id, state)
    cloud.call("iam", "delete_instance_profile", InstanceProfileName=resource_id)


KINDS: Final[Mapping[str, Kind]] = {
    "aws:iam/role:Role": Kind(
        inputs=words(
            "name namePrefix assumeRolePolicy description forceDetachPolicies maxSessionDuration"
            " path permissionsBoundary tags"
        ),
        defaults={"forceDetachPolicies": False, "maxSessionDuration": 3600, "path": "/"},
        create=_create_role,
        read=_read_role,
        update=_update_role,
        delete=_delete_role,
        name="name",
        name_limit=64,
        documents=words("assumeRolePolicy"),
    ),
    "aws:iam/rolePolicy:RolePolicy": _inline_policy("role"),
    "aws:iam/userPolicy:UserPolicy": _inline_policy("user"),
    "aws:iam/user:User": Kind(
        inputs=words("name path permissionsBoundary tags"),
        defaults={"path": "/"},
        create=_create_user,
        read=_read_user,
        update=_update_user,
        delete=_delete_user,
        name="name",
        name_limit=64,
    ),
    "aws:iam/accessKey:AccessKey": Kind(
        inputs=words("user status"),
        defaults={"status": "Active"},
        create=_create_key,
        finish=_set_key_status,
        read=_read_key,
        update=_update_key,
        delete=_delete_key,
        told_once=words("secret"),
        tagged=False,
    ),
    "aws:iam/instanceProfile:InstanceProfile": Kind(
        inputs=words("name namePrefix path role tags"),
        defaults={"path": "/"},
        create=_create_profile,
        finish=_add_role,
        read=_read_profile,
        update=_update_profile,
        delete=_delete_profile,
        name="name",
        name_limit=128,
    ),
}
