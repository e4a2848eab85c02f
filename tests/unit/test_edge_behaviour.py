"""What the rendered haproxy.cfg does, told by a real HAProxy on loopback.

The mesh is 127.100.0.0/24 here, so that every address of the plan exists on any Linux machine and
the configuration runs as rendered, apart from its directories and its user.
"""

import contextlib
import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import server_state
import settings
from plan.mesh import MeshPlan
from render.haproxy import certificate_path, haproxy_config, server_state_seed
from settings import Settings
from tests.unit.certificates import self_signed
from tests.unit.samples import container_workload, mesh_of, node_of, sample_data

# Checks every 250 ms to 1 s, two of them; the rest is for a machine that is busy otherwise.
PATIENCE_SECONDS = 20.0


def await_condition(what: str, check: Callable[[], object]) -> None:
    """Poll until check() holds; the test fails with `what` otherwise."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """TCP ports nobody listens on now, on any address."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("0.0.0.0", 0))  # noqa: S104
        return [one.getsockname()[1] for one in sockets]


class Frontend:
    """A machine with a workload and its health responder, at one address."""

    def __init__(self, address: str, workload_port: int, health_port: int) -> None:
        self.health = 200
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.held = threading.Event()
        self.answer = True
        frontend = self

        class Workload(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                frontend.requests.append(
                    (self.command, self.path, {k.lower(): v for k, v in self.headers.items()})
                )
                if not frontend.answer:
                    self.close_connection = True
                    return
                if self.path == "/held":
                    frontend.held.wait(PATIENCE_SECONDS)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_POST = do_GET  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None: ...

        class Health(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_response(frontend.health)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """HAProxy resets health checks' connections, which is not worth a trace."""

        self.servers = [
            Server((address, workload_port), Workload),
            Server((address, health_port), Health),
        ]
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """Go away: connections are refused from now on."""
        self.held.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()


class Door:
    """A running HAProxy with the rendered configuration."""

    def __init__(
        self,
        directory: Path,
        changes: dict[str, Any],
        fleets: int,
        tls: bool,
        scaling: dict[str, Any] | None = None,
    ) -> None:
        self.http, self.https, self.statistics, self.workload, self.health = free_ports(5)
        self.directory = directory
        self.certificate = self_signed("door.example") if tls else None
        data = sample_data()
        data["workload"] = {
            **container_workload(),
            "port": self.workload,
            "health-port": self.health,
        }
        data["mesh"] = {"range": "127.100.0.0/24"}
        fleet = data["fleets"].pop("frankfurt")
        for number in range(fleets):
            data["fleets"][f"fleet-{number}"] = {
                **fleet,
                "block": f"127.100.0.{64 * (number + 1)}/26",
                "vpc-range": f"10.{64 + number}.0.0/16",
                "preference": number,
                "scaling": scaling or {"kind": "cpu"},
            }
        data["door"] = {
            "http-port": self.http,
            "https-port": self.https,
            "statistics-port": self.statistics,
            "oslo-connections": 2,
            "fleet-connections": 2,
            "tls": tls,
            **changes,
        }
        self.settings: Settings = settings.validate(data)
        self.mesh: MeshPlan = mesh_of(self.settings)
        self.frontends: list[Frontend] = []
        self.configuration = directory / "haproxy.cfg"
        self.log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self) -> None:
        """Render configuration and seed into the test's directory."""
        text = haproxy_config(
            node=node_of(self.settings, "oslo-db-01"),
            settings=self.settings,
            mesh=self.mesh,
            certificate=self.certificate,
        )
        if self.certificate:
            path = self.directory / "door.pem"
            path.write_text(self.certificate)
            text = text.replace(certificate_path(self.certificate), str(path))
        for there in ("/run/haproxy", "/var/lib/haproxy"):
            text = text.replace(f"{there}/", f"{self.directory}/")
        lines = text.splitlines(keepends=True)
        only_root = ("    user haproxy", "    group haproxy", "    chroot ")
        self.configuration.write_text("".join(s for s in lines if not s.startswith(only_root)))
        seed = server_state_seed(settings=self.settings, mesh=self.mesh)
        (self.directory / "seed").write_text(seed)

    def prepare(self, *, reload: bool) -> None:
        """What the unit does before a start or a reload."""
        server_state.prepare(
            reload=reload,
            seed=self.directory / "seed",
            state=self.directory / "server-state",
            path=self.directory / "admin.sock",
        )

    def start(self) -> None:
        """Start as the unit does."""
        if shutil.which("haproxy") is None:
            pytest.fail("haproxy is not installed, so nothing has run this text: install it")
        self.prepare(reload=False)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["haproxy", "-W", "-f", str(self.configuration)], stdout=log, stderr=log
            )
        await_condition(f"HAProxy did not start: {self.log.read_text()}", self.worker)

    def reload(self) -> None:
        """Reload as the unit does, and wait for the new worker."""
        process = self.process
        assert process is not None
        before = self.worker()
        self.prepare(reload=True)
        sent = 0.0

        def taken_over() -> bool:
            nonlocal sent
            # A master that is not done with its last start loses the signal (seen with 2.6).
            if time.monotonic() - sent > 1:
                process.send_signal(signal.SIGUSR2)
                sent = time.monotonic()
            return self.worker() not in {"", before}

        await_condition("no new worker took over", taken_over)

    def stop(self) -> None:
        """Stop everything."""
        for frontend in self.frontends:
            frontend.stop()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE_SECONDS)

    def ask(self, command: str) -> str:
        """Send a command to the runtime socket; nothing when it is not there."""
        try:
            return server_state.ask(command, path=self.directory / "admin.sock")
        except OSError:
            return ""

    def worker(self) -> str:
        """Process id of the worker that answers."""
        lines = self.ask("show info").splitlines()
        return next((line for line in lines if line.startswith("Pid: ")), "")

    def add(self, address: object) -> Frontend:
        """Put a machine at an address."""
        frontend = Frontend(str(address), self.workload, self.health)
        self.frontends.append(frontend)
        return frontend

    def add_oslo(self) -> Frontend:
        """Put a machine at the first Oslo frontend's address."""
        return self.add(self.mesh.nodes[0].mesh_address)

    def add_member(self, slot: int, *, fleet: int = 0) -> Frontend:
        """Put a machine into one slot of a fleet."""
        return self.add(self.mesh.fleets[fleet].slots[slot].address)

    def state(self, server: str) -> int:
        """A server's srv_op_state: 0 down, 2 up, 3 draining."""
        for line in self.ask("show servers state").splitlines():
            fields = line.split()
            if len(fields) > 5 and fields[3] == server:
                return int(fields[5])
        return -1

    def await_state(self, server: str, state: int) -> None:
        """Wait until the checks have found a server's state."""
        await_condition(f"{server} never got {state}", lambda: self.state(server) == state)

    def get(
        self, path: str = "/", *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status, and who served it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            response.read()
            return response.status, response.getheader("X-Served-By", "")


OSLO, WEB = "oslo-db-01", "oslo-web-02"
MakeDoor = Callable[..., Door]


@pytest.fixture
def make_door(tmp_path: Path) -> Iterator[MakeDoor]:
    """Make a door; it is stopped after the test."""
    made: list[Door] = []

    def make(*, fleets: int = 1, tls: bool = False, **changes: Any) -> Door:
        door = Door(tmp_path, changes, fleets, tls)
        made.append(door)
        return door

    yield make
    for door in made:
        door.stop()


@contextlib.contextmanager
def saturated(door: Door, frontend: Frontend, places: int) -> Iterator[None]:
    """Hold all places of one machine, each with a request that does not end."""
    with ThreadPoolExecutor(places) as pool:
        before = len(frontend.requests)
        waiting = [pool.submit(door.get, "/held") for _ in range(places)]
        await_condition(
            "held requests did not arrive",
            lambda: len(frontend.requests) == before + places,
        )
        try:
            yield
        finally:
            frontend.held.set()
        for one in waiting:
            assert one.result()[0] == 200, "a request that was under way did not end well"


def test_the_fleet_serves_only_what_oslo_has_no_place_for(make_door: MakeDoor) -> None:
    door = make_door()
    oslo, member = door.add_oslo(), door.add_member(3)
    door.start()
    door.await_state("fleet-0-0-03", 2)
    door.await_state(WEB, 0)
    assert {door.get() for _ in range(10)} == {(200, OSLO)}
    assert member.requests == [], "the fleet was used while Oslo had room"
    with saturated(door, oslo, 2):
        assert {door.get() for _ in range(5)} == {(200, "fleet-0-0-03")}
    assert door.get() == (200, OSLO), "traffic did not come home"


def test_the_fleet_serves_when_oslo_is_down(make_door: MakeDoor) -> None:
    door = make_door()
    door.add_member(0)
    door.start()
    for server, state in ((OSLO, 0), (WEB, 0), ("fleet-0-0-00", 2)):
        door.await_state(server, state)
    assert {door.get() for _ in range(10)} == {(200, "fleet-0-0-00")}


def test_a_saturated_oslo_keeps_its_queue_when_the_fleet_is_empty(make_door: MakeDoor) -> None:
    door = make_door()
    oslo = door.add_oslo()
    door.start()
    door.await_state(WEB, 0)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(door.get, "/held") for _ in range(6)]
        await_condition("Oslo was never full", lambda: len(oslo.requests) == 2)
        oslo.held.set()
        assert {one.result() for one in waiting} == {(200, OSLO)}


