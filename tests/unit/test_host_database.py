"""Roles, privileges and access, told by a real PostgreSQL of this machine's version.

It runs in a directory of its own with the rendered settings and rules; the mesh is 127.100.0.0/24,
so that every address of the plan can be connected from.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import settings
from database import (
    choose_version,
    fstab_with,
    is_password,
    make_roles_and_database,
    scram_verifier,
)
from files import HostError
from render.postgresql import database_content
from tests.unit.samples import mesh_of, node_of, sample_data

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
SLOT, CORE, STRANGER = "127.100.0.70", "127.100.0.2", "127.100.0.100"
# Its line in pg_hba.conf names the operating system's user, which the test is not.
PEER, TRUSTED = "local all postgres peer", "local all postgres trust"


def run_as_nobody(*argv: str) -> None:
    """Run a program as PostgreSQL insists: not as root."""
    user = "nobody" if os.geteuid() == 0 else None
    done = subprocess.run(argv, capture_output=True, text=True, check=False, user=user, cwd="/")
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"


def pump(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes until one side ends."""
    with contextlib.suppress(OSError):
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)


class Cluster:
    """A private PostgreSQL server with the rendered configuration."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        data = sample_data()
        data["mesh"] = {"range": "127.100.0.0/24"}
        data["fleets"]["frankfurt"]["block"] = "127.100.0.64/26"
        data["core"]["nodes"][0]["memory-mib"] = 512
        data["database"] = {"port": self.port, "max-connections": 20}
        of = settings.validate(data)
        self.content: dict[str, Any] = database_content(
            node=node_of(of, "oslo-db-01"),
            settings=of,
            mesh=mesh_of(of),
            app_password="planted-app",
            fleet_password="planted-fleet",
        )
        self.programs = PROGRAMS[-1]
        self.log = directory / "log"

    def start(self) -> None:
        """Make the cluster and start it."""
        key, certificate = self.directory / "key", self.directory / "certificate"
        run_as_nobody(
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-subj", "/CN=test", "-keyout", str(key), "-out", str(certificate)),
        )
        run_as_nobody(
            *(str(self.programs / "initdb"), "--pgdata", str(self.directory / "data"), "--no-sync"),
            *("--username=postgres", "--encoding=UTF8", "--locale=C.UTF-8", "--auth=reject"),
        )
        rules = self.directory / "pg_hba.conf"
        rules.write_text(self.content["access_rules"].replace(PEER, TRUSTED))
        text = self.content["configurations"][self.programs.parent.name]
        text = text.replace(self.content["key_path"], str(key))
        text = text.replace(self.content["certificate_path"], str(certificate))
        configuration = self.directory / "postgresql.conf"
        configuration.write_text(
            f"{text}\ndata_directory = '{self.directory}/data'\nhba_file = '{rules}'\n"
            f"unix_socket_directories = '{self.directory}'\nfsync = off\n"
        )
        self.control("start", "-o", f"--config-file={configuration}")

    def control(self, verb: str, *options: str) -> None:
        """Start or stop."""
        run_as_nobody(
            *(str(self.programs / "pg_ctl"), verb, "--wait", f"--pgdata={self.directory}/data"),
            *(f"--log={self.log}", "--mode=fast") if verb == "stop" else (f"--log={self.log}",),
            *options,
        )

    def ask(self, database: str, sql: str) -> str:
        """Ask as the superuser, as database.py does."""
        done = self.psql(f"host={self.directory} dbname={database} user=postgres", sql, None)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def psql(
        self, connection: str, sql: str, password: str | None, port: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run psql."""
        return subprocess.run(
            ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", f"{connection} port={port or self.port}"],
            input=sql,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PGPASSWORD": password or "", "LC_ALL": "C.UTF-8"},
        )

    def from_address(self, source: str, role: str, password: str, sql: str, **options: str) -> str:
        """Connect from an address of the mesh; return the answer or PostgreSQL's error."""
        wanted = {"sslmode": "require", "channel_binding": "require", "dbname": "app", **options}
        text = " ".join(f"{name}={value}" for name, value in wanted.items())
        with socket.create_server(("127.0.0.1", 0)) as relay:

            def forward() -> None:
                # With sslmode=disable or a refusal, psql connects no second time.
                with contextlib.suppress(OSError):
                    client, _ = relay.accept()
                    server = socket.create_connection(
                        ("127.100.0.1", self.port), source_address=(source, 0)
                    )
                    with client, server:
                        back = threading.Thread(target=pump, args=(server, client))
                        back.start()
                        pump(client, server)
                        back.join()

            thread = threading.Thread(target=forward, daemon=True)
            thread.start()
            port = relay.getsockname()[1]
            done = self.psql(f"host=127.0.0.1 user={role} {text}", sql, password, port)
            thread.join()
        return (done.stdout + done.stderr).strip()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A server with roles, database and one table with a row."""
    if not PROGRAMS:
        pytest.fail("PostgreSQL's server is not installed, so nothing has run this SQL: install it")
    directory = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        shutil.chown(directory, "nobody")
    made = Cluster(directory)
    try:
        made.start()
        changed = make_roles_and_database(made.ask, made.content)
        assert changed == ["database roles", "database app", "database privileges"]
        table = "CREATE TABLE fleet.greeting (number serial, text text); "
        table += "INSERT INTO fleet.greeting (text) VALUES ('hei'); CREATE TABLE person (name text)"
        assert made.from_address(CORE, "app", "planted-app", table) == ""
        yield made
    finally:
        made.control("stop")
        shutil.rmtree(directory)


def test_the_rendered_files_hold_nothing_postgresql_refuses(cluster: Cluster) -> None:
    errors = "SELECT name, error FROM pg_file_settings WHERE error IS NOT NULL UNION ALL "
    errors += "SELECT line_number::text, error FROM pg_hba_file_rules WHERE error IS NOT NULL"
    assert cluster.ask("postgres", errors) == ""


def test_a_second_run_changes_nothing(cluster: Cluster) -> None:
    kept = cluster.ask("postgres", "SELECT rolpassword FROM pg_authid ORDER BY rolname")
    assert make_roles_and_database(cluster.ask, cluster.content) == []
    assert cluster.ask("postgres", "SELECT rolpassword FROM pg_authid ORDER BY rolname") == kept


@pytest.mark.parametrize(
    ("sql", "answer"),
    [
        ("SELECT text FROM fleet.greeting", "hei"),
        ("INSERT INTO fleet.greeting (text) VALUES ('x')", "permission denied for table greeting"),
        ("DELETE FROM fleet.greeting", "permission denied for table greeting"),
        ("SELECT * FROM public.person", "permission denied for schema public"),
        ("CREATE TABLE fleet.mine ()", "permission denied for schema fleet"),
        ("CREATE TEMP TABLE mine ()", "permission denied to create temporary tables"),
        ("SET ROLE app", 'permission denied to set role "app"'),
    ],
)
def test_the_fleet_reads_its_schema_and_nothing_else(
    cluster: Cluster, sql: str, answer: str
) -> None:
    assert answer in cluster.from_address(SLOT, "app_fleet", "planted-fleet", sql)


def test_the_fleet_connects_from_its_slots_only(cluster: Cluster) -> None:
    refused = "pg_hba.conf rejects connection"
    for source in (STRANGER, CORE, "127.0.0.1"):
        answer = cluster.from_address(source, "app_fleet", "planted-fleet", "SELECT 1")
        assert refused in answer, source
    assert refused in cluster.from_address(SLOT, "app", "planted-app", "SELECT 1")
    assert refused in cluster.from_address(
        SLOT, "app_fleet", "planted-fleet", "SELECT 1", dbname="postgres"
    )
    assert refused in cluster.from_address(
        SLOT, "app_fleet", "planted-fleet", "SELECT 1", sslmode="disable", channel_binding="disable"
    )
    assert refused in cluster.from_address(
        CORE, "postgres", "", "SELECT 1", channel_binding="disable"
    )


def test_privileges_and_passwords_follow_the_settings(cluster: Cluster) -> None:
    content = {**cluster.content, "fleet": {**cluster.content["fleet"], "password": "other"}}
    content["fleet"]["privileges"] = ["select", "insert"]
    assert make_roles_and_database(cluster.ask, content) == [
        "database roles",
        "database privileges",
    ]
    insert = "INSERT INTO fleet.greeting (text) VALUES ('y') RETURNING text"
    later = "CREATE TABLE fleet.later (number serial)"
    assert cluster.from_address(CORE, "app", "planted-app", later) == ""
    assert cluster.from_address(SLOT, "app_fleet", "other", insert) == "y"
    insert = "INSERT INTO fleet.later DEFAULT VALUES RETURNING number"
    assert cluster.from_address(SLOT, "app_fleet", "other", insert) == "1"
    answer = cluster.from_address(SLOT, "app_fleet", "planted-fleet", "SELECT 1")
    assert "password authentication failed" in answer
    assert len(make_roles_and_database(cluster.ask, cluster.content)) == 2, "and back"
    answer = cluster.from_address(SLOT, "app_fleet", "planted-fleet", insert)
    assert "permission denied" in answer


def test_no_password_and_no_statement_reaches_the_log(cluster: Cluster) -> None:
    cluster.from_address(CORE, "app", "planted-app", "SELECT 'personal data' / 0 FROM nowhere")
    text = cluster.log.read_text()
    assert "ERROR" in text, "the error itself is logged"
    assert not [word for word in ("planted", "personal data", "SCRAM") if word in text]


def test_a_verifier_is_known_by_its_password_only() -> None:
    kept = scram_verifier("one", b"0123456789abcdef")
    assert is_password("one", kept)
    assert not is_password("two", kept)
    assert not is_password("one", "")
    assert not is_password("one", "md5c4ca4238a0b923820dcc509a6f75849b")


def test_the_table_of_file_systems_keeps_what_others_wrote() -> None:
    theirs = "# comment about /data\nUUID=1 / ext4 defaults 0 1\n"
    once = fstab_with(theirs, "2", "/data")
    assert once.startswith(theirs)
    assert fstab_with(once, "3", "/data") == once.replace("UUID=2", "UUID=3")


def test_the_version_of_the_data_wins_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    for version in (15, 17):
        (tmp_path / f"programs/{version}/bin").mkdir(parents=True)
        (tmp_path / f"programs/{version}/bin/postgres").touch()
    programs, mount = tmp_path / "programs", tmp_path / "data"
    supported = {14, 15, 16, 17}
    assert choose_version(str(mount), supported, programs) == 17
    (mount / "postgresql/15/fortress").mkdir(parents=True)
    (mount / "postgresql/15/fortress/PG_VERSION").touch()
    assert choose_version(str(mount), supported, programs) == 15
    shutil.rmtree(programs / "15")
    with pytest.raises(HostError, match=r"holds data of PostgreSQL 15, but installed is 17"):
        choose_version(str(mount), supported, programs)
