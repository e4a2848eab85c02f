"""PostgreSQL on the data volume: disk, cluster, settings, access, roles and the application's
database.

Runs on the machine with the role database. Nothing here drops, overwrites or formats what holds
data: a disk is formatted only when it is blank, a data directory that is there is adopted as it is.
It refuses to know tables; those belong to the workload.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from files import (
    File,
    HostError,
    await_condition,
    enable_unit,
    main,
    one_line,
    put_back_on_failure,
    report,
    run,
    succeeds,
    write_file,
)
from ports import listeners, refuse_taken_port

CLUSTER = "fortress"
LABEL = "fortress-data"
FSTAB = Path("/etc/fstab")
SOCKETS = "/var/run/postgresql"
PROGRAMS = Path("/usr/lib/postgresql")
# A disk may appear a moment after the machine is up.
DISK_SECONDS = 30
# Crash recovery replays at most max_wal_size before the first connection.
START_SECONDS = 300
BLANK_BYTES = 1 << 20
# RFC 7677, section 4: at least 4096; also PostgreSQL's own number.
SCRAM_ITERATIONS = 4096
OWNED = ("--owner=postgres", "--group=postgres")
# Asks PostgreSQL a question: database and SQL in, unaligned tuples out.
Ask = Callable[[str, str], str]


def contents_of(device: Path) -> str:
    """What is on a block device, in words; empty when it is blank."""
    found = run(["blkid", "--probe", "--output", "export", str(device)], check=False)
    facts = [line for line in found.splitlines() if not line.startswith("DEVNAME=")]
    signatures = run(["wipefs", "--no-act", "--noheadings", "--output", "TYPE", str(device)])
    facts += [f"a signature of {name}" for name in signatures.split()]
    parts = run(["lsblk", "--noheadings", "--raw", "--output", "NAME", str(device)]).split()
    facts += [f"partition or holder {name}" for name in parts[1:]]
    if not facts:
        with device.open("rb") as stream:
            if any(stream.read(BLANK_BYTES)):
                facts = [f"bytes other than zero in its first {BLANK_BYTES} bytes"]
    return ", ".join(facts)


def prepare_disk(device: str) -> tuple[str, bool]:
    """UUID of the data volume's file system, and whether it was made now.

    Raises:
        HostError: when the disk is missing or holds something else.
    """
    path = Path(device)
    await_condition(
        f"the disk {device} for PostgreSQL's data is not there; this machine has "
        f"{one_line(run(['lsblk', '--noheadings', '--raw', '--output', 'PATH,SIZE,SERIAL']))}. "
        "Attach it, or correct data-device",
        path.exists,
        DISK_SECONDS,
    )
    real = path.resolve()
    if not stat.S_ISBLK(real.stat().st_mode):
        msg = (
            f"{device} is not a disk: PostgreSQL's data volume gets a file system, so only a block "
            "device will do. Correct data-device"
        )
        raise HostError(msg)

    def value(name: str) -> str:
        probe = ["blkid", "--probe", "--match-tag", name, "--output", "value", str(real)]
        return run(probe, check=False).strip()

    made = False
    if (value("LABEL"), value("TYPE")) != (LABEL, "ext4"):
        found = contents_of(real)
        if found:
            msg = (
                f"the disk {device} ({real}) is not blank: {found}. Only a blank disk, or one with "
                f"an ext4 file system labelled {LABEL}, is taken, because formatting destroys what "
                "is there. Give another disk, or empty this one yourself: wipefs "
                "--all, then zero its first MiB"
            )
            raise HostError(msg)
        # 1 % in reserve instead of 5: nothing but PostgreSQL writes there.
        run(["mkfs.ext4", "-q", "-m", "1", "-L", LABEL, str(real)])
        made = True
    return value("UUID"), made


def fstab_with(text: str, uuid: str, mount: str) -> str:
    """The table of file systems with exactly one line for the mount point."""
    lines = [
        line for line in text.splitlines() if line.startswith("#") or mount not in line.split()
    ]
    # nofail: the machine boots and can be reached without the disk; PostgreSQL's unit requires it.
    # A slow boot took more than 30 s to find the disk, and then PostgreSQL stayed off: nobody else
    # waits for this limit, so it may be long.
    options = "noatime,nofail,x-systemd.device-timeout=600s"
    return "\n".join([*lines, f"UUID={uuid} {mount} ext4 {options} 0 2"]) + "\n"


def mount_disk(uuid: str, mount: str) -> list[str]:
    """Mount the data volume, now and at every boot."""
    changed = []
    table = FSTAB.read_text() if FSTAB.is_file() else ""
    if write_file({"path": str(FSTAB), "content": fstab_with(table, uuid, mount)}):
        run(["systemctl", "daemon-reload"])
        changed.append(str(FSTAB))
    place = Path(mount)
    if not place.is_mount():
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
        hidden = sorted(entry.name for entry in place.iterdir())
        if hidden:
            msg = (
                f"{mount} holds {', '.join(hidden[:5])} on the root file system: mounting the data "
                "volume over it would hide that data. Move it away, or onto the volume"
            )
            raise HostError(msg)
        run(["mount", mount])
        changed.append(f"{mount} mounted")
    found = run(["findmnt", "--noheadings", "--output", "UUID", "--mountpoint", mount]).strip()
    if found != uuid:
        msg = (
            f"{mount} is mounted from the file system {found}, not from the data volume {uuid}: "
            "PostgreSQL would use the wrong disk. Unmount it, then run `pulumi up` again"
        )
        raise HostError(msg)
    return changed


def data_directory(mount: str, version: int) -> Path:
    """Where a version keeps its data; other versions' stay beside it."""
    return Path(mount) / "postgresql" / str(version) / CLUSTER


