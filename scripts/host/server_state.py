"""Which HAProxy servers count as up when a new process begins: run by systemd, before each start
and each reload.

Owns the server-state file. HAProxy presumes that a server it knows nothing about is up, and takes
port and state of a known one from this file even when the configuration says otherwise. So the file
always lists exactly the configured servers: as the running process sees them where address and port
are still the same, else as the seed says, which has every slot of the fleets down.
"""

import socket
import sys
from pathlib import Path

SEED = Path("/etc/haproxy/server-state.seed")
STATE = Path("/var/lib/haproxy/server-state")
SOCKET = Path("/run/haproxy/admin.sock")

# Version 1 of the format: these many fields are required, and all later ones may be left out.
# Measured with 2.6: a line with fewer is ignored, the numeric ids are not looked at.
FIELDS = 20
BACKEND, SERVER, ADDRESS, PORT = 1, 3, 4, 18


def ask(command: str, *, path: Path = SOCKET, seconds: float = 5) -> str:
    """Send one command to HAProxy's runtime socket and return the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(command.encode() + b"\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


def merge(seed: str, dump: str) -> str:
    """The seed's servers, each as the dump says where backend, name, address and port agree."""
    seen = {}
    for line in dump.splitlines():
        fields = line.split()[:FIELDS]
        if len(fields) == FIELDS and not line.startswith("#"):
            seen[_identity(fields)] = " ".join(fields)
    lines = []
    for line in seed.splitlines():
        fields = line.split()
        known = len(fields) == FIELDS and not line.startswith("#")
        lines.append(seen.get(_identity(fields), line) if known else line)
    return "\n".join(lines) + "\n"


def _identity(fields: list[str]) -> tuple[str, ...]:
    return fields[BACKEND], fields[SERVER], fields[ADDRESS], fields[PORT]


def prepare(*, reload: bool, seed: Path = SEED, state: Path = STATE, path: Path = SOCKET) -> None:
    """Write the state file for the process that begins next.

    Parameters:
        reload: whether a running process is asked; one that does not answer leaves the seed alone,
            which costs the fleet's members a second without requests.
    """
    text = seed.read_text(encoding="ascii")
    if reload:
        try:
            text = merge(text, ask("show servers state", path=path))
        except OSError as error:
            print(f"{path}: {error}: every slot counts as down until checked", file=sys.stderr)
    beside = state.with_name(f".new-{state.name}")
    beside.write_text(text, encoding="ascii")
    beside.replace(state)


if __name__ == "__main__":
    prepare(reload=sys.argv[1:] == ["reload"])
