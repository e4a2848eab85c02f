"""The whole system in the lab: one `scripts/lab up`, then what users, operators and failures do.

The tests share one lab and build on each other's order: what destroys comes last. Each one leaves a
lab in which the next can work.
"""

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

import settings
from lab import paths, stack
from lab.driving import (
    DATABASE_NODE,
    DOOR,
    EXISTING_NODE,
    GROUP,
    OSLO_CONNECTIONS,
    Lab,
    await_condition,
)
from plan.mesh import plan_mesh
from render.workload import workload_content as content_of_workload
from settings import PROJECT
from tests import born


@pytest.fixture
def saturated(lab: Lab) -> Iterator[None]:
    """Every connection that Oslo has is taken for a while, by our own bounded requests."""
    count = OSLO_CONNECTIONS
    holder = subprocess.Popen(
        [
            str(lab.root / "scripts" / "lab"),
            "shell",
            "-c",
            f"seq {count} | xargs -P {count} -I{{}} curl -sS --max-time 40 -o /dev/null"
            f" {DOOR}/slow?seconds=25",
        ],
        stdin=subprocess.DEVNULL,
    )
    await_condition("Oslo's connections to be taken", lambda: oslo_connections(lab) >= count, 20)
    yield
    holder.wait(timeout=60)


def oslo_connections(lab: Lab) -> int:
    row = next(row for row in lab.door_rows() if row[:2] == ["oslo", "BACKEND"])
    return int(row[4])


def test_the_table_of_up_names_every_node_and_both_answers(lab: Lab) -> None:
    text = lab.command("status").stdout
    for part in (DATABASE_NODE, EXISTING_NODE, "10.100.0.1", "frankfurt", "stand-in", DOOR):
        assert part in text, f"{part} is missing in:\n{text}"
    sites = dict(re.findall(r'^from (Oslo|fleet): +.*"site": "(\w+)"', text, re.MULTILINE))
    assert sites == {"Oslo": "oslo", "fleet": "frankfurt"}


def test_oslo_answers_first_with_a_row_read_over_the_mesh(lab: Lab) -> None:
    answers = [lab.ask() for _ in range(4)]
    assert {answer["site"] for answer in answers} == {"oslo"}
    assert {answer["row"] for answer in answers} == {"God dag fra Oslo"}
    assert {answer["served_by"] for answer in answers} == {DATABASE_NODE, EXISTING_NODE}


def test_the_fleet_answers_when_oslo_is_full(lab: Lab, saturated: None) -> None:
    answer = lab.ask()
    assert answer["site"] == "frankfurt"
    assert answer["row"] == "God dag fra Oslo"


def test_the_two_networks_are_28_milliseconds_apart(lab: Lab) -> None:
    text = lab.on(DATABASE_NODE, f"ping -c 5 -i 0.3 {member_address(lab)}")
    average = float(re.search(r"= [\d.]+/([\d.]+)/", text).group(1))  # type: ignore[union-attr]
    assert average >= 28, f"the way to the fleet and back takes {average} ms"


def member_address(lab: Lab) -> str:
    slot: str = lab.outputs()["slots"][lab.members()[0]]
    return slot.split()[0]


def test_every_present_peer_has_a_fresh_handshake(lab: Lab) -> None:
    text = lab.on(DATABASE_NODE, "date +%s; wg show wg0 latest-handshakes")
    clock, *peers = text.splitlines()
    ages = [int(clock) - int(line.split()[1]) for line in peers if line.split()[1] != "0"]
    assert len(ages) >= 1 + len(lab.members())
    # WireGuard (whitepaper, section 6.1) makes a new handshake after 120 s of use and gives a
    # session up after 180 s; keepalives every 25 s keep it in use.
    assert min(ages) < 180


