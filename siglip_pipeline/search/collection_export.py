"""Export the collection's frames with their vectors: Parquet, WebDataset, or FiftyOne's form."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siglip_pipeline.errors import NothingIndexedError, QueryError
from siglip_pipeline.files.replacing import replacing
from siglip_pipeline.hits import SearchFilter
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.search.dataset_files import (
    Counted,
    ExportedFrame,
    write_fiftyone,
    write_shards,
)
from siglip_pipeline.store.database import Database
from siglip_pipeline.store.models import ModelRow, ModelStore
from siglip_pipeline.store.search.scope import resolve_scope
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.store.videos import VideoStore
from siglip_pipeline.video.frame_store import FrameStore

ExportFormat = Literal["parquet", "webdataset", "fiftyone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionExport:
    """What was exported."""

    path: Path
    format: ExportFormat
    model: str
    model_key: str
    """Vectors of another key cannot be compared with these."""
    dimensions: int
    videos: int
    frames: int


def export_collection(
    database: Database,
    target: Path,
    *,
    format: ExportFormat = "parquet",
    videos: Sequence[str] | None = None,
    frames: FrameStore | None = None,
) -> CollectionExport:
    """Write the frames of all videos, or of some, with their vectors under the active model.

    Parquet is one file with the columns video, video_id, frame_index, time_seconds, model_key and
    vector (a list of float32 of fixed size); its metadata names the model. The other forms are
    folders that also hold the pictures: see :mod:`siglip_pipeline.search.dataset_files`.

    Args:
        database: holds the vectors.
        target: the Parquet file, or the folder; what an earlier export left there is replaced.
        format: the kind of file.
        videos: paths and globs; None: all.
        frames: the stored pictures, which folders hold.

    Raises:
        NothingIndexedError: there is no active model.
        QueryError: a path is unknown, or the target cannot be written.
    """
    model = ModelStore(database).active()
    if model is None:
        raise NothingIndexedError("nothing is indexed yet, so there is nothing to export")
    batches = _batches(database, model, videos)
    try:
        if format == "parquet":
            done = _write_parquet(target, model, batches)
        else:
            if frames is None:
                raise QueryError(f"{format} needs the stored frames: give a FrameStore")
            counted = Counted(_frames(model, batches, frames))
            if format == "webdataset":
                write_shards(target, counted)
            else:
                write_fiftyone(target, model, counted)
            done = counted.videos, counted.frames
    except OSError as error:
        raise QueryError(f"{target} cannot be written: {error.strerror or error}") from error
    return CollectionExport(
        path=target,
        format=format,
        model=model.name,
        model_key=model.key,
        dimensions=model.dim,
        videos=done[0],
        frames=done[1],
    )


def _batches(
    database: Database, model: ModelRow, videos: Sequence[str] | None
) -> Iterator[tuple[int, EmbeddingBatch]]:
    """Yield the id and the vectors of each video, by path."""
    chosen = None
    if videos is not None:
        with database.snapshot() as connection:
            scope = resolve_scope(connection, model.model_id, SearchFilter(videos=tuple(videos)))
        chosen = set(scope.video_ids or ())
    store = VectorStore(database)
    for row in VideoStore(database).list():
        if chosen is not None and row.video_id not in chosen:
            continue
        batch = store.vectors(model.model_id, row.video)
        if len(batch.frame_index_N):
            yield row.video_id, batch


def _write_parquet(
    target: Path, model: ModelRow, batches: Iterator[tuple[int, EmbeddingBatch]]
) -> tuple[int, int]:
    about = {"model": model.name, "model_key": model.key, "dimensions": str(model.dim)}
    text = pa.dictionary(pa.int32(), pa.string())
    columns: list[Any] = [
        ("video", text),
        ("video_id", pa.int64()),
        ("frame_index", pa.int64()),
        ("time_seconds", pa.float64()),
        ("model_key", text),
        ("vector", pa.list_(pa.float32(), model.dim)),
    ]
    schema = pa.schema(columns, metadata=about)
    videos = frames = 0
    with replacing(target) as file, pq.ParquetWriter(file, schema) as writer:
        for video_id, batch in batches:
            size = len(batch.frame_index_N)
            vectors = pa.array(batch.embeddings_ND.astype(np.float32).ravel())
            table = pa.table(
                [
                    pa.array([batch.video] * size).dictionary_encode(),
                    pa.array([video_id] * size, pa.int64()),
                    pa.array(batch.frame_index_N),
                    pa.array(batch.time_seconds_N),
                    pa.array([model.key] * size).dictionary_encode(),
                    pa.FixedSizeListArray.from_arrays(vectors, model.dim),
                ],
                schema=schema,
            )
            writer.write_table(table)
            videos, frames = videos + 1, frames + size
    return videos, frames


def _frames(
    model: ModelRow, batches: Iterator[tuple[int, EmbeddingBatch]], pictures: FrameStore
) -> Iterator[ExportedFrame]:
    """Yield the frames of all videos, by video and time."""
    for video_id, batch in batches:
        row_of = {int(index): row for row, index in enumerate(batch.frame_index_N)}
        for stored in pictures.read(batch.video):
            for index, jpeg in zip(stored.frame_index_N.tolist(), stored.jpegs, strict=True):
                row = row_of.get(index)
                if row is None:  # decoded again, and not embedded yet
                    continue
                yield ExportedFrame(
                    video=batch.video,
                    video_id=video_id,
                    frame_index=index,
                    time_seconds=float(batch.time_seconds_N[row]),
                    model_key=model.key,
                    jpeg=jpeg,
                    vector_D=batch.embeddings_ND[row].astype(np.float32),
                )
