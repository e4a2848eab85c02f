"""Owns which `pulumi`, language host and resource plugins are used, and makes the missing ones.

Official parts win wherever they can be had. Where they cannot, `pulumi` is built from its Go
modules and the lab's stand-ins take the place of the rest. What was found is recorded, so that
nothing is tried twice; `python -m lab.engine.toolchain --again` forgets the record.
"""

import fcntl
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NamedTuple

from lab.errors import LabError
from lab.paths import (
    CACHE,
    LAB,
    PULUMI_VERSION,
    ROOT,
    TOOLCHAIN,
    TOOLCHAIN_BIN,
    VIRTUAL_ENVIRONMENT,
)

MODULE: Final = Path(__file__).resolve().parent
RECORD: Final = LAB / "toolchain.json"
STAND_INS: Final = LAB / "stand-ins"
"""Links to the stand-ins in use and to no others: what is on PATH beats an installed plugin."""

PLUGINS: Final = ("command", "libvirt", "aws")
PLUGIN_STAND_IN: Final = ROOT / "lab" / "plugins" / "pulumi-resource"
"""One program for every plugin; the name it is called by says which."""
LANGUAGE_HOST: Final = "pulumi-language-python"
EXECUTOR: Final = "pulumi-language-python-exec"

GO_PACKAGE: Final = "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
GO_SDK_MODULE: Final = "github.com/pulumi/pulumi/sdk/v3"
GO_VERSION_VARIABLE: Final = f"{GO_SDK_MODULE}/go/common/version.Version"
GO_BUILD_FLAGS: Final = (
    "-buildvcs=false",
    "-trimpath",
    "-tags",
    "osusergo,grpcnotrace",
    "-ldflags",
    f"-s -w -X {GO_VERSION_VARIABLE}=v{PULUMI_VERSION}",
)

INSTALLER_LIMIT_SECONDS: Final = 300
"""For downloading about 200 MB; a site that does not answer fails after CONNECT_LIMIT_SECONDS."""
CONNECT_LIMIT_SECONDS: Final = 10
FIRST_PLUGIN_LIMIT_SECONDS: Final = 60
"""The first plugin (20 MB) also tells whether the others need to be tried at all."""
PLUGIN_LIMIT_SECONDS: Final = 900
PROGRESS_SECONDS: Final = 10.0

Reporter = Callable[[str], None]


class Part(NamedTuple):
    """One part of the toolchain; `origin` is `official`, `built from source` or `stand-in`."""

    name: str
    origin: str
    version: str


@dataclass(frozen=True)
class Record:
    """What setup found: the directory of `pulumi` and the origin of every part."""

    pulumi_directory: str
    pulumi_origin: str
    pulumi_version: str
    language_host_origin: str
    plugin_origins: dict[str, str]
    plugin_versions: dict[str, str]


def environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which `pulumi` finds everything, made from `base` (this process's own).

    It says nothing about backend and passphrase: those are the caller's.

    Raises:
        LabError: scripts/setup has not been run.
    """
    record = _recorded()
    if record is None:
        message = "the toolchain is not set up in this clone: run scripts/setup"
        raise LabError(message)
    inherited = dict(os.environ if base is None else base)
    directories = [VIRTUAL_ENVIRONMENT / "bin", record.pulumi_directory, STAND_INS]
    path = [*map(str, directories), inherited.get("PATH", os.defpath)]
    return inherited | {
        "PATH": os.pathsep.join(path),
        "VIRTUAL_ENV": str(VIRTUAL_ENVIRONMENT),
        # Apart from the user's own: their logins and plugins are neither needed nor touched.
        "PULUMI_HOME": str(CACHE / "pulumi-home"),
        "PULUMI_CREDENTIAL_STORE": "plaintext",
        "PULUMI_SKIP_UPDATE_CHECK": "true",
        "PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION": "true",
    }


def report() -> list[Part]:
    """Every part in use, where it comes from and its version.

    Raises:
        LabError: scripts/setup has not been run.
    """
    record = _recorded()
    if record is None:
        message = "the toolchain is not set up in this clone: run scripts/setup"
        raise LabError(message)
    return [
        Part("pulumi", record.pulumi_origin, record.pulumi_version),
        Part("Python language host", record.language_host_origin, record.pulumi_version),
        *(
            Part(f"{name} plugin", origin, record.plugin_versions[name])
            for name, origin in record.plugin_origins.items()
        ),
    ]


def set_up(say: Reporter) -> None:
    """Find or make every part and record it. Quick when the record still holds.

    Parameters:
        say: receives a line for each step, and every ten seconds during long ones.

    Raises:
        LabError: `pulumi` can be neither found, downloaded nor built.
    """
    versions = {name: importlib.metadata.version(f"pulumi-{name}") for name in PLUGINS}
    known = _recorded()
    if known is not None and known.plugin_versions == versions and _still_there(known):
        return
    with _only_one(say):
        directory, origin, version = _pulumi(say)
        host_origin = _language_host(directory, say)
    record = Record(
        pulumi_directory=str(directory),
        pulumi_origin=origin,
        pulumi_version=version,
        language_host_origin=host_origin,
        plugin_origins=_plugins(directory / "pulumi", versions, say),
        plugin_versions=versions,
    )
    _link_stand_ins(record)
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8")


def _recorded() -> Record | None:
    try:
        return Record(**json.loads(RECORD.read_text(encoding="utf-8")))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def _still_there(record: Record) -> bool:
    linked = all(link.exists() for link in STAND_INS.iterdir()) if STAND_INS.is_dir() else False
    return linked and (Path(record.pulumi_directory) / "pulumi").exists()


@contextmanager
def _only_one(say: Reporter) -> Iterator[None]:
    TOOLCHAIN_BIN.mkdir(parents=True, exist_ok=True)
    with (TOOLCHAIN / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another setup is making the toolchain: waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pulumi(say: Reporter) -> tuple[Path, str, str]:
    """Directory, origin and version of `pulumi`."""
    if (found := shutil.which("pulumi")) is not None:
        version = _version_of(Path(found))
        if version is not None and _numbers(version) >= _numbers(PULUMI_VERSION):
            return Path(found).resolve().parent, "official", version
        say(f"pulumi on PATH is {version or 'broken'}; {PULUMI_VERSION} or newer is needed")
    official = TOOLCHAIN / "official"
    for directory, origin in ((official / "bin", "official"), (TOOLCHAIN_BIN, "built from source")):
        if _version_of(directory / "pulumi") == PULUMI_VERSION:
            return directory, origin, PULUMI_VERSION
    if _download(official, say):
        return official / "bin", "official", PULUMI_VERSION
    _build(say)
    return TOOLCHAIN_BIN, "built from source", PULUMI_VERSION


def _version_of(program: Path) -> str | None:
    try:
        done = subprocess.run(
            [program, "version"],
            env=os.environ | {"PULUMI_SKIP_UPDATE_CHECK": "true"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().removeprefix("v")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version.split("-")[0])[:3]))


def _download(root: Path, say: Reporter) -> bool:
    say(f"pulumi {PULUMI_VERSION} is not on PATH: trying the official installer")
    # In a process of its own because the SDK's download knows no time limit.
    program = (
        f"import socket, sys; socket.setdefaulttimeout({CONNECT_LIMIT_SECONDS})\n"
        "from pulumi.automation import PulumiCommand\n"
        "try: PulumiCommand.install(root=sys.argv[1])\n"
        "except Exception as error: sys.exit(str(error))\n"
    )
    command = [sys.executable, "-c", program, str(root)]
    reason = _attempt(command, INSTALLER_LIMIT_SECONDS)
    if reason is None and _version_of(root / "bin" / "pulumi") == PULUMI_VERSION:
        return True
    say(f"the official installer cannot be had ({reason or 'it installed another version'})")
    return False


def _attempt(
    command: Sequence[str],
    limit_seconds: float,
    environment_: Mapping[str, str] | None = None,
) -> str | None:
    """Run a program that may fail; None on success, else the reason in one line."""
    child = subprocess.Popen(
        command,
        env=environment_,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, so that a time limit also ends what the installer has started.
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(timeout=limit_seconds)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, 9)
        child.communicate()
        return f"no result within {limit_seconds:.0f} s"
    if child.returncode == 0:
        return None
    lines = output.strip().splitlines() or [f"exit status {child.returncode}"]
    return lines[-1].strip()[:300]


def _build(say: Reporter) -> None:
    go = shutil.which("go")
    if go is None:
        message = (
            f"pulumi {PULUMI_VERSION} is not on PATH, its official installer cannot be reached, "
            "and without Go it cannot be built either: install one of the two (Go: "
            "`apt-get install golang` if it is recent enough, or the Go project's own archive)"
        )
        raise LabError(message)
    count = len(_go([go, "list", "-deps", GO_PACKAGE]).splitlines())
    say(f"building pulumi {PULUMI_VERSION} with Go: {count} packages, 3 to 4 minutes on 2 cores")
    target = TOOLCHAIN_BIN / "pulumi"
    unfinished = target.with_name("pulumi.unfinished")
    build = [go, "build", "-v", *GO_BUILD_FLAGS, "-o", str(unfinished), GO_PACKAGE]
    started = time.monotonic()
    child = subprocess.Popen(
        build,
        cwd=MODULE,
        env=_go_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    # Reading is left to a thread: the linker says nothing for a minute, yet progress must show.
    reader = threading.Thread(target=lambda: lines.extend(child.stderr or ()), daemon=True)
    reader.start()
    while child.poll() is None:
        reader.join(PROGRESS_SECONDS)
        if child.poll() is None:
            elapsed = time.monotonic() - started
            say(f"building pulumi: {elapsed:.0f} s, {len(lines)} packages compiled")
    reader.join()
    if child.returncode != 0:
        message = f"Go could not build pulumi: {' '.join(lines[-5:]).strip()}"
        raise LabError(message)
    unfinished.replace(target)
    say(f"built pulumi {PULUMI_VERSION} in {time.monotonic() - started:.0f} s")


def _go_environment() -> dict[str, str]:
    return os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off"}


def _go(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, cwd=MODULE, env=_go_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = (
            f"Go failed ({' '.join(command[:3])}): {done.stderr.strip()[-1000:]}; "
            "check that the Go module proxy can be reached"
        )
        raise LabError(message)
    return done.stdout.strip()


def _language_host(pulumi_directory: Path, say: Reporter) -> str:
    """Origin of the language host; for the stand-in, the executor that it needs is put in place."""
    beside = pulumi_directory / LANGUAGE_HOST
    if beside.exists() or shutil.which(LANGUAGE_HOST) is not None:
        return "official"
    executor = TOOLCHAIN_BIN / EXECUTOR
    if not executor.exists():
        go = shutil.which("go")
        if go is None:
            message = (
                f"{pulumi_directory} has no Python language host, and without Go the part that "
                "the lab's stand-in needs cannot be had: install the complete official Pulumi"
            )
            raise LabError(message)
        _go([go, "mod", "download", GO_SDK_MODULE])
        source = _go([go, "list", "-m", "-f", "{{.Dir}}", GO_SDK_MODULE])
        shutil.copyfile(Path(source) / "python" / "cmd" / EXECUTOR, executor)
    say("the official Python language host is not there: using the lab's stand-in")
    return "stand-in"


def _plugins(pulumi: Path, versions: Mapping[str, str], say: Reporter) -> dict[str, str]:
    """Origin of each resource plugin, after trying to install the official ones."""
    settings = os.environ | {
        "PULUMI_HOME": str(CACHE / "pulumi-home"),
        "PULUMI_SKIP_UPDATE_CHECK": "true",
    }
    origins: dict[str, str] = {}
    limit_seconds = FIRST_PLUGIN_LIMIT_SECONDS
    for name, version in versions.items():
        command = [str(pulumi), "plugin", "install", "resource", name, version]
        reason = _attempt(command, limit_seconds, settings)
        if reason is not None:
            say(f"the official plugins cannot be had ({reason}): using the lab's stand-ins")
            # One source serves them all, and a mixture would be hard to reason about.
            return dict.fromkeys(versions, "stand-in")
        say(f"installed the official {name} plugin {version}")
        origins[name] = "official"
        limit_seconds = PLUGIN_LIMIT_SECONDS
    return origins


def _link_stand_ins(record: Record) -> None:
    shutil.rmtree(STAND_INS, ignore_errors=True)
    STAND_INS.mkdir(parents=True)
    if record.language_host_origin == "stand-in":
        (STAND_INS / LANGUAGE_HOST).symlink_to(MODULE / LANGUAGE_HOST)
    for name, origin in record.plugin_origins.items():
        if origin == "stand-in":
            (STAND_INS / f"pulumi-resource-{name}").symlink_to(PLUGIN_STAND_IN)


def _main() -> None:
    if "--again" in sys.argv[1:]:
        RECORD.unlink(missing_ok=True)
    started = time.monotonic()

    def say(line: str) -> None:
        sys.stdout.write(f"setup: {line}\n")
        sys.stdout.flush()

    try:
        set_up(say)
    except LabError as error:
        sys.exit(f"error: {error}")
    for part in report():
        say(f"{part.name} {part.version}: {part.origin}")
    if shutil.which("pulumi") is None:
        directories = environment({"PATH": ""})["PATH"].rstrip(os.pathsep)
        say(f'pulumi is not on PATH; for your own use: PATH="{directories}:$PATH"')
    say(f"done in {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    _main()