def choose_version(mount: str, supported: set[int], programs: Path = PROGRAMS) -> int:
    """Version of the data that is there, else the newest installed.

    Raises:
        HostError: when none is installed, or not the one of the data.
    """
    installed = {
        int(path.parent.parent.name)
        for path in programs.glob("*/bin/postgres")
        if path.parent.parent.name.isdecimal()
    } & supported
    present = {
        int(path.parent.parent.name)
        for path in Path(mount).glob(f"postgresql/*/{CLUSTER}/PG_VERSION")
    }
    names = ", ".join(map(str, sorted(installed))) or "none"
    if present and max(present) not in installed:
        msg = (
            f"{mount} holds data of PostgreSQL {max(present)}, but installed is {names}: each "
            f"version reads its own format only. Install postgresql-{max(present)}, or bring the "
            "data to the new version with pg_upgrade"
        )
        raise HostError(msg)
    if not installed:
        msg = (
            f"PostgreSQL is not installed in a version of {sorted(supported)}. Install the "
            "package postgresql"
        )
        raise HostError(msg)
    return max(present or installed)


def make_cluster(directory: Path, version: int) -> bool:
    """Let initdb make the data directory, or adopt the one that is there; say whether it is new.

    Debian's pg_createcluster is not used: it adopts only directories that hold their own
    configuration files, and drops the cluster when it fails half-way.
    """
    if (directory / "PG_VERSION").is_file():
        # The postgres user of a rebuilt machine may have another number.
        owner = run(["id", "--user", "postgres"]).strip()
        if str(directory.stat().st_uid) != owner:
            run(["chown", "--recursive", "postgres:postgres", str(directory)])
        return False
    directory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    # An initdb that was cut off leaves this name, which never held anything else.
    beside = directory.with_name(f"{CLUSTER}.unfinished")
    run(["rm", "--recursive", "--force", str(beside)])
    run(["install", "--directory", *OWNED, "--mode=0700", str(beside)])
    run(
        [
            *("runuser", "-u", "postgres", "--", str(PROGRAMS / str(version) / "bin" / "initdb")),
            *("--pgdata", str(beside), "--encoding=UTF8", "--data-checksums"),
            # Plain byte order: other locales change with the system's C library, which silently
            # breaks indexes of a volume that moves to a newer machine.
            *("--locale=C.UTF-8", "--auth-local=peer", "--auth-host=reject", "--no-instructions"),
        ]
    )
    beside.rename(directory)
    return True


def make_certificate(content: dict[str, Any]) -> bool:
    """Make the server's own certificate; say whether it was made now.

    Clients prove and check passwords bound to this certificate (channel binding), so nobody needs
    to sign it.
    """
    certificate, key = Path(content["certificate_path"]), Path(content["key_path"])
    # A year before the end, in seconds.
    in_date = ["openssl", "x509", "-in", str(certificate), "-noout", "-checkend", "31536000"]
    if certificate.is_file() and key.is_file() and succeeds(in_date):
        public = run(["openssl", "x509", "-in", str(certificate), "-noout", "-pubkey"])
        if public == run(["openssl", "pkey", "-in", str(key), "-pubout"]):
            return False
    made = [path.with_name(f".new-{path.name}") for path in (certificate, key)]
    for path in made:
        path.unlink(missing_ok=True)
    run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "3650"),
            *("-subj", f"/CN={content['node']}"),
            *("-addext", f"subjectAltName=IP:{content['mesh_address']},DNS:{content['node']}"),
            *("-out", str(made[0]), "-keyout", str(made[1])),
        ]
    )
    run(["chown", "postgres:postgres", *map(str, made)])
    run(["chmod", "0600", *map(str, made)])
    made[1].replace(key)
    made[0].replace(certificate)
    return True


