"""Owns the AWS API's server: moto in this process, its images, its memory across restarts.

It answers one request at a time, because moto has no locking. IAM policies are not enforced. What
moto knows is kept in one file, as secret as the lab's seed beside it: parameters are in there as
moto holds them.
"""

import copyreg
import hashlib
import io
import json
import logging
import marshal
import os
import pickle
import threading
import types
import urllib.parse
import weakref
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

# moto would otherwise load 1282 images of other people, a second and ten megabytes per region.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from moto.backends import get_backend
from moto.core.base_backend import BackendDict
from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from lab.cloud import groups

CONTROL_PREFIX: Final = "/lab/"

POLL_SECONDS: Final = 0.05
"""How soon a server notices that it is to stop."""

_READS: Final = ("Describe", "Get", "List", "Query", "Scan", "BatchGet", "Head")

_log = logging.getLogger("lab.cloud")

Control = Callable[[str, dict[str, Any]], Any]
"""Takes what follows `CONTROL_PREFIX` and JSON; gives JSON, or raises KeyError or ValueError."""


class Server:
    """The API on one address, from construction until `close`.

    Parameters:
        control: answers what tests ask of the lab itself, under `/lab/`; not part of AWS.

    Raises:
        OSError: the address or port cannot be had.
    """

    def __init__(self, host: str, port: int, control: Control) -> None:
        groups.install()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._control = control
        self._server = make_server(
            host, port, self._answer, threaded=True, request_handler=_QuietHandler
        )
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="api", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path.startswith(CONTROL_PREFIX):
            return self._answer_control(path.removeprefix(CONTROL_PREFIX), environ, start_response)
        action = _action(environ)
        status = ""

        def start(line: str, headers: Any, exc_info: Any = None) -> Any:
            nonlocal status
            status = line
            return start_response(line, headers, exc_info)

        with groups.LOCK:
            try:
                body = b"".join(self._moto(environ, start))
            except Exception:
                _log.exception("api %s failed", action)
                raise
        if status[:1] == "5" or not action.partition(":")[2].startswith(_READS):
            _log.info("api %s from %s: %s", action, environ.get("REMOTE_ADDR"), status)
        return [body]

    def _answer_control(
        self, command: str, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        try:
            answer = self._control(command, json.loads(_body(environ) or b"{}"))
            status = "200 OK"
        except (KeyError, ValueError) as error:
            status, answer = "400 Bad Request", {"error": str(error)}
        start_response(status, [("Content-Type", "application/json")])
        return [json.dumps(answer).encode()]


class _QuietHandler(MotoRequestHandler):
    def log_request(self, *arguments: Any) -> None:
        """The lab writes its own line for what changes something."""


def _body(environ: dict[str, Any]) -> bytes:
    length = environ.get("CONTENT_LENGTH")
    if not length:
        return b""
    body: bytes = environ["wsgi.input"].read(int(length))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def _action(environ: dict[str, Any]) -> str:
    """Service and action of a request, without its parameters: they may be secret."""
    credential = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].split("/")
    scope = f"{credential[3]}/{credential[2]}" if len(credential) > 4 else "unsigned"
    name = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
    if not name and environ.get("CONTENT_TYPE", "").startswith("application/x-www-form-urlencoded"):
        form = urllib.parse.parse_qs(_body(environ).decode(errors="replace"))
        name = form.get("Action", [""])[0]
    method = environ["REQUEST_METHOD"]
    rest = f"{'Get ' if method in ('GET', 'HEAD') else ''}{method} {environ.get('PATH_INFO')}"
    return f"{scope}:{name or rest}"


def image_id(name: str, region: str) -> str:
    """The id the lab gives its image in a region: it follows from the name."""
    return "ami-" + hashlib.sha256(f"{region} {name}".encode()).hexdigest()[:17]


