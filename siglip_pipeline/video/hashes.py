"""Hash uploads with SHA-256 in decoding children, with a time limit. Imports no av."""

import contextlib
from collections.abc import Generator, Iterable

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import HashJob, Limits
from siglip_pipeline.video.child_pool import run_in_children
from siglip_pipeline.video.children import Child, JobError
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.handing import hand


class TooLongError(VideoError):
    """An upload was not hashed within its time limit."""


def sha256_many(
    uploads_list: Iterable[Upload], uploads: UploadStore, *, options: DecodeOptions, workers: int
) -> Generator[tuple[Upload, str | VideoError], None, None]:
    """Hash uploads, several at once; yield each hash, in hexadecimal, when it is known.

    Args:
        uploads_list: read one by one as children become free.
        uploads: where they are.
        options: limits of the size of an upload and of the time to hash it.
        workers: uploads hashed at once, in one child each.
    """
    results = run_in_children(
        iter(uploads_list),
        lambda upload: _Hashing(upload, uploads, options),
        children=workers,
        memory_mib=options.memory_mib,
    )
    with contextlib.closing(results):
        yield from results


class _Hashing:
    """The hashing of one upload in a child."""

    def __init__(self, upload: Upload, uploads: UploadStore, options: DecodeOptions) -> None:
        self._upload = upload
        self._options = options
        self._handed = hand(uploads, upload, options)

    def start(self, child: Child) -> None:
        """Give the job to the child."""
        limits = Limits(
            stall_seconds=self._options.stall_seconds,
            total_seconds=self._options.hash_seconds(self._upload.size_bytes),
            memory_mib=self._options.memory_mib,
        )
        job = HashJob(video=self._upload.path, fed_bytes=self._handed.fed_bytes)
        child.start(job, limits, [self._handed.descriptor])

    def finish(self, child: Child) -> str | VideoError:
        """Return the hash, or why there is none."""
        try:
            return str(child.value())
        except JobError as error:
            if error.kind == "late":
                return TooLongError(
                    self._upload.path,
                    f"hashing its {self._upload.size_bytes / 2**30:,.1f} GiB: {error.reason}; "
                    "raise SIGLIP_HASH_SECONDS_PER_GIB if the storage really is so slow",
                )
            return VideoError(self._upload.path, error.reason)

    def close(self) -> None:
        """Close the upload."""
        self._handed.close()
