"""`benchmarks/bench_embed.py` as it runs on a card, with one that is not there."""

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from siglip_pipeline.siglip import workers
from siglip_pipeline.siglip.forward import GraphForward
from siglip_pipeline.siglip.model import SiglipModel, load_model
from siglip_pipeline_tests.siglip.conftest import Make, real_jpegs
from siglip_pipeline_tests.siglip.fake_card import FakeGraphs, FakeStreams

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def model(options_for: Make) -> SiglipModel:
    return load_model(options_for("siglip2"), "cpu", torch.float32, tower="image")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_embed")


def test_the_ceiling_is_the_best_way_that_works(
    bench: Any, model: SiglipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = FakeGraphs()
    monkeypatch.setattr(bench, "is_on_card", lambda _: True)
    monkeypatch.setattr(bench, "GraphForward", lambda: GraphForward(graphs))
    calls: list[str] = []

    def compiler(_: Any) -> Any:
        def compiled(**_arguments: Any) -> Any:
            raise RuntimeError("no compiler is here")

        return compiled

    def seconds(once: Any, frames: int, batch: int) -> float:
        before = len(graphs.replayed)
        once()
        calls.append("graph" if len(graphs.replayed) > before else "eager")
        return 1.0 if calls[-1] == "graph" else 2.0

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(bench, "timed", seconds)
    skipped: list[str] = []
    run = bench.ceiling("tiny", model, real_jpegs(), 4, skipped)
    assert graphs.captured == [4]
    assert calls == ["eager", "graph"]
    assert run(8) == 1.0
    assert calls[2:] == ["graph"]
    assert skipped == ["tiny: ceiling compiled: RuntimeError: no compiler is here"]


def test_stored_frames_are_embedded_again_from_a_folder_and_from_s3(
    bench: Any, model: SiglipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "streams_of", lambda _: FakeStreams())
    graphs = FakeGraphs()
    model.forward = GraphForward(graphs)
    skipped: list[str] = []

    def fill(store: Any, frames: int, videos: int) -> list[str]:
        names: list[str] = bench.store_frames(store, frames, videos=videos)
        return names

    cases = list(bench.reembedding.cases(model, fill, 50, tmp_path, skipped))
    assert skipped == []
    assert [case["name"] for case in cases] == [
        "re-embedding 50 stored frames from a folder, vectors stored",
        "re-embedding 50 stored frames from S3, vectors stored",
    ]
    for case in cases:  # that every frame has its vector is asserted by the benchmark
        assert case["value"] > 0
        assert case["ratio"] == pytest.approx(case["value"] / case["reference_value"])
        assert case["forward"] == "graph"
    assert graphs.replayed
