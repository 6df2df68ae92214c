"""Sampled frames at rest: one Parquet file per video.

A file holds ``frame_index, pts, time_seconds, width, height, jpeg, perceptual_hash, same_as``, in
time order, in small row groups, so that one thumbnail costs the footer and one row group however
long the video is. It is written under a temporary name and moved: readers see all or nothing.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siglip_pipeline.errors import FrameStoreError
from siglip_pipeline.records import FrameBatch, VideoInfo
from siglip_pipeline.video.contact_sheet import contact_sheet, evenly_spaced

SCHEMA_VERSION: Final = 1

ROW_GROUP_FRAMES: Final = 32
ROW_GROUP_BYTES: Final = 2**20
"""A row group is closed at either limit: a thumbnail reads about a megabyte at most."""

SUFFIX: Final = ".frames.parquet"
_UNSAFE: Final = re.compile(r"[%*?\[\]#]")
METADATA_KEY: Final = b"siglip_pipeline"

ATOMIC_PUT_PROTOCOLS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az"})
"""Storages in which a put appears whole when it ends: a move would only copy once more."""

SCHEMA: Final = pa.schema(
    [
        pa.field("frame_index", pa.int64(), nullable=False),
        pa.field("pts", pa.int64(), nullable=False),
        pa.field("time_seconds", pa.float64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("jpeg", pa.binary()),
        pa.field("perceptual_hash", pa.uint64(), nullable=False),
        pa.field("same_as", pa.int64()),
    ]
)
"""``same_as``: frame_index of the earlier frame whose picture stands for this one; then ``jpeg``
is null. Only written when frames are deduplicated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrame:
    """One sampled frame, ready to be written."""

    frame_index: int
    pts: int
    time_seconds: float
    width: int
    height: int
    jpeg: bytes | None
    perceptual_hash: int
    same_as: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFileMetadata:
    """What the footer of a frame file says."""

    schema_version: int
    source_sha256: str
    sampling: str
    decoder_version: str
    frames: int
    info: VideoInfo


class FrameFileWriter:
    """Writes one frame file on local disk, row group by row group; memory stays flat.

    Args:
        path: a local file that does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(
            path,
            SCHEMA,
            compression={name: "NONE" if name == "jpeg" else "ZSTD" for name in SCHEMA.names},
            use_dictionary=False,
            write_statistics=["frame_index"],
            store_schema=False,
        )
        self._pending: list[StoredFrame] = []
        self._pending_bytes = 0
        self.frames = 0

    def add(self, frame: StoredFrame) -> None:
        """Append a frame; frames come in time order."""
        self._pending.append(frame)
        self._pending_bytes += len(frame.jpeg or b"")
        self.frames += 1
        if len(self._pending) >= ROW_GROUP_FRAMES or self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(
        self, info: VideoInfo, *, source_sha256: str, sampling: str, decoder_version: str
    ) -> FrameFileMetadata:
        """Write the footer; the file is complete afterwards."""
        self._flush()
        metadata = FrameFileMetadata(
            schema_version=SCHEMA_VERSION,
            source_sha256=source_sha256,
            sampling=sampling,
            decoder_version=decoder_version,
            frames=self.frames,
            info=info,
        )
        self._writer.add_key_value_metadata({METADATA_KEY: _to_json(metadata)})
        self._writer.close()
        return metadata

    def abort(self) -> None:
        """Close without a usable footer."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = [
            pa.array([getattr(frame, field.name) for frame in self._pending], field.type)
            for field in SCHEMA
        ]
        self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._pending = []
        self._pending_bytes = 0


