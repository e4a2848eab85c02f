"""The Python language host in use treats programs as the official one does."""

import json

from tests.lab.engine import Engine


def test_what_a_program_prints_is_shown_and_its_secrets_reach_it(engine: Engine) -> None:
    engine.pulumi("config", "set", "plain", "seen", "--stack", "test").check_returncode()
    secret = ("config", "set", "--secret", "hidden", "planted-secret", "--stack", "test")
    engine.pulumi(*secret).check_returncode()
    run = engine.up(
        "import sys, pulumi\n"
        "config = pulumi.Config()\n"
        "print('plain is', config.require('plain'))\n"
        "print('to stderr', file=sys.stderr)\n"
        "pulumi.export('hidden', config.require_secret('hidden'))\n"
        "pulumi.export('stack', f'{pulumi.get_project()}/{pulumi.get_stack()}')\n"
    )
    assert "plain is seen" in run.output
    assert "to stderr" in run.output
    assert "planted-secret" not in run.output
    assert engine.outputs() == {"hidden": "planted-secret", "stack": "conformance/test"}


def test_an_exception_in_a_program_is_shown_with_the_programs_own_lines_only(
    engine: Engine,
) -> None:
    run = engine.try_up("raise ValueError('planted mistake')\n")
    assert not run.succeeded
    assert "Program failed with an unhandled exception" in run.output
    assert "ValueError: planted mistake" in run.output
    assert "language_host.py" not in run.output


def test_a_program_that_ends_itself_is_reported_with_its_status(engine: Engine) -> None:
    run = engine.try_up("import os\nos._exit(5)\n")
    assert not run.succeeded
    assert "Program exited with non-zero exit code: 5" in run.output


def test_a_missing_virtual_environment_is_named_with_the_remedy(engine: Engine) -> None:
    project = engine.directory / "Pulumi.yaml"
    text = json.loads(project.read_text(encoding="utf-8"))
    text["runtime"]["options"]["virtualenv"] = "nowhere"
    project.write_text(json.dumps(text), encoding="utf-8")
    run = engine.try_up("")
    assert not run.succeeded
    assert "nowhere" in run.output
    assert "Traceback" not in run.output


def test_an_interrupted_program_is_ended_with_the_engine(engine: Engine) -> None:
    output = engine.interrupted_up(
        "import time\nprint('begun', flush=True)\ntime.sleep(600)\n", until="begun"
    )
    assert "Traceback" not in output


def test_the_program_does_not_see_the_modules_of_the_language_host(engine: Engine) -> None:
    engine.up(
        "import importlib.util, pulumi\n"
        "pulumi.export('lab', importlib.util.find_spec('lab') is not None)\n"
    )
    assert engine.outputs() == {"lab": False}


def test_about_names_the_interpreter_and_its_packages(engine: Engine) -> None:
    shown = engine.pulumi("about", "--stack", "test").stdout
    assert "python" in shown
    assert "pulumi_command" in shown
