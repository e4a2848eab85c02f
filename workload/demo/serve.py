"""A small stateless web application: says who served, and reads a row of PostgreSQL in Oslo.

GET / row and timing; GET /health; GET /slow?seconds=S (at most 30); GET /big?bytes=N (at most
4 MiB); POST /query sends its body (at most 4 MiB) through PostgreSQL and says how long it came.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg2  # type: ignore[import-untyped]

LARGEST_BYTES = 4 * 1024 * 1024
LONGEST_SECONDS = 30.0
KEPT_CONNECTIONS = 8

SCHEMA = """
create table if not exists fleet.greeting (id integer primary key, text text not null);
insert into fleet.greeting values (1, 'God dag fra Oslo') on conflict do nothing;
"""


class Database:
    """Keeps a few connections; a broken one is replaced once per question."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue(KEPT_CONNECTIONS)

    def ask(self, statement: str, values: tuple[object, ...] = ()) -> Any:
        """First column of the first row."""
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            return self._ask(self._connect(), statement, values)
        try:
            return self._ask(connection, statement, values)
        except psycopg2.OperationalError:
            return self._ask(self._connect(), statement, values)

    def _connect(self) -> Any:
        # Everything else is in libpq's own variables.
        connection = psycopg2.connect("", client_encoding="UTF8")
        connection.autocommit = True
        return connection

    def _ask(self, connection: Any, statement: str, values: tuple[object, ...]) -> Any:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement, values)
                row = cursor.fetchone() if cursor.description else None
        except BaseException:
            connection.close()
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()
        return row[0] if row else None


DATABASE = Database()


class Handler(BaseHTTPRequestHandler):
    """One connection from the door."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    # Headers and body leave in one packet, not in two that wait for each other.
    wbufsize = -1

    def do_GET(self) -> None:
        """Route."""
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            if url.path == "/":
                self._row()
            elif url.path == "/health":
                self._send(HTTPStatus.OK, b"ready\n", "text/plain")
            elif url.path == "/slow":
                time.sleep(min(max(float(query.get("seconds", "1")), 0.0), LONGEST_SECONDS))
                self._json({})
            elif url.path == "/big":
                size = min(max(int(query.get("bytes", "1048576")), 0), LARGEST_BYTES)
                self._send(HTTPStatus.OK, b"x" * size, "application/octet-stream")
            else:
                self._send(HTTPStatus.NOT_FOUND, b"not here\n", "text/plain")
        except ValueError:
            self._send(HTTPStatus.BAD_REQUEST, b"not a number\n", "text/plain")
        except psycopg2.Error as error:
            print(f"database: {type(error).__name__}", file=sys.stderr, flush=True)
            self._send(HTTPStatus.BAD_GATEWAY, b"the database does not answer\n", "text/plain")

    def do_POST(self) -> None:
        """Send the body through PostgreSQL."""
        size = int(self.headers.get("Content-Length") or 0)
        if size > LARGEST_BYTES or urlsplit(self.path).path != "/query":
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, b"not here, or too large\n", "text/plain")
            return
        body = self.rfile.read(size)
        try:
            start = time.monotonic()
            length = DATABASE.ask("select octet_length(%s)", (psycopg2.Binary(body),))
            self._json({"bytes": length, **milliseconds(start)})
        except psycopg2.Error as error:
            print(f"database: {type(error).__name__}", file=sys.stderr, flush=True)
            self._send(HTTPStatus.BAD_GATEWAY, b"the database does not answer\n", "text/plain")

    def _row(self) -> None:
        start = time.monotonic()
        row = DATABASE.ask("select text from fleet.greeting where id = 1")
        self._json({"row": row, **milliseconds(start)})

    def _json(self, facts: dict[str, object]) -> None:
        served = {"served_by": os.environ["NODE_NAME"], "site": os.environ["SITE"]}
        body = json.dumps({**served, **facts}).encode() + b"\n"
        self._send(HTTPStatus.OK, body, "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: paths may hold personal data."""


def milliseconds(start: float) -> dict[str, float]:
    """How long the database took."""
    return {"database_milliseconds": round((time.monotonic() - start) * 1000, 1)}


def prepare_schema() -> None:
    """In Oslo the role owns the schema and makes the row; elsewhere it only reads."""
    while True:
        try:
            DATABASE.ask(SCHEMA)
            return
        except psycopg2.Error as error:
            print(f"database: {error}", file=sys.stderr, flush=True)
            time.sleep(2)


class Server(ThreadingHTTPServer):
    """A thread for each connection."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that the door has closed; it keeps some idle ones."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def main() -> None:
    """Serve until SIGTERM; running requests have been waited for by then."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if os.environ["SITE"] == "oslo":
        threading.Thread(target=prepare_schema, daemon=True).start()
    address = (os.environ["LISTEN_ADDRESS"], int(os.environ["PORT"]))
    Server(address, Handler).serve_forever()


if __name__ == "__main__":
    main()
