"""The whole system in the lab: one `scripts/lab up`, then what users, operators and failures do.

The tests share one lab and build on each other's order: what destroys comes last. Each one leaves a
lab in which the next can work.
"""

import base64
import gzip
import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import settings
from lab import paths, stack
from plan.mesh import plan_mesh
from render.workload import workload_content as content_of_workload
from settings import PROJECT

DATABASE_NODE = "oslo-db-01"
EXISTING_NODE = "oslo-web-02"
DOOR = "http://10.20.0.11"
API = "http://10.64.0.1:5000"
GROUP = "fortress-and-fleet-lab-frankfurt"
# Emulated machines boot in one to three minutes, two at once in up to five.
BOOT_SECONDS = 900


@dataclass(frozen=True)
class Lab:
    """The lab as its command line offers it."""

    root: Path

    def command(
        self, *words: str, check: bool = True, timeout_seconds: float = 900, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(self.root / "scripts" / "lab"), *words],
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            input=stdin,
        )
        if check and done.returncode != 0:
            pytest.fail(f"scripts/lab {shlex.join(words)}:\n{done.stdout}\n{done.stderr}")
        return done

    def inside(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A shell script inside the lab's namespaces, on the lab's host."""
        return self.command("shell", "-c", script, check=check)

    def on(self, node: str, script: str, *, check: bool = True, stdin: str = "") -> str:
        """A shell script as root on a core node."""
        words = ("ssh", node, f"sudo -n sh -c {shlex.quote(script)}")
        return self.command(*words, check=check, stdin=stdin).stdout.strip()

    def pulumi(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.command("pulumi", *words, check=check, timeout_seconds=1800)

    def aws(self, service: str, operation: str, **parameters: object) -> Any:
        """One call to the lab's AWS API."""
        script = (
            "import boto3, json, sys; call = json.loads(sys.argv[1]);"
            f"client = boto3.client(call[0], region_name='eu-central-1', endpoint_url='{API}');"
            "answer = getattr(client, call[1])(**call[2]);"
            "print(json.dumps(answer, default=str))"
        )
        call = json.dumps([service, operation, parameters])
        python = self.root / ".venv" / "bin" / "python"
        done = self.inside(f"{python} -c {shlex.quote(script)} {shlex.quote(call)}")
        return json.loads(done.stdout)

    def ask(self, path: str = "/", *, limit_seconds: int = 20) -> dict[str, Any]:
        """One request through the door."""
        done = self.inside(f"curl -fsS --max-time {limit_seconds} {DOOR}{path}")
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def members(self) -> list[str]:
        """Names of fleet servers that HAProxy holds for up."""
        rows = self.on(
            DATABASE_NODE, "echo 'show stat' | socat - unix-connect:/run/haproxy/admin.sock"
        )
        return [
            row.split(",")[1]
            for row in rows.splitlines()
            if row.startswith("burst_") and ",UP," in row and not row.split(",")[1].isupper()
        ]


def await_condition(what: str, check: Callable[[], object], seconds: float = BOOT_SECONDS) -> None:
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            pytest.fail(f"waited {seconds:.0f} s in vain: {what}")
        time.sleep(2)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    running = Lab(paths.ROOT)
    done = running.command("up", check=False, timeout_seconds=3600)
    assert done.returncode == 0, f"scripts/lab up failed:\n{done.stdout[-8000:]}\n{done.stderr}"
    yield running
    running.command("down", check=False)


@pytest.fixture
def saturated(lab: Lab) -> Iterator[None]:
    """Every connection that Oslo has is taken for a while, by our own bounded requests."""
    count = 8  # door.oslo-connections of Pulumi.lab.yaml on two frontends
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
    rows = lab.on(DATABASE_NODE, "echo 'show stat' | socat - unix-connect:/run/haproxy/admin.sock")
    row = next(row for row in rows.splitlines() if row.startswith("oslo,BACKEND,"))
    return int(row.split(",")[4])


def test_the_table_of_up_names_every_node_and_both_answers(lab: Lab) -> None:
    text = lab.command("status").stdout
    for part in (DATABASE_NODE, EXISTING_NODE, "10.100.0.1", "frankfurt", "stand-in", DOOR):
        assert part in text, f"{part} is missing in:\n{text}"


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
    slot: str = outputs(lab)["slots"][lab.members()[0]]
    return slot.split()[0]


def outputs(lab: Lab) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lab.pulumi("stack", "output", "--json").stdout)
    return found


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
    places["user-data"] = gzip.decompress(base64.b64decode(data)).decode()
    for place, text in places.items():
        for name, secret in planted.items():
            assert secret not in text, f"{name} stands in {place}"


