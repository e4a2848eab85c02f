"""Answers HEAD or GET /health for a machine and its workload; the door asks it every second.

200 when the workload's own health path answers 200, 404 while the machine leaves (HAProxy reads it
as drain), else 503. Standard library only. It refuses to judge anything but the workload.
"""

import http.client
import json
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DRAINING = Path("/run/fortress/draining")
SETTINGS = Path("/etc/fortress/health.json")
# Below the door's `timeout check 1s`, so that it hears 503 rather than nothing.
WORKLOAD_TIMEOUT_SECONDS = 0.8
# Linux's IP_FREEBIND, absent from Python's socket module: the mesh address may come later.
IP_FREEBIND = 15


def workload_answers(address: str, port: int, path: str) -> bool:
    """Whether the workload's health path says 200 in time."""
    connection = http.client.HTTPConnection(address, port, timeout=WORKLOAD_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Server(ThreadingHTTPServer):
    """Listens on the mesh address, whether or not the interface has it yet."""

    daemon_threads = True

    def __init__(
        self, address: str, health_port: int, *, port: int, path: str, draining: Path = DRAINING
    ) -> None:
        self.workload = (address, port, path)
        self.draining = draining
        super().__init__((address, health_port), Handler)

    def server_bind(self) -> None:
        """Bind without asking for the host's name, which may need a name server."""
        self.socket.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        address, port = self.socket.getsockname()
        self.server_address = address, port
        self.server_name, self.server_port = address, port

    def status(self) -> HTTPStatus:
        """What to say now."""
        if self.draining.exists():
            return HTTPStatus.NOT_FOUND
        if workload_answers(*self.workload):
            return HTTPStatus.OK
        return HTTPStatus.SERVICE_UNAVAILABLE


class Handler(BaseHTTPRequestHandler):
    """One question."""

    server: Server
    timeout = 5

    def do_GET(self) -> None:
        """Answer without a body."""
        status = self.server.status() if self.path == "/health" else HTTPStatus.BAD_REQUEST
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 (named by the standard library)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: it would be a line per second."""


def main() -> int:
    """Serve until stopped."""
    settings = json.loads(SETTINGS.read_text())
    server = Server(
        settings["address"],
        settings["health_port"],
        port=settings["port"],
        path=settings["health_path"],
    )
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
