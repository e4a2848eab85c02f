"""Owns the cloud as one running thing: API, actuator and metadata service together."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lab.cloud.actuator import Actuator, Machines
from lab.cloud.api import Memory, Server, register_image
from lab.cloud.metadata import Service

TICK_SECONDS: Final = 1.0

_log = logging.getLogger("lab.cloud")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Where the cloud listens and what it offers; port 0 takes a free one."""

    image_name: str
    regions: Sequence[str]
    network: str
    memory: Path
    api_address: str = "0.0.0.0"  # noqa: S104 - everybody in the lab's namespace, and nobody else
    api_port: int = 5000
    metadata_address: str = "169.254.169.254"
    metadata_port: int = 80


class Cloud:
    """The lab's cloud, running from construction until `close`.

    Raises:
        OSError: an address or port cannot be had.
    """

    def __init__(self, machines: Machines, settings: Settings) -> None:
        self._memory = Memory(settings.memory)
        self._memory.load()
        register_image(settings.image_name, settings.regions)
        self._actuator = Actuator(machines, settings.network)
        self._api = Server(settings.api_address, settings.api_port, self._actuator.control)
        self._metadata = Service(
            settings.metadata_address,
            settings.metadata_port,
            interruption=self._actuator.interruption,
            booted=self._actuator.booted,
        )
        self.api_port, self.metadata_port = self._api.port, self._metadata.port
        _log.info("api on port %d, metadata on port %d", self.api_port, self.metadata_port)

    def run(self, stop: threading.Event, tick_seconds: float = TICK_SECONDS) -> None:
        """Keep machines and instances together until told to stop."""
        while not stop.wait(tick_seconds):
            try:
                self._actuator.tick()
            except Exception:
                _log.exception("this look at the machines failed; the next one follows")
            self._memory.save()

    def close(self) -> None:
        """Stop answering, finish what was begun, remember everything; machines stay as they are."""
        self._api.close()
        self._metadata.close()
        self._actuator.close()
        self._memory.save()
        _log.info("stopped")
