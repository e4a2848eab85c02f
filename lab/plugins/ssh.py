"""Owns SSH for the `command` stand-in: dialling, host keys, logging in, running, copying.

Keys and passwords stay in memory: no file, no command line, no environment ever holds one.
Messages are those of the official plugin, because programs and people have learnt to read them.
"""

import base64
import errno
import io
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import paramiko
import paramiko.common

from lab.plugins.base import Call, ResourceError

Connection: TypeAlias = Mapping[str, Any]
"""The plugin's `connection` input, defaults filled in."""

FIRST_PAUSE_SECONDS: Final = 0.1
PAUSE_GROWTH: Final = 1.5
LONGEST_PAUSE_SECONDS: Final = 5.0
"""The official plugin's own pauses between dials (pulumi/sdk, util/retry)."""

POLL_SECONDS: Final = 0.05
CHUNK_BYTES: Final = 65536

ERRNO_MESSAGES: Final = {
    errno.ECONNREFUSED: "connect: connection refused",
    errno.EHOSTUNREACH: "connect: no route to host",
    errno.ENETUNREACH: "connect: network is unreachable",
    errno.ECONNRESET: "read: connection reset by peer",
}

Dialled = TypeVar("Dialled")


class DialError(Exception):
    """One attempt to connect failed."""


@contextmanager
def connected(connection: Connection, call: Call) -> Iterator[paramiko.Transport]:
    """A logged-in connection, by way of the proxy if there is one.

    Raises:
        ResourceError: the host could not be reached, is not who it should be, or refused the login.
    """
    with ExitStack() as opened:

        def keep(transport: paramiko.Transport) -> paramiko.Transport:
            opened.callback(transport.close)
            return transport

        proxy: Connection | None = connection.get("proxy")
        if proxy is None:
            yield keep(
                _dial("Dial", connection, call, lambda: _log_in(_tcp(connection), connection))
            )
            return
        try:
            bastion = keep(_dial("Dial proxy", proxy, call, lambda: _log_in(_tcp(proxy), proxy)))
            transport = keep(
                _dial(
                    "Dial from proxy",
                    connection,
                    call,
                    lambda: _log_in(_through(bastion, connection), connection),
                )
            )
        except ResourceError as error:
            message = f"proxy: {error}"
            raise ResourceError(message) from error
        yield transport


def run(
    transport: paramiko.Transport,
    command: str,
    call: Call,
    *,
    stdin: str,
    environment: dict[str, str],
    optional_environment: dict[str, str],
    received: Callable[[str, bytes], None],
) -> str | None:
    """Run a command to its end; None on success, else how it ended.

    Parameters:
        environment: variables that the server must accept.
        optional_environment: variables whose refusal is only worth a warning.
        received: gets each piece of output with the name of its stream.

    Raises:
        ResourceError: a variable was refused, the connection broke, or the time is over.
    """
    try:
        accepted: dict[str, str] = {}
        for name, value in (environment | optional_environment).items():
            if _accepts_variable(transport, name, value):
                accepted[name] = value
                continue
            call.log(_refused(name), "error" if name in environment else "warning")
            if name in environment:
                message = f'could not set environment variable "{name}": ssh: setenv failed'
                raise ResourceError(message)
        with transport.open_session() as channel:
            channel.update_environment(accepted)
            channel.exec_command(command)
            _converse(channel, stdin.encode(), call, received)
            status = channel.recv_exit_status()
    except (paramiko.SSHException, OSError, EOFError) as error:
        message = f"ssh: connection to the host broke while the command ran: {error}"
        raise ResourceError(message) from error
    if status == 0:
        return None
    if status < 0:
        return "wait: remote command exited without exit status or exit signal"
    return f"Process exited with status {status}"


def copy(transport: paramiko.Transport, sources: Mapping[str, bytes | None], target: str) -> None:
    """Write files by SFTP, replacing what is there.

    Parameters:
        sources: content by path relative to `target` (empty for `target` itself); None for a
            directory.
        target: absolute path on the host; a file goes into it if it is a directory there.

    Raises:
        ResourceError: the host refused a path.
    """
    try:
        client = paramiko.SFTPClient.from_transport(transport)
    except paramiko.SSHException as error:
        message = f"ssh: the host offers no SFTP: {error}"
        raise ResourceError(message) from error
    if client is None:
        message = "ssh: the host offers no SFTP"
        raise ResourceError(message)
    with client:
        for name, content in sources.items():
            path = f"{target.rstrip('/')}/{name}" if name else target
            try:
                if content is None:
                    _make_directories(client, path)
                    continue
                _make_directories(client, str(Path(path).parent))
                with client.open(path, "wb") as file:
                    file.set_pipelined(True)
                    file.write(content)
            except OSError as error:
                message = f"failed to copy to remote path {path}: {error}"
                raise ResourceError(message) from error


