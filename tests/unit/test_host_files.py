"""How host scripts write files, run programs and fail."""

import grp
import io
import json
import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import files
import settings
from files import (
    File,
    HostError,
    await_condition,
    put_back_on_failure,
    read_content,
    report,
    run,
    write_file,
    write_files,
)

USER = pwd.getpwuid(os.getuid()).pw_name
GROUP = grp.getgrgid(os.getgid()).gr_name


def file_at(path: Path, content: str, mode: str = "0640") -> File:
    return {
        "path": str(path),
        "content": content,
        "mode": mode,
        "owner": USER,
        "group": GROUP,
    }


def test_a_file_is_written_once_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "made" / "one.conf"
    assert write_file(file_at(path, "one\n")) is True
    assert path.read_text() == "one\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert write_file(file_at(path, "one\n")) is False, "the second time there is nothing to do"
    assert [left.name for left in path.parent.iterdir()] == ["one.conf"]


def test_only_the_mode_is_put_right_when_only_it_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "one.conf"
    write_file(file_at(path, "one\n"))
    before = path.stat().st_ino
    path.chmod(0o666)
    assert write_file(file_at(path, "one\n", "0600")) is True
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino == before


def test_a_refused_file_leaves_the_old_one_and_names_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "one.conf"
    path.write_text("old\n")
    refuse = ["sh", "-c", 'echo "line 1: $(cat "$0") is bad" >&2; exit 2', "{}"]
    with pytest.raises(HostError, match=r"one\.conf was refused .* line 1: new is bad"):
        write_file(file_at(path, "new\n"), validate=refuse)
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path], "a refused secret must not stay beside"


def test_the_validator_sees_the_new_text_privately_and_under_a_name_of_the_same_kind(
    tmp_path: Path,
) -> None:
    seen = tmp_path / "seen"
    note = ["sh", "-c", f'stat -c "%a %n" "$0" > {seen}', "{}"]
    write_file(file_at(tmp_path / "wg0.conf", "key\n", "0600"), validate=note)
    mode, name = seen.read_text().split()
    assert mode == "600"
    assert Path(name).name.startswith("."), "a drop-in directory would read it"
    assert name.endswith("wg0.conf")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("theirs\n")
    path = tmp_path / "one.conf"
    path.symlink_to(target)
    assert write_file(file_at(path, "theirs\n")) is True
    assert not path.is_symlink()
    write_file(file_at(path, "ours\n"))
    assert target.read_text() == "theirs\n"


def test_what_a_crash_left_beside_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".new-one.conf").write_text("half")
    assert write_file(file_at(tmp_path / "one.conf", "whole\n")) is True
    assert not (tmp_path / ".new-one.conf").exists()


def test_an_unknown_owner_is_named_before_anything_is_written(tmp_path: Path) -> None:
    file = file_at(tmp_path / "one.conf", "one\n")
    file["owner"] = "nobody-we-know"
    with pytest.raises(HostError, match="nobody-we-know"):
        write_file(file)
    assert list(tmp_path.iterdir()) == []


def test_of_many_files_the_changed_ones_are_told(tmp_path: Path) -> None:
    one, two = file_at(tmp_path / "one", "1"), file_at(tmp_path / "two", "2")
    write_file(one)
    assert write_files([one, two]) == {two["path"]}


def test_files_come_back_as_they_were_when_the_block_fails(tmp_path: Path) -> None:
    old, new = tmp_path / "old.conf", tmp_path / "new.conf"
    write_file(file_at(old, "before\n", "0600"))
    reloads = []

    def change_and_fail() -> None:
        with put_back_on_failure(
            [str(old), str(new)], then=lambda: reloads.append(old.read_text())
        ):
            write_files([file_at(old, "after\n"), file_at(new, "after\n")])
            run(["sh", "-c", "echo reload failed >&2; exit 1"])

    with pytest.raises(HostError, match="reload failed"):
        change_and_fail()
    assert old.read_text() == "before\n"
    assert stat.S_IMODE(old.stat().st_mode) == 0o600
    assert not new.exists()
    assert reloads == ["before\n"], "the service must be told that the old file is back"


def test_a_failing_program_is_reported_with_its_words_and_without_its_input() -> None:
    with pytest.raises(HostError) as caught:
        run(["sh", "-c", "cat >/dev/null; echo one >&2; echo two >&2; exit 7"], stdin="planted")
    assert "status 7: one | two" in str(caught.value)
    assert "planted" not in str(caught.value)


def test_a_missing_program_and_an_endless_one_are_said_to_be_so() -> None:
    with pytest.raises(HostError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(HostError, match="did not end within"):
        run(["sleep", "60"], seconds=0.05)


def test_awaiting_ends_with_the_given_sentence() -> None:
    answers = iter([False, True])
    await_condition("never told", lambda: next(answers), 10)
    with pytest.raises(HostError, match="the disk did not appear"):
        await_condition("the disk did not appear", lambda: False, 0)


@pytest.mark.parametrize("text", ["", "[1]", "{planted"])
def test_content_that_is_no_object_is_refused_without_repeating_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(HostError) as caught:
        read_content()
    assert "planted" not in str(caught.value)


def test_a_report_says_what_changed_or_that_nothing_did(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report(["one", "two"])
    report([])
    assert capsys.readouterr().out == "changed: one, two\nunchanged\n"


def outcome_of(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, content: Mapping[str, Any]
) -> None:
    def apply(_: dict[str, Any]) -> None:
        raise failure

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(content)))
    files.main(apply)


@pytest.mark.parametrize(
    ("failure", "line"),
    [
        (HostError("first\nsecond"), "error: oslo-db-01: first | second\n"),
        (OSError(28, "No space left on device", "/etc/x"), "No space left on device: /etc/x\n"),
    ],
)
def test_trouble_becomes_one_line_that_names_the_node(
    failure: Exception,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        outcome_of(failure, monkeypatch, {"node": "oslo-db-01"})
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(line)


def test_somebody_who_is_not_root_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        files.main(lambda _: None)
    assert "only root" in capsys.readouterr().err


def test_packages_that_are_there_cost_no_look_at_a_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "package_is_installed", lambda _: True)
    monkeypatch.setattr(files, "run", lambda *_, **__: pytest.fail("a program was run"))
    assert files.install_packages(["nftables"]) == []


def test_host_scripts_need_nothing_but_the_standard_library() -> None:
    directory = settings.ROOT / "scripts/host"
    names = [path.stem for path in directory.glob("*.py")]
    # -I leaves out the environment and the working directory, -S everything installed.
    lines = f"import sys; sys.path.insert(0, {str(directory)!r}); import " + ", ".join(names)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", lines], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
