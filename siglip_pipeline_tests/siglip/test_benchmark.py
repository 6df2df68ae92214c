"""`benchmarks/bench_embed.py` as it runs on a card, with one that is not there."""

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch

from siglip_pipeline.siglip import workers
from siglip_pipeline.siglip.forward import GraphForward
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.siglip.conftest import Make, real_jpegs
from siglip_pipeline_tests.siglip.fake_card import FakeGraphs, FakeStreams

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


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


def test_a_model_is_measured_on_a_card_beside_a_bounded_plain_loop(
    bench: Any, model: SiglipModel, options_for: Make, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    looped: list[int] = []
    plain_loop = bench.plain_loop

    def recorded(*arguments: Any) -> Any:
        run = plain_loop(*arguments)

        def counted(frames: int) -> float:
            looped.append(frames)
            seconds: float = run(frames)
            return seconds

        return counted

    monkeypatch.setattr(workers, "streams_of", lambda _: FakeStreams())
    monkeypatch.setattr(bench, "get_model", lambda *_, **__: model)
    monkeypatch.setattr(bench, "is_on_card", lambda _: True)
    monkeypatch.setattr(bench, "GraphForward", lambda: GraphForward(FakeGraphs()))
    monkeypatch.setattr(bench, "plain_loop", recorded)
    monkeypatch.setattr(bench, "PLAIN_SECONDS", 0.0)
    monkeypatch.setattr(torch, "compile", lambda module: module)
    model.forward = GraphForward(FakeGraphs())
    skipped: list[str] = []
    cases = list(
        bench.measure(
            "tiny", Path(options_for("siglip2").name), FrameStore(tmp_path / "frames"),
            argparse.Namespace(device="cpu"), frames=48, rounds=2, batch=4,
            goals={"ceiling": 0.85, "plain loop": 1.0}, skipped=skipped,
        )
    )  # fmt: skip
    assert skipped == []
    assert [case["name"] for case in cases] == [
        "tiny engine vs ceiling", "tiny engine vs plain loop",
    ]  # fmt: skip
    assert looped == [4] * 4, "to warm up, to be timed, and a batch a round"
    for case in cases:
        assert (case["rounds"], case["forward"]) == (2, "graph")
        assert case["frames"] > 4


class FakeCompiler:
    """What the tower returns, counted; or the error of a compiler that is missing."""

    def __init__(self, *, missing: bool = False) -> None:
        self.missing = missing
        self.ran = 0

    def __call__(self, vision: torch.nn.Module) -> Any:
        def compiled(**arguments: Any) -> Any:
            if self.missing:
                raise RuntimeError("no C++ compiler is here")
            self.ran += 1
            return vision(**arguments)

        return compiled


def test_eager_and_compiled_take_turns(
    bench: Any, model: SiglipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = FakeCompiler()
    monkeypatch.setattr(bench, "inductor", compiler)
    skipped: list[str] = []
    cases = list(bench.compilation("tiny", model, 4, 3, skipped))
    assert skipped == []
    threads = sorted({1, torch.get_num_threads()})
    assert [case["name"] for case in cases] == [
        f"tiny compiled, float32, {number} threads" for number in threads
    ]
    for case in cases:
        assert len(case["ratios"]) == 3
        assert case["least_cosine"] == pytest.approx(1, abs=1e-5)
        assert case["reference"] == "eager"
    assert compiler.ran == len(cases) * (1 + 1 + 3), "compiled, compared, and once a round"


def test_a_missing_compiler_is_named(
    bench: Any, model: SiglipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "inductor", FakeCompiler(missing=True))
    skipped: list[str] = []
    assert list(bench.compilation("tiny", model, 4, 3, skipped)) == []
    [reason] = skipped
    assert reason.startswith("tiny compiled: not compiled (RuntimeError: no C++ compiler is here)")
