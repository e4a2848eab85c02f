"""Owns a steady load on the lab's own door, bounded in number and time, and its report.

    python -m lab.load http://10.20.0.11/ --seconds 60 --held 8 --per-second 4

Held requests are slow ones, sent again as soon as they end: they keep Oslo full, so that the others
go to the fleet. It ends early when its standard input does.
"""

import argparse
import http.client
import json
import statistics
import sys
import threading
import time
from collections import Counter
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

LONGEST_SECONDS: Final = 2 * 3600
MOST_HELD: Final = 32
MOST_PER_SECOND: Final = 20.0
HELD_SECONDS: Final = 8
"""Below the lab's drain-seconds, so that a member that leaves lets them end."""
REQUEST_LIMIT_SECONDS: Final = 60


class Door:
    """What was asked of a door and what it answered; any thread may ask."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._guard = threading.Lock()
        self._sites: Counter[str] = Counter()
        self._failed: list[dict[str, object]] = []
        self._seconds: list[float] = []

    def ask(self, path: str, *, timed: bool) -> None:
        """One request on a connection of its own."""
        began = time.monotonic()
        connection = http.client.HTTPConnection(
            self._host, self._port, timeout=REQUEST_LIMIT_SECONDS
        )
        site, problem = "", ""
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status == HTTPStatus.OK:
                site = json.loads(body)["site"]
            else:
                problem = f"{answer.status} {answer.reason}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        finally:
            connection.close()
        seconds = time.monotonic() - began
        with self._guard:
            if problem:
                now = time.strftime("%H:%M:%S", time.gmtime())
                self._failed.append(
                    {"at": now, "after_seconds": round(seconds, 3), "path": path, "what": problem}
                )
            else:
                self._sites[site] += 1
                if timed:
                    self._seconds.append(seconds)

    def report(self) -> dict[str, Any]:
        """Counts, and the time that requests other than held ones took, in milliseconds."""
        times = sorted(self._seconds)
        return {
            "requests": sum(self._sites.values()) + len(self._failed),
            "by_site": dict(self._sites),
            "failed": self._failed,
            "milliseconds": {
                "median": round(statistics.median(times) * 1000, 1),
                "p99": round(times[int(0.99 * (len(times) - 1))] * 1000, 1),
                "max": round(times[-1] * 1000, 1),
            }
            if times
            else {},
        }


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=60, help=f"at most {LONGEST_SECONDS}")
    parser.add_argument("--held", type=int, default=0, help=f"at most {MOST_HELD}")
    parser.add_argument("--per-second", type=float, default=4, help=f"at most {MOST_PER_SECOND}")
    options = parser.parse_args()
    if (
        not 0 < options.seconds <= LONGEST_SECONDS
        or not 0 <= options.held <= MOST_HELD
        or not 0 < options.per_second <= MOST_PER_SECOND
    ):
        parser.error("one of the numbers is out of its bounds; --help shows them")

    door, over = Door(options.url), threading.Event()

    def hold() -> None:
        while not over.is_set():
            door.ask(f"/slow?seconds={HELD_SECONDS}", timed=False)

    def until_input_ends() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=until_input_ends, daemon=True).start()
    threads = [threading.Thread(target=hold) for _ in range(options.held)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + options.seconds
    while time.monotonic() < end and not over.wait(1 / options.per_second):
        # Each in a thread of its own: a slow answer must not make the load slower.
        threads = [thread for thread in threads if thread.is_alive()]
        threads.append(threading.Thread(target=door.ask, args=("/",), kwargs={"timed": True}))
        threads[-1].start()
    over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(door.report()))


if __name__ == "__main__":
    main()
