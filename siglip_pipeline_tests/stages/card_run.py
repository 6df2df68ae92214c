"""A run of the vectors' stage on a machine with two cards that are not there; for test_cards.py.

Reads its task as JSON, waits for a line once its model is loaded, and prints the card that it took
and what it wrote.
"""

import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import torch

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


def main() -> None:
    task = json.loads(sys.argv[1])
    pretend_two_cards()
    settings = Settings.load(device="cuda", dtype="float32")
    model = get_model(ModelOptions.from_settings(settings), tower="image")
    engine = EmbeddingEngine(model, batch_size=4)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    written: list[str] = []
    found: list[str] = []
    with Database(settings.database_url or "") as database:
        for outcome in embed_videos(
            task["videos"],
            frame_store=FrameStore(settings.frame_store_url),
            database=database,
            model_id=ModelStore(database).register(model.spec),
            model_key=model.spec.key,
            engine=lambda: engine,
            ahead=lambda: task["ahead"],
        ):
            assert not isinstance(outcome, VideoError), outcome
            (written if outcome.written else found).append(outcome.video)
    device = engine_metadata(engine.report)["device_name"]
    sys.stdout.write(json.dumps({"device": device, "written": written, "found": found}) + "\n")


if __name__ == "__main__":
    main()
