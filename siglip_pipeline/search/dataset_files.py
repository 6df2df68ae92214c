"""Write frames with their pictures and vectors in the forms of other tools; none is needed for it.

WebDataset is a folder of tar files with a picture, its facts and its vector per frame. FiftyOne's
form is a folder that ``fiftyone.Dataset.from_dir`` loads as ``fiftyone.types.FiftyOneDataset``:
JSON of the samples, and their pictures.
"""

import base64
import io
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.records import FloatArray
from siglip_pipeline.store.models import ModelRow

FRAMES_PER_SHARD: Final = 10_000
_SHARD: Final = re.compile(r"frames-\d{6}\.tar")
_PICTURE: Final = re.compile(r"\d{8,}-\d{9,}\.jpg")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFrame:
    """A stored frame."""

    video: str
    video_id: int
    frame_index: int
    time_seconds: float
    model_key: str
    jpeg: bytes
    vector_D: FloatArray
    """float32."""

    @property
    def key(self) -> str:
        """Its name within an export."""
        return f"{self.video_id:08d}-{self.frame_index:09d}"

    @property
    def facts(self) -> dict[str, Any]:
        """What is known of it besides picture and vector."""
        return {
            "video": self.video,
            "video_id": self.video_id,
            "frame_index": self.frame_index,
            "time_seconds": self.time_seconds,
            "model_key": self.model_key,
        }

    @property
    def saved_vector(self) -> bytes:
        """The vector as ``numpy.save`` writes it."""
        content = io.BytesIO()
        np.save(content, self.vector_D)
        return content.getvalue()


class Counted(Iterator[ExportedFrame]):
    """Frames, by video, that are counted while they are read."""

    def __init__(self, frames: Iterator[ExportedFrame]) -> None:
        self._frames = frames
        self._video_id: int | None = None
        self.videos = 0
        self.frames = 0

    def __next__(self) -> ExportedFrame:
        frame = next(self._frames)
        self.frames += 1
        self.videos += frame.video_id != self._video_id
        self._video_id = frame.video_id
        return frame


def write_shards(folder: Path, frames: Iterator[ExportedFrame]) -> None:
    """Write frames as shards for WebDataset; those of an earlier export are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    written = set[str]()
    first = next(frames, None)
    while first is not None:
        path = folder / f"frames-{len(written):06d}.tar"
        with replacing(path) as file, tarfile.open(fileobj=file, mode="w") as tar:
            for frame in itertools.chain([first], itertools.islice(frames, FRAMES_PER_SHARD - 1)):
                _add(tar, f"{frame.key}.jpg", frame.jpeg)
                _add(tar, f"{frame.key}.json", json.dumps(frame.facts).encode())
                _add(tar, f"{frame.key}.npy", frame.saved_vector)
        written.add(path.name)
        first = next(frames, None)
    _remove_others(folder, _SHARD, written)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_fiftyone(folder: Path, model: ModelRow, frames: Iterator[ExportedFrame]) -> None:
    """Write frames as a dataset for FiftyOne, each a sample; an earlier export is replaced."""
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    about = {"model": model.name, "model_key": model.key, "dimensions": model.dim}
    with replacing(folder / "metadata.json") as file:
        # Without a version, FiftyOne infers the fields from the samples.
        file.write(json.dumps({"media_type": "image", "info": about}).encode())
    written = set()
    with replacing(folder / "samples.json") as file:
        separator = b'{"samples": ['
        for frame in frames:
            name = f"{frame.key}.jpg"
            with replacing(data / name) as picture:
                picture.write(frame.jpeg)
            file.write(separator + json.dumps(_sample(frame, f"data/{name}")).encode())
            separator = b",\n"
            written.add(name)
        file.write(b"]}" if written else separator + b"]}")
    _remove_others(data, _PICTURE, written)


def _sample(frame: ExportedFrame, path: str) -> dict[str, Any]:
    """Return a frame as a sample; arrays are compressed NumPy files in MongoDB's form of bytes."""
    vector = base64.b64encode(zlib.compress(frame.saved_vector)).decode()
    embedding = {"$binary": {"base64": vector, "subType": "00"}}
    return {"filepath": path, "tags": [], **frame.facts, "embedding": embedding}


def _remove_others(folder: Path, pattern: re.Pattern[str], kept: Collection[str]) -> None:
    """Remove what an earlier export left and this one did not write."""
    for path in folder.iterdir():
        if pattern.fullmatch(path.name) and path.name not in kept:
            path.unlink()
