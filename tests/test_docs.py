"""The README is true: settings, file tree and commands are those of the code."""

import ast
import re
from pathlib import Path

import pytest
import typer.main

from service.cli import app
from service.settings import Settings
from training.contract import RunConfig

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", Settings.model_fields)
def test_each_setting_stands_in_the_readme_with_default_and_description(name):
    field = Settings.model_fields[name]
    default = "" if field.default is None else f"`{field.default}`"
    if field.default_factory is not None:
        default = "`~/.local/share/headstock`"
    assert f"| `HEADSTOCK_{name.upper()}` | {default} | {field.description or ''} |" in README


def run_fields():
    """Yield each field of a run's sections, by its path."""
    for section in ("data", "lora", "fit"):
        model = RunConfig.model_fields[section].annotation
        for name, field in model.model_fields.items():
            yield f"{section}.{name}", field


@pytest.mark.parametrize(("path", "field"), run_fields())
def test_each_field_of_a_run_stands_in_the_readme_with_default_and_description(path, field):
    default = None if field.default_factory is not None else field.default
    shown = "" if default is None else f"`{default}`"
    assert f"| `{path}` | {shown} | {field.description or ''} |" in README


def sources():
    for package in ("adapters", "training", "service", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.name != "__init__.py":
                yield path


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_stands_in_the_tree_with_its_own_first_sentence(path):
    sentence = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
    lines = [line for line in README.splitlines() if re.match(rf" +{re.escape(path.name)} ", line)]
    assert any(line.split(maxsplit=1)[1] == sentence[:118].rstrip() for line in lines), sentence


def test_no_file_in_the_tree_is_gone():
    tree = README.split("## File tree")[1].split("```")[1]
    named = set(re.findall(r"^ +(\w+\.py) ", tree, re.MULTILINE))
    assert named == {path.name for path in sources()}


def test_each_command_in_the_readme_exists():
    commands = typer.main.get_command(app).commands
    named = re.findall(r"^    (?:\$ )?(?:\.venv/bin/)?headstock (\w+)", README, re.MULTILINE)
    assert named
    assert set(named) <= set(commands)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_400_lines(path):
    assert len(path.read_text().splitlines()) <= 400
