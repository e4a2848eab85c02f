"""Explicit providers: which KVM host and which AWS region the components' resources live in."""

import pulumi
import pulumi_aws as aws
import pulumi_libvirt as libvirt

from settings import CoreSettings, FleetSettings

# The services the program calls, by the provider's own names (pulumi_aws ProviderEndpointArgs).
SERVICES = (
    "autoscaling",
    "cloudwatch",
    "dynamodb",
    "ec2",
    "iam",
    "lambda_",
    "logs",
    "ssm",
    "sts",
)


def libvirt_providers(core: CoreSettings) -> list[pulumi.ProviderResource]:
    """The KVM host's provider, when the core has one."""
    return [] if core.libvirt is None else [libvirt.Provider("oslo", uri=core.libvirt.uri)]


def aws_provider(name: str, fleet: FleetSettings) -> aws.Provider:
    """One region's provider; credentials come from the environment, as for every AWS tool.

    With another endpoint the checks that only Amazon's own services answer are left out.
    """
    if fleet.endpoint_url is None:
        return aws.Provider(name, region=fleet.region)
    return aws.Provider(
        name,
        region=fleet.region,
        endpoints=[aws.ProviderEndpointArgs(**dict.fromkeys(SERVICES, fleet.endpoint_url))],
        skip_credentials_validation=True,
        skip_metadata_api_check=True,
        skip_region_validation=True,
    )
