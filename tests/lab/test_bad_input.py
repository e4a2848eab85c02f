"""What a person gets wrong, told by the real program and the real command line: once, and clearly.

The program is the repository's own, with a stack and secrets of its own, in a directory of links
as the lab has one. Nothing here reaches a machine: settings are refused before, and the only
address is this machine's own, where the key that is offered opens no door.
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from lab import prerequisites, running
from lab.errors import LabError
from lab.namespace import ProcessIdentity
from lab.paths import ROOT, VIRTUAL_ENVIRONMENT
from tests.lab.conftest import SshHost, free_port
from tests.lab.engine import STACK, TIME_LIMIT_SECONDS, Engine, Run
from tests.unit.test_settings import stack_settings

PROJECT: Final = "fortress-and-fleet"
NODE: Final = "oslo-dev-01"
NOBODY: Final = "65534"
PLANTED_PASSWORD: Final = "planted-password-0123456789"


def no_traceback(text: str) -> None:
    assert "Traceback" not in text, text
    assert 'File "' not in text, text


class Program(Engine):
    """The repository's own program, with settings of the smallest real shape and no fleet."""

    def __init__(self, directory: Path) -> None:
        own = directory / "engine"
        own.mkdir()
        super().__init__(own)
        self.directory = directory / "project"
        self.directory.mkdir()
        for entry in ROOT.iterdir():
            if entry.name not in {".git", ".lab"}:
                (self.directory / entry.name).symlink_to(entry)
        self.pulumi("stack", "init", STACK).check_returncode()
        key = directory / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        seed = subprocess.run(
            [ROOT / "scripts/secrets", "new-seed"], check=True, capture_output=True, text=True
        ).stdout
        self.planted = {
            "mesh-seed": seed,
            "ssh-private-key": key.read_text(),
            "database-password": f"{PLANTED_PASSWORD}-oslo",
            "fleet-database-password": f"{PLANTED_PASSWORD}-fleet",
        }
        for name, value in self.planted.items():
            self._set_secret(name, value)
        self._secrets = yaml.safe_load(self._stack_file.read_text())

    @property
    def _stack_file(self) -> Path:
        return self.directory / f"Pulumi.{STACK}.yaml"

    def _set_secret(self, name: str, value: str) -> None:
        words = ["config", "set", "--secret", name, "--stack", STACK]
        subprocess.run(
            ["pulumi", "--cwd", self.directory, *words],
            env=self.environment,
            input=value,
            text=True,
            capture_output=True,
            check=True,
        )

    def write(self, program: str) -> None:
        """Only the engine's own empty program: the repository's is behind links."""
        assert not program
        super().write(program)

    def with_settings(self, settings: Any, *, without: str = "") -> Run:
        """`pulumi up` with these settings, which may fail."""
        config = {
            name: value
            for name, value in self._secrets["config"].items()
            if name != f"{PROJECT}:{without}"
        }
        config[f"{PROJECT}:settings"] = settings
        self._stack_file.write_text(yaml.safe_dump(self._secrets | {"config": config}))
        return self.try_up()

    def made(self) -> set[str]:
        """Types in the state, but for the stack and the program's own components."""
        types = {resource["type"] for resource in self.state().values()}
        return {name for name in types if not name.startswith(("pulumi:", "fortress:index:"))}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    return Program(tmp_path_factory.mktemp("bad-input"))


def smallest() -> dict[str, Any]:
    """The settings of the smallest stack file, fleet included."""
    settings: dict[str, Any] = stack_settings(ROOT / "Pulumi.dev.yaml")
    return settings


def several(settings: dict[str, Any]) -> None:
    settings["mesh"] = {"port": "many", "keepalive": 25}
    settings["fleets"]["frankfurt"]["block"] = "10.100.0.64/31"


def overlapping(settings: dict[str, Any]) -> None:
    settings["fleets"]["frankfurt"]["vpc-range"] = "10.100.0.0/16"


