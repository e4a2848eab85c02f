"""Owns where the lab keeps its files; it decides nothing about their content and creates none."""

import os
from pathlib import Path
from typing import Final

PULUMI_VERSION: Final = "3.259.0"

ROOT: Final = Path(__file__).resolve().parent.parent

CACHE: Final = (
    Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fortress-and-fleet"
)
"""Kept across clones: whatever takes minutes to make and depends on nothing of this clone."""

TOOLCHAIN: Final = CACHE / "toolchain" / PULUMI_VERSION
TOOLCHAIN_BIN: Final = TOOLCHAIN / "bin"
IMAGES: Final = CACHE / "images"

VIRTUAL_ENVIRONMENT: Final = ROOT / ".venv"

LAB: Final = ROOT / ".lab"
"""This clone's own lab, ignored by git: secrets, state, sockets, logs and disks."""

RUN: Final = LAB / "run"
LOG: Final = LAB / "log"
PROJECT: Final = LAB / "project"
STATE: Final = LAB / "state"
POOL: Final = LAB / "pool"
