"""What `make dist` builds: installed into empty environments, run there, and weighed."""

import fcntl
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from app import __version__
from tests.clerk import FakeClerk
from tests.conftest import PRODUCTS, Database, Serve, base_config

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
MOST_MEGABYTES = 80
_INSTALLERS = {"pip", "setuptools", "wheel", "pkg_resources", "_distutils_hack", "distutils-precedence.pth"}
_UNREACHABLE = ("No matching distribution found", "Could not find a version", "Connection", "Max retries")

Environment = Callable[[str], Path]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An empty virtual environment with a wheel or an sdist and what it requires, made once for all workers."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared

    def made(kind: str) -> Path:
        folder = shared / f"release-{kind}"
        with (shared / "release.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                built = _built(shared / "dist", kind)
                venv.create(folder, with_pip=True)
                _install(folder / "bin" / "python", built)
        return folder

    return made


def _built(folder: Path, kind: str) -> Path:
    if not folder.exists():
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
    [built] = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


def _install(python: Path, distribution: Path) -> None:
    command = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(distribution)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode and any(word in run.stderr for word in _UNREACHABLE) and not os.environ.get("CI"):
        pytest.skip("no package index answers here, so nothing can be installed into an empty environment")
    assert run.returncode == 0, run.stderr


def _said(command: list[str], folder: Path) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    return run.stdout + run.stderr


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_distribution_serves_from_an_empty_environment(
    kind: str, environment: Environment, serve: Serve, database: Database, clerk: FakeClerk
) -> None:
    database.execute("create schema shop;" + PRODUCTS.replace("{s}", "shop") + ";insert into shop.products values (1)")
    program = environment(kind) / "bin" / "clerk-feed"
    config = base_config(database.dsn, clerk.verify_url) + '[stores.shop]\npublic_key = "key-shop"\n'
    service = serve(config, program=[str(program)])
    assert [item["id"] for item in service.get("/shop/products?limit=25&offset=0").lines] == [1]
    assert service.get("/-/problems", token=None).status == 200


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_a_distribution_carries_its_version_and_its_templates(
    kind: str, environment: Environment, tmp_path: Path
) -> None:
    program = str(environment(kind) / "bin" / "clerk-feed")
    assert _said([program, "--version"], tmp_path) == f"clerk-feed, version {__version__}\n"
    _said([program, "init", "--store", "shop"], tmp_path)
    assert "[stores.shop]" in (tmp_path / "feed.toml").read_text()
    assert "shop.products" in (tmp_path / "views.sql").read_text()


def test_without_the_extra_the_demo_says_what_to_install(environment: Environment, tmp_path: Path) -> None:
    said = _said([str(environment("wheel") / "bin" / "clerk-feed"), "demo", "--exit"], tmp_path)
    assert "pip install 'clerk-feed[demo]'" in said
    assert "Traceback" not in said


def test_the_service_and_what_it_requires_stay_small(environment: Environment) -> None:
    [packages] = (environment("wheel") / "lib").glob("python3*/site-packages")
    sizes = {
        entry.name: sum(file.lstat().st_blocks * 512 for file in [entry, *entry.rglob("*")]) / 1e6
        for entry in packages.iterdir()
        if entry.name.split("-")[0] not in _INSTALLERS and entry.name not in _INSTALLERS
    }
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    total = sum(sizes.values())
    print(f"{total:.1f} MB installed; the largest: {largest}")
    assert total < MOST_MEGABYTES, largest
    assert not [name for name in sizes if "pgserver" in name]


def test_the_version_stands_in_one_place() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False, cwd=ROOT).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    # constraints.txt names versions of others, one of which may be the same.
    files = [name for name in tracked if name != "constraints.txt" and (ROOT / name).is_file()]
    texts = {name: (ROOT / name).read_text(errors="replace") for name in files}
    named = {name for name, text in texts.items() if f'"{__version__}"' in text or f"={__version__}" in text}
    assert named == {"app/__init__.py"}