def test_an_empty_slot_costs_no_request_in_the_first_second(make_door: MakeDoor) -> None:
    door = make_door()
    oslo = [door.add_oslo(), door.add(door.mesh.nodes[1].mesh_address)]
    door.add_member(0)
    door.start()
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(door.get, "/held") for _ in range(4)]
        await_condition("Oslo was never full", lambda: sum(len(o.requests) for o in oslo) == 4)
        waiting += [pool.submit(door.get) for _ in range(26)]
        door.await_state("fleet-0-0-00", 2)
        for frontend in oslo:
            frontend.held.set()
        answers = [one.result() for one in waiting]
    assert [status for status, _ in answers] == [200] * 30
    down = [slot.name for slot in door.mesh.slots if door.state(slot.name) == 0]
    assert len(down) == len(door.mesh.slots) - 1


def test_reloads_lose_no_request_and_forget_no_state(make_door: MakeDoor) -> None:
    door = make_door()
    door.add_member(5)
    door.start()
    for server, state in ((OSLO, 0), (WEB, 0), ("fleet-0-0-05", 2)):
        door.await_state(server, state)
    statuses: list[int] = []
    ending = threading.Event()

    def visit() -> None:
        while not ending.is_set():
            statuses.append(door.get()[0])

    def reached(count: int) -> bool:
        return len(statuses) >= count

    with ThreadPoolExecutor(2) as pool:
        visitors = [pool.submit(visit) for _ in range(2)]
        try:
            for _ in range(4):
                enough = len(statuses) + 20
                door.reload()
                await_condition("visitors stopped", partial(reached, enough))
        finally:
            ending.set()
        for visitor in visitors:
            visitor.result()
    assert set(statuses) == {200}, f"{len(statuses)} requests"


