"""The Parquet file that holds the sampled frames of one video.

Columns ``frame_index, pts, time_seconds, width, height, jpeg, perceptual_hash, same_as``, in time
order. Row groups are small, so reading one thumbnail reads the footer and one row group, for any
length of the video.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from siglip_pipeline.errors import (
    NO_ROOM,
    DamagedFramesError,
    FrameStoreError,
    FrameStoreVersionError,
    StorageFullError,
)
from siglip_pipeline.records import IntArray, VideoInfo
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.uploads.names import shown

SCHEMA_VERSION: Final = 2
OLDEST_VERSION: Final = 1
"""Frame files from this version to the present one are read; older ones are made again."""

ROW_GROUP_FRAMES: Final = 32
ROW_GROUP_BYTES: Final = 2**20
"""A row group ends at either limit, so a thumbnail reads about a megabyte at most."""

MOST_WARNINGS: Final = 20
MOST_WARNING_CHARACTERS: Final = 500
"""Of one warning. A child that decodes is not trusted to stop by itself."""

METADATA_KEY: Final = b"siglip_pipeline"


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
"""``same_as`` is the frame_index of an earlier frame with the same picture; ``jpeg`` is null then.
It is only written when frames are deduplicated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFrame:
    """One sampled frame to write."""

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
    """The metadata in the footer of a frame file."""

    schema_version: int
    source_sha256: str
    sampling: str
    """The recipe of the frames, see :func:`.frame_recipe`."""
    decoder_version: str
    frames: int
    info: VideoInfo
    warnings: tuple[str, ...] = ()
    """What people should know of the frames; see :class:`.FrameReport`."""


class FrameFileWriter:
    """Writes one frame file, holding one row group in memory.

    Args:
        file: an empty file, which stays open unless writing fails.
        folder: its folder, for messages.

    Raises:
        StorageFullError: the disk is full; raised by every method.
    """

    def __init__(self, file: BinaryIO, *, folder: Path) -> None:
        self._file = file
        self._folder = folder
        with self._needing_room():
            self._writer = pq.ParquetWriter(
                file,
                SCHEMA,
                compression={name: "NONE" if name == "jpeg" else "ZSTD" for name in SCHEMA.names},
                use_dictionary=False,
                write_statistics=["frame_index"],
                # After a power loss, a valid footer can follow pages of zeros.
                write_page_checksum=True,
                store_schema=False,
            )
        self._pending: list[StoredFrame] = []
        self._pending_bytes = 0
        self.frames = 0

    def add(self, frame: StoredFrame) -> None:
        """Append a frame; call in time order."""
        self._pending.append(frame)
        self._pending_bytes += len(frame.jpeg or b"")
        self.frames += 1
        if len(self._pending) >= ROW_GROUP_FRAMES or self._pending_bytes >= ROW_GROUP_BYTES:
            self._flush()

    def close(
        self,
        info: VideoInfo,
        *,
        source_sha256: str,
        sampling: str,
        decoder_version: str,
        warnings: tuple[str, ...] = (),
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
            warnings=warnings,
        )
        with self._needing_room():
            self._writer.add_key_value_metadata({METADATA_KEY: _to_json(metadata)})
            self._writer.close()
            self._file.flush()
        return metadata

    def abort(self) -> None:
        """Close the writer and the file, without a usable footer."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        with contextlib.suppress(OSError):  # flushing the buffer fails on a full disk
            self._file.close()

    @contextlib.contextmanager
    def _needing_room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise StorageFullError(no_room(self._folder, error)) from error

    def _flush(self) -> None:
        if not self._pending:
            return
        columns = [
            pa.array([getattr(frame, field.name) for frame in self._pending], field.type)
            for field in SCHEMA
        ]
        with self._needing_room():
            self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._pending = []
        self._pending_bytes = 0


def new_file(path: Path) -> BinaryIO:
    """Create a file to write to, locked as being written until all processes have closed it."""
    file = path.open("xb")
    with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(file, fcntl.LOCK_SH)
    return file


def is_being_written(path: Path) -> bool:
    """Return whether a running process has the file open for writing."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # some file systems have no locks
            return False
    return False


def no_room(folder: Path, error: OSError) -> str:
    """Return the message for frames that cannot be written because the disk is full."""
    reason = os.strerror(error.errno or errno.ENOSPC)
    return (
        f"no room for frames in {folder} ({reason}): free some there, or point "
        "SIGLIP_FRAME_STORE elsewhere, and materialize again"
    )


FrameRow = tuple[int, int, float, bytes]
"""frame_index, pts, time_seconds and JPEG."""


