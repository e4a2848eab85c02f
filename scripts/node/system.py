"""Everything a member does to its own machine, behind one small object that tests replace.

Standard library only. It refuses to decide anything.
"""

import errno
import http.client
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path


class FailureError(Exception):
    """Something outside this program did not do its part; the message holds no secret."""


class System:
    """The real machine."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def request_stop(self) -> None:
        """Ask whoever waits to come to an end; called from a signal handler."""
        self._stop.set()

    def stop_requested(self, *, within: float = 0.0) -> bool:
        """Wait at most `within` seconds for a request to stop; say whether there was one."""
        return self._stop.wait(within)

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return time.monotonic()

    def time(self) -> float:
        """Unix time in seconds."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def run(self, argv: Sequence[str], *, timeout: float = 60.0) -> str:
        """Run a program and return its standard output.

        Raises:
            FailureError: when it is missing, fails, or takes longer than `timeout` seconds.
        """
        try:
            done = subprocess.run(
                argv, check=True, capture_output=True, text=True, timeout=timeout, errors="replace"
            )
        except FileNotFoundError:
            message = f"{argv[0]} is not installed"
            raise FailureError(message) from None
        except subprocess.TimeoutExpired:
            message = f"{' '.join(argv)} took longer than {timeout:.0f} s"
            raise FailureError(message) from None
        except subprocess.CalledProcessError as error:
            last = (error.stderr or error.stdout or "").strip().splitlines()[-3:]
            message = f"{' '.join(argv)} ended with {error.returncode}: {' / '.join(last)}"
            raise FailureError(message) from None
        return done.stdout

    def succeeds(self, argv: Sequence[str], *, timeout: float = 60.0) -> bool:
        """Whether a program ends well."""
        try:
            self.run(argv, timeout=timeout)
        except FailureError:
            return False
        return True

    def read(self, path: str) -> str | None:
        """A file's text, or None when there is none."""
        try:
            return Path(path).read_text()
        except FileNotFoundError:
            return None

    def write(self, path: str, content: str, *, mode: int = 0o644) -> None:
        """Put a file in place at once, with its final mode from the first byte."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")
        beside.unlink(missing_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(content)
        beside.replace(target)

    def remove(self, path: str) -> None:
        """Remove a file that may not be there."""
        Path(path).unlink(missing_ok=True)

    def answers(self, address: str, port: int, *, timeout: float) -> bool:
        """Whether something at the other end answers a TCP connection.

        A refusal is an answer too: it proves the way there and back.
        """
        with socket.socket() as probe:
            probe.settimeout(timeout)
            result = probe.connect_ex((address, port))
        return result in {0, errno.ECONNREFUSED}

    def says_ok(self, address: str, port: int, path: str) -> bool:
        """Whether an HTTP server answers 200 within two seconds."""
        connection = http.client.HTTPConnection(address, port, timeout=2.0)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def finds(self, program: str) -> bool:
        """Whether a program is on PATH."""
        return shutil.which(program) is not None
