"""Which git revision the program runs from, so that promotion can move exactly that one."""

import subprocess
from pathlib import Path


def revision(root: Path) -> str:
    """The commit's full hash, with `-dirty` when the tree differs from it; else `unknown`.

    Parameters:
        root: directory of the program.
    """
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
