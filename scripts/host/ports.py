"""Who listens where: so that a port taken by another program is named before it costs a service."""

import re

from files import HostError, run

EVERYWHERE = frozenset({"0.0.0.0", "*", "[::]"})  # noqa: S104


def listeners(port: int) -> list[tuple[str, str]]:
    """Local address and program of every TCP socket that listens at a port."""
    found = []
    for line in run(["ss", "-Hltnp", f"sport = :{port}"]).splitlines():
        # State, receive queue, send queue, local address, peer address, programs.
        fields = line.split(maxsplit=5)
        if len(fields) >= 4:
            address = fields[3].rpartition(":")[0].partition("%")[0]
            name = re.search(r'\(\("([^"]+)",pid=(\d+)', line)
            program = f"{name[1]} (process {name[2]})" if name else "a program ss can't see"
            found.append((address, program))
    return found


def refuse_taken_port(address: str, port: int, *, for_whom: str, ours: str | None = None) -> None:
    """Raise when another program listens where a service of ours shall.

    Parameters:
        address: IPv4 address, or * for all.
        for_whom: the service, for the message.
        ours: program name that may listen there, because it is the running service itself.

    Raises:
        HostError: naming the program.
    """
    for found, program in listeners(port):
        if ours is not None and program.startswith(f"{ours} "):
            continue
        if address == found or address in EVERYWHERE or found in EVERYWHERE:
            msg = (
                f"TCP port {port} on {address} is taken by {program}, listening on {found}: "
                f"{for_whom} needs it for itself. Stop that program, or choose another port in "
                "the settings"
            )
            raise HostError(msg)
