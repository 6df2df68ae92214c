"""Who runs the model: a thread per GPU, or one per core of a CPU, and the same vectors."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.model import SiglipModel, get_model
from siglip_pipeline.siglip.workers import Worker, plan_workers
from siglip_pipeline_tests.siglip.conftest import Make, jpeg, picture, video


@dataclass(frozen=True)
class Somewhere:
    """A model of which only the device matters."""

    torch_device: torch.device


@pytest.mark.parametrize(
    ("device", "cores", "expected"),
    [
        ("cpu", 1, [1]),
        ("cpu", 2, [1, 1]),
        ("cpu", 8, [1] * 8),
        ("cpu", 20, [2] * 8),  # no more than 8 batches at once: 16 of 20 cores
        ("cuda:1", 16, [None]),
        ("mps", 8, [None]),
    ],
)
def test_how_many_run_the_model(device: str, cores: int, expected: list[int | None]) -> None:
    model = cast(SiglipModel, Somewhere(torch.device(device)))
    assert plan_workers(model, cores) == tuple(Worker(model, share) for share in expected)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_several_workers_share_a_model(options_for: Make) -> None:
    model = get_model(options_for("siglip2"))
    both = threading.Barrier(2)
    threads: dict[int, int] = {}

    def meet(*_: Any) -> None:
        if threading.get_ident() not in threads:  # the first batch of each waits for the other's
            threads[threading.get_ident()] = torch.get_num_threads()
            both.wait(30)

    videos = [
        video(f"{i}.mp4", [jpeg(picture(72, 96, seed=10 * i + k)) for k in range(5)])
        for i in range(6)
    ]
    handle = model.vision.register_forward_pre_hook(meet)
    try:
        engine = EmbeddingEngine(model, batch_size=4)
        results = list(engine.embed(videos))
    finally:
        handle.remove()
    assert list(threads.values()) == [1, 1]
    assert engine.report.model_workers == 2
    for result, (name, batches) in zip(results, videos, strict=True):
        assert isinstance(result, EmbeddingBatch)
        assert result.video == name
        alone = extract_image_embeddings(batches[0].jpegs, model=model)
        np.testing.assert_allclose(result.embeddings_ND, alone, atol=1e-5)


@pytest.mark.usefixtures("two_threads")
def test_torchs_threads_are_as_before_after_a_run(options_for: Make) -> None:
    engine = EmbeddingEngine(get_model(options_for("siglip2")), batch_size=2)
    list(engine.embed([video("a.mp4", [jpeg(picture(72, 96))] * 6)]))
    later: list[int] = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert [torch.get_num_threads(), *later] == [2, 2]
