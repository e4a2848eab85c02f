"""Owns the look-ups: image, zones, account, partition, region, machine type."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from lab.plugins.aws.cloud import Cloud, RefusedError
from lab.plugins.values import Properties


def _filters(arguments: Properties) -> list[dict[str, Any]]:
    return [
        {"Name": item["name"], "Values": item["values"]} for item in arguments.get("filters", [])
    ]


def _image(cloud: Cloud, arguments: Properties) -> Properties:
    parameters: dict[str, Any] = {
        "Filters": _filters(arguments),
        "IncludeDeprecated": arguments.get("includeDeprecated", False),
    }
    if arguments.get("owners"):
        parameters["Owners"] = arguments["owners"]
    if arguments.get("executableUsers"):
        parameters["ExecutableUsers"] = arguments["executableUsers"]
    images = cloud.call("ec2", "describe_images", **parameters)["Images"]
    if pattern := arguments.get("nameRegex"):
        images = [image for image in images if re.search(pattern, image.get("Name", ""))]
    if not images:
        message = (
            "Your query returned no results. Please change your search criteria and try again."
        )
        raise RefusedError(message)
    if len(images) > 1 and not arguments.get("mostRecent"):
        message = (
            "Your query returned more than one result. Please try a more specific search "
            "criteria, or set `most_recent` attribute to true."
        )
        raise RefusedError(message)
    image = max(images, key=lambda found: str(found.get("CreationDate", "")))
    devices = image.get("BlockDeviceMappings", [])
    root: dict[str, Any] = next(
        (device for device in devices if device.get("DeviceName") == image.get("RootDeviceName")),
        {},
    )
    return {
        "architecture": image.get("Architecture", ""),
        "arn": cloud.arn("ec2", "", f"image/{image['ImageId']}"),
        "creationDate": image.get("CreationDate", ""),
        "description": image.get("Description", ""),
        "hypervisor": image.get("Hypervisor", ""),
        "id": image["ImageId"],
        "imageId": image["ImageId"],
        "imageLocation": image.get("ImageLocation", ""),
        "imageType": image.get("ImageType", ""),
        "name": image.get("Name", ""),
        "ownerId": image.get("OwnerId", ""),
        "platform": image.get("Platform", ""),
        "public": image.get("Public", False),
        "rootDeviceName": image.get("RootDeviceName", ""),
        "rootDeviceType": image.get("RootDeviceType", ""),
        "rootSnapshotId": root.get("Ebs", {}).get("SnapshotId", ""),
        "state": image.get("State", ""),
        "tags": {tag["Key"]: tag["Value"] for tag in image.get("Tags", [])},
        "virtualizationType": image.get("VirtualizationType", ""),
    } | arguments


def _zones(cloud: Cloud, arguments: Properties) -> Properties:
    filters = _filters(arguments)
    if state := arguments.get("state"):
        filters.append({"Name": "state", "Values": [state]})
    zones = cloud.call(
        "ec2",
        "describe_availability_zones",
        AllAvailabilityZones=arguments.get("allAvailabilityZones", False),
        Filters=filters,
    )["AvailabilityZones"]
    kept = sorted(
        (
            zone
            for zone in zones
            if zone["ZoneName"] not in arguments.get("excludeNames", [])
            and zone["ZoneId"] not in arguments.get("excludeZoneIds", [])
        ),
        key=lambda zone: str(zone["ZoneName"]),
    )
    return {
        "id": cloud.region,
        "names": [zone["ZoneName"] for zone in kept],
        "zoneIds": [zone["ZoneId"] for zone in kept],
        "groupNames": sorted({zone.get("GroupName", cloud.region) for zone in kept}),
    } | arguments


def _caller(cloud: Cloud, _arguments: Properties) -> Properties:
    caller = cloud.call("sts", "get_caller_identity")
    return {
        "accountId": caller["Account"],
        "arn": caller["Arn"],
        "id": caller["Account"],
        "userId": caller["UserId"],
    }


def _partition(cloud: Cloud, _arguments: Properties) -> Properties:
    suffix = "amazonaws.com.cn" if cloud.partition == "aws-cn" else "amazonaws.com"
    return {
        "id": cloud.partition,
        "partition": cloud.partition,
        "dnsSuffix": suffix,
        "reverseDnsPrefix": ".".join(reversed(suffix.split("."))),
    }


def _region(cloud: Cloud, arguments: Properties) -> Properties:
    name = arguments.get("region") or arguments.get("name") or cloud.region
    found = cloud.call("ec2", "describe_regions", RegionNames=[name])["Regions"][0]
    return {
        "description": name,
        "endpoint": found["Endpoint"],
        "id": name,
        "name": name,
        "region": name,
    }


def _machine_type(cloud: Cloud, arguments: Properties) -> Properties:
    name = arguments["instanceType"]
    answers = cloud.call("ec2", "describe_instance_types", InstanceTypes=[name])["InstanceTypes"]
    if not answers:
        message = f"no EC2 Instance Type {name!r} in {cloud.region}; choose one offered there"
        raise RefusedError(message)
    found = answers[0]
    processor, virtual = found["ProcessorInfo"], found["VCpuInfo"]
    return {
        "bareMetal": found.get("BareMetal", False),
        "burstablePerformanceSupported": found.get("BurstablePerformanceSupported", False),
        "currentGeneration": found.get("CurrentGeneration", False),
        "defaultCores": virtual.get("DefaultCores", 0),
        "defaultThreadsPerCore": virtual.get("DefaultThreadsPerCore", 0),
        "defaultVcpus": virtual["DefaultVCpus"],
        "freeTierEligible": found.get("FreeTierEligible", False),
        "hypervisor": found.get("Hypervisor", ""),
        "id": name,
        "instanceType": name,
        "memorySize": found["MemoryInfo"]["SizeInMiB"],
        "networkPerformance": found.get("NetworkInfo", {}).get("NetworkPerformance", ""),
        "region": cloud.region,
        "supportedArchitectures": processor["SupportedArchitectures"],
    }


FUNCTIONS: Final[Mapping[str, Callable[[Cloud, Properties], Properties]]] = {
    "aws:ec2/getAmi:getAmi": _image,
    "aws:ec2/getInstanceType:getInstanceType": _machine_type,
    "aws:index/getAvailabilityZones:getAvailabilityZones": _zones,
    "aws:index/getCallerIdentity:getCallerIdentity": _caller,
    "aws:index/getPartition:getPartition": _partition,
    "aws:index/getRegion:getRegion": _region,
}
