"""Owns the rows for what is stored: SSM parameter, DynamoDB table, log group."""

from collections.abc import Mapping
from typing import Any, Final

from lab.plugins.aws import shapes
from lab.plugins.aws.cloud import Cloud, GoneError, RefusedError
from lab.plugins.aws.kinds import Change, Kind, only, pick, words
from lab.plugins.values import Properties

TABLE: Final = "aws:dynamodb/table:Table"
TABLE_WAIT_SECONDS: Final = 600.0
"""The official provider's bound for a table delete; a create has longer there."""


def _parameter_text(inputs: Properties) -> str:
    text = inputs.get("value", inputs.get("insecureValue"))
    if text is None:
        message = "one of value and insecureValue must be given: a parameter has a text"
        raise RefusedError(message)
    return str(text)


def _put_parameter(cloud: Cloud, inputs: Properties, *, overwrite: bool) -> None:
    wanted = pick(inputs, "name type description allowedPattern dataType keyId tier")
    parameters = shapes.request(cloud, "ssm", "PutParameter", wanted, {})
    parameters |= {"Value": _parameter_text(inputs), "Overwrite": overwrite}
    cloud.call("ssm", "put_parameter", **parameters)


def _create_parameter(cloud: Cloud, inputs: Properties) -> str:
    _put_parameter(cloud, inputs, overwrite=inputs.get("overwrite", False))
    return str(inputs["name"])


