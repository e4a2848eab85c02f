"""Owns the making of aws.json: the input names, types and required inputs of the AWS types this
program uses, taken from the installed `pulumi_aws` package. It knows nothing about behaviour.

Run `python -m lab.plugins.schemas.generate_aws` after changing the pinned pulumi-aws, then read the
difference. The result has the form of a Pulumi package schema, so the checks that serve the other
stand-ins serve this one.
"""

import enum
import importlib
import importlib.metadata
import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pulumi
from pulumi._types import input_type_py_to_pulumi_names

RESOURCES: Final = (
    "ec2.Vpc",
    "ec2.InternetGateway",
    "ec2.Subnet",
    "ec2.RouteTable",
    "ec2.RouteTableAssociation",
    "ec2.SecurityGroup",
    "ec2.LaunchTemplate",
    "iam.Role",
    "iam.RolePolicy",
    "iam.InstanceProfile",
    "iam.User",
    "iam.UserPolicy",
    "iam.AccessKey",
    "ssm.Parameter",
    "dynamodb.Table",
    "autoscaling.Group",
    "autoscaling.Policy",
    "autoscaling.LifecycleHook",
    "cloudwatch.LogGroup",
    "lambda_.Function",
    "lambda_.FunctionUrl",
)

FORCE_NEW: Final[Mapping[str, str]] = {
    "ec2.Vpc": "cidrBlock instanceTenancy ipv4IpamPoolId ipv4NetmaskLength",
    "ec2.Subnet": "vpcId cidrBlock availabilityZone availabilityZoneId ipv6Native outpostArn",
    "ec2.RouteTable": "vpcId",
    "ec2.RouteTableAssociation": "subnetId gatewayId",
    "ec2.SecurityGroup": "name namePrefix description vpcId",
    "ec2.LaunchTemplate": "name namePrefix",
    "iam.Role": "name namePrefix path",
    "iam.RolePolicy": "name namePrefix role",
    "iam.InstanceProfile": "name namePrefix path",
    "iam.UserPolicy": "name namePrefix user",
    "iam.AccessKey": "user pgpKey",
    "ssm.Parameter": "name dataType",
    "dynamodb.Table": "name hashKey rangeKey localSecondaryIndexes importTable",
    "autoscaling.Group": "name namePrefix initialLifecycleHooks",
    "autoscaling.Policy": "name autoscalingGroupName",
    "autoscaling.LifecycleHook": "name autoscalingGroupName",
    "cloudwatch.LogGroup": "name namePrefix logGroupClass",
    "lambda_.Function": "name packageType",
    "lambda_.FunctionUrl": "functionName qualifier",
}
"""Inputs whose change replaces the resource: ForceNew in the Terraform AWS provider version 6.
The Python package does not carry this. `region` does so for every type."""

FUNCTIONS: Final = (
    "ec2.get_ami",
    "ec2.get_instance_type",
    "get_availability_zones",
    "get_caller_identity",
    "get_partition",
    "get_region",
)

PRIMITIVES: Final[Mapping[object, str]] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
}


def generate() -> dict[str, Any]:
    """Build the schema. Raises TypeError when the package uses a form of type not known here."""
    nested: dict[str, Any] = {}
    resources: dict[str, Any] = {}
    for name in RESOURCES:
        module_name, class_name = name.split(".")
        module = importlib.import_module(f"pulumi_aws.{module_name}")
        resource = getattr(module, class_name)
        arguments = getattr(module, f"{class_name}Args")
        resources[resource.pulumi_type] = _object(
            arguments, nested, "inputProperties", "requiredInputs"
        )
        properties = resources[resource.pulumi_type]["inputProperties"]
        for forced in (*FORCE_NEW.get(name, "").split(), "region"):
            # IAM knows no region, so its types have no such input.
            if forced in properties or forced != "region":
                properties[forced]["willReplaceOnChanges"] = True
    functions: dict[str, Any] = {}
    for name in FUNCTIONS:
        module_name, _, function_name = f"pulumi_aws.{name}".rpartition(".")
        token, inputs = _function(
            getattr(importlib.import_module(module_name), function_name), nested
        )
        functions[token] = {"inputs": inputs}
    provider_module = importlib.import_module("pulumi_aws.provider")
    provider = _object(provider_module.ProviderArgs, nested, "inputProperties", "requiredInputs")
    for definition in provider["inputProperties"].values():
        # Settings arrive as JSON text unless they are text, which a bare reference does not tell.
        definition.setdefault("type", "object")
    return {
        "name": "aws",
        "version": importlib.metadata.version("pulumi_aws"),
        "provider": provider,
        "resources": resources,
        "functions": functions,
        "types": dict(sorted(nested.items())),
    }


