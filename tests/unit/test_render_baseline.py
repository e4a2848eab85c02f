"""What the baseline gives each machine, read by the programs it is for."""

import json
from pathlib import Path
from typing import Any

import pytest

import settings
from baseline import kernel_settings
from render.baseline import baseline_content
from tests.unit.golden_files import check_golden, program_output
from tests.unit.samples import mesh_of, node_of, sample, sample_data

HUB, SPOKE = "oslo-db-01", "oslo-web-02"


def content_of(name: str) -> dict[str, Any]:
    of = sample()
    return dict(baseline_content(node=node_of(of, name), settings=of, mesh=mesh_of(of)))


@pytest.mark.parametrize("name", [HUB, SPOKE])
def test_the_content_is_json(name: str) -> None:
    content = content_of(name)
    assert json.loads(json.dumps(content)) == content


def test_kernel_settings_of_the_hub_are_the_reviewed_ones() -> None:
    check_golden("90-fortress-hub.conf", content_of(HUB)["sysctl"]["content"])


def test_only_the_hub_forwards() -> None:
    assert kernel_settings(content_of(HUB)["sysctl"]["content"])["net.ipv4.ip_forward"] == "1"
    spoke = kernel_settings(content_of(SPOKE)["sysctl"]["content"])
    assert "net.ipv4.ip_forward" not in spoke, "podman needs it to be left alone elsewhere"


def test_postgresql_gets_no_cluster_of_the_distribution_and_only_where_it_is_installed() -> None:
    assert "create_main_cluster = false" in content_of(HUB)["before_packages"][0]["content"]
    assert "postgresql" in content_of(HUB)["packages"]
    assert content_of(SPOKE)["before_packages"] == []
    assert not {"postgresql", "haproxy"} & set(content_of(SPOKE)["packages"])


def test_sshd_reads_its_part_and_takes_no_passwords(tmp_path: Path) -> None:
    text = content_of(HUB)["sshd"]["content"]
    check_golden("10-fortress.sshd.conf", text)
    key = tmp_path / "host_key"
    program_output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
    path = tmp_path / "sshd.conf"
    path.write_text(f"HostKey {key}\n{text}")
    # sshd insists on a directory that only its running service makes.
    script = 'mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec /usr/sbin/sshd -T -f "$0"'
    isolated = ("unshare", "--map-root-user", "--mount", "sh", "-c", script)
    effective = program_output(*isolated, str(path)).splitlines()
    assert {"passwordauthentication no", "kbdinteractiveauthentication no"} <= set(effective)


def test_apt_reads_the_updates_as_security_only_and_without_reboot(tmp_path: Path) -> None:
    path = tmp_path / "52fortress-security-updates"
    path.write_text(content_of(HUB)["updates"]["content"])
    read = program_output("apt-config", "-c", str(path), "dump").splitlines()
    origins = [line for line in read if line.startswith("Unattended-Upgrade::Origins-Pattern::")]
    assert len(origins) == 3
    assert all("ecurity" in line for line in origins), "an ordinary update would come by itself"
    assert 'Unattended-Upgrade::Automatic-Reboot "false";' in read


def test_the_aws_library_is_installed_only_where_the_door_tells_the_spill_pressure() -> None:
    data = sample_data()
    data["fleets"]["frankfurt"]["scaling"] = {"kind": "spill-pressure", "target-percent": 10}
    of = settings.validate(data)
    packages = {
        name: baseline_content(node=node_of(of, name), settings=of, mesh=mesh_of(of))["packages"]
        for name in (HUB, SPOKE)
    }
    assert "python3-boto3" in str(packages[HUB])
    assert "python3-boto3" not in str(packages[SPOKE])
    assert "python3-boto3" not in content_of(HUB)["packages"]