def _tag_parameter(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    # PutParameter takes no tags together with Overwrite, so they always follow it.
    if tags := cloud.all_tags(inputs.get("tags")):
        cloud.call(
            "ssm",
            "add_tags_to_resource",
            ResourceType="Parameter",
            ResourceId=resource_id,
            Tags=shapes.tag_list(tags),
        )


def _read_parameter(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    found = cloud.call("ssm", "get_parameter", Name=resource_id, WithDecryption=True)["Parameter"]
    filters = [{"Key": "Name", "Option": "Equals", "Values": [resource_id]}]
    more = only(cloud.call("ssm", "describe_parameters", ParameterFilters=filters)["Parameters"])
    tags = cloud.call(
        "ssm", "list_tags_for_resource", ResourceType="Parameter", ResourceId=resource_id
    )["TagList"]
    described = shapes.state("aws:ssm/parameter:Parameter", more or {}, {})
    plain = found["Type"] != "SecureString" and "insecureValue" in _state
    return described | {
        "arn": found["ARN"],
        "dataType": found.get("DataType", "text"),
        "name": found["Name"],
        "tagsAll": shapes.tag_map(tags),
        "type": found["Type"],
        "version": found["Version"],
        "insecureValue" if plain else "value": found["Value"],
    }


def _update_parameter(cloud: Cloud, resource_id: str, change: Change) -> None:
    if change.changed - {"tags", "tagsAll", "overwrite"}:
        _put_parameter(cloud, change.inputs, overwrite=change.inputs.get("overwrite", True))
    surplus = change.state.get("tagsAll", {}).keys() - cloud.all_tags(change.inputs.get("tags"))
    if surplus:
        cloud.call(
            "ssm",
            "remove_tags_from_resource",
            ResourceType="Parameter",
            ResourceId=resource_id,
            TagKeys=sorted(surplus),
        )
    _tag_parameter(cloud, resource_id, change.inputs)


def _delete_parameter(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call("ssm", "delete_parameter", Name=resource_id)


TABLE_NAMES: Final[Mapping[str, str]] = {
    "name": "TableName",
    "attributes": "AttributeDefinitions",
    "attributes.name": "AttributeName",
    "attributes.type": "AttributeType",
    "serverSideEncryption": "SSESpecification",
    "serverSideEncryption.kmsKeyArn": "KMSMasterKeyId",
}


def _create_table(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(
        inputs,
        "name billingMode attributes serverSideEncryption deletionProtectionEnabled tableClass",
    )
    parameters = shapes.request(cloud, "dynamodb", "CreateTable", wanted, TABLE_NAMES)
    keys = (("hashKey", "HASH"), ("rangeKey", "RANGE"))
    parameters["KeySchema"] = [
        {"AttributeName": inputs[name], "KeyType": kind} for name, kind in keys if name in inputs
    ]
    if inputs["billingMode"] == "PROVISIONED":
        parameters["ProvisionedThroughput"] = {
            "ReadCapacityUnits": inputs.get("readCapacity", 1),
            "WriteCapacityUnits": inputs.get("writeCapacity", 1),
        }
    if tags := cloud.all_tags(inputs.get("tags")):
        parameters["Tags"] = shapes.tag_list(tags)
    cloud.call("dynamodb", "create_table", **parameters)
    return str(inputs["name"])


def _finish_table(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    _wait_for_table(cloud, resource_id)
    if inputs.get("ttl", {}).get("enabled"):
        _set_time_to_live(cloud, resource_id, inputs["ttl"])
    if inputs.get("pointInTimeRecovery", {}).get("enabled"):
        _set_recovery(cloud, resource_id, inputs["pointInTimeRecovery"])


def _wait_for_table(cloud: Cloud, name: str) -> None:
    cloud.wait(
        f"table {name}: waiting until it is active",
        lambda: _table(cloud, name)["TableStatus"] == "ACTIVE",
        TABLE_WAIT_SECONDS,
    )


def _table(cloud: Cloud, name: str) -> Any:
    return cloud.call("dynamodb", "describe_table", TableName=name)["Table"]


def _set_time_to_live(cloud: Cloud, name: str, ttl: Properties) -> None:
    specification = {
        "AttributeName": ttl["attributeName"],
        "Enabled": ttl.get("enabled", False),
    }
    cloud.call(
        "dynamodb",
        "update_time_to_live",
        TableName=name,
        TimeToLiveSpecification=specification,
    )


def _set_recovery(cloud: Cloud, name: str, recovery: Properties) -> None:
    specification = {"PointInTimeRecoveryEnabled": recovery.get("enabled", False)}
    if days := recovery.get("recoveryPeriodInDays"):
        specification["RecoveryPeriodInDays"] = days
    cloud.call(
        "dynamodb",
        "update_continuous_backups",
        TableName=name,
        PointInTimeRecoverySpecification=specification,
    )


def _read_table(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    table = _table(cloud, resource_id)
    backups = cloud.call("dynamodb", "describe_continuous_backups", TableName=resource_id)
    recovery = backups["ContinuousBackupsDescription"].get("PointInTimeRecoveryDescription", {})
    ttl = cloud.call("dynamodb", "describe_time_to_live", TableName=resource_id)[
        "TimeToLiveDescription"
    ]
    encryption = table.get("SSEDescription", {})
    encrypted = encryption.get("Status") == "ENABLED"
    tags = cloud.call("dynamodb", "list_tags_of_resource", ResourceArn=table["TableArn"])["Tags"]
    keys = {key["KeyType"]: key["AttributeName"] for key in table["KeySchema"]}
    capacity = table.get("ProvisionedThroughput", {})
    answer = {"AttributeDefinitions": table["AttributeDefinitions"]}
    return shapes.state(TABLE, answer, TABLE_NAMES) | {
        "arn": table["TableArn"],
        "billingMode": table.get("BillingModeSummary", {}).get("BillingMode", "PROVISIONED"),
        "deletionProtectionEnabled": table.get("DeletionProtectionEnabled", False),
        "hashKey": keys["HASH"],
        "name": table["TableName"],
        "pointInTimeRecovery": {
            "enabled": recovery.get("PointInTimeRecoveryStatus") == "ENABLED",
            "recoveryPeriodInDays": recovery.get("RecoveryPeriodInDays"),
        },
        "rangeKey": keys.get("RANGE"),
        "readCapacity": capacity.get("ReadCapacityUnits", 0),
        "serverSideEncryption": {"enabled": encrypted}
        | ({"kmsKeyArn": encryption["KMSMasterKeyArn"]} if encrypted else {}),
        "tableClass": table.get("TableClassSummary", {}).get("TableClass", "STANDARD"),
        "tagsAll": shapes.tag_map(tags),
        "ttl": {
            "enabled": ttl.get("TimeToLiveStatus") in {"ENABLED", "ENABLING"},
            "attributeName": ttl.get("AttributeName", ""),
        },
        "writeCapacity": capacity.get("WriteCapacityUnits", 0),
    }


TABLE_UPDATES: Final = (
    "billingMode serverSideEncryption deletionProtectionEnabled tableClass attributes"
)


def _update_table(cloud: Cloud, resource_id: str, change: Change) -> None:
    inputs = change.inputs
    wanted = pick(inputs, " ".join(change.changed & words(TABLE_UPDATES)))
    if "serverSideEncryption" in change.changed:
        wanted.setdefault("serverSideEncryption", {"enabled": False})
    if wanted:
        parameters = shapes.request(cloud, "dynamodb", "UpdateTable", wanted, TABLE_NAMES)
        cloud.call("dynamodb", "update_table", TableName=resource_id, **parameters)
        _wait_for_table(cloud, resource_id)
    if "ttl" in change.changed:
        off = {**change.state.get("ttl", {}), "enabled": False}
        _set_time_to_live(cloud, resource_id, inputs.get("ttl", off))
    if "pointInTimeRecovery" in change.changed:
        _set_recovery(cloud, resource_id, inputs.get("pointInTimeRecovery", {}))
    tags = cloud.all_tags(inputs.get("tags"))
    surplus = change.state.get("tagsAll", {}).keys() - tags.keys()
    arn = change.state["arn"]
    if surplus:
        cloud.call("dynamodb", "untag_resource", ResourceArn=arn, TagKeys=sorted(surplus))
    if tags:
        cloud.call("dynamodb", "tag_resource", ResourceArn=arn, Tags=shapes.tag_list(tags))


def _delete_table(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call("dynamodb", "delete_table", TableName=resource_id)

    def gone() -> bool:
        try:
            _table(cloud, resource_id)
        except GoneError:
            return True
        return False

    cloud.wait(f"table {resource_id}: waiting until it is gone", gone, TABLE_WAIT_SECONDS)


def _create_log_group(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, "kmsKeyId logGroupClass")
    parameters = shapes.request(cloud, "logs", "CreateLogGroup", wanted, {})
    if tags := cloud.all_tags(inputs.get("tags")):
        parameters["tags"] = tags
    cloud.call("logs", "create_log_group", logGroupName=inputs["name"], **parameters)
    return str(inputs["name"])


def _set_retention(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    # 0 days is the official provider's word for "for ever".
    if days := inputs.get("retentionInDays"):
        cloud.call("logs", "put_retention_policy", logGroupName=resource_id, retentionInDays=days)


def _read_log_group(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    answers = cloud.call("logs", "describe_log_groups", logGroupNamePrefix=resource_id)["logGroups"]
    group = only([group for group in answers if group["logGroupName"] == resource_id])
    if group is None:
        return None
    arn = group["arn"].removesuffix(":*")
    tags = cloud.call("logs", "list_tags_for_resource", resourceArn=arn)["tags"]
    return {
        "arn": arn,
        "kmsKeyId": group.get("kmsKeyId", ""),
        "logGroupClass": group.get("logGroupClass", "STANDARD"),
        "name": resource_id,
        "retentionInDays": group.get("retentionInDays", 0),
        "tagsAll": tags,
    }


def _update_log_group(cloud: Cloud, resource_id: str, change: Change) -> None:
    if "retentionInDays" in change.changed:
        if change.inputs.get("retentionInDays"):
            _set_retention(cloud, resource_id, change.inputs)
        else:
            cloud.call("logs", "delete_retention_policy", logGroupName=resource_id)
    tags = cloud.all_tags(change.inputs.get("tags"))
    surplus = change.state.get("tagsAll", {}).keys() - tags.keys()
    arn = change.state["arn"]
    if surplus:
        cloud.call("logs", "untag_resource", resourceArn=arn, tagKeys=sorted(surplus))
    if tags:
        cloud.call("logs", "tag_resource", resourceArn=arn, tags=tags)


def _delete_log_group(cloud: Cloud, resource_id: str, state: Properties) -> None:
    if state.get("skipDestroy"):
        cloud.warn(f"log group {resource_id} is kept: skipDestroy is set")
        return
    cloud.call("logs", "delete_log_group", logGroupName=resource_id)


KINDS: Final[Mapping[str, Kind]] = {
    "aws:ssm/parameter:Parameter": Kind(
        inputs=words(
            "name type value insecureValue description allowedPattern dataType keyId overwrite"
            " tier tags"
        ),
        create=_create_parameter,
        finish=_tag_parameter,
        read=_read_parameter,
        update=_update_parameter,
        delete=_delete_parameter,
        name="name",
        moving=words("version"),
    ),
    TABLE: Kind(
        inputs=words(
            "name billingMode hashKey rangeKey attributes pointInTimeRecovery readCapacity"
            " serverSideEncryption deletionProtectionEnabled tableClass tags ttl writeCapacity"
        ),
        defaults={"billingMode": "PROVISIONED"},
        create=_create_table,
        finish=_finish_table,
        read=_read_table,
        update=_update_table,
        delete=_delete_table,
        name="name",
        sets=words("attributes"),
    ),
    "aws:cloudwatch/logGroup:LogGroup": Kind(
        inputs=words("name namePrefix kmsKeyId logGroupClass retentionInDays skipDestroy tags"),
        defaults={"retentionInDays": 0, "skipDestroy": False},
        create=_create_log_group,
        finish=_set_retention,
        read=_read_log_group,
        update=_update_log_group,
        delete=_delete_log_group,
        name="name",
        name_limit=512,
    ),
}