@pytest.mark.parametrize("address", ["10.20.0.11", "10.100.0.1"])
def test_the_lan_does_not_reach_the_database_even_by_its_mesh_address(
    lab: Lab, address: str
) -> None:
    attempt = f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/5432'"
    # A neighbour that routes the mesh address through the core's LAN address (weak host model).
    route = "ip route add 10.100.0.1/32 via 10.20.0.11"
    script = f"{route} 2>/dev/null; {attempt}; code=$?; ip route del 10.100.0.1/32; exit $code"
    assert lab.inside(script, check=False).returncode != 0, f"5432 is open on {address}"


def test_the_database_is_reachable_over_the_mesh(lab: Lab) -> None:
    lab.on(EXISTING_NODE, "timeout 5 bash -c 'exec 3<>/dev/tcp/10.100.0.1/5432'")


def test_no_io_scheduler_stands_before_the_data_disk(lab: Lab) -> None:
    for line in lab.on(DATABASE_NODE, "cat /sys/block/vd*/queue/scheduler").splitlines():
        assert "[none]" in line


def test_the_data_is_on_its_own_volume(lab: Lab) -> None:
    directory = lab.on(DATABASE_NODE, "sudo -u postgres psql -Atc 'show data_directory'")
    source = lab.on(DATABASE_NODE, f"findmnt --noheadings --output SOURCE --target {directory}")
    root = lab.on(DATABASE_NODE, "findmnt --noheadings --output SOURCE --target /")
    assert source != root


def test_a_second_up_changes_nothing(lab: Lab) -> None:
    lab.pulumi("preview", "--stack", "lab", "--expect-no-changes")
    text = lab.pulumi("up", "--stack", "lab", "--yes").stdout
    assert re.search(r"\d+ unchanged", text), text
    for word in ("created", "updated", "replaced", "deleted"):
        assert not re.search(rf"\d+ {word}", text), text


def test_planted_secrets_stand_in_no_plain_text(lab: Lab) -> None:
    keys = ("mesh-seed", "ssh-private-key", "database-password", "fleet-database-password")
    planted = {key: secret_setting(lab, key) for key in keys}
    # A line from its middle: the first and last are the same in every key file.
    planted["ssh-private-key"] = planted["ssh-private-key"].splitlines()[2]
    hub_key = lab.on(DATABASE_NODE, "wg show wg0 private-key")
    planted["hub's private key"] = hub_key
    places: dict[str, str] = {
        str(path): path.read_text(errors="replace")
        for directory in (paths.STATE, paths.LOG)
        for path in directory.rglob("*")
        if path.is_file()
    }
    places["processes here"] = lab.inside("ps -eo args").stdout
    places["logs of the database's node"] = lab.on(DATABASE_NODE, "journalctl --no-pager")
    for node in (DATABASE_NODE, EXISTING_NODE):
        places[f"processes on {node}"] = lab.on(node, "ps -eo args")
    versions = lab.aws(
        "ec2",
        "describe_launch_template_versions",
        LaunchTemplateId=launch_template(lab),
        Versions=["$Latest"],
    )
    data = versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]
    places["user-data"] = "\n".join([str(born.document(data)), *born.files(data).values()])
    for place, text in places.items():
        for name, secret in planted.items():
            assert secret not in text, f"{name} stands in {place}"


def launch_template(lab: Lab) -> str:
    templates = lab.aws("ec2", "describe_launch_templates")["LaunchTemplates"]
    (template,) = [t for t in templates if t["LaunchTemplateName"].startswith("frankfurt")]
    return str(template["LaunchTemplateId"])


def test_a_member_that_dies_silently_is_out_within_seconds_and_costs_nothing_after(
    lab: Lab,
) -> None:
    (instance,) = [row["InstanceId"] for row in lab.group()["Instances"]]
    name = lab.members()[0]
    lab.inside(f"virsh destroy {instance}")
    await_condition("the door to notice", lambda: name not in lab.members(), 20)
    load = lab.load(seconds=15, held=0)
    assert load.complete()["failed"] == []
    await_condition("a replacement to serve", lambda: lab.members())
    claims = lab.aws("dynamodb", "scan", TableName=f"{GROUP}-claims")["Items"]
    living = {row["InstanceId"] for row in lab.group()["Instances"]}
    owners = {value["S"] for item in claims for value in item.values() if "S" in value}
    assert living <= owners


