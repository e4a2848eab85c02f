"""Which part of the program may know which other: pure stays pure, and the product knows no lab."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from settings import ROOT

PURE = [
    "settings.py",
    *sorted(str(p.relative_to(ROOT)) for d in ("plan", "render") for p in (ROOT / d).glob("*.py")),
]
COMPONENTS = sorted((ROOT / "components").glob("*.py"))
HOST = sorted((ROOT / "scripts/host").glob("*.py"))
NODE = sorted((ROOT / "scripts/node").glob("*.py"))
PRODUCT = [
    *(ROOT / name for name in ("__main__.py", "revision.py", "scripts/schema", *PURE)),
    *COMPONENTS,
    *HOST,
    *NODE,
]
TEMPLATES = sorted((ROOT / "render/templates").iterdir())
FORBIDDEN_IN_PURE = {"pulumi", "boto3", "botocore", "requests"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself, which hides from whom"
            yield node.module or ""


def imported_roots(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


@pytest.fixture(scope="module")
def modules_of_pure_code() -> set[str]:
    """Everything that is loaded once all pure modules have been imported in a fresh interpreter."""
    program = (
        "import importlib, json, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "for name in sys.argv[2:]: importlib.import_module(name)\n"
        "print(json.dumps(sorted(sys.modules)))\n"
    )
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in PURE]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, ROOT, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_settings_plan_and_render_load_no_sdk(modules_of_pure_code: set[str]) -> None:
    assert {"settings", "plan.mesh", "render.member"} <= modules_of_pure_code
    roots = {name.partition(".")[0] for name in modules_of_pure_code}
    loaded = {r for r in roots if r in FORBIDDEN_IN_PURE or r.startswith("pulumi_")}
    assert not loaded, "these decide and write texts; whatever talks to a cloud belongs elsewhere"


@pytest.mark.parametrize("path", COMPONENTS, ids=relative)
def test_a_component_reads_no_configuration(path: Path) -> None:
    named = {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [node.attr]
            if isinstance(node, ast.Attribute)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not named & {"Config", "get_config", "environ", "getenv"}, (
        "settings come in by its arguments, so that two of it can live in one program"
    )


@pytest.mark.parametrize("path", PRODUCT, ids=relative)
def test_the_product_knows_neither_lab_nor_tests(path: Path) -> None:
    assert not imported_roots(path) & {"lab", "tests"}


@pytest.mark.parametrize("path", HOST, ids=relative)
def test_a_host_script_needs_python_and_nothing_else(path: Path) -> None:
    siblings = {script.stem for script in HOST}
    # Not run by Pulumi but by a timer, and only where baseline.py installed Debian's python3-boto3.
    library = {"boto3", "botocore"} if path.name == "spill_pressure.py" else set()
    assert imported_roots(path) <= sys.stdlib_module_names | siblings | library


@pytest.mark.parametrize("path", [*NODE, ROOT / "plan/derivation.py"], ids=relative)
def test_a_members_script_needs_python_and_boto3_and_nothing_else(path: Path) -> None:
    # plan/derivation.py is shipped beside them, and so it needs no more either.
    foreign = imported_roots(path) - sys.stdlib_module_names - {script.stem for script in NODE}
    assert foreign <= {"boto3", "botocore", "plan"}
    assert {n for n in imported(path) if n.startswith("plan")} <= {"plan.derivation"}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_is_used(path: Path) -> None:
    name = path.name.removesuffix(".j2")
    used = {
        node.value
        for file in (*(ROOT / "render").glob("*.py"), *COMPONENTS)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant)
    }
    assert name in used, f"nothing renders or reads {path.name}: use it or delete it"


def test_every_template_that_is_rendered_exists() -> None:
    called = {
        str(node.args[0].value)
        for file in (ROOT / "render").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "render"
        and isinstance(node.args[0], ast.Constant)
    }
    assert called
    assert {f"{name}.j2" for name in called} <= {path.name for path in TEMPLATES}


def test_the_documentation_links_to_files_that_exist() -> None:
    broken = []
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{relative(page)} -> {target}")
    assert not broken
