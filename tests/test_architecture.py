"""The rules of layout, executed: imports point down, Ray lives in pipelines and serving, names say what they hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raydistal"
MODULES = sorted(PACKAGE.rglob("*.py"))
RAY_LIVES_IN = {"pipelines", "serving", "cli.py"}
CONTRACTS = {"errors", "schemas"}
MAY_IMPORT = {
    "errors.py": set(),
    "schemas.py": set(),
    "storage.py": {"errors"},
    "tables.py": {"errors", "storage"},
    "progress.py": set(),
    "datasets": CONTRACTS | {"storage"},
    "video": CONTRACTS,
    "faces": CONTRACTS | {"video"},
    "features": CONTRACTS | {"storage"},
    "selection": CONTRACTS,
    "detector": CONTRACTS | {"storage", "tables", "faces", "features", "selection"},
    "compression": CONTRACTS | {"storage", "tables", "faces", "detector"},
    "search": CONTRACTS | {"storage", "tables", "detector"},
    "report": CONTRACTS | {"storage", "tables", "faces"},
    "sharing": CONTRACTS | {"storage", "tables", "datasets", "video", "faces"},
    "verdict": CONTRACTS | {"video", "faces", "detector"},
}
DOMAIN = {"errors", "schemas", "storage", "tables", "progress", *(name for name in MAY_IMPORT if "." not in name)}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc", "base", "core", "manager", "engine", "processor"}
# distill and demo are the verbs in a row; the others train and measure detectors by the verbs for that
PIPELINES_OF_PIPELINES = {"distill", "demo", "prune", "search", "compare", "generalise", "trainings", "trial", "plan"}
NO_VERBS = tuple(
    f"raydistal.pipelines.{name}" for name in ("connection", "epochs", "scaling", "streaming", "telemetry", "trainings")
)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    home = path.relative_to(PACKAGE).parts[0]
    for name in imports(path):
        if name.split(".")[0] == "ray":
            assert home in RAY_LIVES_IN, f"{path} imports ray"
        if name.split(".")[0] == "tyro":
            assert home in ("cli.py", "pipelines"), f"{path} imports tyro"
        if not name.startswith("raydistal."):
            continue
        target = name.split(".")[1]
        if home in MAY_IMPORT:
            assert target == home.removesuffix(".py") or target in MAY_IMPORT[home], f"{path} imports {name}"
        if home == "pipelines":
            assert target not in ("cli", "serving"), f"{path} imports {name}"
            is_verb = target == "pipelines" and not name.startswith(NO_VERBS)
            assert not is_verb or path.stem in PIPELINES_OF_PIPELINES, f"{path} imports {name}"


@pytest.mark.slow
def test_domain_packages_load_without_ray() -> None:
    code = (
        "import importlib, pkgutil, sys, raydistal\n"
        "for module in pkgutil.walk_packages(raydistal.__path__, 'raydistal.'):\n"
        f"    if module.name.split('.')[1] in {DOMAIN}:\n"
        "        importlib.import_module(module.name)\n"
        "        assert 'ray' not in sys.modules, module.name"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_command_line_loads_nothing_slow() -> None:
    slow = {"ray", "torch", "matplotlib", "sklearn", "pandas"}
    code = f"import sys, raydistal.cli; assert not {slow} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_names_and_package_files(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    if path.name == "__init__.py":
        assert path.read_text() == ""


def test_ray_is_started_in_one_place() -> None:
    starters = [path for path in MODULES if "ray.init(" in path.read_text()]
    assert starters == [PACKAGE / "pipelines/connection.py"]
