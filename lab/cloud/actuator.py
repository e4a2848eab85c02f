"""Owns the tie between instances and machines: one for every living instance, none for others.

What an instance is and when it ends is decided in `lab.cloud.groups`; how a machine is made, in
`lab.machines`. A machine that goes off by itself is gone for good, as with an instance whose
shutdown behaviour is terminate.
"""

import logging
import re
import threading
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from lab.cloud import groups
from lab.machines import Machine

BOOTING_AT_ONCE: Final = 2
BOOT_SECONDS: Final = 120.0
"""How long a machine that never asks for its credentials counts as booting; two take about 60 s."""
GRACE_SECONDS: Final = 60.0
"""From the power button to the plug."""
RETRY_SECONDS: Final = 10.0

_INSTANCE_ID: Final = re.compile(r"i-[0-9a-f]{17}")

_log = logging.getLogger("lab.cloud")


class Machines(Protocol):
    """What is needed of `lab.machines.Machines`. Every call may take seconds and may raise."""

    def start(self, machine: Machine) -> None:
        """Boot a machine, on its disk of before when there is one."""

    def shut_down(self, name: str, grace_seconds: float) -> None:
        """Press the power button, wait until it is off, cut its power after `grace_seconds`."""

    def destroy(self, name: str) -> None:
        """Pull the plug and remove the disk; nothing happens when there is neither."""

    def names(self) -> Collection[str]:
        """Names of the machines that are on."""


class Actuator:
    """Brings machines in line with instances, one step per `tick`.

    Parameters:
        network: the libvirt network every machine is plugged into.
    """

    def __init__(self, machines: Machines, network: str) -> None:
        self._machines = machines
        self._network = network
        self._pool = ThreadPoolExecutor(max_workers=8, thread_name_prefix="machine")
        self._guard = threading.Lock()
        self._busy: set[str] = set()
        self._on: set[str] = set()
        self._booting: dict[str, float] = {}
        self._not_before: dict[str, float] = {}
        self._silent: dict[str, float] = {}
        self._interruptions: dict[str, datetime] = {}

    def tick(self) -> None:
        """Look once and begin what is due; nothing in here is slow but listing the machines."""
        groups.advance(time.time())
        with self._guard:
            known_on, busy = set(self._on), set(self._busy)
        running = {name for name in self._machines.names() if _INSTANCE_ID.fullmatch(name)}
        guests = {guest.instance_id: guest for guest in groups.guests()}
        now = time.monotonic()
        self._forget_the_dead(guests.keys(), now)
        for instance_id, at in list(self._interruptions.items()):
            if datetime.now(UTC) >= at:
                groups.take_back(instance_id, "its spot notice is over")
        for name in running - guests.keys() - busy:
            self._begin(name, self._remove, "no instance has this id")
        for instance_id, guest in guests.items():
            if instance_id in busy:
                continue
            if instance_id in running:
                self._tend(guest, instance_id in known_on)
            elif now < self._silent.get(instance_id, 0) and guest.powered:
                continue
            elif guest.leaving:
                self._begin(instance_id, self._power_off, guest.address)
            elif instance_id in known_on:
                self._begin(instance_id, self._bury, "its machine is off")
            elif self._may_boot(instance_id, now):
                self._booting[instance_id] = now + BOOT_SECONDS
                self._begin(instance_id, self._start, guest)

    def booted(self, instance_id: str) -> None:
        """The instance has shown that its boot is over."""
        self._booting.pop(instance_id, None)

    def interruption(self, instance_id: str) -> datetime | None:
        """When EC2 takes the instance back, None when no notice was given."""
        return self._interruptions.get(instance_id)

    def control(self, command: str, parameters: dict[str, Any]) -> Any:
        """Answer `lab.cloud.control`.

        Raises:
            KeyError: no such command or a parameter is missing.
            ValueError: no such instance.
        """
        if command == "guests":
            return self._describe()
        instance_id = str(parameters["instance"])
        if instance_id not in {guest.instance_id for guest in groups.guests()}:
            message = f"instance is {instance_id!r}; no living instance has this id"
            raise ValueError(message)
        if command == "kill":
            self._kill(instance_id, float(parameters["silent-seconds"]))
        elif command == "interrupt":
            notice = timedelta(seconds=float(parameters["notice-seconds"]))
            self._interruptions[instance_id] = datetime.now(UTC) + notice
            _log.info("%s gets its spot notice of %s", instance_id, notice)
        else:
            raise KeyError(command)
        return {}

    def close(self) -> None:
        """Finish what was begun; machines stay as they are."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _describe(self) -> list[dict[str, Any]]:
        return [
            {
                "instance": guest.instance_id,
                "region": guest.region,
                "group": guest.group,
                "address": guest.address,
                "state": guest.lifecycle_state,
                "machine": "on" if guest.instance_id in self._on else "off",
            }
            for guest in groups.guests()
        ]

    def _forget_the_dead(self, living: Collection[str], now: float) -> None:
        for memory in (self._not_before, self._silent, self._interruptions, self._booting):
            for instance_id in set(memory) - set(living):
                memory.pop(instance_id, None)
        for instance_id, until in list(self._booting.items()):
            if until <= now:
                self.booted(instance_id)

    def _tend(self, guest: groups.Guest, known: bool) -> None:
        if not known:
            _log.info("%s already has its machine", guest.instance_id)
            with self._guard:
                self._on.add(guest.instance_id)
            groups.machine_started(guest.instance_id)
        if not guest.powered:
            self._begin(guest.instance_id, self._power_off, guest.address)

    def _may_boot(self, instance_id: str, now: float) -> bool:
        return len(self._booting) < BOOTING_AT_ONCE and now >= self._not_before.get(instance_id, 0)

    def _begin(self, name: str, step: Any, argument: Any) -> None:
        with self._guard:
            self._busy.add(name)
        self._pool.submit(self._run, name, step, argument)

    def _run(self, name: str, step: Any, argument: Any) -> None:
        try:
            step(name, argument)
        except Exception:
            _log.exception("%s: a step on its machine failed, again in %g s", name, RETRY_SECONDS)
            self._not_before[name] = time.monotonic() + RETRY_SECONDS
            self._booting.pop(name, None)
        finally:
            with self._guard:
                self._busy.discard(name)

    def _start(self, name: str, guest: groups.Guest) -> None:
        began = time.monotonic()
        self._machines.start(
            Machine(
                name=name,
                network=self._network,
                mac=guest.mac,
                address=guest.address,
                is_ec2=True,
                uuid=groups.system_uuid(name),
            )
        )
        with self._guard:
            self._on.add(name)
        _log.info("%s machine started in %.1f s", name, time.monotonic() - began)
        groups.machine_started(name)

    def _power_off(self, name: str, _: object) -> None:
        began = time.monotonic()
        if name in self._machines.names():
            self._machines.shut_down(name, GRACE_SECONDS)
        self._remove(name, "it was powered off")
        groups.machine_gone(name, f"powered off in {time.monotonic() - began:.1f} s")

    def _bury(self, name: str, why: str) -> None:
        self._remove(name, why)
        groups.machine_gone(name, why)

    def _remove(self, name: str, why: str) -> None:
        self._machines.destroy(name)
        with self._guard:
            self._on.discard(name)
        _log.info("%s machine removed: %s", name, why)

    def _kill(self, instance_id: str, silent_seconds: float) -> None:
        self._silent[instance_id] = time.monotonic() + silent_seconds
        _log.info("%s loses its power, unnoticed for %g s", instance_id, silent_seconds)
        self._machines.destroy(instance_id)
