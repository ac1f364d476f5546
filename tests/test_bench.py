"""`make bench` as a whole, on a catalog small enough for a test."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra bench is not installed")
pytest.importorskip("sqlalchemy", reason="the extra bench is not installed")
pytest.importorskip("uvicorn", reason="the extra bench is not installed")

ITEMS = 2000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run printed, and the figures it kept."""
    folder = tmp_path_factory.mktemp("bench")
    figures = folder / "figures.json"
    command = [sys.executable, "-m", "loadtests.bench", "--items", str(ITEMS), "--json", str(figures)]
    command += ["--small-pages", "100", "--data-dir", str(folder / "data")]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout, json.loads(figures.read_bytes())


@pytest.mark.slow
def test_the_bench_compares_like_with_like(bench: tuple[str, dict[str, Any]]) -> None:
    _, figures = bench
    assert figures["walk"]["complete"]
    assert figures["walk"]["whole"]["items"] == ITEMS
    assert [stream["items"] for stream in figures["streams"]] == [ITEMS] * 3
    assert figures["baseline"]["same_items"]
    assert figures["baseline"]["far"]["items"] == ITEMS - figures["baseline"]["far"]["offset"]


@pytest.mark.slow
def test_the_bench_measures_every_target(bench: tuple[str, dict[str, Any]]) -> None:
    printed, figures = bench
    assert len(figures["goals"]) == 7
    for goal in figures["goals"]:
        assert goal["measured"] >= 0
        assert goal["name"] in printed
    for part in ("importer", "bare"):
        assert figures["small"][part]["pages"] == 100
        assert 0 < figures["small"][part]["pages_per_second"] < 100_000
    assert 0.5 < figures["walk"]["whole"]["megabytes"] * 1e6 / ITEMS / 780 < 1.5