def test_what_a_reload_takes_over_is_only_what_is_still_true() -> None:
    seed = """1
# names
0 burst 0 same 127.100.0.64 0 0 1 1 0 8 2 0 6 0 0 0 - 8080 -
0 burst 0 moved 127.100.0.65 0 0 1 1 0 8 2 0 6 0 0 0 - 8080 -
0 burst 0 repointed 127.100.0.66 0 0 1 1 0 8 2 0 6 0 0 0 - 8080 -
0 burst 0 new 127.100.0.67 0 0 1 1 0 8 2 0 6 0 0 0 - 8080 -
"""
    up = "2 0 1 1 9 15 3 3 6 0 0 0 -"
    dump = f"""1
# names
4 burst 1 same 127.100.0.64 {up} 8080 - 0 8081 - - 8081
4 burst 2 moved 127.100.0.99 {up} 8080 - 0 8081 - - 8081
4 burst 3 repointed 127.100.0.66 {up} 9090 - 0 8081 - - 8081
4 burst 4 gone 127.100.0.68 {up} 8080 - 0 8081 - - 8081

"""
    kept, *others = server_state.merge(seed, dump).splitlines()[2:]
    assert kept == f"4 burst 1 same 127.100.0.64 {up} 8080 -"
    assert others == seed.splitlines()[3:], "HAProxy would take the old address or port, or be up"


def test_a_reload_without_an_answer_starts_from_the_seed(make_door: MakeDoor) -> None:
    door = make_door()
    door.prepare(reload=True)
    assert (door.directory / "server-state").read_text() == (door.directory / "seed").read_text()


def test_a_leaving_member_ends_what_it_has_and_gets_nothing_new(make_door: MakeDoor) -> None:
    door = make_door()
    leaving, staying = door.add_member(1), door.add_member(2)
    door.start()
    for server, state in ((OSLO, 0), (WEB, 0), ("fleet-0-0-01", 2), ("fleet-0-0-02", 2)):
        door.await_state(server, state)
    staying.held.set()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(door.get, "/held") for _ in range(2)]
        await_condition("nothing to end", lambda: leaving.requests)
        leaving.health = 404
        door.await_state("fleet-0-0-01", 3)
        assert {door.get() for _ in range(10)} == {(200, "fleet-0-0-02")}
        leaving.held.set()
        assert {one.result()[0] for one in waiting} == {200}


def test_fleets_are_used_in_order_of_preference(make_door: MakeDoor) -> None:
    door = make_door(fleets=2)
    first, _ = door.add_member(0), door.add_member(0, fleet=1)
    door.start()
    for server, state in ((OSLO, 0), (WEB, 0), ("fleet-0-0-00", 2), ("fleet-1-0-00", 2)):
        door.await_state(server, state)
    assert {door.get() for _ in range(5)} == {(200, "fleet-0-0-00")}
    with saturated(door, first, 2):
        assert {door.get() for _ in range(5)} == {(200, "fleet-1-0-00")}
    assert door.get() == (200, "fleet-0-0-00")