def write_configuration(content: dict[str, Any], version: int) -> list[str]:
    """Write Debian's files for a cluster; return the paths that changed."""
    directory = Path("/etc/postgresql") / str(version) / CLUSTER
    run(["install", "--directory", *OWNED, str(directory)])
    data = data_directory(content["mount"], version)
    places = (
        f"data_directory = '{data}'\n"
        f"hba_file = '{directory}/pg_hba.conf'\n"
        f"ident_file = '{directory}/pg_ident.conf'\n"
        f"external_pid_file = '{SOCKETS}/{version}-{CLUSTER}.pid'\n"
        f"unix_socket_directories = '{SOCKETS}'\n"
        f"cluster_name = '{version}/{CLUSTER}'\n"
    )
    texts = {
        "start.conf": "auto\n",
        "pg_ident.conf": "",
        "pg_hba.conf": content["access_rules"],
        "postgresql.conf": content["configurations"][str(version)] + "\n" + places,
    }
    changed = []
    for name, text in texts.items():
        file: File = {
            "path": str(directory / name),
            "content": text,
            "owner": "postgres",
            "group": "postgres",
            "mode": "0640",
        }
        check = None
        if name == "postgresql.conf":
            server = PROGRAMS / str(version) / "bin" / "postgres"
            check = ["runuser", "-u", "postgres", "--", str(server), "-C", "port"]
            check += ["--config-file={}"]
        if write_file(file, validate=check):
            changed.append(file["path"])
    return changed


def last_words(version: int) -> str:
    """What PostgreSQL wrote last about trouble."""
    log = Path(f"/var/log/postgresql/postgresql-{version}-{CLUSTER}.log")
    lines = log.read_text(errors="replace").splitlines()[-200:] if log.is_file() else []
    told = [line for line in lines if re.search(r"FATAL|ERROR|PANIC|could not", line)]
    return one_line("\n".join(told[-4:])) or f"see {log}"


def running_version() -> int | None:
    """Major version of our own cluster, when it runs."""
    for directory in Path("/etc/postgresql").glob(f"*/{CLUSTER}"):
        version = directory.parent.name
        if succeeds(["pg_ctlcluster", version, CLUSTER, "status"]):
            return int(version)
    return None


class Server:
    """The cluster as systemd runs it."""

    def __init__(self, content: dict[str, Any], version: int) -> None:
        self.unit = f"postgresql@{version}-{CLUSTER}.service"
        self.version = version
        self.port = int(content["port"])
        self.addresses = ("127.0.0.1", str(content["mesh_address"]))

    def ready(self) -> bool:
        """Whether it takes connections."""
        question = ["pg_isready", "--quiet", f"--host={SOCKETS}", f"--port={self.port}"]
        # As root it would be refused, with a line in the log each time.
        return succeeds(["runuser", "-u", "postgres", "--", *question])

    def ask(self, database: str, sql: str) -> str:
        """Ask as the database's superuser, SQL on standard input."""
        return run(
            [
                *("runuser", "-u", "postgres", "--", "psql", "--no-psqlrc", "--quiet"),
                *("--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1"),
                # Else an error repeats the line, which may hold what a password was turned into.
                *("--set=VERBOSITY=terse", "--no-password"),
                *(f"--host={SOCKETS}", f"--port={self.port}", f"--dbname={database}"),
            ],
            stdin=sql,
        )

    def act(self, verb: str) -> None:
        """Start, restart or reload, and see that it serves where it shall.

        Raises:
            HostError: when it does not, with what PostgreSQL said.
        """
        try:
            # The unit ignores a failing start, so its status says nothing.
            run(["systemctl", verb, self.unit])
            await_condition(f"PostgreSQL is not ready after {verb}", self.ready, START_SECONDS)
            await_condition(
                f"PostgreSQL does not listen on {' and '.join(self.addresses)}, port {self.port}",
                self.listens,
                10,
            )
        except HostError as error:
            msg = f"{error}. PostgreSQL says: {last_words(self.version)}"
            raise HostError(msg) from None

    def listens(self) -> bool:
        """Whether it listens at all its addresses; a missing one is only a warning to it."""
        return {address for address, _ in listeners(self.port)}.issuperset(self.addresses)

    def resume(self) -> None:
        """After old files are back: make them the running ones."""
        run(["systemctl", "restart" if not self.ready() else "reload", self.unit])

    def renew(self) -> list[str]:
        """Bring a running server to its files, without a restart where that is enough."""
        wrong = self.ask(
            "postgres", "SELECT line_number, error FROM pg_hba_file_rules WHERE error IS NOT NULL;"
        )
        if wrong:
            msg = f"the new pg_hba.conf was refused, the old one is put back: {one_line(wrong)}"
            raise HostError(msg)
        before = self.ask("postgres", "SELECT pg_conf_load_time();")
        run(["systemctl", "reload", self.unit])
        await_condition(
            f"PostgreSQL did not read its files again: {last_words(self.version)}",
            lambda: self.ask("postgres", "SELECT pg_conf_load_time();") != before,
            30,
        )
        waiting = "SELECT name FROM pg_settings WHERE pending_restart;"
        pending = self.ask("postgres", waiting).split()
        if pending or not self.listens():
            self.act("restart")
            return [f"{self.unit} restarted for {', '.join(pending) or 'its addresses'}"]
        return []