def _object(
    arguments: type, nested: dict[str, Any], properties_key: str, required_key: str
) -> dict[str, Any]:
    names = input_type_py_to_pulumi_names(arguments)
    hints = _hints(arguments.__init__, arguments.__module__)  # type: ignore[misc]
    parameters = inspect.signature(arguments).parameters
    properties = {names[key]: _type(hints[key], nested) for key in parameters}
    required = [
        names[key]
        for key, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty
    ]
    return {properties_key: properties} | ({required_key: sorted(required)} if required else {})


def _function(function: Any, nested: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    source = inspect.getsource(function)
    token = source.partition("runtime.invoke('")[2].partition("'")[0]
    hints = _hints(function, function.__module__)
    properties: dict[str, Any] = {}
    required: list[str] = []
    for key, parameter in inspect.signature(function).parameters.items():
        if key == "opts":
            continue
        wire_name = source.partition(f"'] = {key}\n")[0].rpartition("__args__['")[2]
        properties[wire_name] = _type(hints[key], nested)
        if parameter.default is inspect.Parameter.empty:
            required.append(wire_name)
    return token, {"properties": properties} | ({"required": required} if required else {})


def _hints(function: Any, module: str) -> dict[str, Any]:
    # pulumi.Input holds "Output[T]" as a string, which only resolves in its own namespace
    namespace = vars(importlib.import_module(module)) | {"Output": pulumi.Output, "T": Any}
    return typing.get_type_hints(function, namespace)


def _type(hint: Any, nested: dict[str, Any]) -> dict[str, Any]:
    if _is_enumeration(hint):
        return {"type": "string"}
    if _is_primitive(hint):
        return {"type": PRIMITIVES[hint]}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(arguments, nested)
    if origin is Sequence:
        return {"type": "array", "items": _type(arguments[0], nested)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(arguments[1], nested)}
    if _is_asset(hint):
        return {"$ref": f"pulumi.json#/{hint.__name__}"}
    if _is_arguments_class(hint):
        name = f"aws:{hint.__module__.rpartition('.')[0].partition('.')[2]}:{hint.__name__}"
        name = name.removesuffix("Args")
        if name not in nested:
            nested[name] = {}  # a type may contain itself
            nested[name] = {"type": "object"} | _object(hint, nested, "properties", "required")
        return {"$ref": f"#/types/{name}"}
    message = f"{hint!r}: no rule to write this type; add one to _type"
    raise TypeError(message)


def _union(arguments: tuple[Any, ...], nested: dict[str, Any]) -> dict[str, Any]:
    """Reduce an SDK union to the one form the engine sees: enumerations, outputs, awaitables and
    dictionary twins of argument classes all stand for the plain value. Where a policy may be text
    or a typed document, only the text is kept: the stand-in takes no typed documents."""
    for fits in (_is_primitive, _is_arguments_class, _is_composite, _is_asset, _is_enumeration):
        for argument in arguments:
            if fits(argument):
                return _type(argument, nested)
    message = f"{arguments!r}: no member of this union is a plain value"
    raise TypeError(message)


def _is_primitive(hint: Any) -> bool:
    return hint in PRIMITIVES


def _is_arguments_class(hint: Any) -> bool:
    return inspect.isclass(hint) and pulumi._types.is_input_type(hint)


def _is_composite(hint: Any) -> bool:
    return typing.get_origin(hint) in (Sequence, Mapping, typing.Union)


def _is_asset(hint: Any) -> bool:
    return hint in (pulumi.Archive, pulumi.Asset)


def _is_enumeration(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, str) and issubclass(hint, enum.Enum)


if __name__ == "__main__":
    path = Path(__file__).with_name("aws.json")
    path.write_text(json.dumps(generate(), separators=(",", ":"), sort_keys=True) + "\n")
