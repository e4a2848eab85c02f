"""What every host script is built from: read the content, write files safely, run programs, report.

Runs on the machine itself as root, with the standard library of Python 3.10 and nothing else. It
refuses to know any service: what a change of a file means is decided by the script that writes it.
"""

import contextlib
import grp
import json
import os
import platform
import pwd
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypedDict

# A remote command has no time limit of its own, so each program gets one (seconds).
PROGRAM_SECONDS = 300
# Fetching and unpacking PostgreSQL on a slow line or an emulated machine takes minutes (seconds).
INSTALLATION_SECONDS = 1800
APT_LOCK_SECONDS = 600


class HostError(Exception):
    """What is wrong on this machine: value, rule, reason and remedy; never a secret."""


class FileContent(TypedDict):
    """The part of a file's description that is always given."""

    path: str
    content: str


class File(FileContent, total=False):
    """A file as the renderers describe it; mode is octal text such as "0644"."""

    mode: str
    owner: str
    group: str


def read_content() -> dict[str, Any]:
    """Read the one JSON object on standard input.

    Raises:
        HostError: when it is not one; the text itself is not repeated, it holds secrets.
    """
    try:
        content = json.load(sys.stdin)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        msg = (
            "standard input is not a JSON object: the script takes its whole content from there. "
            "Run it through `pulumi up`"
        )
        raise HostError(msg)
    return content


