"""The fleet's image: which one members boot from, what it must hold, and what it need not know."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi.runtime import mocks as pulumi_mocks
from pulumi.runtime import rpc

from member import required_packages
from render.baseline import COMMON_PACKAGES, ROLE_PACKAGES
from render.member import START
from settings import ROOT, FleetSettings
from tests import born
from tests.unit.recorder import Recorder, record_program
from tests.unit.samples import sample_data

AMI = "aws:ec2/getAmi:getAmi"
PARAMETER = "aws:ssm/parameter:Parameter"
DEBIAN, CANONICAL = "136693071363", "099720109477"
Change = Callable[[dict[str, Any]], None]


def image(
    identifier: str, owner: str, name: str, architecture: str, root: str, **more: str
) -> dict[str, str]:
    return {
        "id": identifier,
        "owner": owner,
        "name": name,
        "architecture": architecture,
        "rootDeviceName": root,
        "state": "available",
        **more,
    }


# Root devices as Debian and Canonical register them.
IMAGES = [
    image("ami-00000001", DEBIAN, "debian-13-amd64-20261101", "x86_64", "/dev/xvda"),
    image("ami-00000002", DEBIAN, "debian-13-arm64-20261101", "arm64", "/dev/xvda"),
    image("ami-00000003", CANONICAL, "noble-24.04-amd64-server-20261101", "x86_64", "/dev/sda1"),
    image("ami-00000004", CANONICAL, "noble-24.04-arm64-server-20261101", "arm64", "/dev/sda1"),
    image(
        "ami-00000005", DEBIAN, "debian-13-arm64-20261102", "arm64", "/dev/xvda", state="pending"
    ),
]


class Ec2(Recorder):
    """Looks images up as EC2 does: by owner, by filters with wildcards, the last of them."""

    def call(
        self, args: pulumi_mocks.MockCallArgs
    ) -> tuple[dict[Any, Any], list[tuple[str, str]] | None]:
        if args.token != AMI:
            return super().call(args)
        keys = {"image-id": "id"}
        found = [
            one
            for one in IMAGES
            if one["owner"] in args.args.get("owners", [one["owner"]])
            and all(
                any(
                    re.fullmatch(re.escape(value).replace(r"\*", ".*"), one[key])
                    for value in filter_["values"]
                )
                for filter_ in args.args["filters"]
                for key in [keys.get(filter_["name"], filter_["name"])]
            )
        ]
        if not found:
            return {}, [("filters", "Your query returned no results.")]
        return dict(found[-1]), []


def template(ssh_private_key: str, fleet: dict[str, Any]) -> dict[str, Any]:
    """The launch template of a fleet with these settings."""
    data = sample_data()
    data["fleets"]["frankfurt"].update(fleet)
    made = record_program(data, ssh_private_key=ssh_private_key, recorder=Ec2())
    (found,) = made.of_type("aws:ec2/launchTemplate:LaunchTemplate")
    return dict(found.inputs)


def by_name(owner: str, name: str, *types: str) -> dict[str, Any]:
    return {"image": {"owner": owner, "name": name}, "instance-types": list(types)}


def by_id(identifier: str, *types: str) -> dict[str, Any]:
    return {"image": {"id": identifier}, "instance-types": list(types)}


@pytest.mark.parametrize(
    ("fleet", "identifier", "root"),
    [
        (by_name(DEBIAN, "debian-13-*", "t3.medium"), "ami-00000001", "/dev/xvda"),
        (by_name(DEBIAN, "debian-13-*", "t4g.small"), "ami-00000002", "/dev/xvda"),
        (by_name(CANONICAL, "noble-24.04-*", "m7a.large"), "ami-00000003", "/dev/sda1"),
        (by_name(CANONICAL, "noble-24.04-*", "c7gn.large"), "ami-00000004", "/dev/sda1"),
        (by_id("ami-00000003", "t3.medium"), "ami-00000003", "/dev/sda1"),
    ],
)
def test_members_boot_from_an_image_of_their_processor_and_its_root_is_the_encrypted_volume(
    fleet: dict[str, Any], identifier: str, root: str, ssh_private_key: str
) -> None:
    made = template(ssh_private_key, fleet)
    assert made["imageId"] == identifier
    (volume,) = made["blockDeviceMappings"]
    assert volume["deviceName"] == root, "the root would stay as it is, beside a second volume"
    assert volume["ebs"]["encrypted"] == "true"


@pytest.mark.parametrize(
    ("fleet", "reason"),
    [
        (
            by_name(DEBIAN, "debian-13-amd64-*", "t4g.small"),
            r"frankfurt\.image: no image \(owner 136693071363, name debian-13-amd64-\*, "
            r"architecture arm64, .*eu-central-1 for instance-types t4g\.small.*no results",
        ),
        (by_id("ami-0000000f", "t3.small"), r"image-id ami-0000000f\) was found in eu-central-1"),
        (
            by_id("ami-00000002", "t3.small"),
            r"ami-00000002 is made for arm64, but instance-types t3\.small are x86_64",
        ),
    ],
)
def test_an_image_that_is_not_there_or_does_not_fit_is_told_with_image_and_types(
    fleet: dict[str, Any], reason: str, ssh_private_key: str
) -> None:
    with pytest.raises(pulumi.RunError, match=reason):
        template(ssh_private_key, fleet)


@pytest.mark.parametrize(
    ("instance_type", "architecture"),
    [
        *((name, "arm64") for name in ("a1.large", "t4g.nano", "m6gd.metal", "c7gn.8xlarge")),
        *(
            (name, "arm64")
            for name in ("im4gn.large", "is4gen.large", "g5g.xlarge", "hpc7g.4xlarge")
        ),
        *((name, "x86_64") for name in ("t2.micro", "t3a.small", "m7i-flex.large", "c5n.large")),
        *((name, "x86_64") for name in ("g4dn.xlarge", "g6.xlarge", "gr6.4xlarge", "i7ie.large")),
        *((name, "x86_64") for name in ("u-6tb1.metal", "x2iezn.2xlarge", "hpc7a.12xlarge")),
    ],
)
def test_an_instance_types_name_tells_its_processor(instance_type: str, architecture: str) -> None:
    data = sample_data()["fleets"]["frankfurt"]
    fleet = FleetSettings.model_validate({**data, "instance-types": [instance_type]})
    assert fleet.architecture == architecture


class Preview(Recorder):
    """Decides nothing yet: the version of a parameter that is not written is unknown."""

    def new_resource(
        self, args: pulumi_mocks.MockResourceArgs
    ) -> tuple[str | None, dict[Any, Any]]:
        identifier, state = super().new_resource(args)
        if args.typ == PARAMETER:
            state["version"] = rpc.UNKNOWN
        return identifier, state


def with_workload(directory: Path) -> dict[str, Any]:
    data = sample_data()
    data["workload"]["directory"] = str(directory)
    for name in ("install", "start"):
        (directory / name).write_text("#!/bin/sh\n")
    return data


def test_the_first_preview_knows_that_user_data_is_too_large(
    tmp_path: Path, ssh_private_key: str
) -> None:
    data = with_workload(tmp_path)
    seen = record_program(data, ssh_private_key=ssh_private_key, recorder=Preview(), preview=True)
    (found,) = seen.of_type("aws:ec2/launchTemplate:LaunchTemplate")
    assert "userData" not in found.inputs or not isinstance(found.inputs["userData"], str), (
        "this preview knows the parameter's version, so it proves nothing"
    )
    (tmp_path / "page.html").write_text("".join(f"{number * 7919:x}" for number in range(9000)))
    with pytest.raises(
        pulumi.RunError, match=r"frankfurt has \d+ bytes compressed; EC2 takes 16384"
    ):
        record_program(data, ssh_private_key=ssh_private_key, recorder=Preview(), preview=True)


def test_what_a_member_is_born_with_names_no_processor(ssh_private_key: str) -> None:
    user_data = template(ssh_private_key, {})["userData"]
    settings = {**born.document(user_data), "bootcmd": []}
    text = json.dumps([settings, START, born.files(user_data)])
    assert re.findall(r"amd64|x86_64|arm64|aarch64|\\u0000", text) == []


def test_the_crash_handler_is_silenced_before_the_kernels_values_are_set() -> None:
    commands = START.splitlines()
    stopped = commands.index("systemctl stop --quiet apport.service 2>/dev/null || true")
    (values,) = [place for place, line in enumerate(commands) if line.startswith("sysctl ")]
    assert commands.index("systemctl mask --quiet --no-reload apport.service") < stopped < values


def documented() -> str:
    return (ROOT / "docs/images.md").read_text()


def test_the_documented_packages_are_those_a_member_looks_for() -> None:
    lists = re.findall(r'^    PACKAGES="(?:\$PACKAGES )?(.*?)"', documented(), flags=re.MULTILINE)
    always, container = (set(lines.split()) for lines in lists[:2])

    assert always == set(required_packages("script", lambda program: False))
    assert always | container == set(required_packages("container", lambda program: False))
    assert lists[2] in (ROOT / "workload/demo/install").read_text()


def test_the_documented_packages_of_a_core_machine_are_those_it_gets() -> None:
    rows = {
        what: set(re.findall(r"`(\S+)`", packages))
        for what, packages in re.findall(r"^\| ([^|]+) \| (`.*`) \|$", documented(), re.MULTILINE)
    }
    assert rows["every one"] == set(COMMON_PACKAGES)
    for role, packages in ROLE_PACKAGES.items():
        assert rows[str(role)] == set(packages)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_documented_commands_are_sound_shell(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", documented(), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for number, block in enumerate(blocks):
        script = tmp_path / f"{number}.sh"
        script.write_text(block)
        checked = subprocess.run(
            ["shellcheck", "--shell=sh", script], capture_output=True, text=True, check=False
        )
        assert checked.returncode == 0, checked.stdout