@pytest.mark.parametrize(
    "path",
    [
        *("/account", "/account/7?a=b", "/Account", "/%61ccount", "//account", "/x/../account"),
        *("/%2e/account", "/x/%2e%2e/account", "/%2561ccount", "/\\account"),
    ],
)
def test_a_path_that_stays_in_norway_never_reaches_the_fleet(
    pinned: tuple[Door, Frontend], path: str
) -> None:
    door, member = pinned
    seen = len(member.requests)
    assert door.get(path)[0] == 503, "Oslo is down, so nobody may answer"
    assert len(member.requests) == seen


def test_other_paths_spill_as_usual(pinned: tuple[Door, Frontend]) -> None:
    door, _ = pinned
    assert door.get("/public") == (200, "fleet-0-0-00")


@pytest.fixture(scope="module")
def pinned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Door, Frontend]]:
    """A door with Oslo down, one member, and a path that stays in Norway."""
    door = Door(tmp_path_factory.mktemp("pinned"), {"oslo-only-paths": ["/account"]}, 1, False)
    try:
        member = door.add_member(0)
        door.start()
        for server, state in ((OSLO, 0), (WEB, 0), ("fleet-0-0-00", 2)):
            door.await_state(server, state)
        yield door, member
    finally:
        door.stop()


def test_what_may_have_been_done_is_not_done_twice(make_door: MakeDoor) -> None:
    door = make_door()
    broken = door.add_oslo()
    working = door.add(door.mesh.nodes[1].mesh_address)
    broken.answer = False
    door.start()
    for server in (OSLO, WEB):
        door.await_state(server, 2)
    assert {door.get() for _ in range(6)} == {(200, WEB)}, "GET is safe to send again"
    broken.requests.clear()
    working.requests.clear()
    statuses = [door.get(method="POST")[0] for _ in range(6)]
    assert 502 in statuses, "a POST met the broken frontend and its visitor was told so"
    assert len(broken.requests) + len(working.requests) == 6, "a POST was sent twice"


def test_a_visitor_cannot_choose_the_address_frontends_see(make_door: MakeDoor) -> None:
    door = make_door()
    oslo = door.add_oslo()
    door.start()
    door.await_state(WEB, 0)
    door.get("/?name=kari", headers={"X-Forwarded-For": "203.0.113.9", "X-Real-IP": "203.0.113.9"})
    headers = oslo.requests[0][2]
    assert (headers["x-forwarded-for"], headers["x-real-ip"]) == ("127.0.0.1", "127.0.0.1")
    await_condition("the request was not logged", lambda: "GET /" in door.log.read_text())
    line = next(text for text in door.log.read_text().splitlines() if "GET /" in text)
    assert "127.0.0.0" in line, "the log names the visitor's network"
    assert "127.0.0.1" not in line, "the log holds the visitor's address"
    assert "kari" not in line, "the log holds what the visitor asked for"


def test_statistics_and_metrics_are_on_the_mesh_address_only(make_door: MakeDoor) -> None:
    door = make_door()
    door.start()
    for path, text in (("/metrics", b"haproxy_backend"), ("/", b"Statistics Report")):
        connection = http.client.HTTPConnection("127.100.0.1", door.statistics, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", path)
            assert text in connection.getresponse().read()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", door.statistics, timeout=10).connect()


def test_with_tls_plain_http_is_sent_to_https(make_door: MakeDoor) -> None:
    door = make_door(tls=True)
    oslo = door.add_oslo()
    door.start()
    door.await_state(WEB, 0)
    plain = http.client.HTTPConnection("127.0.0.1", door.http, timeout=10)
    plain.request("GET", "/a?b=c", headers={"Host": f"door.example:{door.http}"})
    response = plain.getresponse()
    plain.close()
    expected = f"https://door.example:{door.https}/a?b=c"
    assert (response.status, response.getheader("Location")) == (308, expected)
    assert door.certificate is not None
    trust = ssl.create_default_context(cadata=door.certificate.split("-----BEGIN PRIVATE")[0])
    with (
        socket.create_connection(("127.0.0.1", door.https), timeout=10) as connection,
        trust.wrap_socket(connection, server_hostname="door.example") as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: door.example\r\nConnection: close\r\n\r\n")
        assert secure.recv(100).startswith(b"HTTP/1.1 200")
    assert oslo.requests[0][2]["x-forwarded-proto"] == "https"
