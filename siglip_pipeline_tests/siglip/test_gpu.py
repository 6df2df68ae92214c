"""The model and the engine on a CUDA device, against the CPU; `make test-gpu` runs them."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from siglip_pipeline.errors import VideoError
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import SiglipModel, get_model
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline_tests.siglip.checkpoints import Kind
from siglip_pipeline_tests.siglip.conftest import Make, real_jpegs, vectors_of, video

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _card() -> None:
    if not torch.cuda.is_available():
        if os.environ.get("SIGLIP_EXPECT_GPU") == "1":
            pytest.fail("SIGLIP_EXPECT_GPU=1 promises a CUDA device, and torch finds none")
        pytest.skip("no CUDA device here; SIGLIP_EXPECT_GPU=1 fails instead of skipping")


def _on(options_for: Make, kind: Kind, device: str) -> SiglipModel:
    return get_model(replace(options_for(kind), device=device))


@pytest.mark.parametrize("kind", ["siglip2", "siglip1", "naflex"])
def test_the_card_gives_the_vectors_of_the_cpu(options_for: Make, kind: Kind) -> None:
    frames = video("film.mp4", real_jpegs() * 9)
    engine = EmbeddingEngine(_on(options_for, kind, "cpu"), batch_size=16)
    [here] = engine.embed([frames])
    texts = ["a red car", "two boats at night"]
    texts_here = extract_text_embeddings(texts, model=_on(options_for, kind, "cpu"))
    card = _on(options_for, kind, "cuda")
    assert card.spec == model_spec(options_for(kind))
    on_card = EmbeddingEngine(card, batch_size=16)
    [there] = on_card.embed([frames])
    report = on_card.report
    assert report.forward == ("eager" if kind == "naflex" else "graph"), report.notes
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.nvimgcodec"):
        assert report.decoder.startswith("nvImageCodec"), report.notes
    cosines_N = (vectors_of(here) * vectors_of(there)).sum(axis=1)
    assert cosines_N.mean() >= 0.9999
    assert cosines_N.min() >= 0.999
    texts_there = extract_text_embeddings(texts, model=card)
    assert (texts_here * texts_there).sum(axis=1).min() >= 0.9999


def test_the_batch_size_is_probed_and_kept(options_for: Make, tmp_path: Path) -> None:
    kept = tmp_path / "batch_sizes.json"
    engine = EmbeddingEngine(_on(options_for, "siglip2", "cuda"), batch_sizes=kept)
    [result] = engine.embed([video("film.mp4", real_jpegs() * 40)])
    assert np.isfinite(vectors_of(result)).all()
    assert kept.exists()
    assert engine.report.batch_size >= 32


def test_a_damaged_jpeg_fails_its_video_alone(options_for: Make) -> None:
    good = real_jpegs()
    damaged = [b"no jpeg", b"no jpeg\xff\xd9"]  # the other one ends as a JPEG does
    videos = [
        video("a.mp4", good),
        *(video(f"b{i}.mp4", [*good, data]) for i, data in enumerate(damaged)),
        video("c.mp4", good),
    ]
    engine = EmbeddingEngine(_on(options_for, "siglip2", "cuda"), batch_size=8)
    first, *failed, last = engine.embed(videos)
    np.testing.assert_allclose(vectors_of(first), vectors_of(last), atol=1e-2)
    assert len(failed) == len(damaged)
    for result in failed:
        assert isinstance(result, VideoError)
        assert "JPEG" in result.reason
