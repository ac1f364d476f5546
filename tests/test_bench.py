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
pytest.importorskip("datasette", reason="the extra bench is not installed")
pytest.importorskip("rest_framework", reason="the extra bench is not installed")
pytest.importorskip("matplotlib", reason="the extra bench is not installed")

from loadtests.measure import Point
from loadtests.plots import sum_of

ITEMS = 2000


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """What a run printed, and the figures it kept."""
    folder = tmp_path_factory.mktemp("bench")
    figures = folder / "figures.json"
    command = [sys.executable, "-m", "loadtests.bench", "--items", str(ITEMS), "--json", str(figures)]
    command += ["--small-pages", "100", "--data-dir", str(folder / "data"), "--plots", str(folder)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    for name in ("latency-light", "latency-dark", "sync-light", "sync-dark"):
        drawn = (folder / f"{name}.svg").read_text()
        assert all(server in drawn for server in ("clerk-feed", "FastAPI", "Django REST framework", "Datasette"))
    return run.stdout, json.loads(figures.read_bytes())


@pytest.mark.slow
def test_the_bench_compares_like_with_like(bench: tuple[str, dict[str, Any]]) -> None:
    _, figures = bench
    assert figures["walk"]["complete"]
    assert figures["walk"]["whole"]["items"] == ITEMS
    assert [stream["items"] for stream in figures["streams"]] == [ITEMS] * 3
    for name in ("baseline", "mapped", "draft", "django", "datasette"):
        assert figures[name]["same_items"], name
        assert figures[name]["start"]["items"] == ITEMS
        assert figures[name]["far"]["items"] == ITEMS - figures[name]["far"]["offset"]
        assert [point["offset"] for point in figures[name]["points"]] == [0, 1000]


@pytest.mark.slow
def test_the_bench_measures_the_rendered_feed_beside_copy(bench: tuple[str, dict[str, Any]]) -> None:
    printed, figures = bench
    rendered = figures["rendered"]
    assert rendered["walk"]["pages"]["items"] == rendered["importer"]["whole"]["items"] == ITEMS
    assert rendered["stream"]["items"] == ITEMS
    assert rendered["refreshing"]["changed"] == ITEMS // 100
    assert rendered["refreshing"]["bytes_after"] == rendered["refreshing"]["bytes_before"]
    assert rendered["copy_items_per_second"] > 0
    assert "COPY (SELECT doc …) TO STDOUT" in printed


def test_bench_xl_is_skipped_where_the_disk_is_too_small(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtests.bench_xl", "--items", "1000000000000", "--data-dir", str(tmp_path)]
    root = Path(__file__).parents[1]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=root, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("Skipped: it takes 2500000 GB")


@pytest.mark.slow
def test_the_bench_measures_every_target(bench: tuple[str, dict[str, Any]]) -> None:
    printed, figures = bench
    assert len(figures["goals"]) == 14
    for goal in figures["goals"]:
        assert goal["measured"] >= 0
        assert goal["name"] in printed
    for part in ("importer", "bare"):
        assert figures["small"][part]["pages"] == 100
        assert 0 < figures["small"][part]["pages_per_second"] < 100_000
    assert 0.5 < figures["walk"]["whole"]["megabytes"] * 1e6 / ITEMS / 780 < 1.5


def test_a_sync_is_projected_along_the_latencies_that_were_measured() -> None:
    flat = [Point(0, 10.0), Point(500_000, 10.0)]
    assert sum_of(flat, 1_000_000) == pytest.approx(10)
    rising = [Point(0, 10.0), Point(1000, 11.0), Point(2000, 12.0)]
    assert sum_of(rising, 3000) == pytest.approx(0.033)
    assert sum_of(rising, 1_000_000) == pytest.approx((1000 * 10 + 999 * 1000 / 2) / 1000)
    noise = [Point(0, 12.0), Point(1000, 9.0), Point(2000, 10.0)]
    assert sum_of(noise, 2000) == pytest.approx(0.02), "no page comes sooner for lying further back"