def launch_template(lab: Lab) -> str:
    templates = lab.aws("ec2", "describe_launch_templates")["LaunchTemplates"]
    (template,) = [t for t in templates if t["LaunchTemplateName"].startswith("frankfurt")]
    return str(template["LaunchTemplateId"])


def group(lab: Lab) -> Any:
    (found,) = lab.aws(
        "autoscaling", "describe_auto_scaling_groups", AutoScalingGroupNames=[GROUP]
    )["AutoScalingGroups"]
    return found


def set_desired(lab: Lab, count: int) -> None:
    lab.aws(
        "autoscaling",
        "set_desired_capacity",
        AutoScalingGroupName=GROUP,
        DesiredCapacity=count,
    )


OSLO_STATE = (
    "systemctl show haproxy -P MainPID -P NRestarts; "
    "ps -o lstart= -C haproxy; sha256sum /etc/haproxy/haproxy.cfg /etc/wireguard/wg0.conf; "
    "stat -c %Y /etc/haproxy/haproxy.cfg /etc/wireguard/wg0.conf"
)


def test_a_new_member_serves_and_nobody_in_oslo_notices(lab: Lab) -> None:
    before = lab.on(DATABASE_NODE, OSLO_STATE)
    members = set(lab.members())
    set_desired(lab, len(members) + 1)
    await_condition("another member to be up", lambda: len(lab.members()) == len(members) + 1)
    assert lab.on(DATABASE_NODE, OSLO_STATE) == before
    lab.pulumi("preview", "--stack", "lab", "--expect-no-changes")


def bounded_load(lab: Lab, seconds: int) -> "Load":
    return Load(lab, seconds)


class Load(threading.Thread):
    """Steady requests through the door, ten a second, bounded in time; keeps what failed."""

    def __init__(self, lab: Lab, seconds: int) -> None:
        super().__init__()
        self._lab = lab
        self._seconds = seconds
        self.codes: list[str] = []
        self.start()

    def run(self) -> None:
        script = (
            f"end=$(( $(date +%s) + {self._seconds} )); while [ $(date +%s) -lt $end ]; do "
            f"curl -s -o /dev/null --max-time 30 -w '%{{http_code}}\\n' {DOOR}/; sleep 0.1; done"
        )
        self.codes = self._lab.inside(script, check=False).stdout.split()

    def failed(self) -> list[str]:
        self.join()
        return [code for code in self.codes if code != "200"]


def test_a_member_that_leaves_costs_no_request(lab: Lab) -> None:
    members = lab.members()
    assert len(members) >= 2
    load = bounded_load(lab, 60)
    set_desired(lab, len(members) - 1)
    await_condition(
        "the door to see one member less", lambda: len(lab.members()) < len(members), 120
    )
    assert load.failed() == []
    assert len(load.codes) > 100


def test_a_member_that_dies_silently_is_out_within_seconds_and_costs_nothing_after(
    lab: Lab,
) -> None:
    (instance,) = [row["InstanceId"] for row in group(lab)["Instances"]]
    name = lab.members()[0]
    lab.inside(f"virsh destroy {instance}")
    await_condition("the door to notice", lambda: name not in lab.members(), 20)
    load = bounded_load(lab, 15)
    assert load.failed() == []
    await_condition("a replacement to serve", lambda: lab.members())
    claims = lab.aws("dynamodb", "scan", TableName=f"{GROUP}-claims")["Items"]
    living = {row["InstanceId"] for row in group(lab)["Instances"]}
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


def test_destroy_refuses_while_the_data_is_protected(lab: Lab) -> None:
    done = lab.pulumi("destroy", "--stack", "lab", "--yes", check=False)
    assert done.returncode != 0
    assert "protected" in done.stdout + done.stderr
    assert lab.ask()["row"] == "God dag fra Oslo"


def test_destroy_and_down_leave_nothing_but_protected_data(lab: Lab) -> None:
    lab.pulumi("destroy", "--stack", "lab", "--yes", "--exclude-protected")
    left = json.loads(lab.pulumi("stack", "export").stdout)["deployment"]["resources"]
    kinds = {row["type"] for row in left if not row["type"].startswith("pulumi:")}
    assert not {kind for kind in kinds if kind.startswith("aws:")}, kinds
    assert group_is_gone(lab)
    lab.command("down")
    processes = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    for word in ("lab.cloud", "lab.wan", "guest=oslo", "libvirtd"):
        assert word not in processes
    assert str(paths.LAB) not in Path("/proc/mounts").read_text()
    assert (paths.POOL / f"{DATABASE_NODE}-data.qcow2").exists()


def group_is_gone(lab: Lab) -> bool:
    found = lab.aws("autoscaling", "describe_auto_scaling_groups")["AutoScalingGroups"]
    return not found
