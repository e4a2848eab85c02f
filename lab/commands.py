"""Owns running a program and turning its failure into one message; where is the callers' choice."""

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.errors import LabError


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float | None = None,
) -> str:
    """Run a program to its end and give its standard output.

    Parameters:
        stdin: text for its standard input, the only way secrets take; nothing is read when it is
        None. environment: the whole environment of the program, this process's own when None.

    Raises:
        LabError: it could not be started, failed, or was still running after `timeout_seconds`.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin if stdin is not None else "",
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_seconds,
            check=False,
        )
    except FileNotFoundError as error:
        message = (
            f"{words[0]} is not installed; scripts/lab up installs what lab/packages.txt names."
        )
        raise LabError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"{' '.join(words)} was still running after {timeout_seconds} seconds."
        raise LabError(message) from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        message = f"{' '.join(words)} ended with status {done.returncode}: {said}"
        raise LabError(message)
    return done.stdout
