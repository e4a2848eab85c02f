"""The `command` plugin in use behaves, through the real engine, as the official 1.2.1 was measured.

One test per measured case. With the official plugin installed the same tests hold for that one.
"""

import json
import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.conftest import SshHost, free_port
from tests.lab.engine import Engine

Program = Callable[..., str]


@pytest.fixture
def remote(ssh_host: SshHost) -> Program:
    """Text of a program with one remote command; keywords are its inputs, as Python text."""

    def program(connection: str = "", resource: str = "Command", **inputs: str) -> str:
        given = ", ".join(f"{name}={text}" for name, text in inputs.items())
        return (
            "import pulumi\n"
            "import pulumi_command as command\n"
            f'x = command.remote.{resource}("x", connection={connection or ssh_host.connection()}, '
            f"{given})\n"
        )

    return program


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A file to which commands append what they do, so that a run is seen even without output."""
    path = tmp_path / "journal"
    path.touch()
    return path


def entries(journal: Path) -> list[str]:
    return journal.read_text(encoding="utf-8").split()


def note(journal: Path, word: str) -> str:
    """Python text of a command that appends a word."""
    return repr(f"echo {word} >> {journal}")


def test_a_created_command_runs_once_with_its_secret_input_and_shows_what_it_writes(
    engine: Engine, remote: Program, journal: Path
) -> None:
    run = engine.up(
        remote(
            create=repr(f"echo once >> {journal}; cat; echo; echo to-stderr >&2"),
            stdin='pulumi.Output.secret("planted-input")',
        )
        + 'pulumi.export("stdout", x.stdout)\npulumi.export("stderr", x.stderr)\n'
    )
    assert run.operations["x"] == ["create"]
    assert entries(journal) == ["once"]
    assert engine.outputs() == {"stdout": "planted-input", "stderr": "to-stderr"}
    outputs = engine.state()["x"]["outputs"]
    assert outputs["stdout"] == "planted-input", "the official plugin does not make it a secret"
    assert "ciphertext" in outputs["stdin"]
    assert re.fullmatch(r"x[0-9a-f]{8}", engine.state()["x"]["id"])
    for line in ("planted-input", "to-stderr"):
        assert re.search(rf"command:remote:Command x creating.* {line}", run.output)


def test_only_the_last_newline_of_the_output_is_stripped(engine: Engine, remote: Program) -> None:
    engine.up(remote(create="'printf \"a\\n\\n\"'") + 'pulumi.export("stdout", x.stdout)\n')
    assert engine.outputs() == {"stdout": "a\n"}


def test_an_unchanged_command_is_left_alone_without_a_connection(
    engine: Engine, remote: Program
) -> None:
    unreachable = remote(connection=repr({"host": "127.0.0.1", "port": free_port()}))
    assert engine.up(unreachable).operations["x"] == ["create"], "no command, no connection"
    started = time.monotonic()
    assert engine.up(unreachable).unchanged
    assert time.monotonic() - started < 30, "ten attempts to connect would have taken longer"


def test_changed_stdin_runs_create_again_in_place(
    engine: Engine, remote: Program, journal: Path
) -> None:
    create = repr(f"cat >> {journal}")
    engine.up(remote(create=create, stdin="'first '"))
    run = engine.up(remote(create=create, stdin="'second '"))
    assert run.operations["x"] == ["update"]
    assert entries(journal) == ["first", "second"]


def test_changed_stdin_runs_update_in_place_and_its_output_replaces_the_old_one(
    engine: Engine, remote: Program, journal: Path
) -> None:
    commands = {"create": "'echo created'", "update": note(journal, "updated")}
    export = 'pulumi.export("stdout", x.stdout)\n'
    engine.up(remote(**commands, stdin="'1'") + export)
    assert engine.outputs() == {"stdout": "created"}
    run = engine.up(remote(**commands, stdin="'2'") + export)
    assert run.operations["x"] == ["update"]
    assert entries(journal) == ["updated"]
    assert engine.outputs() == {"stdout": ""}


@pytest.mark.parametrize(
    ("added", "ran"), [("update", "add-update"), ("delete", "create")], ids=["update", "delete"]
)
def test_an_added_update_or_delete_text_is_a_change_and_runs_in_place(
    engine: Engine, remote: Program, journal: Path, added: str, ran: str
) -> None:
    create = note(journal, "create")
    engine.up(remote(create=create))
    run = engine.up(remote(create=create, **{added: note(journal, f"add-{added}")}))
    assert run.operations["x"] == ["update"]
    assert entries(journal) == ["create", ran]


def test_added_and_changed_triggers_replace_with_create_first_and_the_old_delete_after(
    engine: Engine, remote: Program, journal: Path
) -> None:
    engine.up(remote(create=note(journal, "create-1"), delete=note(journal, "delete-1")))
    run = engine.up(
        remote(create=note(journal, "create-2"), delete=note(journal, "delete-2"), triggers="['a']")
    )
    assert run.operations["x"] == ["create-replacement", "replace", "delete-replaced"]
    assert entries(journal) == ["create-1", "create-2", "delete-1"]
    run = engine.up(remote(create=note(journal, "create-3"), triggers="['b']"))
    assert run.operations["x"] == ["create-replacement", "replace", "delete-replaced"]
    assert entries(journal)[3:] == ["create-3", "delete-2"]
    run = engine.up(remote(create=note(journal, "create-4"), triggers="['c']"))
    assert entries(journal)[5:] == ["create-4"], "the old state had no delete"


def test_a_changed_connection_is_a_change_that_is_shown_without_its_content(
    engine: Engine, remote: Program, ssh_host: SshHost, journal: Path
) -> None:
    create = note(journal, "ran")
    engine.up(remote(create=create))
    changed = remote(connection=ssh_host.connection(per_dial_timeout=6), create=create)
    shown = engine.preview(changed, "--diff")
    assert "[secret]" in shown.output
    assert ssh_host.private_key.splitlines()[1] not in shown.output
    assert engine.up(changed).operations["x"] == ["update"]
    assert entries(journal) == ["ran", "ran"]


def test_the_connection_is_one_secret_in_the_state(
    engine: Engine, remote: Program, ssh_host: SshHost
) -> None:
    engine.up(remote(create="'true'"))
    kept = engine.state()["x"]
    assert "ciphertext" in kept["inputs"]["connection"]
    assert "ciphertext" in kept["outputs"]["connection"]
    stored = "".join(
        path.read_text(encoding="utf-8")
        for path in (engine.directory / "state").rglob("*")
        if path.is_file()
    )
    assert ssh_host.private_key.splitlines()[1] not in stored


def test_a_failing_command_is_shown_whole_with_its_output_and_the_old_state_stays(
    engine: Engine, remote: Program
) -> None:
    engine.up(remote(create="'echo fine'"))
    run = engine.try_up(remote(create="'echo out; echo err >&2; exit 3'"))
    assert not run.succeeded
    expected = (
        'Process exited with status 3: running "echo out; echo err >&2; exit 3":\\s+out\\s+err'
    )
    assert re.search(expected, run.output), run.output
    assert "Traceback" not in run.output
    kept = engine.state()["x"]["outputs"]
    assert (kept["create"], kept["stdout"]) == ("echo fine", "fine")


def test_a_wrong_host_key_fails_after_the_dial_limit(
    engine: Engine, remote: Program, ssh_host: SshHost, journal: Path
) -> None:
    connection = ssh_host.connection(host_key=ssh_host.other_host_key)
    run = engine.try_up(remote(connection=connection, create=note(journal, "ran")))
    assert not run.succeeded
    assert "Dial 1/2 failed: retrying" in run.output
    mismatch = "after 2 failed attempts: ssh: handshake failed: ssh: host key mismatch"
    assert mismatch in run.output
    assert entries(journal) == [], "nothing may run on a host that is not who it should be"


def test_a_host_where_nobody_listens_fails_after_the_dial_limit(
    engine: Engine, remote: Program, ssh_host: SshHost
) -> None:
    port = free_port()
    run = engine.try_up(remote(connection=ssh_host.connection(port=port), create="'true'"))
    assert not run.succeeded
    refused = f"after 2 failed attempts: dial tcp 127.0.0.1:{port}: connect: connection refused"
    assert refused in run.output


def test_destroy_without_delete_needs_no_host(
    engine: Engine, remote: Program, ssh_host: SshHost
) -> None:
    gone = ssh_host.connection(port=free_port())
    engine.up(remote(connection=gone))
    assert engine.destroy().operations["x"] == ["delete"]


def test_destroy_with_delete_fails_when_the_host_is_gone_and_the_state_keeps_it(
    engine: Engine, remote: Program, ssh_host: SshHost
) -> None:
    gone = ssh_host.connection(port=free_port())
    engine.up(remote(connection=gone, delete="'true'"))
    run = engine.try_destroy()
    assert not run.succeeded
    assert "after 2 failed attempts" in run.output
    assert "x" in engine.state()


def test_destroy_runs_delete(engine: Engine, remote: Program, journal: Path) -> None:
    engine.up(remote(create="'true'", delete=note(journal, "deleted")))
    engine.destroy()
    assert entries(journal) == ["deleted"]


def test_refresh_changes_nothing_and_opens_no_connection(
    engine: Engine, remote: Program, ssh_host: SshHost
) -> None:
    gone = ssh_host.connection(port=free_port())
    engine.up(remote(connection=gone))
    before = engine.state()["x"]
    assert engine.refresh().unchanged
    after = engine.state()["x"]
    assert (after["id"], after["modified"]) == (before["id"], before["modified"])


def test_a_quick_command_costs_less_than_a_second(engine: Engine, remote: Program) -> None:
    commands = "".join(
        remote(create="'true'").splitlines(keepends=True)[-1].replace('"x"', f'"x{number}"')
        for number in range(3)
    )
    run = engine.up(remote(create="'true'") + commands)
    seconds = [float(text) for text in re.findall(r"created \(([\d.]+)s\)", run.output)]
    assert len(seconds) >= 4
    assert min(seconds) < 1, "0.17 s were measured on a loopback"


@pytest.mark.parametrize(
    ("logging", "shown"),
    [("STDOUT", {"to-out"}), ("STDERR", {"to-err"}), ("NONE", set())],
    ids=["stdout", "stderr", "none"],
)
def test_logging_limits_what_is_shown_but_not_what_is_kept(
    engine: Engine, remote: Program, logging: str, shown: set[str]
) -> None:
    run = engine.up(
        remote(
            create="'echo to-out; echo to-err >&2'",
            logging=f"command.remote.Logging.{logging}",
        )
    )
    assert {word for word in ("to-out", "to-err") if word in run.output} == shown
    assert engine.state()["x"]["outputs"]["stdout"] == "to-out"


def test_a_variable_that_the_server_accepts_reaches_the_command_and_another_is_an_error(
    engine: Engine, remote: Program
) -> None:
    engine.up(remote(create="'echo $GREETING'", environment="{'GREETING': 'hello'}"))
    assert engine.state()["x"]["outputs"]["stdout"] == "hello"
    run = engine.try_up(remote(create="'echo $OTHER'", environment="{'OTHER': 'hello'}"))
    assert not run.succeeded
    assert 'could not set environment variable "OTHER": ssh: setenv failed' in run.output


def test_large_input_and_output_pass_whole(engine: Engine, remote: Program) -> None:
    engine.up(
        remote(
            create="'cat'",
            stdin="'x' * 3_000_000",
            logging="command.remote.Logging.NONE",
        )
        + 'pulumi.export("length", x.stdout.apply(len))\n'
    )
    assert engine.outputs() == {"length": 3_000_000}


def test_an_unknown_input_is_refused_before_anything_runs(
    engine: Engine, remote: Program, journal: Path
) -> None:
    program = remote(create=note(journal, "ran")).replace(
        "import pulumi_command as command\n",
        "import pulumi_command as command\n"
        "pulumi.runtime.register_stack_transformation(lambda args: "
        "pulumi.ResourceTransformationResult(props={**args.props, 'creat': 'x'}, opts=args.opts)"
        " if args.type_.startswith('command:') else None)\n",
    )
    run = engine.try_up(program)
    assert not run.succeeded
    assert "creat" in run.output
    assert "Traceback" not in run.output
    assert entries(journal) == []


def test_an_ill_typed_input_is_refused_before_anything_runs(
    engine: Engine, remote: Program, journal: Path
) -> None:
    run = engine.try_up(remote(create=note(journal, "ran"), stdin="['a', 'list']"))
    assert not run.succeeded
    assert "stdin" in run.output
    assert entries(journal) == []


def test_a_preview_runs_nothing_and_knows_no_output_of_what_would_run(
    engine: Engine, remote: Program, journal: Path
) -> None:
    chained = 'y = command.local.Command("y", create=x.stdout)\n'
    run = engine.preview(remote(create=note(journal, "ran")) + chained)
    assert "+ 3 to create" in run.output, "two commands and the stack itself"
    assert entries(journal) == []


def test_an_interrupted_up_ends_soon_and_the_next_one_finishes(
    engine: Engine, remote: Program, journal: Path
) -> None:
    started = time.monotonic()
    output = engine.interrupted_up(remote(create="'echo begun; sleep 120'"), until="begun")
    assert time.monotonic() - started < 60, "the command must not be waited for"
    assert "Traceback" not in output
    engine.pulumi("cancel", "--yes", "--stack", "test")
    assert engine.up(remote(create=note(journal, "finished"))).succeeded
    assert entries(journal) == ["finished"]


def test_a_copied_file_has_its_content_and_changes_with_it(
    engine: Engine, remote: Program, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_text("first", encoding="utf-8")

    def program() -> str:
        return remote(
            resource="CopyToRemote",
            source=f"pulumi.FileAsset({str(source)!r})",
            remote_path=repr(str(target)),
        )

    engine.up(program())
    assert target.read_text(encoding="utf-8") == "first"
    assert engine.up(program()).unchanged
    source.write_text("second", encoding="utf-8")
    assert engine.up(program()).operations["x"] == ["update"]
    assert target.read_text(encoding="utf-8") == "second"
    engine.destroy()
    assert target.exists(), "the official plugin leaves copied files behind"


def test_a_text_and_a_directory_can_be_copied(
    engine: Engine, remote: Program, tmp_path: Path
) -> None:
    text = tmp_path / "text"
    engine.up(
        remote(
            resource="CopyToRemote",
            source="pulumi.StringAsset('words')",
            remote_path=repr(str(text)),
        )
    )
    assert text.read_text(encoding="utf-8") == "words"
    source = tmp_path / "tree"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("leaf", encoding="utf-8")
    engine.up(
        remote(
            resource="CopyToRemote",
            source=f"pulumi.FileArchive({str(source)!r})",
            remote_path=repr(str(tmp_path / "copy")),
        )
    )
    copied = tmp_path / "copy" / "tree" / "inner" / "file"
    assert copied.read_text(encoding="utf-8") == "leaf"
    assert not stat.S_ISLNK(copied.lstat().st_mode)


def test_a_local_command_runs_updates_and_deletes(engine: Engine, journal: Path) -> None:
    def program(**inputs: Any) -> str:
        return (
            "import json, pulumi, pulumi_command as command\n"
            f"command.local.Command('x', **json.loads({json.dumps(json.dumps(inputs))}))\n"
        )

    engine.up(program(create=f"cat >> {journal}", stdin="created ", delete=f"echo d >> {journal}"))
    run = engine.up(
        program(create=f"cat >> {journal}", stdin="again ", delete=f"echo d >> {journal}")
    )
    assert run.operations["x"] == ["update"]
    failing = engine.try_up(program(create="echo why >&2; exit 4", delete=f"echo d >> {journal}"))
    assert not failing.succeeded
    assert 'exit status 4: running "echo why >&2; exit 4":' in failing.output
    engine.destroy()
    assert entries(journal) == ["created", "again", "d"]
