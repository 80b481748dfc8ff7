"""The wheel, as a user gets it: built from the sdist, installed outside the checkout."""

import ast
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WHEEL_LIMIT = 12_000_000


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this checkout and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-P", "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    run(*build, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (wheel,) = distributions.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with only the wheel; it borrows the dependencies installed here."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    # A folder named by a .pth file is searched, but its own .pth files are not read: the checkout's
    # editable install stays out of sight.
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_holds_the_three_packages_and_their_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    for package in ("server", "adapters", "kernels"):
        assert f"weft/{package}/py.typed" in names
        assert f"weft/{package}/__init__.py" not in names
        on_disk = {
            f"weft/{path.relative_to(ROOT)}"
            for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert on_disk <= names
    strays = {name for name in names if not name.startswith(("weft/", "weft-"))}
    assert not strays
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert wheel.stat().st_size < WHEEL_LIMIT


def test_wheel_holds_the_page_and_the_embedded_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "weft/server/web/index.html" in names
    assert "weft/server/demo/base/model.safetensors" in names
    assert "weft/kernels/plans/sm_90.json" in names
    adapters = {
        name.split("/")[4]
        for name in names
        if name.startswith("weft/server/demo/adapters/") and name.endswith(".safetensors")
    }
    assert len(adapters) >= 4


def test_sdist_can_rebuild_and_retest_the_project(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt"}
    assert needed | {"tests/test_packaging.py"} <= names


def test_installed_wheel_imports_from_its_own_environment(installed: Path) -> None:
    code = (
        "import weft.server.settings, weft.adapters.registry, weft.kernels.low_rank as last; "
        "import weft; print(*weft.__path__)"
    )
    paths = run(installed / "bin" / "python", "-P", "-c", code, cwd=installed).split()
    assert all(Path(path).is_relative_to(installed) for path in paths)


def test_console_script_prints_the_version(installed: Path) -> None:
    assert run(installed / "bin" / "weft", "--version", cwd=installed) == (
        f"weft {PROJECT['version']}"
    )


def test_everything_imported_is_declared() -> None:
    """What another package happens to bring may be gone with its next release."""
    files = [
        path
        for package in ("server", "adapters", "kernels")
        for path in (ROOT / package).rglob("*.py")
    ]
    imported = {
        module.split(".")[0]
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        for module in _modules(node)
    }
    owners = packages_distributions()
    foreign = imported - sys.stdlib_module_names - {"weft"}
    needed = {_normal(owners[module][0]) for module in foreign}
    declared = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["plots"]]
    assert needed <= {_normal(_name(requirement)) for requirement in declared}


def _modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


def _name(requirement: str) -> str:
    return re.split(r"[\s;<>=\[]", requirement)[0]


def _normal(name: str) -> str:
    return name.replace("_", "-").lower()


def test_constraints_pin_each_requirement_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["optional-dependencies"]
    for requirement in [*PROJECT["dependencies"], *(part for of in extras.values() for part in of)]:
        name = _normal(_name(requirement))
        assert name == "weft" or name in pins, requirement
    assert not [version for version in pins.values() if "+" in version or not version]
