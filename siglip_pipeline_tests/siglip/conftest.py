"""Tiny checkpoints, made once per session; the model cache is emptied after each module."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import EmbeddingBatch, FloatArray, FrameBatch
from siglip_pipeline.siglip.model import SiglipModel, load_model, release_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline_tests.siglip.checkpoints import Kind, make_checkpoint

# These models are too small to share out: on a busy machine, threads would wait for each other.
torch.set_num_threads(1)

FRAMES = sorted((Path(__file__).parent / "frames").glob("*.jpg"))

Make = Callable[[Kind], ModelOptions]
Video = tuple[str, list[FrameBatch]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """Folder of the session's checkpoint of a kind. Read only: copy before you change one."""
    made: dict[Kind, Path] = {}

    def folder(kind: Kind) -> Path:
        if kind not in made:
            made[kind] = make_checkpoint(tmp_path_factory.mktemp("checkpoints") / kind, kind)
        return made[kind]

    return folder


@pytest.fixture
def options_for(folders: Callable[[Kind], Path], tmp_path: Path) -> Make:
    """Options that name the session's checkpoint of a kind, on the CPU in float32."""

    def options(kind: Kind) -> ModelOptions:
        return ModelOptions(
            name=str(folders(kind)),
            fingerprints=tmp_path / "fingerprints.json",
            device="cpu",
            dtype="float32",
        )

    return options


@pytest.fixture
def model(options_for: Make) -> SiglipModel:
    """The image tower of a checkpoint, which no other test has."""
    return load_model(options_for("siglip2"), "cpu", torch.float32, tower="image")


@pytest.fixture(scope="module", autouse=True)
def _release() -> Iterator[None]:
    yield
    release_model()


def real_jpegs() -> list[bytes]:
    """Eight frames of real films."""
    return [file.read_bytes() for file in FRAMES]


def picture(height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth random picture [H, W, 3]."""
    blobs = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(blobs).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(smooth)


def jpeg(pixels_HWC: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels_HWC).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def video(name: str, jpegs: list[bytes], *, rows: int = 64) -> Video:
    """Stored frames as a frame store reads them: every 25th frame, one a second."""
    batches = []
    for begin in range(0, len(jpegs), rows):
        number = np.arange(begin, min(begin + rows, len(jpegs)))
        batches.append(
            FrameBatch(
                video=name,
                frame_index_N=number * 25,
                pts_N=number * 1000,
                time_seconds_N=number.astype(np.float64),
                jpegs=tuple(jpegs[begin : begin + rows]),
            )
        )
    return name, batches


def vectors_of(result: EmbeddingBatch | VideoError) -> FloatArray:
    """The vectors of a video that did not fail."""
    assert isinstance(result, EmbeddingBatch), result
    return result.embeddings_ND


def spoil_black(_module: Any, _args: Any, kwargs: Any, output: Any) -> Any:
    """A hook of a vision tower: the vectors of black frames are not finite."""
    black = kwargs["pixel_values"].amax(dim=(1, 2, 3)) < -0.95
    output.pooler_output[black] = float("nan")
    return output
