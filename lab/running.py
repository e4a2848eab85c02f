"""Owns the knowledge of which lab runs on this machine: one at a time, over all clones."""

import json
from typing import Final

from lab import paths
from lab.errors import LabError
from lab.namespace import ProcessIdentity

_RECORD: Final = paths.CACHE / "running.json"


def record_this_lab(holder: ProcessIdentity) -> None:
    """Remember that this clone's lab runs, for as long as `holder` lives."""
    _RECORD.parent.mkdir(parents=True, exist_ok=True)
    beside = _RECORD.with_suffix(".new")
    beside.write_text(json.dumps({"clone": str(paths.ROOT), "holder": holder.__dict__}))
    beside.rename(_RECORD)


def forget_this_lab() -> None:
    """Nothing happens when another clone's lab is the one that runs."""
    running = _running()
    if running is None or running[0] == str(paths.ROOT):
        _RECORD.unlink(missing_ok=True)


def this_lab_is_running() -> bool:
    """Whether the lab that runs is this clone's."""
    running = _running()
    return running is not None and running[0] == str(paths.ROOT)


def refuse_another_lab() -> None:
    """Raises:
    LabError: the lab of another clone runs on this machine.
    """
    running = _running()
    if running is not None and running[0] != str(paths.ROOT):
        clone, holder = running
        message = (
            f"the lab of {clone} is running (process {holder.pid}); two would not fit this "
            f"machine. End it with {clone}/scripts/lab down, or, if that clone is gone, with "
            f"kill -9 {holder.pid}, which ends all of it."
        )
        raise LabError(message)


def _running() -> tuple[str, ProcessIdentity] | None:
    try:
        record = json.loads(_RECORD.read_text())
        holder = ProcessIdentity(**record["holder"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        return None
    return (record["clone"], holder) if holder.is_alive() else None
