"""What `pip install` of a wheel or an sdist gives: all files of the package, and a command line that runs elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
NOT_OURS = shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist")
BUILD = "import setuptools.build_meta as b, sys; out = sys.argv[1]; b.build_wheel(out); b.build_sdist(out)"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    for name in ("raydistal", "tests", "docs", "jobs", "cluster", "benchmarks"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=NOT_OURS)
    for path in ROOT.glob("[!.]*"):
        if path.is_file():
            shutil.copy(path, folder / "source")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, folder], cwd=folder / "source", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_sdist_has_what_the_repository_has(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    left_out = files_below(built / "source") - names
    assert {name for name in left_out if "egg-info" not in name and not name.startswith("build/")} == set()


def test_wheel_runs_outside_the_repository(built, tmp_path):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path / "site")
    assert files_below(tmp_path / "site/raydistal") == files_below(built / "source/raydistal")
    code = "import raydistal.cli as cli; print(cli.__file__); cli.main(['report', '--out', 'nowhere'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(tmp_path / "site/raydistal/cli.py")
    assert (done.returncode, "raydistal index" in done.stderr) == (2, True), done.stderr