def is_directory(transport: paramiko.Transport, path: str) -> bool:
    """Whether the path is a directory on the host."""
    client = paramiko.SFTPClient.from_transport(transport)
    if client is None:
        return False
    with client:
        return _is_directory(client, path)


def _is_directory(client: paramiko.SFTPClient, path: str) -> bool:
    try:
        client.listdir(path)
    except OSError:
        return False
    return True


def _make_directories(client: paramiko.SFTPClient, path: str) -> None:
    if path in {"", ".", "/"} or _is_directory(client, path):
        return
    _make_directories(client, str(Path(path).parent))
    client.mkdir(path)


def _dial(what: str, connection: Connection, call: Call, attempt: Callable[[], Dialled]) -> Dialled:
    limit: int = connection["dialErrorLimit"]
    pause_seconds = FIRST_PAUSE_SECONDS
    deadline = time.monotonic() + call.timeout_seconds if call.timeout_seconds else None
    tries = 0
    while True:
        try:
            return attempt()
        except DialError as error:
            if -1 < limit <= tries:
                message = f"after {tries} failed attempts: {error}"
                raise ResourceError(message) from error
        tries += 1
        call.status(f"{what} {tries}/{'inf' if limit == -1 else limit} failed: retrying")
        if deadline is not None and time.monotonic() + pause_seconds > deadline:
            message = "context deadline exceeded"
            raise ResourceError(message)
        if call.cancelled.wait(pause_seconds):
            message = "context canceled"
            raise ResourceError(message)
        pause_seconds = min(pause_seconds * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)


def _timeout_seconds(connection: Connection) -> float | None:
    return float(connection["perDialTimeout"]) or None


def _tcp(connection: Connection) -> socket.socket:
    host, port = connection["host"], int(connection["port"])
    shown = f"dial tcp {host}:{port}"
    try:
        return socket.create_connection((host, port), _timeout_seconds(connection))
    except TimeoutError as error:
        message = f"{shown}: i/o timeout"
        raise DialError(message) from error
    except socket.gaierror as error:
        message = f"dial tcp: lookup {host}: no such host"
        raise DialError(message) from error
    except OSError as error:
        reason = ERRNO_MESSAGES.get(error.errno or 0, f"connect: {error.strerror}")
        message = f"{shown}: {reason}"
        raise DialError(message) from error


def _through(bastion: paramiko.Transport, connection: Connection) -> paramiko.Channel:
    address = (connection["host"], int(connection["port"]))
    try:
        return bastion.open_channel(
            "direct-tcpip", address, ("127.0.0.1", 0), timeout=_timeout_seconds(connection)
        )
    except (paramiko.SSHException, EOFError) as error:
        message = f"ssh: rejected: connect failed ({error})"
        raise DialError(message) from error


def _log_in(stream: socket.socket | paramiko.Channel, connection: Connection) -> paramiko.Transport:
    seconds = _timeout_seconds(connection)
    transport = paramiko.Transport(stream)
    try:
        pinned = _pinned_key(connection.get("hostKey"))
        if pinned is not None:
            _ask_for_key_type(transport, pinned[0])
        if seconds is not None:
            transport.banner_timeout = transport.auth_timeout = seconds
        transport.start_client(timeout=seconds)
        if pinned is not None and transport.get_remote_server_key().asbytes() != pinned[1]:
            _fail("ssh: host key mismatch")
        _authenticate(transport, connection)
    except BaseException as error:
        transport.close()
        stream.close()
        if isinstance(error, paramiko.SSHException | EOFError | OSError):
            reason = str(error) or "EOF"
            message = f"ssh: handshake failed: {reason}"
            raise DialError(message) from error
        raise
    return transport


def _fail(reason: str) -> None:
    raise paramiko.SSHException(reason)


