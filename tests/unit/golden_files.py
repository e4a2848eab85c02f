"""Rendered texts as they are meant to be, and the real programs that read them."""

import difflib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    """Compare a rendered text with its golden file; UPDATE_GOLDEN=1 rewrites that, for review."""
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    wanted = path.read_text() if path.exists() else ""
    if text != wanted:
        difference = difflib.unified_diff(
            wanted.splitlines(), text.splitlines(), f"golden/{name}", "rendered", lineterm=""
        )
        pytest.fail(
            "the rendered text is not the reviewed one; if it is right, run again with "
            "UPDATE_GOLDEN=1\n" + "\n".join(difference)
        )


def program_output(*argv: str) -> str:
    """Run a real program on a rendered text; a missing or refusing one fails the test."""
    if shutil.which(argv[0]) is None:
        pytest.fail(f"{argv[0]} is not installed, so nothing has read this text: install it")
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv)} refuses the text:\n{done.stderr}{done.stdout}")
    return done.stdout
