"""Acting on a core node: one constant script, its content on stdin, over a pinned SSH connection.

Owns how a command reaches a machine. It refuses to know what the content says (`render`) and what
the script does (`scripts/host`).
"""

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pulumi
from pulumi_command import remote

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts" / "host"
INSTALLED_SCRIPTS = "/usr/local/lib/fortress/host"

# A machine that is up answers at once; a few tries bridge a reload of sshd (engine default: 10).
DIAL_ERROR_LIMIT = 5
# The plugin has no pause between refused tries, so a booting machine is awaited without a limit
# of tries and with one of time (pulumi-command issue 1238).
UNLIMITED = -1
FIRST_CONTACT_LIMIT = "20m"
COMMAND_LIMIT = "20m"


@dataclass(frozen=True, kw_only=True)
class Host:
    """A core node that can be acted upon.

    Attributes:
        name: the node's own name.
        user: login name; anyone but root uses `sudo -n`.
        connection: how to reach it, with its host key pinned.
        identity: changes when the machine is another one, although its address is the same.
        after: what must be done before anything else happens on it.
    """

    name: str
    user: str
    connection: remote.ConnectionArgs
    identity: pulumi.Input[str]
    after: Sequence[pulumi.Resource] = field(default_factory=tuple)


def connect(
    *,
    address: str,
    user: str,
    private_key: pulumi.Input[str],
    host_key: pulumi.Input[str],
    port: int = 22,
    dial_error_limit: int = DIAL_ERROR_LIMIT,
) -> remote.ConnectionArgs:
    """Describe a connection with explicit limits and a pinned host key (`type base64`)."""
    return remote.ConnectionArgs(
        host=address,
        port=port,
        user=user,
        private_key=private_key,
        host_key=host_key,
        dial_error_limit=dial_error_limit,
        per_dial_timeout=15,
    )


def as_root(user: str, command: str) -> str:
    """A command as root: by sudo without a question, or as it is."""
    return command if user == "root" else f"sudo -n {command}"


def shell_script(name: str, user: str) -> str:
    """A constant script of `scripts/host` as a command; its standard input stays free."""
    return as_root(user, f"sh -c {shlex.quote((SCRIPTS / name).read_text())}")


def script_files() -> dict[str, str]:
    """The Python scripts that machines get, by file name."""
    return {path.name: path.read_text() for path in sorted(SCRIPTS.glob("*.py"))}


def scripts_digest() -> str:
    """Changes when any host script does, so that what they made is made again."""
    return hashlib.sha256(json.dumps(script_files(), sort_keys=True).encode()).hexdigest()[:16]


def command(
    name: str,
    *,
    create: str,
    stdin: pulumi.Input[str],
    host: Host,
    parent: pulumi.Resource,
    after: Sequence[pulumi.Resource] = (),
    limit: str = COMMAND_LIMIT,
) -> remote.Command:
    """Run a command on a host whenever its content changes or the machine is another one.

    There is no delete: machines we own are rebuilt or kept, never undone step by step.
    """
    return remote.Command(
        name,
        connection=host.connection,
        create=create,
        stdin=pulumi.Output.secret(stdin),
        triggers=[host.identity],
        add_previous_output_in_env=False,
        opts=pulumi.ResourceOptions(
            parent=parent,
            depends_on=[*host.after, *after],
            custom_timeouts=pulumi.CustomTimeouts(create=limit, update=limit),
        ),
    )


def run_script(
    name: str,
    *,
    script: str,
    content: pulumi.Input[Mapping[str, Any]],
    host: Host,
    parent: pulumi.Resource,
    after: Sequence[pulumi.Resource] = (),
) -> remote.Command:
    """Run an installed Python script of `scripts/host` with its content as JSON on stdin."""
    digest = scripts_digest()

    def as_json(plain: Mapping[str, Any]) -> str:
        return json.dumps({**plain, "scripts": digest}, sort_keys=True)

    return command(
        name,
        create=as_root(host.user, f"python3 {INSTALLED_SCRIPTS}/{script}.py"),
        stdin=pulumi.Output.from_input(content).apply(as_json),
        host=host,
        parent=parent,
        after=after,
    )