class FrameStore:
    """Frame files below a folder or fsspec URL, one per video.

    Args:
        url: folder, or any URL that fsspec understands.
        storage_options: passed to the fsspec file system.

    Raises:
        FrameStoreError: no file system is installed for this kind of URL.
    """

    def __init__(
        self, url: str | os.PathLike[str], *, storage_options: dict[str, Any] | None = None
    ) -> None:
        self._url = os.fspath(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(self._url, **(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise FrameStoreError(
                f"SIGLIP_FRAME_STORE={self._url}: {error}; use a folder or an fsspec URL"
            ) from error
        self._root = root.rstrip("/")
        protocol = self._fs.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        self._local = "file" in self._protocols

    def __repr__(self) -> str:
        return f"FrameStore({self._url!r})"

    @property
    def url(self) -> str:
        """The folder or URL as it was given."""
        return self._url

    def write(
        self,
        video: str,
        info: VideoInfo,
        frames: Iterable[StoredFrame],
        *,
        source_sha256: str,
        sampling: str,
        decoder_version: str,
    ) -> FrameFileMetadata:
        """Store the frames of a video, replacing what was stored before."""
        draft = self.new_draft()
        try:
            writer = FrameFileWriter(draft)
            try:
                for frame in frames:
                    writer.add(frame)
                metadata = writer.close(
                    info,
                    source_sha256=source_sha256,
                    sampling=sampling,
                    decoder_version=decoder_version,
                )
            except BaseException:
                writer.abort()
                raise
            self.publish(video, draft)
        finally:
            draft.unlink(missing_ok=True)
        return metadata

    def new_draft(self) -> Path:
        """A fresh local file name to write to; in the store's own folder when that is local.

        Raises:
            FrameStoreError: the folder cannot be made.
        """
        if self._local:
            folder = Path(self._root) / ".drafts"
        else:
            folder = Path(tempfile.gettempdir()) / f"siglip-frames-{os.getuid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FrameStoreError(
                f"SIGLIP_FRAME_STORE={self._url}: {error}; give a folder that can be written"
            ) from error
        return folder / f"{uuid.uuid4().hex}.parquet"

    def publish(self, video: str, draft: Path) -> None:
        """Move a complete draft to its place. A reader sees the old file or the new one.

        Raises:
            FrameStoreError: the storage refused.
        """
        target = self._path(video)
        try:
            if self._local:
                Path(target).parent.mkdir(parents=True, exist_ok=True)
                draft.replace(target)
            elif self._protocols & ATOMIC_PUT_PROTOCOLS:
                self._fs.put_file(str(draft), target)
            else:
                temporary = f"{target}.{uuid.uuid4().hex}.tmp"
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(draft), temporary)
                self._fs.mv(temporary, target)
        except Exception as error:  # each storage has exceptions of its own
            raise FrameStoreError(
                f"{video}: frames cannot be written to {self._url}: {error}; check its space and "
                "permissions"
            ) from error

    def exists(self, video: str) -> bool:
        """Whether frames of this video are stored."""
        if not self._local:
            self._fs.invalidate_cache()
        return bool(self._fs.exists(self._path(video)))

    def metadata(self, video: str) -> FrameFileMetadata:
        """What the file's footer says; pictures are not read.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        with self._open(video) as file:
            return file.metadata

    def read(self, video: str, *, batch_size: int = 64) -> Iterator[FrameBatch]:
        """The frames in time order, ``batch_size`` at a time, reading row group by row group.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; it must be at least 1")
        with self._open(video) as file:
            pending: list[_Row] = []
            for row in file.rows():
                pending.append(row)
                if len(pending) == batch_size:
                    yield _batch(video, pending)
                    pending = []
            if pending:
                yield _batch(video, pending)

    def thumbnail(self, video: str, frame_index: int) -> bytes:
        """The JPEG of one stored frame; reads the footer and one row group.

        Raises:
            FrameStoreError: no such video or frame is stored.
        """
        with self._open(video) as file:
            return file.jpeg(frame_index)

    def contact_sheet(
        self, video: str, *, max_thumbnails: int = 12, max_bytes: int = 60_000
    ) -> bytes:
        """Up to ``max_thumbnails`` frames, evenly spaced, as one JPEG of at most ``max_bytes``.

        Raises:
            FrameStoreError: no frames are stored, the file is damaged or too new.
        """
        with self._open(video) as file:
            indices_N = file.parquet.read(columns=["frame_index"])["frame_index"].to_numpy()
            chosen = evenly_spaced(indices_N, max_thumbnails)
            return contact_sheet([file.jpeg(index) for index in chosen], max_bytes=max_bytes)

    def delete(self, video: str) -> None:
        """Remove the frames of a video; nothing happens when there are none."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(video))

    def _path(self, video: str) -> str:
        if ".." in video.split("/") or video.startswith("/") or not video:
            raise FrameStoreError(f"{video!r} is not the path of a video below UPLOADS")
        # fsspec takes *?[] for patterns, and some storages # for a fragment.
        folders, _, name = _UNSAFE.sub(lambda c: f"%{ord(c[0]):02X}", video).rpartition("/")
        if len(os.fsencode(name + SUFFIX)) > 240:  # file systems allow 255 bytes
            name = f"{name[:40]}-{hashlib.sha256(name.encode()).hexdigest()}"
        parts = [self._root, *filter(None, [folders]), name + SUFFIX]
        return "/".join(parts)

    @contextlib.contextmanager
    def _open(self, video: str) -> Iterator["_FrameFile"]:
        path = self._path(video)
        try:
            handle = self._fs.open(path, "rb", **({} if self._local else {"cache_type": "none"}))
        except FileNotFoundError as error:
            raise FrameStoreError(
                f"{video}: no frames are stored in {self._url}; materialize video_frames first"
            ) from error
        with handle:
            try:
                file = _FrameFile(video, pq.ParquetFile(handle))
                yield file
            except (pa.ArrowException, OSError) as error:
                raise FrameStoreError(
                    f"{video}: its frame file {path} is damaged ({error}); materialize "
                    "video_frames again"
                ) from error


_Row = tuple[int, int, float, bytes]
"""frame_index, pts, time_seconds and JPEG."""


def _batch(video: str, rows: list[_Row]) -> FrameBatch:
    indices, pts, seconds, jpegs = zip(*rows, strict=True)
    return FrameBatch(
        video=video,
        frame_index_N=np.array(indices, np.int64),
        pts_N=np.array(pts, np.int64),
        time_seconds_N=np.array(seconds, np.float64),
        jpegs=tuple(jpegs),
    )


class _FrameFile:
    """An open frame file."""

    def __init__(self, video: str, parquet: pq.ParquetFile) -> None:
        self.video = video
        self.parquet = parquet
        raw = (parquet.metadata.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise FrameStoreError(f"{video}: its frame file was not written by this program")
        self.metadata = _from_json(video, raw)

    def rows(self) -> Iterator[_Row]:
        """All frames in time order, one row group in memory at a time."""
        columns = ["frame_index", "pts", "time_seconds", "jpeg", "same_as"]
        kept_index, kept = None, b""
        for group in range(self.parquet.metadata.num_row_groups):
            table = self.parquet.read_row_group(group, columns=columns)
            # In this order, whatever the file's is.
            values = (table[name].to_pylist() for name in columns)
            for index, pts, seconds, jpeg, same_as in zip(*values, strict=True):
                if jpeg is not None:
                    kept_index, kept = index, jpeg
                elif kept_index != same_as:
                    raise FrameStoreError(
                        f"{self.video}: frame {index} refers to frame {same_as}, which has no "
                        "picture; its frame file is damaged, materialize video_frames again"
                    )
                yield index, pts, seconds, kept

    def jpeg(self, frame_index: int) -> bytes:
        """One picture, by way of the row group that holds it."""
        group = self._row_group(frame_index)
        if group is not None:
            table = self.parquet.read_row_group(group, columns=["frame_index", "jpeg", "same_as"])
            indices = table["frame_index"].to_numpy()
            found = np.flatnonzero(indices == frame_index)
            if found.size:
                jpeg = table["jpeg"][int(found[0])].as_py()
                if jpeg is not None:
                    return bytes(jpeg)
                return self.jpeg(table["same_as"][int(found[0])].as_py())
        raise FrameStoreError(
            f"{self.video}: frame {frame_index} is not among the {self.metadata.frames} stored "
            f"frames ({self.metadata.sampling})"
        )

    def _row_group(self, frame_index: int) -> int | None:
        for group in range(self.parquet.metadata.num_row_groups):
            statistics = self.parquet.metadata.row_group(group).column(0).statistics
            if statistics.min <= frame_index <= statistics.max:
                return group
        return None


def _to_json(metadata: FrameFileMetadata) -> bytes:
    values = dataclasses.asdict(metadata)
    values["info"]["time_base"] = str(metadata.info.time_base)
    return json.dumps(values).encode()


def _from_json(video: str, raw: bytes) -> FrameFileMetadata:
    values = json.loads(raw)
    if values["schema_version"] > SCHEMA_VERSION:
        raise FrameStoreError(
            f"{video}: its frame file has schema version {values['schema_version']}, this program "
            f"reads up to {SCHEMA_VERSION}; upgrade siglip-pipeline"
        )
    info = values.pop("info")
    info["time_base"] = Fraction(info["time_base"])
    return FrameFileMetadata(info=VideoInfo(**info), **values)
