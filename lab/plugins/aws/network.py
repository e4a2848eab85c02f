"""Owns the rows for networks: VPC, gateway, subnet, routes, security group."""

from collections.abc import Mapping
from typing import Any, Final

from lab.plugins.aws import shapes
from lab.plugins.aws.cloud import Cloud, GoneError
from lab.plugins.aws.kinds import Change, Kind, only, pick, words
from lab.plugins.values import Properties

ALL_PROTOCOLS: Final = "-1"

VPC_SWITCHES: Final[Mapping[str, str]] = {
    "enableDnsSupport": "EnableDnsSupport",
    "enableDnsHostnames": "EnableDnsHostnames",
    "enableNetworkAddressUsageMetrics": "EnableNetworkAddressUsageMetrics",
}
SUBNET_SWITCHES: Final[Mapping[str, str]] = {
    "assignIpv6AddressOnCreation": "AssignIpv6AddressOnCreation",
    "mapPublicIpOnLaunch": "MapPublicIpOnLaunch",
}


def tag_on_creation(cloud: Cloud, kind: str, inputs: Properties) -> list[dict[str, Any]]:
    """The tags of a new EC2 thing, in the form its create call takes."""
    tags = cloud.all_tags(inputs.get("tags"))
    return [{"ResourceType": kind, "Tags": shapes.tag_list(tags)}] if tags else []


def retag(cloud: Cloud, resource_id: str, change: Change) -> None:
    """Make the tags of an EC2 thing those of the inputs."""
    wanted = cloud.all_tags(change.inputs.get("tags"))
    surplus = change.state.get("tagsAll", {}).keys() - wanted.keys()
    if surplus:
        keys = [{"Key": key} for key in sorted(surplus)]
        cloud.call("ec2", "delete_tags", Resources=[resource_id], Tags=keys)
    if wanted:
        tags = shapes.tag_list(wanted)
        cloud.call("ec2", "create_tags", Resources=[resource_id], Tags=tags)


def _describe(cloud: Cloud, operation: str, answer: str, resource_id: str, parameter: str) -> Any:
    return only(cloud.call("ec2", operation, **{parameter: [resource_id]})[answer])


def _create_vpc(cloud: Cloud, inputs: Properties) -> str:
    parameters = shapes.request(
        cloud, "ec2", "CreateVpc", pick(inputs, "cidrBlock instanceTenancy"), {}
    )
    tags = tag_on_creation(cloud, "vpc", inputs)
    vpc = cloud.call("ec2", "create_vpc", TagSpecifications=tags, **parameters)["Vpc"]
    return str(vpc["VpcId"])