def second_hub(settings: dict[str, Any]) -> None:
    (first,) = settings["core"]["nodes"]
    settings["core"]["nodes"] += [
        {**first, "name": "oslo-dev-02", "address": "192.0.2.11", "roles": ["hub", "frontend"]}
    ]


def no_database(settings: dict[str, Any]) -> None:
    settings["core"]["nodes"][0]["roles"] = ["hub", "frontend", "edge"]


def misspelt_region(settings: dict[str, Any]) -> None:
    settings["fleets"]["frankfurt"]["region"] = "eu-centrl-1"


def misspelt_instance_type(settings: dict[str, Any]) -> None:
    settings["fleets"]["frankfurt"]["instance-types"] = ["t3.meduim"]


BAD = {
    "a wrong type, an unknown key and a block that is too small": (
        several,
        [
            "settings.mesh.port: 'many' is not accepted",
            "settings.mesh.keepalive: unknown setting",
            "settings.fleets.frankfurt: block 10.100.0.64/31 has 2 addresses, fewer than twice",
        ],
    ),
    "overlapping ranges": (
        overlapping,
        ["mesh.range 10.100.0.0/24 overlaps fleets.frankfurt.vpc-range 10.100.0.0/16"],
    ),
    "two hubs": (second_hub, [f"nodes {NODE}, oslo-dev-02 have the role hub; exactly one must"]),
    "no database": (no_database, ["no node has the role database; exactly one must"]),
    "a region that AWS does not have": (
        misspelt_region,
        ["settings.fleets.frankfurt.region: 'eu-centrl-1' is in no list of AWS's"],
    ),
    "an instance type that AWS does not have": (
        misspelt_instance_type,
        ["settings.fleets.frankfurt.instance-types: 't3.meduim' is in no list of AWS's"],
    ),
}


def refused_before_anything(program: Program, run: Run, messages: list[str]) -> None:
    assert not run.succeeded
    # The engine says everything once while it runs, and once more at the end.
    summary = run.output.partition("Diagnostics:")[2]
    for message in messages:
        assert summary.count(message) == 1, run.output
    no_traceback(run.output)
    assert run.steps == []
    assert program.made() == set()
    for secret in program.planted.values():
        assert secret.strip().splitlines()[-1] not in run.output


@pytest.mark.parametrize(("change", "messages"), BAD.values(), ids=BAD)
def test_a_broken_rule_is_told_once_and_nothing_is_made(
    program: Program, change: Callable[[dict[str, Any]], None], messages: list[str]
) -> None:
    settings = smallest()
    change(settings)
    refused_before_anything(program, program.with_settings(settings), messages)


def test_a_missing_secret_is_named_with_the_command_that_sets_it(program: Program) -> None:
    run = program.with_settings(smallest(), without="mesh-seed")
    remedy = "scripts/secrets new-seed | pulumi config set --secret mesh-seed"
    refused_before_anything(
        program, run, [f"the secret {PROJECT}:mesh-seed is missing", f"Set it: {remedy}"]
    )


@pytest.mark.parametrize("wrong", ["port", "host key"])
def test_a_machine_that_is_not_there_or_not_itself_gets_nothing(
    program: Program, ssh_host: SshHost, wrong: str
) -> None:
    settings = smallest()
    del settings["fleets"]
    (node,) = settings["core"]["nodes"]
    node["address"] = "127.0.0.1"
    node["ssh-port"] = free_port() if wrong == "port" else ssh_host.port
    node["host-key"] = ssh_host.host_key if wrong == "port" else ssh_host.other_host_key
    run = program.with_settings(settings)
    assert not run.succeeded
    reason = {
        "port": f"dial tcp 127.0.0.1:{node['ssh-port']}: connect: connection refused",
        "host key": "ssh: host key mismatch",
    }
    assert reason[wrong] in run.output
    assert f"oslo-{NODE}-scripts" in run.output, "it does not say which machine"
    no_traceback(run.output)
    assert program.made() == set(), "a command that never ran counts as done"


