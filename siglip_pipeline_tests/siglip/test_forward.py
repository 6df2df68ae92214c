"""CUDA graphs on a simulated card: when they are captured, replayed, dropped and not used."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from siglip_pipeline.siglip import workers
from siglip_pipeline.siglip.batch_probe import probed_batch_size
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.forward import EagerForward, GraphForward, Replay
from siglip_pipeline.siglip.model import SiglipModel, load_model
from siglip_pipeline_tests.siglip.conftest import Make, jpeg, picture, vectors_of, video
from siglip_pipeline_tests.siglip.fake_card import FakeGraphs, FakeStreams

FILMS = [
    video(f"{i}.mp4", [jpeg(picture(72, 96, seed=10 * i + k)) for k in range(n)])
    for i, n in enumerate([7, 9, 3])
]


def vectors(engine: EmbeddingEngine, films: Any = FILMS) -> list[Any]:
    return [vectors_of(result) for result in engine.embed(films)]


def eager(model: SiglipModel) -> list[Any]:
    model.forward = EagerForward()
    return vectors(EmbeddingEngine(model, batch_size=4))


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> FakeStreams:
    made = FakeStreams()
    monkeypatch.setattr(workers, "streams_of", lambda device: made)
    return made


def test_a_graph_is_captured_once_and_the_last_batch_padded(
    model: SiglipModel, streams: FakeStreams
) -> None:
    wanted = eager(model)
    graphs = FakeGraphs()
    model.forward = GraphForward(graphs)
    engine = EmbeddingEngine(model, batch_size=8)
    for found, right in zip(vectors(engine), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    assert graphs.captured == [8]
    assert graphs.replayed == [8] * 5  # twice for the check; 19 frames: 8, 8 and 3
    assert engine.report.forward == "graph"
    assert engine.report.notes == ()
    assert streams.handed_over == 5 + 3


def test_a_short_run_captures_nothing(model: SiglipModel) -> None:
    graphs = FakeGraphs()
    model.forward = GraphForward(graphs)
    engine = EmbeddingEngine(model, batch_size=32)
    vectors(engine)
    assert graphs.captured == []
    assert engine.report.forward == "eager"


def test_naflex_runs_eagerly(options_for: Make) -> None:
    model = load_model(options_for("naflex"), "cpu", torch.float32, tower="image")
    model.forward = GraphForward(FakeGraphs(error=RuntimeError("must not be captured")))
    engine = EmbeddingEngine(model, batch_size=4)
    vectors(engine)
    assert (engine.report.forward, engine.report.notes) == ("eager", ())


@pytest.mark.parametrize(
    ("graphs", "why"),
    [
        (
            FakeGraphs(error=RuntimeError("operation not permitted")),
            "RuntimeError: operation not permitted",
        ),
        # As torch gives with a warning when the kernels ran on another stream or card.
        (FakeGraphs(empty=True), "ValueError: its vectors differ from those of the kernels"),
    ],
)
def test_a_graph_that_cannot_be_captured_or_computes_nothing_is_said_and_not_used(
    graphs: FakeGraphs, why: str, model: SiglipModel, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = eager(model)
    model.forward = GraphForward(graphs)
    engine = EmbeddingEngine(model, batch_size=4)
    for found, right in zip(vectors(engine), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    [note] = engine.report.notes
    assert f"no CUDA graph ({why})" in note
    assert note in caplog.text
    assert engine.report.forward == "eager"


def test_two_engines_do_not_capture_at_once(options_for: Make) -> None:
    capturing = threading.Lock()
    graphs = FakeGraphs()

    def record(run: Callable[[], torch.Tensor], device: torch.device) -> Replay:
        assert capturing.acquire(blocking=False), "two captures at once"
        time.sleep(0.3)
        capturing.release()
        return graphs(run, device)

    models = [load_model(options_for("siglip2"), "cpu", torch.float32) for _ in range(2)]
    for model in models:
        model.forward = GraphForward(record)
    engines = [EmbeddingEngine(model, batch_size=4) for model in models]
    with ThreadPoolExecutor() as pool:
        list(pool.map(vectors, engines))
    assert [engine.report.notes for engine in engines] == [(), ()]
    assert graphs.captured == [4, 4]


@pytest.mark.usefixtures("streams")
def test_lack_of_memory_drops_the_graph_and_halves_the_batch(model: SiglipModel) -> None:
    wanted = eager(model) * 6
    graphs = FakeGraphs(fits=2)
    model.forward = GraphForward(graphs)
    engine = EmbeddingEngine(model, batch_size=8)
    for found, right in zip(vectors(engine, FILMS * 6), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    assert engine.report.batch_size == 2
    assert engine.report.out_of_memory_count > 0
    assert graphs.captured == [2]
    assert engine.report.notes == ()


def test_pictures_are_read_in_order_when_memory_ran_out_for_inputs(
    model: SiglipModel, streams: FakeStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = eager(model)
    inputs = model.inputs
    refused: list[int] = []

    def scarce(batch: Any) -> Any:
        assert streams._on_side or not streams.unordered
        if len(batch) > 2:
            refused.append(len(batch))
            raise torch.OutOfMemoryError("no room for the inputs")
        return inputs(batch)

    monkeypatch.setattr(model, "inputs", scarce)
    for found, right in zip(vectors(EmbeddingEngine(model, batch_size=8)), wanted, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-5)
    assert 8 in refused


def test_graphs_of_larger_batches_are_freed(model: SiglipModel) -> None:
    graphs = FakeGraphs()
    forward = model.forward = GraphForward(graphs)
    vectors(EmbeddingEngine(model, batch_size=4))
    forward.forget(above=4)
    assert forward.name == "graph"
    forward.forget(above=3)
    assert forward.name == "eager"


def test_the_layout_of_the_pictures_is_kept(model: SiglipModel) -> None:
    seen: list[torch.Tensor] = []
    encode = model.encode_images

    def watch(inputs: Any) -> torch.Tensor:
        seen.append(inputs.arguments["pixel_values"])
        return encode(inputs)

    model.encode_images = watch  # type: ignore[method-assign]
    model.forward = GraphForward(FakeGraphs())
    vectors(EmbeddingEngine(model, batch_size=8))
    assert seen
    assert all(pixels.is_contiguous(memory_format=torch.channels_last) for pixels in seen)


def test_the_batch_size_is_probed_on_graphs(model: SiglipModel) -> None:
    graphs = FakeGraphs(fits=64)
    model.forward = GraphForward(graphs)
    assert probed_batch_size(model) in (32, 64)
    assert graphs.captured == [32, 64]
    assert graphs.replayed == [32] * 6 + [64] * 6
    assert model.forward.name == "eager"  # the probe's graphs are freed