def _set_vpc_switches(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    for name, attribute in VPC_SWITCHES.items():
        if name in inputs:
            value = {attribute: {"Value": inputs[name]}}
            cloud.call("ec2", "modify_vpc_attribute", VpcId=resource_id, **value)


def _read_vpc(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    vpc = _describe(cloud, "describe_vpcs", "Vpcs", resource_id, "VpcIds")
    if vpc is None:
        return None
    switches = {
        name: cloud.call(
            "ec2",
            "describe_vpc_attribute",
            VpcId=resource_id,
            Attribute=attribute[0].lower() + attribute[1:],
        )[attribute]["Value"]
        for name, attribute in VPC_SWITCHES.items()
    }
    own = [{"Name": "vpc-id", "Values": [resource_id]}]
    main = [*own, {"Name": "association.main", "Values": ["true"]}]
    tables = cloud.call("ec2", "describe_route_tables", Filters=main)["RouteTables"]
    default = [*own, {"Name": "group-name", "Values": ["default"]}]
    groups = cloud.call("ec2", "describe_security_groups", Filters=default)["SecurityGroups"]
    return switches | {
        "arn": cloud.arn("ec2", vpc["OwnerId"], f"vpc/{resource_id}"),
        "cidrBlock": vpc["CidrBlock"],
        "instanceTenancy": vpc["InstanceTenancy"],
        "dhcpOptionsId": vpc.get("DhcpOptionsId"),
        "ownerId": vpc["OwnerId"],
        "mainRouteTableId": (only(tables) or {}).get("RouteTableId"),
        "defaultRouteTableId": (only(tables) or {}).get("RouteTableId"),
        "defaultSecurityGroupId": (only(groups) or {}).get("GroupId"),
        "tagsAll": shapes.tag_map(vpc.get("Tags")),
    }


def _update_vpc(cloud: Cloud, resource_id: str, change: Change) -> None:
    defaults = {"enableDnsSupport": True, "enableDnsHostnames": False}
    wanted = {name: change.inputs.get(name, defaults.get(name, False)) for name in VPC_SWITCHES}
    _set_vpc_switches(cloud, resource_id, pick(wanted, " ".join(change.changed & wanted.keys())))
    retag(cloud, resource_id, change)


def _delete_vpc(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call_when_free("ec2", "delete_vpc", VpcId=resource_id)


def _create_gateway(cloud: Cloud, inputs: Properties) -> str:
    tags = tag_on_creation(cloud, "internet-gateway", inputs)
    made = cloud.call("ec2", "create_internet_gateway", TagSpecifications=tags)
    return str(made["InternetGateway"]["InternetGatewayId"])


def _attach_gateway(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    if inputs.get("vpcId"):
        cloud.call(
            "ec2", "attach_internet_gateway", InternetGatewayId=resource_id, VpcId=inputs["vpcId"]
        )


def _detach_gateway(cloud: Cloud, resource_id: str, state: Properties) -> None:
    if state.get("vpcId"):
        cloud.call_when_free(
            "ec2", "detach_internet_gateway", InternetGatewayId=resource_id, VpcId=state["vpcId"]
        )


def _read_gateway(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    gateway = _describe(
        cloud,
        "describe_internet_gateways",
        "InternetGateways",
        resource_id,
        "InternetGatewayIds",
    )
    if gateway is None:
        return None
    owner = gateway.get("OwnerId", "")
    return {
        "arn": cloud.arn("ec2", owner, f"internet-gateway/{resource_id}"),
        "ownerId": owner,
        "vpcId": (only(gateway.get("Attachments", [])) or {}).get("VpcId", ""),
        "tagsAll": shapes.tag_map(gateway.get("Tags")),
    }


def _update_gateway(cloud: Cloud, resource_id: str, change: Change) -> None:
    if "vpcId" in change.changed:
        _detach_gateway(cloud, resource_id, change.state)
        _attach_gateway(cloud, resource_id, change.inputs)
    retag(cloud, resource_id, change)


def _delete_gateway(cloud: Cloud, resource_id: str, state: Properties) -> None:
    try:
        _detach_gateway(cloud, resource_id, state)
    except GoneError:
        cloud.say("the network it was attached to is gone")
    cloud.call_when_free("ec2", "delete_internet_gateway", InternetGatewayId=resource_id)


def _create_subnet(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, "vpcId cidrBlock availabilityZone availabilityZoneId")
    parameters = shapes.request(cloud, "ec2", "CreateSubnet", wanted, {})
    tags = tag_on_creation(cloud, "subnet", inputs)
    subnet = cloud.call("ec2", "create_subnet", TagSpecifications=tags, **parameters)["Subnet"]
    return str(subnet["SubnetId"])


def _set_subnet_switches(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    for name, attribute in SUBNET_SWITCHES.items():
        if name in inputs:
            value = {attribute: {"Value": inputs[name]}}
            cloud.call("ec2", "modify_subnet_attribute", SubnetId=resource_id, **value)


def _read_subnet(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    subnet = _describe(cloud, "describe_subnets", "Subnets", resource_id, "SubnetIds")
    if subnet is None:
        return None
    return {
        "arn": subnet["SubnetArn"],
        "availabilityZone": subnet["AvailabilityZone"],
        "availabilityZoneId": subnet.get("AvailabilityZoneId"),
        "cidrBlock": subnet["CidrBlock"],
        "ownerId": subnet["OwnerId"],
        "vpcId": subnet["VpcId"],
        "tagsAll": shapes.tag_map(subnet.get("Tags")),
    } | {name: subnet[attribute] for name, attribute in SUBNET_SWITCHES.items()}


def _update_subnet(cloud: Cloud, resource_id: str, change: Change) -> None:
    wanted = {
        name: change.inputs.get(name, False) for name in SUBNET_SWITCHES if name in change.changed
    }
    _set_subnet_switches(cloud, resource_id, wanted)
    retag(cloud, resource_id, change)


def _delete_subnet(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call_when_free("ec2", "delete_subnet", SubnetId=resource_id)


ROUTE_NAMES: Final[Mapping[str, str]] = {
    "cidrBlock": "DestinationCidrBlock",
    "ipv6CidrBlock": "DestinationIpv6CidrBlock",
    "destinationPrefixListId": "DestinationPrefixListId",
}


def _create_route_table(cloud: Cloud, inputs: Properties) -> str:
    tags = tag_on_creation(cloud, "route-table", inputs)
    table = cloud.call("ec2", "create_route_table", VpcId=inputs["vpcId"], TagSpecifications=tags)[
        "RouteTable"
    ]
    return str(table["RouteTableId"])


def _add_routes(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    for route in inputs.get("routes", []):
        parameters = shapes.request(cloud, "ec2", "CreateRoute", route, ROUTE_NAMES)
        cloud.call("ec2", "create_route", RouteTableId=resource_id, **parameters)


def _read_route_table(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    table = _describe(cloud, "describe_route_tables", "RouteTables", resource_id, "RouteTableIds")
    if table is None:
        return None
    routes = [
        route
        for route in table["Routes"]
        if route.get("GatewayId") != "local" and route.get("Origin", "CreateRoute") == "CreateRoute"
    ]
    found = shapes.state("aws:ec2/routeTable:RouteTable", {"Routes": routes}, ROUTE_NAMES)
    return {
        "arn": cloud.arn("ec2", table["OwnerId"], f"route-table/{resource_id}"),
        "ownerId": table["OwnerId"],
        "vpcId": table["VpcId"],
        "routes": found.get("routes", []),
        "tagsAll": shapes.tag_map(table.get("Tags")),
    }


def _update_route_table(cloud: Cloud, resource_id: str, change: Change) -> None:
    if "routes" in change.changed:
        wanted = change.inputs.get("routes", [])
        present = change.state.get("routes", [])
        for route in present:
            if route not in wanted:
                request = shapes.request(
                    cloud, "ec2", "DeleteRoute", pick(route, " ".join(ROUTE_NAMES)), ROUTE_NAMES
                )
                cloud.call("ec2", "delete_route", RouteTableId=resource_id, **request)
        added = [route for route in wanted if route not in present]
        _add_routes(cloud, resource_id, {"routes": added})
    retag(cloud, resource_id, change)


def _delete_route_table(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call_when_free("ec2", "delete_route_table", RouteTableId=resource_id)


def _create_association(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, "routeTableId subnetId gatewayId")
    parameters = shapes.request(cloud, "ec2", "AssociateRouteTable", wanted, {})
    return str(cloud.call("ec2", "associate_route_table", **parameters)["AssociationId"])


def _association(cloud: Cloud, state: Properties) -> Any:
    # Another table means another association id, so what is associated is the lasting identity.
    kind, thing = (
        ("subnet-id", state["subnetId"])
        if state.get("subnetId")
        else ("gateway-id", state.get("gatewayId", ""))
    )
    name = "SubnetId" if kind == "subnet-id" else "GatewayId"
    filters = [{"Name": f"association.{kind}", "Values": [thing]}]
    tables = cloud.call("ec2", "describe_route_tables", Filters=filters)["RouteTables"]
    for table in tables:
        for association in table["Associations"]:
            if association.get(name) == thing:
                return association
    return None


def _read_association(cloud: Cloud, _id: str, state: Properties) -> Properties | None:
    found = _association(cloud, state)
    return found and {
        "routeTableId": found["RouteTableId"],
        "subnetId": found.get("SubnetId"),
        "gatewayId": found.get("GatewayId"),
    }


def _update_association(cloud: Cloud, _id: str, change: Change) -> None:
    cloud.call(
        "ec2",
        "replace_route_table_association",
        AssociationId=_association(cloud, change.state)["RouteTableAssociationId"],
        RouteTableId=change.inputs["routeTableId"],
    )


def _delete_association(cloud: Cloud, _id: str, state: Properties) -> None:
    found = _association(cloud, state)
    if found:
        association_id = found["RouteTableAssociationId"]
        cloud.call("ec2", "disassociate_route_table", AssociationId=association_id)


DIRECTIONS: Final[Mapping[str, str]] = {"ingress": "IpPermissions", "egress": "IpPermissionsEgress"}
RULE_SOURCES: Final = (
    ("cidrBlocks", "IpRanges", "CidrIp"),
    ("ipv6CidrBlocks", "Ipv6Ranges", "CidrIpv6"),
    ("prefixListIds", "PrefixListIds", "PrefixListId"),
    ("securityGroups", "UserIdGroupPairs", "GroupId"),
)


def _create_security_group(cloud: Cloud, inputs: Properties) -> str:
    wanted = pick(inputs, "name description vpcId")
    parameters = shapes.request(cloud, "ec2", "CreateSecurityGroup", wanted, {"name": "GroupName"})
    tags = tag_on_creation(cloud, "security-group", inputs)
    made = cloud.call("ec2", "create_security_group", TagSpecifications=tags, **parameters)
    return str(made["GroupId"])


def _set_first_rules(cloud: Cloud, resource_id: str, inputs: Properties) -> None:
    # AWS opens a new group to the outside; the official provider closes it before anything else.
    everywhere = {"fromPort": 0, "toPort": 0, "protocol": ALL_PROTOCOLS}
    opened = {**everywhere, "cidrBlocks": ["0.0.0.0/0"]}
    _change_rules(cloud, resource_id, "egress", [opened], inputs.get("egress", []))
    _change_rules(cloud, resource_id, "ingress", [], inputs.get("ingress", []))


def _change_rules(
    cloud: Cloud,
    resource_id: str,
    direction: str,
    present: list[Properties],
    wanted: list[Properties],
) -> None:
    was = [_permission(rule, resource_id) for rule in present]
    shall = [_permission(rule, resource_id) for rule in wanted]
    surplus = [permission for permission in was if permission not in shall]
    missing = [permission for permission in shall if permission not in was]
    if surplus:
        operation = f"revoke_security_group_{direction}"
        cloud.call("ec2", operation, GroupId=resource_id, IpPermissions=surplus)
    if missing:
        operation = f"authorize_security_group_{direction}"
        cloud.call("ec2", operation, GroupId=resource_id, IpPermissions=missing)


def _permission(rule: Properties, resource_id: str) -> dict[str, Any]:
    permission: dict[str, Any] = {"IpProtocol": str(rule["protocol"]).lower()}
    if permission["IpProtocol"] in {"all", ALL_PROTOCOLS}:
        permission["IpProtocol"] = ALL_PROTOCOLS
    else:
        permission |= {"FromPort": rule["fromPort"], "ToPort": rule["toPort"]}
    about = {"Description": rule["description"]} if rule.get("description") else {}
    for name, member, key in RULE_SOURCES:
        sources = list(rule.get(name) or [])
        if name == "securityGroups" and rule.get("self"):
            sources.append(resource_id)
        if sources:
            permission[member] = [{key: source, **about} for source in sources]
    return permission


def _rules(permissions: list[dict[str, Any]], resource_id: str) -> list[Properties]:
    """Rules as the official provider groups them: one per protocol, ports and description."""
    grouped: dict[tuple[Any, ...], Properties] = {}
    for permission in permissions:
        anywhere = permission["IpProtocol"] == ALL_PROTOCOLS
        ports = (0, 0) if anywhere else (permission["FromPort"], permission["ToPort"])
        for name, member, key in RULE_SOURCES:
            for source in permission.get(member, []):
                about = source.get("Description", "")
                rule = grouped.setdefault(
                    (permission["IpProtocol"], *ports, about),
                    {
                        "protocol": permission["IpProtocol"],
                        "fromPort": ports[0],
                        "toPort": ports[1],
                        "description": about,
                        "self": False,
                    },
                )
                if source[key] == resource_id:
                    rule["self"] = True
                else:
                    rule.setdefault(name, []).append(source[key])
    return list(grouped.values())


def _read_security_group(cloud: Cloud, resource_id: str, _state: Properties) -> Properties | None:
    group = _describe(cloud, "describe_security_groups", "SecurityGroups", resource_id, "GroupIds")
    if group is None:
        return None
    rules = {
        direction: _rules(group.get(member, []), resource_id)
        for direction, member in DIRECTIONS.items()
    }
    return rules | {
        "arn": cloud.arn("ec2", group["OwnerId"], f"security-group/{resource_id}"),
        "description": group["Description"],
        "name": group["GroupName"],
        "ownerId": group["OwnerId"],
        "vpcId": group.get("VpcId"),
        "tagsAll": shapes.tag_map(group.get("Tags")),
    }


def _update_security_group(cloud: Cloud, resource_id: str, change: Change) -> None:
    for direction in DIRECTIONS:
        if direction in change.changed:
            present: list[Properties] = change.state.get(direction) or []
            # Without the input the official provider leaves the rules as they are.
            wanted = change.inputs.get(direction, present)
            _change_rules(cloud, resource_id, direction, present, wanted)
    retag(cloud, resource_id, change)


def _delete_security_group(cloud: Cloud, resource_id: str, _state: Properties) -> None:
    cloud.call_when_free("ec2", "delete_security_group", GroupId=resource_id)


KINDS: Final[Mapping[str, Kind]] = {
    "aws:ec2/vpc:Vpc": Kind(
        inputs=words("cidrBlock instanceTenancy tags") | VPC_SWITCHES.keys(),
        create=_create_vpc,
        finish=_set_vpc_switches,
        read=_read_vpc,
        update=_update_vpc,
        delete=_delete_vpc,
    ),
    "aws:ec2/internetGateway:InternetGateway": Kind(
        inputs=words("vpcId tags"),
        create=_create_gateway,
        finish=_attach_gateway,
        read=_read_gateway,
        update=_update_gateway,
        delete=_delete_gateway,
    ),
    "aws:ec2/subnet:Subnet": Kind(
        inputs=words("vpcId cidrBlock availabilityZone availabilityZoneId tags")
        | SUBNET_SWITCHES.keys(),
        create=_create_subnet,
        finish=_set_subnet_switches,
        read=_read_subnet,
        update=_update_subnet,
        delete=_delete_subnet,
    ),
    "aws:ec2/routeTable:RouteTable": Kind(
        inputs=words("vpcId routes tags"),
        create=_create_route_table,
        finish=_add_routes,
        read=_read_route_table,
        update=_update_route_table,
        delete=_delete_route_table,
        sets=words("routes"),
    ),
    "aws:ec2/routeTableAssociation:RouteTableAssociation": Kind(
        inputs=words("routeTableId subnetId gatewayId"),
        create=_create_association,
        read=_read_association,
        update=_update_association,
        delete=_delete_association,
        tagged=False,
    ),
    "aws:ec2/securityGroup:SecurityGroup": Kind(
        inputs=words("name namePrefix description vpcId ingress egress revokeRulesOnDelete tags"),
        defaults={"description": "Managed by Pulumi", "revokeRulesOnDelete": False},
        create=_create_security_group,
        finish=_set_first_rules,
        read=_read_security_group,
        update=_update_security_group,
        delete=_delete_security_group,
        name="name",
        sets=words("ingress egress ingress.cidrBlocks egress.cidrBlocks"),
    ),
}