def register_image(name: str, regions: Iterable[str]) -> None:
    """Make the lab's image the account's own in these regions; nothing happens where it is.

    Parameters:
        name: as programs look it up, such as fortress-lab-debian-13-0a1b2c3d.
    """
    with groups.LOCK:
        for region in regions:
            backend: Any = ec2_backends[groups.ACCOUNT][region]
            identifier = image_id(name, region)
            if identifier in backend.amis:
                continue
            backend.amis[identifier] = Ami(
                backend,
                identifier,
                name=name,
                description="The lab's guest image",
                owner_id=groups.ACCOUNT,
                architecture="x86_64",
                virtualization_type="hvm",
                hypervisor="xen",
                root_device_type="ebs",
                root_device_name="/dev/xvda",
                region_name=f"{region}a",
                boot_mode="legacy-bios",
            )
            _log.info("image %s is %s in %s", name, identifier, region)


class Memory:
    """The file that keeps what the API knows, so that a restart does not empty the cloud."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._saved = b""
        self._complained = False

    def load(self) -> None:
        """Bring back what was saved; an unreadable file is put aside and the cloud starts empty."""
        if not self._file.exists():
            return
        try:
            # Only this class writes the file, readable by its owner alone.
            backends = pickle.loads(zlib.decompress(self._file.read_bytes()))  # noqa: S301
        except Exception:
            aside = self._file.with_suffix(".unreadable")
            self._file.replace(aside)
            _log.exception("the cloud's memory cannot be read and is now %s", aside)
            return
        with groups.LOCK:
            for (service, account, region), backend in backends.items():
                # moto types its services as a closed list of literals.
                accounts: Any = get_backend(service)
                accounts[account][region] = backend
        _log.info("the cloud remembers %d services", len({service for service, _, _ in backends}))

    def save(self) -> None:
        """Write what the API knows, when it changed since the last call."""
        with groups.LOCK:
            backends = {
                (type(backend).__module__.split(".")[1], account, region): backend
                for accounts in list(BackendDict._instances)  # type: ignore[misc]
                for account, region, backend in accounts.iter_backends()
            }
            buffer = io.BytesIO()
            try:
                _Pickler(buffer, protocol=5).dump(backends)
            except Exception:
                if not self._complained:
                    _log.exception("what the cloud knows cannot be saved; a restart will lose it")
                self._complained = True
                return
        content = buffer.getvalue()
        if content == self._saved:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        beside = self._file.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_bytes(zlib.compress(content, level=1))
        beside.replace(self._file)
        self._saved = content


class _Pickler(pickle.Pickler):
    """Also takes what moto's backends hold: lambdas, keys, weak and own kinds of dictionary."""

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, types.LambdaType) and thing.__name__ == "<lambda>":
            if thing.__closure__:
                return NotImplemented
            return _lambda, (marshal.dumps(thing.__code__), thing.__module__)
        if isinstance(thing, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey):
            return _read, (_written(thing),)
        if isinstance(thing, weakref.WeakValueDictionary):
            return weakref.WeakValueDictionary, (dict(thing),)
        if isinstance(thing, defaultdict) and type(thing) is not defaultdict:
            state = (thing.default_factory, vars(thing))
            made = copyreg.__newobj__, (type(thing),)  # type: ignore[attr-defined]
            return *made, state, None, iter(thing.items()), _set_defaultdict
        return NotImplemented


def _written(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """moto's KMS makes keys of its own for SecureStrings."""
    return key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _read(written: bytes) -> Any:
    return serialization.load_der_private_key(written, password=None)


def _set_defaultdict(thing: Any, state: tuple[Any, dict[str, Any]]) -> None:
    thing.default_factory, attributes = state
    vars(thing).update(attributes)


def _lambda(code: bytes, module: str) -> Any:
    # Written by `_Pickler`, into the same owner-only file.
    names = vars(__import__(module, fromlist=["_"]))
    return types.FunctionType(marshal.loads(code), names)  # noqa: S302
