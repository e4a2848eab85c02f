"""Owns how tests and the command line ask the lab's cloud for what no AWS API offers.

The answers come from `lab.cloud.actuator`; this is the caller's side.
"""

import json
import urllib.error
import urllib.request
from typing import Any

from lab.errors import LabError


def guests(endpoint: str) -> list[dict[str, Any]]:
    """Every living instance with its region, group, address, lifecycle state and machine.

    Parameters:
        endpoint: the API's URL, http://10.64.0.1:5000 in the lab.
    """
    found: list[dict[str, Any]] = _ask(endpoint, "guests", {})
    return found


def kill(endpoint: str, instance_id: str, silent_seconds: float) -> None:
    """Pull an instance's plug and let AWS believe for `silent_seconds` that it still runs."""
    _ask(endpoint, "kill", {"instance": instance_id, "silent-seconds": silent_seconds})


def interrupt(endpoint: str, instance_id: str, notice_seconds: float = 120) -> None:
    """Announce a spot interruption to an instance and take it back after `notice_seconds`.

    120 seconds is the notice EC2 gives.
    """
    _ask(endpoint, "interrupt", {"instance": instance_id, "notice-seconds": notice_seconds})


def _ask(endpoint: str, command: str, parameters: dict[str, Any]) -> Any:
    request = urllib.request.Request(  # noqa: S310
        f"{endpoint}/lab/{command}", data=json.dumps(parameters).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        message = f"the lab's cloud refused {command}: {error.read().decode(errors='replace')}"
        raise LabError(message) from error
    except OSError as error:
        message = f"the lab's cloud does not answer at {endpoint} ({error}); is the lab up?"
        raise LabError(message) from error
