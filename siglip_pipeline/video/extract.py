"""Decode uploads in child processes, and store their sampled frames.

A decoder can hang, crash or fill the memory on a damaged file. Then only this video fails, and the
batch continues with a new child.
"""

import contextlib
import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sized
from typing import Final

from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import (
    StorageFullError,
    UploadNotFoundError,
    VideoError,
    VideoInterruptedError,
)
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import ExtractJob, Limits
from siglip_pipeline.video.child_pool import run_in_children
from siglip_pipeline.video.children import Child, JobError
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_file import new_file
from siglip_pipeline.video.frame_report import FrameReport, read_report
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.handing import Handed, hand
from siglip_pipeline.video.sampling import Sampling

__all__ = ["DecodeOptions", "FrameReport", "extract_frames", "extract_many"]

logger = logging.getLogger(__name__)

MAX_TRIES: Final = 3
"""How often a file is decoded if it is replaced while it is decoded."""

PROGRESS_LOG_SECONDS: Final = 60.0
"""A video that takes longer is named in the log this often."""

MAX_DRAFT_BYTES: Final = 256 * 2**30
"""Largest frame file: about five million pictures."""

MAX_THREADS: Final = 8
"""Largest number of threads per video; more are hardly faster, and each holds frames in memory."""


def extract_frames(
    upload: Upload,
    uploads: UploadStore,
    frame_store: FrameStore,
    *,
    sampling: Sampling | str,
    options: DecodeOptions | None = None,
) -> FrameReport:
    """Decode one upload and store its sampled frames, replacing those stored before.

    Raises:
        VideoError: the upload cannot be decoded, with the reason.
        FrameStoreError: the frames cannot be stored.
    """
    results = extract_many(
        [upload], uploads, frame_store, sampling=sampling, options=options, workers=1
    )
    with contextlib.closing(results):
        for _, result in results:
            if isinstance(result, VideoError):
                raise result
            return result
    raise AssertionError("extract_many yields an outcome for every upload")


def extract_many(
    uploads_list: Iterable[Upload],
    uploads: UploadStore,
    frame_store: FrameStore,
    *,
    sampling: Sampling | str,
    options: DecodeOptions | None = None,
    workers: int = 0,
) -> Generator[tuple[Upload, FrameReport | VideoError], None, None]:
    """Decode many uploads in parallel; yield each upload with its outcome when it is known.

    A file that is replaced meanwhile is decoded again, so frames of two files are never mixed. Each
    upload is yielded as it was decoded, which can differ from the one that was given.

    Args:
        uploads_list: read one by one as children become free.
        uploads: where they are.
        frame_store: where frames are stored.
        sampling: which frames to sample.
        options: how to decode.
        workers: videos decoded at once, in one child each; 0 for one per CPU core. Remaining cores,
            as with a single video, become decoder threads.

    Raises:
        FrameStoreError: frames cannot be stored; this concerns all videos, so the batch ends.
    """
    policy = Sampling.parse(sampling) if isinstance(sampling, str) else sampling
    options = options or DecodeOptions()
    limit = workers or available_cores()
    if isinstance(uploads_list, Sized):
        limit = max(1, min(limit, len(uploads_list)))
    if options.threads == 0:
        threads = min(MAX_THREADS, max(1, available_cores() // limit))
        options = dataclasses.replace(options, threads=threads)
    waiting = _Waiting(uploads_list)
    results = run_in_children(
        waiting,
        lambda upload: _Task(upload, uploads, frame_store, policy, options),
        children=limit,
        memory_mib=options.memory_mib,
    )
    with contextlib.closing(results):
        for upload, outcome in results:
            if not isinstance(outcome, Upload):
                yield upload, outcome
            elif not waiting.try_again(outcome):
                reason = (
                    f"it was replaced {MAX_TRIES} times while it was decoded; it is taken up "
                    "again once it stays as it is"
                )
                yield upload, VideoError(upload.path, reason)


class _Waiting(Iterator[Upload]):
    """The uploads that are still to be decoded; those to decode again come first."""

    def __init__(self, uploads: Iterable[Upload]) -> None:
        self._first_tries = iter(uploads)
        self._again: list[Upload] = []
        self._tries: Counter[str] = Counter()

    def __next__(self) -> Upload:
        return self._again.pop() if self._again else next(self._first_tries)

    def try_again(self, upload: Upload) -> bool:
        """Have an upload decoded again; return False if it was decoded too often."""
        self._tries[upload.path] += 1
        if self._tries[upload.path] >= MAX_TRIES:
            return False
        self._again.append(upload)
        return True


class _Task:
    """The decoding of one upload in a child."""

    def __init__(
        self,
        upload: Upload,
        uploads: UploadStore,
        frame_store: FrameStore,
        sampling: Sampling,
        options: DecodeOptions,
    ) -> None:
        self.upload = upload
        self._uploads = uploads
        self._frame_store = frame_store
        self._options = options
        self._sampling = sampling
        self._handed: Handed = hand(uploads, upload, options)
        try:
            self._draft = frame_store.new_draft()
        except BaseException:
            self._handed.close()
            raise

    def start(self, child: Child) -> None:
        """Give the job to the child."""
        job = ExtractJob(
            video=self.upload.path,
            fed_bytes=self._handed.fed_bytes,
            draft_folder=self._draft.parent,
            sampling=self._sampling,
            options=self._options,
        )
        limits = Limits(
            stall_seconds=self._options.stall_seconds,
            total_seconds=self._options.total_seconds,
            memory_mib=self._options.memory_mib,
            threads=max(1, self._options.threads),
            file_bytes=MAX_DRAFT_BYTES,
        )
        child.on_progress = _LongDecode(self.upload.path)
        try:
            with new_file(self._draft) as draft:
                child.start(job, limits, [self._handed.descriptor, draft.fileno()])
        except OSError as error:
            raise self._frame_store.refused(self._draft.parent, error) from error

    def finish(self, child: Child) -> FrameReport | VideoError | Upload:
        """Publish the frames, if the upload was decoded and has not changed.

        Returns:
            The report, or why there is none; the upload as it is now if it has changed.

        Raises:
            FrameStoreError: the frames cannot be stored.
        """
        result = self._report(child)
        try:
            now = self._uploads.get(self.upload.path)
        except UploadNotFoundError:
            found = f" ({result.reason})" if isinstance(result, VideoError) else ""
            return VideoError(self.upload.path, f"it was deleted while it was decoded{found}")
        # What was read is one file, whatever its inode: another one there is hashed later.
        if not now.has_fingerprint(self.upload.fingerprints[1]):
            return now
        if isinstance(result, VideoError):
            return result
        self._frame_store.publish(self.upload.path, self._draft)
        return result

    def _report(self, child: Child) -> FrameReport | VideoError:
        try:
            return read_report(self.upload.path, child.value())
        except JobError as error:
            if error.kind == "full":
                raise StorageFullError(error.reason) from error
            if error.kind == "interrupted" or self._handed.has_failed:
                return VideoInterruptedError(self.upload.path, error.reason)
            return VideoError(self.upload.path, error.reason)
        except VideoError as error:
            return error

    def close(self) -> None:
        """Remove the draft of this upload, and close the upload."""
        self._handed.close()
        self._draft.unlink(missing_ok=True)


class _LongDecode:
    """Logs once in a while that a video is still being decoded."""

    def __init__(self, video: str) -> None:
        self._video = video
        self._started = self._said = time.monotonic()

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if now - self._said >= PROGRESS_LOG_SECONDS:
            self._said = now
            seconds = now - self._started
            logger.info("%s: decoding for %.0f s, packet %d", self._video, seconds, step)
