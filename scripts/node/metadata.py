"""What an EC2 instance is told about itself: the instance metadata service, version 2.

Standard library only. It refuses to keep anything but its session token.
"""

import urllib.error
import urllib.request
from collections.abc import Callable

ADDRESS = "http://169.254.169.254"
# The longest that the service allows (EC2 user guide, "Use IMDSv2").
TOKEN_SECONDS = 21600
TIMEOUT_SECONDS = 3.0
HTTP_UNAUTHORIZED = 401
HTTP_NOT_FOUND = 404

# Method, path and headers in; status and body out.
Request = Callable[[str, str, dict[str, str]], tuple[int, str]]


def request(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
    """Ask the service directly: a proxy of the environment must never see the token."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    question = urllib.request.Request(ADDRESS + path, method=method, headers=headers)  # noqa: S310
    try:
        with opener.open(question, timeout=TIMEOUT_SECONDS) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


class Metadata:
    """Reads paths below /latest/meta-data, renewing its token when the service refuses it."""

    def __init__(self, request: Request = request) -> None:
        self._request = request
        self._token = ""

    def read(self, path: str) -> str | None:
        """One value, or None when the service has none at this path.

        Raises:
            OSError: when the service does not answer or answers with another error.
        """
        for _ in range(2):
            if not self._token:
                self._token = self._ask(
                    "PUT",
                    "/latest/api/token",
                    {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)},
                )[1]
            status, body = self._ask(
                "GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}
            )
            if status != HTTP_UNAUTHORIZED:
                return None if status == HTTP_NOT_FOUND else body
            self._token = ""
        message = "the metadata service refuses its own token (401 twice)"
        raise OSError(message)

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        status, body = self._request(method, path, headers)
        if status not in {200, HTTP_UNAUTHORIZED, HTTP_NOT_FOUND}:
            message = f"the metadata service answers {method} {path} with {status}"
            raise OSError(message)
        return status, body
