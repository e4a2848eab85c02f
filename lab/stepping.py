"""Threads that stop before each request to AWS, so that somebody else decides whose goes next.

For tests and measurements of protocols that run the real code. It knows no request and no AWS.
"""

import threading
from collections.abc import Callable
from enum import StrEnum
from typing import Any


class Fate(StrEnum):
    """What becomes of one request."""

    DONE = "done"
    REFUSED = "refused"
    ANSWER_LOST = "answer lost"
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


class ThrottledError(Exception):
    """A request that failed; whether it was done is not known."""


class Crashed(BaseException):
    """The member's machine is gone, wherever its program was."""


class Actor:
    """One boot of one instance: the real protocol in a thread that waits before each request."""

    def __init__(self, work: Callable[["Actor"], str | None]) -> None:
        self._work = work
        self._go = threading.Semaphore(0)
        self._waiting = threading.Semaphore(0)
        self._fate = Fate.DONE
        self.is_finished = False
        self.result: str | None = None
        self.error: BaseException | None = None
        threading.Thread(target=self._run, daemon=True).start()
        self._waiting.acquire()

    def _run(self) -> None:
        try:
            self.result = self._work(self)
        except BaseException as error:
            self.error = error
        self.is_finished = True
        self._waiting.release()

    def request(self, call: Callable[[], Any]) -> Any:
        """Called by the protocol's thread around each request to AWS."""
        self._waiting.release()
        self._go.acquire()
        if self._fate is Fate.CRASH_BEFORE:
            raise Crashed
        if self._fate is Fate.REFUSED:
            raise ThrottledError
        answer = call()
        if self._fate is Fate.CRASH_AFTER:
            raise Crashed
        if self._fate is Fate.ANSWER_LOST:
            raise ThrottledError
        return answer

    def step(self, fate: Fate) -> None:
        """Let the thread make its next request."""
        self._fate = fate
        self._go.release()
        self._waiting.acquire()
