"""A run of the vectors' stage on a machine with two cards that are not there; for test_cards.py.

Forked from a process that has imported all this: importing takes longer than the run. It says when
its model is loaded, waits for an answer, and tells the card that it took and what it wrote.
"""

import os
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import torch
import transformers.models.siglip.modeling_siglip  # noqa: F401  # for the forks

from siglip_pipeline.defs.metadata import engine_metadata
from siglip_pipeline.errors import VideoError
from siglip_pipeline.settings import Settings
from siglip_pipeline.siglip import model as loader
from siglip_pipeline.siglip.engine import EmbeddingEngine
from siglip_pipeline.siglip.model import SiglipModel, get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.stages.frame_embedding import embed_videos
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.video.frame_store import FrameStore

SECONDS_PER_BATCH = 0.05
_load = loader.load_model


def pretend_two_cards() -> None:
    """Let torch name two cards; a model that is loaded on one computes on the CPU."""
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 2
    cuda.get_device_properties = lambda number: SimpleNamespace(uuid=f"GPU-{number}")
    cuda.get_device_name = lambda _: "a card"

    def load(options: ModelOptions, device: str, _dtype: Any, **tower: Any) -> SiglipModel:
        model = _load(options, "cpu", torch.float32, **tower)
        model.device = device

        def slow(*_: Any) -> None:
            time.sleep(SECONDS_PER_BATCH)

        model.vision.register_forward_pre_hook(slow)
        return model

    vars(loader)["load_model"] = load


def run(
    caller: "Connection[object, object]",
    videos: Sequence[str],
    ahead: tuple[str, ...],
    environment: Mapping[str, str],
) -> None:
    """Embed videos, and then those that wait."""
    os.environ.update(environment)
    pretend_two_cards()
    settings = Settings.load(device="cuda", dtype="float32")
    model = get_model(ModelOptions.from_settings(settings), tower="image")
    engine = EmbeddingEngine(model, batch_size=4)
    caller.send("ready")
    caller.recv()
    written: list[str] = []
    with Database(settings.database_url or "") as database:
        for outcome in embed_videos(
            videos,
            frame_store=FrameStore(settings.frame_store_url),
            database=database,
            model_id=ModelStore(database).register(model.spec),
            model_key=model.spec.key,
            engine=lambda: engine,
            ahead=lambda: ahead,
        ):
            assert not isinstance(outcome, VideoError), outcome
            if outcome.written:
                written.append(outcome.video)
    caller.send({"device": engine_metadata(engine.report)["device_name"], "written": written})
