"""Imports point one way: adapters <- training <- service <- benchmarks, and the text side needs no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "adapters": set(),
    "training": {"adapters"},
    "service": {"adapters", "training.contract", "training.findings", "training.gate"},
    "benchmarks": {"adapters", "training", "service"},
}
# The command line starts the benchmarks, inside the command, and nothing else knows of them.
MAY_START_BENCHMARKS = ROOT / "service" / "commands" / "bench.py"
TORCH_FREE = [
    "adapters.tasks.catalog",
    "adapters.bundle",
    "adapters.text_stream",
    "adapters.registry.registry",
    "training.contract",
    "training.gate",
    "training.__main__",
    "service.cli",
    "service.client",
    "service.predictor",
    "service.runs",
    "service.server",
]


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(package: str, path: Path) -> list[str]:
    others = tuple(f"{name}." for name in ALLOWED if name != package)
    allowed = ALLOWED[package] | ({"benchmarks"} if path == MAY_START_BENCHMARKS else set())
    return [
        module
        for module in imported_modules(path)
        if f"{module}.".startswith(others)
        and not any(f"{module}.".startswith(f"{each}.") for each in allowed)
    ]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package):
    paths = list((ROOT / package).rglob("*.py"))
    assert paths
    assert {str(p): w for p in paths if (w := wrong_imports(package, p))} == {}


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("adapters", "import training.data"),
        ("adapters", "from service import settings"),
        ("training", "from service.settings import Settings"),
        ("service", "from training import trainer"),
        ("service", "from training.trainer import fit"),
        ("adapters", "from benchmarks.report import Report"),
        ("training", "import benchmarks.bundles"),
        ("service", "from benchmarks.serving import run_serving"),
    ],
)
def test_a_wrong_import_is_found(tmp_path, package, line):
    path = tmp_path / "module.py"
    path.write_text(line)
    assert wrong_imports(package, path)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_text_side_imports_no_torch(module):
    code = (
        f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_command_line_imports_the_benchmarks_inside_a_command_only():
    top = ast.parse(MAY_START_BENCHMARKS.read_text()).body
    modules = [node.module for node in top if isinstance(node, ast.ImportFrom)]
    assert not [module for module in modules if module and module.startswith("benchmarks")]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "benchmarks" / "peers").glob("*.py")), ids=lambda p: p.stem
)
def test_a_peer_needs_nothing_of_ours_but_its_neighbours(path):
    if path.stem in ("engine_worker", "fit_ours"):
        return
    modules = [m for m in imported_modules(path) if m.partition(".")[0] in ALLOWED]
    assert not [module for module in modules if not module.startswith("benchmarks.peers.")]


def test_the_client_imports_nothing_of_ours():
    modules = imported_modules(ROOT / "service" / "client.py")
    assert not [m for m in modules if m.partition(".")[0] in ALLOWED]


@pytest.mark.parametrize("package", ALLOWED)
def test_an_init_file_holds_one_sentence_and_no_imports(package):
    for path in (ROOT / package).rglob("__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path
