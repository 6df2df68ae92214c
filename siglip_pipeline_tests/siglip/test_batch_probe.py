"""The batch size of a GPU: the fastest on prepared tensors, kept for the next run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from siglip_pipeline.siglip import engine
from siglip_pipeline.siglip.batch_probe import probed_batch_size, seconds_per_frame
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.model import SiglipModel, get_model
from siglip_pipeline.siglip.preprocess import ModelInputs
from siglip_pipeline_tests.siglip.checkpoints import Kind
from siglip_pipeline_tests.siglip.conftest import Make, real_jpegs, vectors_of, video


class _Card:
    """Stands for a card: the seconds of a frame by batch size; other sizes do not fit."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self._seconds = seconds
        self.asked: list[int] = []

    def __call__(self, model: SiglipModel, size: int) -> float:
        self.asked.append(size)
        if size not in self._seconds:
            raise torch.OutOfMemoryError(f"{size} do not fit")
        return self._seconds[size]


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({32: 9, 64: 8, 128: 7, 256: 6, 512: 6}, 256),  # what is no faster is no larger
        ({32: 9, 64: 9.5, 128: 7, 256: 7.2, 512: 7.1}, 128),  # past a size that is slower
        ({32: 9, 64: 8}, 64),
        ({}, 32),
    ],
)
def test_the_smallest_size_that_is_fastest(
    model: SiglipModel, seconds: dict[int, float], best: int
) -> None:
    assert probed_batch_size(model, measure=_Card(seconds)) == best


def test_a_card_is_probed_once_for_a_model(model: SiglipModel, tmp_path: Path) -> None:
    kept = tmp_path / "cache" / "batch_sizes.json"
    card = _Card({32: 2, 64: 1})
    assert [probed_batch_size(model, kept=kept, measure=card) for _ in range(2)] == [64, 64]
    assert card.asked == [32, 64, 128]
    kept.write_text("{damaged")
    assert probed_batch_size(model, kept=kept, measure=card) == 64
    assert len(card.asked) == 6


@pytest.mark.parametrize("kind", ["siglip2", "naflex"])
def test_a_size_is_measured_on_the_model_itself(options_for: Make, kind: Kind) -> None:
    model = get_model(options_for(kind), tower="image")
    assert 0 < seconds_per_frame(model, 4) < 60


def test_lack_of_memory_is_not_a_measurement(
    model: SiglipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = model.encode_images

    def small(inputs: ModelInputs) -> torch.Tensor:
        vectors_ND = forward(inputs)
        if len(vectors_ND) > 2:
            raise torch.OutOfMemoryError("no room for more than two")
        return vectors_ND

    monkeypatch.setattr(model, "encode_images", small)
    with pytest.raises(torch.OutOfMemoryError):
        seconds_per_frame(model, 4)


def test_the_engine_begins_with_the_size_of_the_card(
    model: SiglipModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A fake card: the device is named cuda until the probe; the run computes on the CPU."""
    cpu, data = model.torch_device, real_jpegs()[:1]

    def probe(asked: SiglipModel, *, kept: Path | None) -> int:
        assert kept == tmp_path / "sizes.json"
        asked.torch_device = cpu
        return 7

    monkeypatch.setattr(engine, "probed_batch_size", probe)
    monkeypatch.setattr(model, "torch_device", torch.device("cuda"))
    made = EmbeddingEngine(model, batch_sizes=tmp_path / "sizes.json")
    [result] = made.embed([video("a.mp4", data * 20)])
    assert np.isfinite(vectors_of(result)).all()
    assert made.report.batch_size == 7
    assert model.settled_batch_size == 7