class FrameFile:
    """An open frame file.

    Args:
        video: path below UPLOADS, for messages.
        file: a seekable binary file.

    Raises:
        FrameStoreError: another program, or a newer version of this one, wrote it.
        DamagedFramesError: its number of frames differs from the one in its footer.
    """

    def __init__(self, video: str, file: Any) -> None:
        self.video = video
        self._parquet = pq.ParquetFile(file, page_checksum_verification=True)
        self._last: tuple[int, pa.Table] | None = None
        raw = (self._parquet.metadata.metadata or {}).get(METADATA_KEY)
        if raw is None:
            raise FrameStoreError(f"{video}: its frame file was not written by this program")
        self.metadata = _from_json(video, raw)
        if self.metadata.frames != self._parquet.metadata.num_rows:
            raise DamagedFramesError(
                f"{video}: its frame file holds {self._parquet.metadata.num_rows} of "
                f"{counted(self.metadata.frames, 'frame')}; materialize video_frames again"
            )

    @property
    def frame_index_N(self) -> IntArray:
        """Indices of all frames, read without the pictures."""
        table = self._parquet.read(columns=["frame_index"])
        return np.asarray(table["frame_index"].to_numpy(), np.int64)

    def rows(self) -> Iterator[FrameRow]:
        """Yield all frames in time order, with one row group in memory."""
        columns = ["frame_index", "pts", "time_seconds", "jpeg", "same_as"]
        kept_index, kept = None, b""
        for group in range(self._parquet.metadata.num_row_groups):
            table = self._parquet.read_row_group(group, columns=columns)
            # In the order of `columns`, which can differ from the file's.
            values = (table[name].to_pylist() for name in columns)
            for index, pts, seconds, jpeg, same_as in zip(*values, strict=True):
                if jpeg is not None:
                    kept_index, kept = index, jpeg
                elif kept_index != same_as:
                    raise DamagedFramesError(
                        f"{self.video}: frame {index} refers to frame {same_as}, which has no "
                        "picture; its frame file is damaged, materialize video_frames again"
                    )
                yield index, pts, seconds, kept

    def jpeg(self, frame_index: int) -> bytes:
        """Return one picture; reads the row group that holds it, unless the last one had it too.

        Raises:
            FrameStoreError: the frame is not stored.
        """
        group = self._row_group(frame_index)
        if group is not None:
            table = self._pictures_of(group)
            indices = table["frame_index"].to_numpy()
            found = np.flatnonzero(indices == frame_index)
            if found.size:
                jpeg = table["jpeg"][int(found[0])].as_py()
                if jpeg is not None:
                    return bytes(jpeg)
                return self.jpeg(table["same_as"][int(found[0])].as_py())
        raise FrameStoreError(
            f"{self.video}: frame {frame_index} is not among the "
            f"{counted(self.metadata.frames, 'stored frame')} ({self.metadata.sampling})"
        )

    def _pictures_of(self, group: int) -> pa.Table:
        if self._last is None or self._last[0] != group:
            columns = ["frame_index", "jpeg", "same_as"]
            self._last = group, self._parquet.read_row_group(group, columns=columns)
        return self._last[1]

    def _row_group(self, frame_index: int) -> int | None:
        for group in range(self._parquet.metadata.num_row_groups):
            statistics = self._parquet.metadata.row_group(group).column(0).statistics
            if statistics.min <= frame_index <= statistics.max:
                return group
        return None


def _to_json(metadata: FrameFileMetadata) -> bytes:
    values = dataclasses.asdict(metadata)
    values["info"]["time_base"] = str(metadata.info.time_base)
    return json.dumps(values).encode()


def _from_json(video: str, raw: bytes) -> FrameFileMetadata:
    try:
        values = json.loads(raw)
        version = int(values["schema_version"])
        if version > SCHEMA_VERSION:
            raise FrameStoreVersionError(
                f"{video}: its frame file has schema version {version}, this program reads up to "
                f"{SCHEMA_VERSION}; upgrade siglip-pipeline"
            )
        if version < OLDEST_VERSION:
            raise FrameStoreError(
                f"{video}: its frame file has schema version {version}, this program reads from "
                f"{OLDEST_VERSION} on; materialize video_frames again"
            )
        info = values.pop("info")
        info["time_base"] = Fraction(info["time_base"])
        warnings = tuple(
            shown(str(warning)[:MOST_WARNING_CHARACTERS])
            for warning in values.pop("warnings", ())[:MOST_WARNINGS]
        )
        return FrameFileMetadata(info=VideoInfo(**info), warnings=warnings, **values)
    except (ValueError, LookupError, TypeError, ArithmeticError) as error:
        raise DamagedFramesError(
            f"{video}: the description in its frame file is damaged ({type(error).__name__}: "
            f"{error}); materialize video_frames again"
        ) from error