def main(apply: Callable[[dict[str, Any]], None]) -> None:
    """Run a script's `apply` with its content; what goes wrong becomes one line on stderr."""
    node = platform.node()
    try:
        if os.geteuid() != 0:
            msg = (
                f"running as user id {os.geteuid()}, but only root may write what this script "
                "writes. Let the SSH user run `sudo -n` without a password"
            )
            raise HostError(msg)
        content = read_content()
        node = content.get("node", node)
        apply(content)
    except HostError as error:
        _fail(node, str(error))
    except OSError as error:
        _fail(node, f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _fail(node: str, message: str) -> NoReturn:
    print(f"error: {node}: {one_line(message)}", file=sys.stderr)
    raise SystemExit(1)


def one_line(text: str) -> str:
    """Join the lines of a program's output."""
    return " | ".join(line.strip() for line in text.splitlines() if line.strip())


def report(changed: Iterable[str]) -> None:
    """Say what was changed, in the order given."""
    listed = list(changed)
    print(f"changed: {', '.join(listed)}" if listed else "unchanged")


def _complete(
    argv: Sequence[str], stdin: str | None, seconds: float
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            list(argv),
            input="" if stdin is None else stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            # Other languages would change the texts that scripts read.
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except FileNotFoundError:
        msg = f"the program {argv[0]} is not installed. Install it, then run `pulumi up` again"
        raise HostError(msg) from None
    except subprocess.TimeoutExpired:
        msg = f"{' '.join(argv)} did not end within {seconds:g} seconds. Run it by hand to see why"
        raise HostError(msg) from None


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    check: bool = True,
    seconds: float = PROGRAM_SECONDS,
) -> str:
    """Run a program and return its standard output.

    Parameters:
        argv: program and arguments; never a secret, every user can read them.
        stdin: given to the program, never repeated in a message; without it the input is empty.
        check: whether a failing program is an error.
        seconds: how long it may take.

    Raises:
        HostError: when it fails (unless check is False), is missing or takes too long.
    """
    done = _complete(argv, stdin, seconds)
    if check and done.returncode != 0:
        msg = (
            f"{' '.join(argv)} failed with status {done.returncode}: "
            f"{one_line(done.stderr) or one_line(done.stdout) or 'no message'}"
        )
        raise HostError(msg)
    return done.stdout


def succeeds(argv: Sequence[str], *, seconds: float = PROGRAM_SECONDS) -> bool:
    """Whether a program ends with status 0."""
    return _complete(argv, None, seconds).returncode == 0


def await_condition(what: str, check: Callable[[], bool], seconds: float) -> None:
    """Poll until check() is true.

    Parameters:
        what: the sentence "… did not happen": says what was awaited, and what to look at.
        seconds: how long to wait.

    Raises:
        HostError: when it is still false after that time.
    """
    deadline = time.monotonic() + seconds
    while not check():
        if time.monotonic() >= deadline:
            msg = f"{what} (waited {seconds:g} seconds)"
            raise HostError(msg)
        time.sleep(0.5)


def _identity(file: File) -> tuple[int, int, int]:
    """Mode, user id and group id a file shall have."""
    owner, group = file.get("owner", "root"), file.get("group", "root")
    try:
        user_id = pwd.getpwnam(owner).pw_uid
        group_id = grp.getgrnam(group).gr_gid
    except KeyError:
        msg = (
            f"{file['path']} shall belong to {owner}:{group}, but this machine has no such user "
            "or group. The package that makes it is missing"
        )
        raise HostError(msg) from None
    return int(file.get("mode", "0644"), 8), user_id, group_id


def write_file(file: File, *, validate: Sequence[str] | None = None) -> bool:
    """Give a file its content, owner and mode; say whether anything changed.

    The new content is written beside the old one, with its final mode from the first byte, and
    takes its place only when the validator agrees. The name beside it keeps the extension, which
    some validators insist on, behind a leading dot, which keeps it out of every drop-in directory.

    Parameters:
        file: what to write.
        validate: a program and its arguments, with {} where the temporary path goes.

    Raises:
        HostError: when the validator refuses; the old file is still in place then.
    """
    path = Path(file["path"])
    data = file["content"].encode()
    mode, user_id, group_id = _identity(file)
    with contextlib.suppress(FileNotFoundError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode) and path.read_bytes() == data:
            if (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (
                mode,
                user_id,
                group_id,
            ):
                return False
            os.chown(path, user_id, group_id)
            path.chmod(mode)
            return True
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".new-{path.name}")
    beside.unlink(missing_ok=True)
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            os.fchown(descriptor, user_id, group_id)
            os.fchmod(descriptor, mode)
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
        if validate is not None:
            try:
                run([part.replace("{}", str(beside)) for part in validate])
            except HostError as error:
                msg = f"the new {path} was refused and the old one kept: {error}"
                raise HostError(msg) from None
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return True


def write_files(files: Iterable[File]) -> set[str]:
    """Write files that need no validator; return the paths that changed."""
    return {file["path"] for file in files if write_file(file)}


@contextlib.contextmanager
def put_back_on_failure(
    paths: Collection[str], then: Callable[[], object] | None = None
) -> Iterator[None]:
    """Put files back as they were when the block fails, then act on them again, then fail.

    Parameters:
        paths: files as they are now, before the block changes them; one that is absent is removed.
        then: for example a reload; its own failure is not reported, the first one is.
    """
    before = {
        path: (path.read_bytes(), path.stat()) if path.is_file() else None
        for path in map(Path, paths)
    }
    try:
        yield
    except HostError:
        for path, kept in before.items():
            if kept is None:
                path.unlink(missing_ok=True)
                continue
            data, state = kept
            beside = path.with_name(f".old-{path.name}")
            beside.unlink(missing_ok=True)
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                os.fchown(descriptor, state.st_uid, state.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(state.st_mode))
                stream.write(data)
            beside.replace(path)
        if then is not None:
            with contextlib.suppress(HostError):
                then()
        raise


def install_packages(names: Iterable[str]) -> list[str]:
    """Install what is missing of these packages and return it; asks no mirror when all are there.

    Raises:
        HostError: when apt-get fails.
    """
    missing = [name for name in names if not package_is_installed(name)]
    if not missing:
        return []
    deadline = time.monotonic() + APT_LOCK_SECONDS
    while True:
        # Unlike dpkg's lock, the one on the package lists is not waited for by apt-get itself.
        try:
            run(["apt-get", "update", "--quiet"], seconds=INSTALLATION_SECONDS)
            break
        except HostError as error:
            if "lock" not in str(error) or time.monotonic() >= deadline:
                msg = (
                    f"packages {', '.join(missing)} are missing, and the package lists could not "
                    f"be refreshed: {error}. Install them by hand, or give the machine a mirror"
                )
                raise HostError(msg) from None
        time.sleep(2)
    run(
        [
            *("apt-get", "install", "--yes", "--quiet", "--no-install-recommends"),
            *("-o", f"DPkg::Lock::Timeout={APT_LOCK_SECONDS}"),
            # A configuration file that a person changed is theirs.
            *("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
            *missing,
        ],
        seconds=INSTALLATION_SECONDS,
    )
    return missing


def package_is_installed(name: str) -> bool:
    """Whether dpkg holds a package completely installed."""
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", name]
    return run(query, check=False).strip() == "installed"


def enable_unit(unit: str) -> bool:
    """Let a unit start at boot; say whether it did not before."""
    if run(["systemctl", "is-enabled", unit], check=False).strip() == "enabled":
        return False
    run(["systemctl", "enable", "--quiet", unit])
    return True


def unit_is_active(unit: str) -> bool:
    """Whether a unit runs now."""
    return succeeds(["systemctl", "is-active", "--quiet", unit])