def _pinned_key(text: str | None) -> tuple[str, bytes] | None:
    """Type and content of a host key in the form of an authorized_keys line."""
    if not text:
        return None
    words = text.split()
    try:
        return words[0], base64.b64decode(words[1], validate=True)
    except (IndexError, ValueError) as error:
        message = "hostKey is not a public key in OpenSSH form (`ssh-ed25519 AAAA…`)"
        raise ResourceError(message) from error


def _ask_for_key_type(transport: paramiko.Transport, key_type: str) -> None:
    # A host with several keys shows the one that is asked for; without this, a pinned RSA key
    # would be compared with the host's Ed25519 key.
    wanted = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}.get(key_type, (key_type,))
    options = transport.get_security_options()
    try:
        options.key_types = wanted
    except ValueError as error:
        message = f"ssh: host key type {key_type} is not supported"
        raise ResourceError(message) from error


def _authenticate(transport: paramiko.Transport, connection: Connection) -> None:
    user = connection["user"]
    attempts: list[Callable[[], object]] = []
    if text := connection.get("privateKey"):
        key = _private_key(text, connection.get("privateKeyPassword"))
        attempts.append(lambda: transport.auth_publickey(user, key))
    if password := connection.get("password"):
        attempts.append(lambda: transport.auth_password(user, password))
    if not attempts:
        attempts += [
            lambda key=key: transport.auth_publickey(user, key)  # type: ignore[misc]
            for key in paramiko.Agent().get_keys()
        ]
    for attempt in attempts:
        try:
            attempt()
        except paramiko.AuthenticationException:
            continue
        return
    _fail("ssh: unable to authenticate, no supported methods remain")


def _private_key(text: str, password: str | None) -> paramiko.PKey:
    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        try:
            return kind.from_private_key(io.StringIO(text), password)
        except (paramiko.SSHException, ValueError, IndexError):
            continue
    message = (
        "privateKey is not a private key that SSH can use (Ed25519, ECDSA or RSA in OpenSSH or PEM "
        "form), or privateKeyPassword does not open it"
    )
    raise ResourceError(message)


def _accepts_variable(transport: paramiko.Transport, name: str, value: str) -> bool:
    """Whether the host takes a variable.

    In a session of its own: a refusal closes the session.
    """
    with transport.open_session() as channel:
        request = paramiko.Message()
        request.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
        request.add_int(channel.remote_chanid)
        request.add_string("env")
        request.add_boolean(True)
        request.add_string(name)
        request.add_string(value)
        try:
            # The library's own method never asks the host for its answer.
            channel._event_pending()  # type: ignore[attr-defined]
            transport._send_user_message(request)  # type: ignore[attr-defined]
            channel._wait_for_event()  # type: ignore[attr-defined]
        except paramiko.SSHException:
            return False
        return True


def _refused(name: str) -> str:
    return (
        f"Unable to set '{name}'. This only works if your SSH server is configured to accept "
        "these variables via AcceptEnv. Alternatively, if a Bash-like shell runs the command on "
        "the remote host, you could prefix the command itself with the variables in the form "
        "'VAR=value command'"
    )


def _converse(
    channel: paramiko.Channel, stdin: bytes, call: Call, received: Callable[[str, bytes], None]
) -> None:
    deadline = time.monotonic() + call.timeout_seconds if call.timeout_seconds else None
    unsent = memoryview(stdin)
    input_open = True
    while True:
        progressed = False
        if channel.recv_ready():
            received("stdout", channel.recv(CHUNK_BYTES))
            progressed = True
        if channel.recv_stderr_ready():
            received("stderr", channel.recv_stderr(CHUNK_BYTES))
            progressed = True
        if unsent and channel.send_ready():
            try:
                unsent = unsent[channel.send(bytes(unsent[:CHUNK_BYTES])) :]
            except OSError:
                # The command has ended without reading all of it, which is its right.
                unsent = unsent[:0]
            progressed = True
        if input_open and not unsent:
            channel.shutdown_write()
            input_open = False
        if progressed:
            continue
        if channel.exit_status_ready() and (channel.eof_received or channel.closed):
            return
        if deadline is not None and time.monotonic() > deadline:
            message = "context deadline exceeded"
            raise ResourceError(message)
        if call.cancelled.wait(POLL_SECONDS):
            message = "context canceled"
            raise ResourceError(message)