@pytest.fixture(scope="module")
def clone() -> Iterator[Path]:
    """A clone beside this one, readable for all, with the virtual environment and no lab."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "clone"
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split("\0")
        for file in filter(None, files):
            if (ROOT / file).exists():
                target = directory / file
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, target)
        (directory / ".venv").symlink_to(VIRTUAL_ENVIRONMENT)
        Path(name).chmod(0o755)
        yield directory


def lab(
    clone: Path,
    *words: str,
    prefix: tuple[str, ...] = (),
    directory: Path | None = None,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """scripts/lab of that clone, called from a directory; both outputs are in `stdout`."""
    done = subprocess.run(
        [*prefix, clone / "scripts/lab", *words],
        cwd=directory or clone,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_SECONDS,
        check=False,
    )
    no_traceback(done.stdout)
    return done


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become nobody")
def test_up_without_root_says_so_before_it_changes_anything(clone: Path) -> None:
    nobody = ("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--")
    done = lab(clone, "up", prefix=nobody)
    assert done.returncode == 1
    assert done.stdout.startswith("error: you are not root: the lab needs root")
    assert len(done.stdout.splitlines()) == 1
    assert not (clone / ".lab").exists()


def test_the_lab_is_the_one_of_its_own_clone_wherever_it_is_called_from(
    clone: Path, tmp_path: Path
) -> None:
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/__init__.py").write_text("")
    (tmp_path / "lab/cli.py").write_text("print('the lab of the working directory')\n")
    done = lab(clone, "ssh", "nowhere", directory=tmp_path)
    assert "this clone's lab was never started" in done.stdout


def test_an_unknown_command_is_answered_with_the_known_ones(clone: Path) -> None:
    done = lab(clone, "nonsense")
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stdout
    assert "'up', 'down', 'status'" in done.stdout


@pytest.mark.parametrize("words", [("down", "--everything"), ("status", "now")])
def test_a_word_too_many_is_not_ignored(clone: Path, words: tuple[str, ...]) -> None:
    done = lab(clone, *words)
    assert done.returncode == 1
    assert f"error: {words[1]} is not understood here" in done.stdout


@pytest.mark.parametrize("words", [("ssh", "nowhere"), ("pulumi", "preview"), ("shell",)])
def test_a_lab_that_was_never_started_says_how_to_start_it(
    clone: Path, words: tuple[str, ...]
) -> None:
    done = lab(clone, *words)
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("error: ")
    assert "scripts/lab up" in done.stdout or "scripts/setup" in done.stdout


def test_a_clone_without_its_packages_says_what_comes_first(clone: Path) -> None:
    environment = clone / ".venv"
    environment.unlink()
    try:
        done = lab(clone, "status")
    finally:
        environment.symlink_to(VIRTUAL_ENVIRONMENT)
    assert done.returncode == 1
    assert done.stdout.startswith("error: nothing was ever set up in this clone")


@pytest.fixture
def once_started(clone: Path) -> Iterator[Path]:
    """The clone, with what `up` leaves behind: a stack file, and which toolchain is in use."""
    project = clone / ".lab/project"
    project.mkdir(parents=True)
    config = {f"{PROJECT}:settings": stack_settings(ROOT / "Pulumi.lab.yaml")}
    (project / "Pulumi.lab.yaml").write_text(yaml.safe_dump({"config": config}))
    shutil.copy(ROOT / ".lab/toolchain.json", clone / ".lab")
    yield clone
    shutil.rmtree(clone / ".lab")


def test_a_node_that_is_none_is_answered_with_those_there_are(once_started: Path) -> None:
    done = lab(once_started, "ssh", "nowhere")
    assert done.returncode == 1
    assert done.stdout == (
        "error: nowhere is no node of the core; there are oslo-db-01, oslo-web-02.\n"
    )


@pytest.mark.parametrize("words", [("ssh", "oslo-db-01"), ("pulumi", "preview")])
def test_a_lab_that_does_not_run_says_so(once_started: Path, words: tuple[str, ...]) -> None:
    done = lab(once_started, *words)
    assert done.returncode == 1
    assert "not running" in done.stdout
    assert "scripts/lab up" in done.stdout


def another_lab(cache: Path, holder: ProcessIdentity) -> None:
    """Another clone's lab, of which `holder` is the first process."""
    record = {"clone": "/elsewhere", "holder": holder.__dict__}
    (cache / PROJECT).mkdir()
    (cache / PROJECT / "running.json").write_text(json.dumps(record))


