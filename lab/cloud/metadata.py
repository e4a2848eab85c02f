"""Owns the instance metadata service: every instance sees itself, told by its source address.

Only version 2 of the protocol: no token, no answer. The hop limit is not modelled, and the
credentials are names the API does not check.
"""

import hashlib
import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from lab.cloud import groups
from lab.cloud.api import POLL_SECONDS

VERSIONS: Final = ("2009-04-04", "2016-09-02", "2018-09-24", "2021-03-23", "latest")
"""Those cloud-init 25.1 tries (DataSourceEc2: extended_metadata_versions, min_metadata_version)."""

MAXIMUM_TOKEN_SECONDS: Final = 21600
"""Six hours, the longest EC2 gives."""

CREDENTIAL_HOURS: Final = 6

_TOKEN_HEADER: Final = "X-aws-ec2-metadata-token"  # noqa: S105
_TTL_HEADER: Final = "X-aws-ec2-metadata-token-ttl-seconds"

_log = logging.getLogger("lab.cloud")

Tree = dict[str, Any]
"""Directories are dictionaries, leaves are text or bytes."""


class Service:
    """The metadata service on one address, from construction until `close`.

    Parameters:
        interruption: when an instance is taken back, or None.
        booted: told once an instance asks for its credentials, which cloud-init never does.

    Raises:
        OSError: the address or port cannot be had.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        interruption: Callable[[str], datetime | None],
        booted: Callable[[str], None],
    ) -> None:
        self.interruption, self.booted = interruption, booted
        self._tokens: dict[str, tuple[str, float]] = {}
        service = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.service = service
                super().__init__(*arguments)

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_SECONDS,), name="metadata", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def new_token(self, address: str, seconds: int) -> str:
        """A token for one address that lasts this long."""
        now = time.monotonic()
        self._tokens = {token: entry for token, entry in self._tokens.items() if entry[1] > now}
        token = secrets.token_urlsafe(42)
        self._tokens[token] = (address, now + seconds)
        return token

    def token_is_valid(self, token: str, address: str) -> bool:
        """Whether this address was given this token and it has not run out."""
        owner, until = self._tokens.get(token, ("", 0.0))
        return owner == address and time.monotonic() < until


class _Handler(BaseHTTPRequestHandler):
    service: Service
    protocol_version = "HTTP/1.1"
    server_version = "EC2ws"
    sys_version = ""

    def do_PUT(self) -> None:
        """Only a token can be put."""
        address = str(self.client_address[0])
        ttl = self.headers.get(_TTL_HEADER, "")
        if urlsplit(self.path).path.strip("/") != "latest/api/token":
            self._refuse(HTTPStatus.METHOD_NOT_ALLOWED)
        elif "X-Forwarded-For" in self.headers:
            self._refuse(HTTPStatus.FORBIDDEN)
        elif not ttl.isdecimal() or not 1 <= int(ttl) <= MAXIMUM_TOKEN_SECONDS:
            self._refuse(HTTPStatus.BAD_REQUEST)
        elif groups.view(address) is None:
            _log.info("metadata: %s is no instance, token refused", address)
            self._refuse(HTTPStatus.FORBIDDEN)
        else:
            token = self.service.new_token(address, int(ttl))
            self._give(token.encode(), {_TTL_HEADER: ttl})

    def do_GET(self) -> None:
        """One leaf, or the listing of one directory."""
        address = str(self.client_address[0])
        if not self.service.token_is_valid(self.headers.get(_TOKEN_HEADER, ""), address):
            self._refuse(HTTPStatus.UNAUTHORIZED)
            return
        view = groups.view(address)
        words = [unquote(word) for word in urlsplit(self.path).path.split("/") if word]
        if view is None or (words and words[0] not in VERSIONS):
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if words[1:4] == ["meta-data", "iam", "security-credentials"]:
            self.service.booted(view.instance_id)
        found: Any = dict.fromkeys(
            VERSIONS, tree(view, self.service.interruption(view.instance_id))
        )
        for word in words:
            found = found.get(word) if isinstance(found, dict) else None
        if found is None:
            self._refuse(HTTPStatus.NOT_FOUND)
        elif isinstance(found, dict):
            # As in EC2, directories are marked from below a version on.
            mark = "/" if len(words) > 1 else ""
            names = (n + mark if isinstance(v, dict) else n for n, v in found.items())
            self._give("\n".join(names).encode())
        else:
            self._give(found if isinstance(found, bytes) else str(found).encode())

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def _give(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: HTTPStatus) -> None:
        # A body that came with the request would otherwise be read as the next one.
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Every boot asks fifty times; only refusals of strangers are logged."""


