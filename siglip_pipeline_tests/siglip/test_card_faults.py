"""What goes wrong on a card, all parts of whose path are made up, costs no more than on a CPU."""

import numpy as np
import pytest
import torch

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.siglip import jpeg_card, workers
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.forward import GraphForward
from siglip_pipeline.siglip.jpeg_card import CardDecoder
from siglip_pipeline.siglip.jpeg_decoders import PictureDecoder, ThreadDecoder
from siglip_pipeline.siglip.model import load_model
from siglip_pipeline_tests.siglip.conftest import (
    Make,
    jpeg,
    picture,
    real_jpegs,
    spoil_black,
    video,
)
from siglip_pipeline_tests.siglip.fake_card import FakeCodec, FakeGraphs, FakeStreams

BLACK = jpeg(np.zeros((64, 64, 3), np.uint8))
"""The only picture for which the model gives no number."""
FILMS = [
    video("good.mp4", real_jpegs()),
    video("damaged.mp4", [*real_jpegs()[:5], b"no jpeg", real_jpegs()[6]]),
    video("ends as a JPEG does.mp4", [*real_jpegs()[:5], b"no jpeg\xff\xd9"]),
    video("not finite.mp4", [*real_jpegs()[:2], BLACK, jpeg(picture(64, 64))]),
    video("long.mp4", real_jpegs()[::-1] * 12),
]


def test_memory_that_runs_out_vectors_without_number_and_damaged_pictures(
    options_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(options_for("siglip2"), "cpu", torch.float32, tower="image")

    def decoder() -> PictureDecoder:
        host = ThreadDecoder(model.recipe, threads=1, on_card=True)
        return CardDecoder(model.recipe, host, FakeCodec())

    model.vision.register_forward_hook(spoil_black, with_kwargs=True)
    on_cpu = list(EmbeddingEngine(model, batch_size=8).embed(FILMS))
    monkeypatch.setattr(workers, "streams_of", lambda _: FakeStreams())
    monkeypatch.setattr(jpeg_card, "current_stream", lambda: (0, 7))
    model.forward = GraphForward(graphs := FakeGraphs(fits=2))
    engine = EmbeddingEngine(model, batch_size=8, decoder=decoder)
    on_card = list(engine.embed(FILMS))
    assert [type(result) for result in on_card] == [
        EmbeddingBatch, VideoError, VideoError, VideoError, EmbeddingBatch,
    ]  # fmt: skip
    for found, wanted in zip(on_card, on_cpu, strict=True):
        if isinstance(found, VideoError):
            assert str(found) == str(wanted)
        else:
            assert isinstance(wanted, EmbeddingBatch)
            cosines_N = (found.embeddings_ND * wanted.embeddings_ND).sum(axis=1)
            assert cosines_N.min() > 0.999
    report = engine.report
    assert (report.decoder, report.forward) == ("nvImageCodec 0.9.0", "graph")
    assert report.out_of_memory_count > 0
    assert report.batch_size == 2
    assert graphs.replayed
