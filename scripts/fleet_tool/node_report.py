"""Runs on the hub and on the edge, sent over SSH: what WireGuard and HAProxy know of each slot.

It reads and changes nothing, and asks `wg` only for what holds no key but public ones; `wg show
dump` would print the private key. Standard library only.
"""

import csv
import json
import socket
import subprocess
import sys
import time

HAPROXY_SOCKET = "/run/haproxy/admin.sock"


def handshake_ages(allowed_ips: str, latest_handshakes: str, now: float) -> dict[str, int]:
    """Seconds since each peer's last handshake, by its mesh address; 0 means never to `wg`.

    Lines begin with the interface: the hub has two, and while its key rotates both are up.
    """
    times = dict(line.split()[1:] for line in latest_handshakes.splitlines())
    ages = {}
    for line in allowed_ips.splitlines():
        _, key, ranges = line.split(maxsplit=2)
        if times.get(key, "0") != "0":
            ages[ranges.split("/")[0]] = max(0, int(now) - int(times[key]))
    return ages


def servers(statistics: str) -> dict[str, dict[str, object]]:
    """State and number of requests of each of the fleets' servers, from HAProxy's `show stat`."""
    rows = csv.DictReader(statistics.removeprefix("# ").splitlines())
    return {
        row["svname"]: {"state": row["status"], "requests": int(row["stot"] or 0)}
        for row in rows
        if row["pxname"].startswith("burst_") and row["svname"] not in ("FRONTEND", "BACKEND")
    }


def _wg(what: str) -> str:
    return subprocess.run(
        ["wg", "show", "all", what], capture_output=True, text=True, check=True, timeout=10
    ).stdout


def _statistics() -> str:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(HAPROXY_SOCKET)
        connection.sendall(b"show stat\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer.decode()


def main(roles: list[str]) -> None:
    """Print one JSON object; what can't be read is a problem in it."""
    report: dict[str, object] = {"handshake_ages": {}, "servers": {}}
    problems: list[str] = []
    if "hub" in roles:
        try:
            report["handshake_ages"] = handshake_ages(
                _wg("allowed-ips"), _wg("latest-handshakes"), time.time()
            )
        except subprocess.CalledProcessError as error:
            problems.append(f"WireGuard does not say: {error.stderr.strip()}")
        except (OSError, subprocess.TimeoutExpired) as error:
            problems.append(f"WireGuard does not say: {error}")
    if "edge" in roles:
        try:
            report["servers"] = servers(_statistics())
        except OSError as error:
            problems.append(f"HAProxy does not say ({HAPROXY_SOCKET}): {error}")
    print(json.dumps({**report, "problems": problems}))


if __name__ == "__main__":
    main(sys.argv[1:])