def this_process() -> ProcessIdentity:
    identity = ProcessIdentity.of(os.getpid())
    assert identity is not None
    return identity


def test_another_clones_lab_is_named_with_the_way_to_end_it(
    once_started: Path, tmp_path: Path
) -> None:
    another_lab(tmp_path, this_process())
    done = lab(once_started, "status", XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "error: the lab of /elsewhere is running" in done.stdout
    assert "End it with /elsewhere/scripts/lab down" in done.stdout
    assert f"kill -9 {os.getpid()}" in done.stdout


@pytest.fixture
def suited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has all a lab needs, whatever this one has; no lab runs on it."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        platform,
        "freedesktop_os_release",
        lambda: {"ID": "debian", "VERSION_ID": "12"},
    )
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(running, "_RECORD", tmp_path / PROJECT / "running.json")
    monkeypatch.setattr(prerequisites, "MEMORY_GIB", 0)
    monkeypatch.setattr(prerequisites, "DISK_GIB", 0)
    return monkeypatch


def refusal() -> str:
    with pytest.raises(LabError) as raised:
        prerequisites.check()
    return str(raised.value)


@pytest.mark.usefixtures("suited")
def test_a_machine_that_has_all_it_needs_is_accepted() -> None:
    prerequisites.check()


def test_up_is_refused_while_another_clones_lab_runs(
    suited: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    another_lab(tmp_path, this_process())
    assert "the lab of /elsewhere is running" in refusal()


@pytest.mark.usefixtures("suited")
def test_a_lab_whose_processes_are_gone_is_in_nobodys_way(tmp_path: Path) -> None:
    ended = ProcessIdentity(pid=os.getpid(), start_ticks=1, boot_id=this_process().boot_id)
    another_lab(tmp_path, ended)
    prerequisites.check()


def test_too_little_memory_is_told_with_both_numbers(suited: pytest.MonkeyPatch) -> None:
    suited.setattr(prerequisites, "MEMORY_GIB", 9999)
    text = refusal()
    assert "GiB of memory are available; the lab needs 9999 GiB" in text
    assert "End what uses it, or take a larger machine" in text


def test_too_little_disk_is_told_with_both_numbers_and_the_place(
    suited: pytest.MonkeyPatch,
) -> None:
    suited.setattr(prerequisites, "DISK_GIB", 10)
    usage = shutil.disk_usage(ROOT)._replace(free=int(9.5 * 1024**3))
    suited.setattr(shutil, "disk_usage", lambda _: usage)
    text = refusal()
    assert f"9.5 GiB are free under {ROOT}; the lab needs 10 GiB" in text
    assert "Make room" in text


@pytest.mark.parametrize(
    ("what", "value", "message"),
    [
        (
            "freedesktop_os_release",
            {"ID": "debian", "VERSION_ID": "11"},
            "this is debian 11; .* needs Debian 12 or newer",
        ),
        (
            "freedesktop_os_release",
            {"ID": "fedora", "VERSION_ID": "44"},
            "this is fedora 44; .* needs Debian 12 or newer",
        ),
        ("machine", "aarch64", "this machine is aarch64; the lab's guests are x86_64 only"),
    ],
)
def test_a_system_that_does_not_suit_is_named(
    suited: pytest.MonkeyPatch, what: str, value: object, message: str
) -> None:
    suited.setattr(platform, what, lambda: value)
    with pytest.raises(LabError, match=message):
        prerequisites.check()
