"""The workload's files and environment, its health responder, and the demo."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import settings
from health import Server
from render.workload import (
    environment_text,
    health_settings,
    workload_content,
    workload_hash,
    workload_secrets,
)
from settings import Settings, SettingsError
from tests.unit.samples import container_workload, mesh_of, node_of, sample, sample_data


def content(of: Settings, node: str = "oslo-web-02") -> dict[str, object]:
    return workload_content(
        node=node_of(of, node), settings=of, mesh=mesh_of(of), app_password='p"a$s`s\\'
    )


def texts(of: Settings, key: str) -> dict[str, str]:
    files = content(of)[key]
    assert isinstance(files, list)
    return {file["path"]: file["content"] for file in files}


def test_an_oslo_frontend_gets_everything_it_needs_as_plain_json() -> None:
    described = content(sample())
    assert json.loads(json.dumps(described)) == described
    environment = texts(sample(), "files")["/etc/fortress/workload.env"]
    assert 'PGHOST="10.100.0.1"\n' in environment
    assert 'PGUSER="app"\n' in environment
    assert 'SITE="oslo"\n' in environment
    assert 'NODE_NAME="oslo-web-02"\n' in environment
    assert 'LISTEN_ADDRESS="10.100.0.2"\n' in environment
    assert 'GREETING="god dag"\n' in environment
    assert 'PGSSLMODE="require"\nPGCHANNELBINDING="require"\n' in environment


def test_the_password_is_in_the_root_only_file_and_nowhere_else() -> None:
    described = content(sample())
    holders = [
        file
        for key in ("files", "health_files", "workload_files")
        for file in described[key]  # type: ignore[attr-defined]
        if 'p\\"a' in file["content"]
    ]
    assert [(file["path"], file["mode"]) for file in holders] == [
        ("/etc/fortress/workload.env", "0600")
    ]


def test_special_characters_are_quoted_as_systemd_reads_them() -> None:
    assert environment_text({"A": 'p"a$s`s\\', "B": "two words"}) == (
        'A="p\\"a\\$s\\`s\\\\"\nB="two words"\n'
    )
    assert workload_secrets("hush") == 'PGPASSWORD="hush"\n'


def test_install_runs_again_only_when_a_file_changed(tmp_path: Path) -> None:
    for name in ("install", "start"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    data = sample_data()
    data["workload"]["directory"] = str(tmp_path)
    before = workload_hash(settings.validate(data).workload)
    data["workload"]["environment"] = {"GREETING": "hei"}
    assert workload_hash(settings.validate(data).workload) == before
    (tmp_path / "start").write_text("#!/bin/sh\nexec true\n")
    assert workload_hash(settings.validate(data).workload) != before


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    for name in ("install", "start"):
        (tmp_path / name).write_text("#!/bin/sh\n")
    (tmp_path / "logo.png").write_bytes(b"\x89PNG\xff")
    data = sample_data()
    data["workload"]["directory"] = str(tmp_path)
    with pytest.raises(SettingsError, match=r"logo\.png is not UTF-8 text"):
        workload_hash(settings.validate(data).workload)


def test_a_container_brings_podman_and_no_files() -> None:
    data = sample_data()
    data["workload"] = container_workload()
    described = content(settings.validate(data))
    assert described["packages"] == ["podman"]
    assert described["workload_files"] == []


def test_requests_are_moved_away_only_when_there_is_somewhere_else() -> None:
    assert content(sample())["drain"] is True
    data = sample_data()
    data["fleets"] = {}
    data["core"]["nodes"] = data["core"]["nodes"][:1]
    assert content(settings.validate(data), "oslo-db-01")["drain"] is False


def test_the_health_responder_and_its_settings_agree() -> None:
    assert set(json.loads(health_settings(sample().workload, "10.100.0.2"))) == {
        "address",
        "health_port",
        "port",
        "health_path",
    }


class Workload(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/ready" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, method: str = "HEAD", path: str = "/health") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    connection.request(method, path)
    status = connection.getresponse().status
    connection.close()
    return status


def test_health_follows_the_workload_and_says_404_while_draining(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draining = tmp_path / "draining"
    workload = ThreadingHTTPServer(("127.0.0.1", 0), Workload)
    with serving(workload) as workload_port:
        health = Server("127.0.0.1", 0, port=workload_port, path="/ready", draining=draining)
        with serving(health) as port:
            assert (ask(port), ask(port, "GET")) == (200, 200)
            assert ask(port, "GET", "/etc/passwd") == 400
            monkeypatch.setattr(Workload, "status", 500)
            assert ask(port) == 503
            draining.touch()
            assert ask(port) == 404
            draining.unlink()
            monkeypatch.setattr(Workload, "status", 200)
            assert ask(port) == 200


def test_health_says_503_when_nothing_listens(tmp_path: Path) -> None:
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Workload)) as free_port:
        pass
    server = Server("127.0.0.1", 0, port=free_port, path="/ready", draining=tmp_path / "draining")
    with serving(server) as port:
        assert ask(port) == 503
