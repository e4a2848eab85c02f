"""What a member is born with, taken apart: its cloud-config and the archive in its command."""

import base64
import gzip
import io
import json
import re
import tarfile
from typing import Any


def document(user_data: str) -> dict[str, Any]:
    """The cloud-config in the base64 of a launch template."""
    first, rest = (
        gzip.decompress(base64.b64decode(user_data, validate=True)).decode().split("\n", 1)
    )
    assert first == "#cloud-config"
    return dict(json.loads(rest))


def command(user_data: str) -> str:
    """The shell script that puts the files in place and starts the member."""
    ((*_, script),) = document(user_data)["bootcmd"]
    return str(script)


def archive(user_data: str) -> bytes:
    """The compressed archive within the command."""
    (text,) = re.findall(r"^echo (\S+) \|", command(user_data), flags=re.MULTILINE)
    return base64.b64decode(text, validate=True)


def files(user_data: str) -> dict[str, str]:
    """Content of all files by path."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive(user_data))) as opened:
        for member in opened:
            content = opened.extractfile(member)
            assert content is not None, member.name
            found[f"/{member.name}"] = content.read().decode()
    return found