def tree(view: groups.View, interruption: datetime | None) -> Tree:
    """Everything one instance can read below a version."""
    metadata: Tree = {
        "ami-id": view.image_id,
        "ami-launch-index": "0",
        "autoscaling": {"target-lifecycle-state": "Terminated" if view.leaving else "InService"},
        "hostname": view.host_name,
        "instance-action": "none",
        "instance-id": view.instance_id,
        "instance-life-cycle": "on-demand",
        "instance-type": view.instance_type,
        "local-hostname": view.host_name,
        "local-ipv4": view.address,
        "mac": view.mac,
        "network": {"interfaces": {"macs": {view.mac: _interface(view)}}},
        "placement": {
            "availability-zone": view.availability_zone,
            "region": view.region,
        },
        "security-groups": "\n".join(view.security_groups),
        "services": {"domain": "amazonaws.com", "partition": "aws"},
    }
    if view.role is not None:
        metadata["iam"] = _iam(view)
    if interruption is not None:
        action = {"action": "terminate", "time": _timestamp(interruption)}
        metadata["spot"] = {
            "instance-action": json.dumps(action),
            "termination-time": action["time"],
        }
    content: Tree = {
        "dynamic": {"instance-identity": {"document": _identity(view)}},
        "meta-data": metadata,
    }
    if view.user_data:
        content["user-data"] = view.user_data
    return content


def _interface(view: groups.View) -> Tree:
    return {
        "device-number": "0",
        "interface-id": view.interface_id,
        "local-hostname": view.host_name,
        "local-ipv4s": view.address,
        "mac": view.mac,
        "owner-id": groups.ACCOUNT,
        "security-group-ids": "\n".join(view.security_group_ids),
        "security-groups": "\n".join(view.security_groups),
        "subnet-id": view.subnet_id,
        "subnet-ipv4-cidr-block": view.subnet_cidr,
        "vpc-id": view.vpc_id,
        "vpc-ipv4-cidr-block": view.vpc_cidr,
        "vpc-ipv4-cidr-blocks": view.vpc_cidr,
    }


def _iam(view: groups.View) -> Tree:
    now = datetime.now(UTC)
    information = {
        "Code": "Success",
        "LastUpdated": _timestamp(now),
        "InstanceProfileArn": view.profile_arn,
        "InstanceProfileId": view.profile_id,
    }
    digest = hashlib.sha256(view.instance_id.encode()).hexdigest()
    credentials = {
        "Code": "Success",
        "LastUpdated": _timestamp(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": f"lab{digest[:17]}",
        "SecretAccessKey": "lab",
        "Token": f"lab-{view.role}",
        "Expiration": _timestamp(now + timedelta(hours=CREDENTIAL_HOURS)),
    }
    return {
        "info": json.dumps(information),
        "security-credentials": {view.role: json.dumps(credentials)},
    }


def _identity(view: groups.View) -> str:
    document = {
        "accountId": groups.ACCOUNT,
        "architecture": "x86_64",
        "availabilityZone": view.availability_zone,
        "imageId": view.image_id,
        "instanceId": view.instance_id,
        "instanceType": view.instance_type,
        "pendingTime": _timestamp(view.launched_at),
        "privateIp": view.address,
        "region": view.region,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2)


def _timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
