"""The package as a whole: light to import, its public face complete, its house in order."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import alignlab as al

ROOT = Path(__file__).parent.parent
TOP = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "alignlab", "analyses", "tests", "data"}


def test_import_loads_nothing_heavy():
    code = "import sys, alignlab; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {
        "torch",
        "matplotlib",
        "seaborn",
        "scipy",
        "statsmodels",
        "xarray",
        "dask",
        "zarr",
        "pydantic",
        "typer",
    }
    assert heavy & set(loaded) == set()


def test_what_trains_nothing_does_not_import_the_compiler():
    code = "import sys, alignlab.cli, alignlab.gallery, alignlab.figures, alignlab.rules; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" in loaded
    assert "torch._dynamo" not in loaded  # it takes as long as all of torch


def test_every_public_name_is_there():
    assert [name for name in al.__all__ if not hasattr(al, name)] == []
    assert len(al.__all__) <= 31  # what a user types; all else is a module away


def test_the_version_is_looked_up_when_asked_for():
    code = "import sys, alignlab; print('importlib.metadata' in sys.modules, alignlab.__version__)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == f"False {metadata.version('alignlab')}\n"


def test_unknown_name_is_an_attribute_error():
    assert not hasattr(al, "no_such_name")


def test_audit_is_package_and_function():
    assert callable(al.audit)
    assert al.audit.Claim is al.Claim


def test_top_level_holds_what_the_house_rules_say():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    top = {path.split("/")[0] for path in tracked} or TOP
    assert {name for name in top if not name.startswith(".")} <= TOP


def test_every_module_says_what_it_is_for():
    silent = [
        path.relative_to(ROOT).as_posix()
        for folder in ("alignlab", "analyses", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_analyses_are_gallery_short():
    for path in (ROOT / "analyses").glob("*.py"):
        text = path.read_text()
        beyond = len(text.splitlines()) - len(ast.get_docstring(ast.parse(text), clean=False).splitlines())
        assert beyond <= 60, path


def test_everything_that_is_required_is_imported():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    code = "\n".join(path.read_text() for path in (ROOT / "alignlab").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", code, re.MULTILINE))
    names = {re.match("[a-z0-9]+", line)[0] for line in required}
    assert names - imported == {
        "h5netcdf",
        "pyyaml",
    }  # whoever opens a segment by xarray needs the one; the other is yaml


def test_the_sdist_holds_every_file_that_the_commands_of_the_readme_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]
    commands = re.findall(
        r"^    (?:python|pip) .*|`python [^`]*`", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    named = set(re.findall(r"(?<![\w/])\.?\w+/[\w./-]+", "\n".join(commands)))
    assert ".ci/constraints.txt" in named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert [name for name in named if not any(f"/{name}".startswith(path) for path in shipped)] == []