def scram_verifier(password: str, salt: bytes, iterations: int = SCRAM_ITERATIONS) -> str:
    """What PostgreSQL keeps of a password (RFC 5803), so that the password itself never gets there.

    Parameters:
        password: printable ASCII, for which SASLprep changes nothing.
    """
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = base64.b64encode(hashlib.sha256(client).digest()).decode()
    server = base64.b64encode(hmac.digest(salted, b"Server Key", "sha256")).decode()
    return f"SCRAM-SHA-256${iterations}:{base64.b64encode(salt).decode()}${stored}:{server}"


def is_password(password: str, kept: str) -> bool:
    """Whether a verifier was made from this password."""
    parts = re.fullmatch(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$.+", kept)
    if parts is None:
        return False
    made = scram_verifier(password, base64.b64decode(parts[2]), int(parts[1]))
    return hmac.compare_digest(made, kept)


def role_statements(role: dict[str, Any], kept: str | None) -> str:
    """SQL that makes one role as described.

    Parameters:
        kept: its verifier now, empty when it has none, None when there is no such role.
    """
    name = role["name"]
    limit = role.get("connection_limit", -1)
    sql = [] if kept is not None else [f'CREATE ROLE "{name}";']
    sql.append(
        f'ALTER ROLE "{name}" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS '
        f"CONNECTION LIMIT {limit};"
    )
    if not is_password(role["password"], kept or ""):
        verifier = scram_verifier(role["password"], secrets.token_bytes(16))
        sql.append(f"ALTER ROLE \"{name}\" PASSWORD '{verifier}';")
    return "\n".join(sql)


def privilege_statements(content: dict[str, Any]) -> str:
    """SQL that lets the owner own, and the fleet do what it may in schema fleet, nothing else."""
    database, owner = content["database"], content["owner"]["name"]
    fleet, privileges = content["fleet"]["name"], content["fleet"]["privileges"]
    allowed = ", ".join(privileges)
    sql = [
        "BEGIN;",
        f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC, "{fleet}";',
        f'GRANT CONNECT ON DATABASE "{database}" TO "{fleet}";',
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
        f'GRANT ALL ON SCHEMA public TO "{owner}";',
        f'CREATE SCHEMA IF NOT EXISTS fleet AUTHORIZATION "{owner}";',
        f'REVOKE ALL ON SCHEMA fleet FROM PUBLIC, "{fleet}";',
        f'GRANT USAGE ON SCHEMA fleet TO "{fleet}";',
    ]
    for kind, granted in (
        ("TABLES", allowed),
        # A table's serial column takes its numbers from a sequence.
        ("SEQUENCES", "USAGE" if "insert" in privileges else ""),
    ):
        default = f'ALTER DEFAULT PRIVILEGES FOR ROLE "{owner}" IN SCHEMA fleet'
        sql.append(f'REVOKE ALL ON ALL {kind} IN SCHEMA fleet FROM "{fleet}";')
        sql.append(f'{default} REVOKE ALL ON {kind} FROM "{fleet}";')
        if granted:
            sql.append(f'GRANT {granted} ON ALL {kind} IN SCHEMA fleet TO "{fleet}";')
            sql.append(f'{default} GRANT {granted} ON {kind} TO "{fleet}";')
    return "\n".join([*sql, "COMMIT;"])


ROLE_FACTS = """
SELECT rolname, rolcanlogin, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls,
       rolconnlimit, md5(coalesce(rolpassword, ''))
  FROM pg_authid ORDER BY 1;
"""
ACCESS_FACTS = """
SELECT kind, name, array(SELECT item::text FROM unnest(access) AS item ORDER BY 1)
  FROM (SELECT 'database' AS kind, datname::text AS name,
               coalesce(datacl, acldefault('d', datdba)) AS access
          FROM pg_database WHERE datname = current_database()
        UNION ALL SELECT 'schema', nspname, coalesce(nspacl, acldefault('n', nspowner))
          FROM pg_namespace WHERE nspname IN ('public', 'fleet')
        UNION ALL SELECT 'relation', relname, coalesce(relacl,
               acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))
          FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
           AND relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = 'fleet')
        UNION ALL SELECT 'default', defaclobjtype::text, defaclacl FROM pg_default_acl) AS facts
 ORDER BY 1, 2;
"""


def check_roles(content: dict[str, Any]) -> None:
    """Refuse names and passwords that would harm.

    Raises:
        HostError: without the password.
    """
    for role in (content["owner"], content["fleet"]):
        if not role["password"].isascii() or not role["password"].isprintable():
            msg = (
                f"the password of the database role {role['name']} holds other characters than "
                "printable ASCII, which clients encode in different ways. Set another one"
            )
            raise HostError(msg)
    name = content["database"]
    if name in {"postgres", "template0", "template1", "public"} or name.startswith("pg_"):
        msg = (
            f"the database cannot be called {name}: PostgreSQL uses that name itself, for the "
            "superuser or a template. Change database.name"
        )
        raise HostError(msg)


def make_roles_and_database(ask: Ask, content: dict[str, Any]) -> list[str]:
    """Make roles, database, schema and privileges as described; return what changed."""
    owner, fleet, database = content["owner"], content["fleet"], content["database"]
    changed = []
    before = ask("postgres", ROLE_FACTS)
    verifiers = ask("postgres", "SELECT rolname, coalesce(rolpassword, '') FROM pg_authid;")
    kept = dict(line.split("|", 1) for line in verifiers.splitlines())
    roles = [role_statements(role, kept.get(role["name"])) for role in (owner, fleet)]
    ask("postgres", "\n".join(["BEGIN;", *roles, "COMMIT;"]))
    if ask("postgres", ROLE_FACTS) != before:
        changed.append("database roles")
    if database not in ask("postgres", "SELECT datname FROM pg_database;").splitlines():
        ask("postgres", f'CREATE DATABASE "{database}" OWNER "{owner["name"]}";')
        changed.append(f"database {database}")
    before = ask(database, ACCESS_FACTS)
    ask(database, privilege_statements(content))
    if ask(database, ACCESS_FACTS) != before:
        changed.append("database privileges")
    return changed


def apply(content: dict[str, Any]) -> None:
    """Make the database as described."""
    check_roles(content)
    # psql and initdb run as another user, who may not read root's directory.
    os.chdir("/")
    changed = []
    running = running_version()
    if running is None:
        for address in ("127.0.0.1", content["mesh_address"]):
            refuse_taken_port(address, content["port"], for_whom="PostgreSQL")
    mount = content["mount"]
    if content["device"] is None:
        Path(mount).mkdir(mode=0o755, parents=True, exist_ok=True)
    else:
        uuid, made = prepare_disk(content["device"])
        changed += [f"{content['device']} formatted"] if made else []
        changed += mount_disk(uuid, mount)
    supported = {int(number) for number in content["configurations"]}
    version = choose_version(mount, supported) if running is None else running
    server = Server(content, version)
    directory = data_directory(mount, version)
    if make_cluster(directory, version):
        changed.append(f"{directory} made")
    if make_certificate(content):
        changed.append(content["certificate_path"])
    unit = f"/etc/systemd/system/{server.unit}.d/fortress.conf"
    if write_file({"path": unit, "content": content["unit"]}):
        run(["systemctl", "daemon-reload"])
        changed.append(unit)
    # It starts every cluster whose start.conf says auto, at boot.
    if enable_unit("postgresql.service"):
        changed.append("postgresql.service enabled")
    configuration = Path("/etc/postgresql") / str(version) / CLUSTER
    files = [str(configuration / name) for name in ("postgresql.conf", "pg_hba.conf")]
    with put_back_on_failure(files, None if running is None else server.resume):
        written = write_configuration(content, version)
        changed += written
        if running is not None:
            changed += server.renew()
        else:
            # The generator that lets it start at boot looks for the files just written.
            run(["systemctl", "daemon-reload"])
            server.act("start")
            changed.append(f"{server.unit} started")
    changed += make_roles_and_database(server.ask, content)
    report(changed)


if __name__ == "__main__":
    main(apply)
