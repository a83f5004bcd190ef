"""Benchmarks run: on a few small pictures, without looking at any time."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import gpu
from benchmarks.common import generate


def test_generated_pictures_are_no_copies_of_one_another(tmp_path: Path) -> None:
    """The same bytes under both labels are left out of an index."""
    paths = [path for label in ("male", "female") for path in generate(tmp_path / label, 3, 40)]
    assert len({path.read_bytes() for path in paths}) == 6


def test_the_benchmark_for_a_gpu_runs_in_short_on_a_cpu(tmp_path: Path) -> None:
    output = tmp_path / "gpu"
    assert gpu.main(["--short", "--device", "cpu", "--output", str(output)]) == 0
    report = json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))
    assert set(gpu.PARTS) < set(report)
    assert report["classification"]["images/s"] > 0
    assert report["resume"]["val loss"] == report["resume"]["val loss without a stop"]
    table = output.with_suffix(".md").read_text(encoding="utf-8")
    assert table.count("| training in float32 |") == len(report["training in float32"])
    assert "| out of memory | left out | needs a GPU |" in table
