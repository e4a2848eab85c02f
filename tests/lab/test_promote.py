"""scripts/promote in a repository of its own: what it refuses, and what it does otherwise."""

import os
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from lab.paths import ROOT
from tests.lab.engine import STACK, TIME_LIMIT_SECONDS, Engine

FROM: Final = STACK
TO: Final = "prod"

# A component costs no plugin; which ones there are is told by a file that git ignores, as a change
# that was never applied may come from outside the repository.
PROGRAM: Final = """
import subprocess
from pathlib import Path

import pulumi

for name in Path("told").read_text().split():
    pulumi.ComponentResource("test:index:Part", name)
head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
pulumi.export("revision", head.stdout.strip())
"""


class Repository:
    """A clone with a Pulumi program, whose stack FROM was applied and whose TO never was."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.directory = engine.directory
        nobody = {
            f"GIT_{who}_{what}": "test"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        self.environment = engine.environment | nobody | {"GIT_CONFIG_GLOBAL": os.devnull}
        engine.pulumi("stack", "init", TO).check_returncode()
        engine.write(PROGRAM)
        self.tell("one")
        (self.directory / ".gitignore").write_text("state/\npassphrase\nevents\ntold\n*.pyc\n")
        self.git("init", "--quiet")
        self.commit()
        self.first = self.git("rev-parse", "HEAD")
        engine.up()

    def tell(self, names: str) -> None:
        """Which components there shall be."""
        (self.directory / "told").write_text(names)

    def git(self, *words: str) -> str:
        return subprocess.run(
            ["git", *words],
            cwd=self.directory,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def commit(self) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")

    def promote(self, *words: str, answer: str = "") -> "subprocess.CompletedProcess[str]":
        """Both outputs are in `stdout`, as a person sees them."""
        return subprocess.run(
            [ROOT / "scripts" / "promote", *words],
            cwd=self.directory,
            env=self.environment,
            input=answer,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIME_LIMIT_SECONDS,
            check=False,
        )

    def state(self, stack: str) -> str:
        """A stack's whole state as the backend keeps it; nothing before it was ever applied."""
        kept = self.directory / "state/.pulumi/stacks/conformance" / f"{stack}.json"
        return kept.read_text() if kept.exists() else ""


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(Engine(tmp_path_factory.mktemp("promote")))


@pytest.fixture
def repository(applied: Repository) -> Iterator[Repository]:
    """The repository, as it was when FROM was applied, whatever a test does to its files."""
    yield applied
    applied.git("reset", "--quiet", "--hard", applied.first)
    applied.git("clean", "--quiet", "--force")
    applied.tell("one")


def refused(done: "subprocess.CompletedProcess[str]", *texts: str) -> None:
    assert done.returncode == 1, done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("promote: ")]
    for text in texts:
        assert text in done.stdout, line


@pytest.mark.parametrize("change", ["__main__.py", "new.py"])
def test_a_tree_that_differs_from_its_commit_is_refused(
    repository: Repository, change: str
) -> None:
    with (repository.directory / change).open("a") as file:
        file.write("# not committed\n")
    before = repository.state(TO)
    refused(repository.promote(FROM, TO), "differs from commit", change, "Commit or stash")
    assert repository.state(TO) == before


def test_a_revision_that_from_does_not_run_is_refused(repository: Repository) -> None:
    repository.commit()
    head = repository.git("rev-parse", "HEAD")
    before = repository.state(TO)
    done = repository.promote(FROM, TO, answer=f"{TO}\n")
    refused(done, f"runs revision {repository.first}", head, f"git checkout {repository.first}")
    assert repository.state(TO) == before


def test_a_from_that_was_never_applied_is_refused(repository: Repository) -> None:
    repository.engine.pulumi("stack", "init", "empty").check_returncode()
    try:
        repository.commit()
        done = repository.promote("empty", TO, answer=f"{TO}\n")
        refused(done, "stack empty does not say", "never applied", "pulumi up --stack empty")
    finally:
        repository.engine.pulumi("stack", "rm", "--yes", "empty").check_returncode()


def test_a_from_that_does_not_exist_is_refused_in_the_engines_words(
    repository: Repository,
) -> None:
    refused(repository.promote("nowhere", TO), "no stack named 'nowhere' found")


def test_a_from_with_changes_that_were_never_applied_is_refused(repository: Repository) -> None:
    repository.tell("one two")
    before = repository.state(TO)
    done = repository.promote(FROM, TO, answer=f"{TO}\n")
    refused(done, "two", f"stack {FROM} has changes that were not applied")
    assert repository.state(TO) == before


def test_without_the_stacks_name_as_the_answer_nothing_is_applied(repository: Repository) -> None:
    before = repository.state(TO)
    refused(repository.promote(FROM, TO, answer="yes\n"), "not applied: the answer was not prod")
    assert repository.state(TO) == before


def test_the_exact_answer_applies_what_the_preview_showed(repository: Repository) -> None:
    done = repository.promote(FROM, TO, answer=f"{TO}\n")
    assert done.returncode == 0, done.stdout
    shown = done.stdout.partition("Updating (")[0]
    assert "+ test:index:Part: (create)" in shown
    assert shown.index(f"would change in {TO}") < shown.index("test:index:Part")
    output = repository.engine.pulumi("stack", "output", "revision", "--stack", TO)
    assert output.stdout.strip() == repository.first


@pytest.mark.parametrize("words", [(), (FROM,), (FROM, TO, "more")])
def test_any_other_number_of_stacks_shows_how_it_is_used(
    repository: Repository, words: tuple[str, ...]
) -> None:
    done = repository.promote(*words)
    assert done.returncode == 2
    assert "Usage: scripts/promote FROM TO" in done.stdout


def test_a_stack_is_not_promoted_to_itself(repository: Repository) -> None:
    refused(repository.promote(FROM, FROM), f"both {FROM}")