def secret_setting(lab: Lab, key: str) -> str:
    return lab.pulumi("config", "get", key, "--stack", "lab").stdout.strip()


def workload_content(lab: Lab, kind: str) -> str:
    """What the program would send to the existing node for one kind of workload."""
    document = stack.settings_document()[f"{PROJECT}:settings"]
    if kind == "container":
        document["workload"] = {
            "kind": "container",
            "image": "localhost/greeter:1",
            "health-path": "/health",
        }
    of = settings.validate(document)
    core = settings.core_of(of)
    return json.dumps(
        content_of_workload(
            node=next(node for node in core.nodes if node.name == EXISTING_NODE),
            settings=of,
            mesh=plan_mesh(of.mesh, core.nodes, of.fleets),
            app_password=secret_setting(lab, "database-password"),
        )
    )


def test_a_container_is_a_workload_like_a_script(lab: Lab) -> None:
    apply = "python3 /usr/local/lib/fortress/host/workload.py"
    greeter = (
        "set -e; d=$(mktemp -d); mkdir -p $d/bin $d/www; cp /bin/busybox $d/bin/; "
        "echo ready > $d/www/health; tar -C $d -c . | podman import --quiet "
        '--change \'CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", '
        '"-h", "/www"]\' - localhost/greeter:1; rm -r $d'
    )
    lab.on(EXISTING_NODE, greeter)
    try:
        lab.on(EXISTING_NODE, apply, stdin=workload_content(lab, "container"))
        answer = lab.on(DATABASE_NODE, "curl -fsS http://10.100.0.2:8080/health")
        assert answer == "ready"
        await_condition(
            "the health responder to speak for the container",
            lambda: lab.on(
                DATABASE_NODE, "curl -fsS http://10.100.0.2:8081/health && echo ready", check=False
            ),
            60,
        )
    finally:
        lab.on(EXISTING_NODE, apply, stdin=workload_content(lab, "script"))
    assert {lab.ask()["served_by"] for _ in range(6)} == {DATABASE_NODE, EXISTING_NODE}


def test_everything_is_back_by_itself_after_the_core_restarts(lab: Lab) -> None:
    boot = lab.on(DATABASE_NODE, "cat /proc/sys/kernel/random/boot_id")
    lab.on(DATABASE_NODE, "systemctl reboot", check=False)

    def restarted() -> bool:
        text = lab.on(DATABASE_NODE, "cat /proc/sys/kernel/random/boot_id", check=False)
        return text not in {"", boot}

    await_condition("the node to start again", restarted)

    def serves() -> bool:
        done = lab.inside(f"curl -fsS --max-time 10 {DOOR}/", check=False)
        return done.returncode == 0 and "God dag" in done.stdout

    await_condition("the door to answer with a row", serves, 300)
    await_condition("the member to be back in the door's rotation", lab.members, 300)
    assert "[none]" in lab.on(DATABASE_NODE, "cat /sys/block/vdb/queue/scheduler")


def test_an_interrupted_up_is_completed_by_the_next(lab: Lab) -> None:
    lab.on(EXISTING_NODE, "systemctl disable --now fortress-workload 2>/dev/null; true")
    urn = next(
        row["urn"]
        for row in json.loads(lab.pulumi("stack", "export").stdout)["deployment"]["resources"]
        if row["urn"].endswith(f"::services-{EXISTING_NODE}-workload")
    )
    process = subprocess.Popen(
        [
            str(lab.root / "scripts" / "lab"),
            *("pulumi", "up", "--stack", "lab", "--yes", "--target-replace", urn),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "Updating" in line:
            process.send_signal(2)
            break
    process.communicate(timeout=300)
    lab.pulumi("cancel", "--yes", "--stack", "lab", check=False)
    lab.pulumi("up", "--stack", "lab", "--yes")
    lab.pulumi("preview", "--stack", "lab", "--expect-no-changes")
