"""Sampled frames of uploads into the frame store, each video decoded in a watched child process.

A decoder can hang, crash or fill the memory on a damaged file. Here that costs the one video and
the child that decoded it; the batch goes on with a fresh child.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Generator, Iterable, Sized
from typing import Final

from siglip_pipeline.errors import StorageFullError, UploadNotFoundError, VideoError
from siglip_pipeline.records import Upload
from siglip_pipeline.uploads.upload_store import UploadStore
from siglip_pipeline.video.child_jobs import ExtractJob, Limits
from siglip_pipeline.video.children import Child, JobError, wait_for_any
from siglip_pipeline.video.decode_options import DecodeOptions
from siglip_pipeline.video.frame_file import new_file
from siglip_pipeline.video.frame_report import FrameReport, read_report
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline.video.handing import Handed, hand
from siglip_pipeline.video.sampling import Sampling

__all__ = ["DecodeOptions", "FrameReport", "extract_frames", "extract_many"]

MAX_TRIES: Final = 3
"""A file that was replaced while it was decoded is decoded again, up to so many times in all."""

MAX_DRAFT_BYTES: Final = 256 * 2**30
"""Of one frame file: some five million pictures."""

MAX_THREADS: Final = 8
"""More threads for one video decode it hardly faster, and each holds frames of its own."""


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
    raise AssertionError("extract_many gave nothing for its one upload")


def extract_many(
    uploads_list: Iterable[Upload],
    uploads: UploadStore,
    frame_store: FrameStore,
    *,
    sampling: Sampling | str,
    options: DecodeOptions | None = None,
    workers: int = 0,
) -> Generator[tuple[Upload, FrameReport | VideoError], None, None]:
    """Decode many uploads in parallel; each upload's outcome is given as it is known.

    A file that is replaced meanwhile is decoded again: frames of two files are never mixed.

    Args:
        uploads_list: taken one by one as children become free.
        uploads: where they lie.
        frame_store: where frames go.
        sampling: which frames to take.
        options: how to decode.
        workers: videos decoded at once, one process each; 0 for one per CPU core. Cores that are
            left over, as with a single video, become decoder threads.

    Raises:
        FrameStoreError: frames cannot be stored; that concerns all videos, so the batch ends.
    """
    policy = Sampling.parse(sampling) if isinstance(sampling, str) else sampling
    options = options or DecodeOptions()
    limit = workers or available_cpus()
    if isinstance(uploads_list, Sized):
        limit = max(1, min(limit, len(uploads_list)))
    if options.threads == 0:
        threads = min(MAX_THREADS, max(1, available_cpus() // limit))
        options = dataclasses.replace(options, threads=threads)
    waiting = iter(uploads_list)
    tries: dict[str, int] = {}
    free: list[Child] = []
    busy: dict[Child, _Task] = {}
    try:
        exhausted = False
        while True:
            while not exhausted and len(busy) < limit:
                upload = next(waiting, None)
                if upload is None:
                    exhausted = True
                    break
                try:
                    task = _Task(upload, uploads, frame_store, policy, options)
                except VideoError as error:
                    yield upload, error
                    continue
                child = free.pop() if free else Child()
                busy[child] = task
                task.start(child)
            if not busy:
                return
            for child in wait_for_any(busy):
                task = busy.pop(child)
                if child.is_alive and child.memory_mib() < options.memory_mib / 2:
                    free.append(child)
                else:  # the next video must not pay for what this one left behind
                    child.end()
                outcome = task.finish(child)
                if isinstance(outcome, Upload):
                    tries[outcome.path] = tries.get(outcome.path, 1) + 1
                    if tries[outcome.path] <= MAX_TRIES:
                        waiting, exhausted = itertools.chain([outcome], waiting), False
                        continue
                    outcome = VideoError(
                        outcome.path,
                        f"it was replaced {MAX_TRIES} times while it was decoded; it is taken up "
                        "again once it stays as it is",
                    )
                yield task.upload, outcome
    finally:
        for child in [*free, *busy]:
            child.end()
        for task in busy.values():
            task.clean_up()


def available_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Task:
    """One upload on its way through a child."""

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
        """Give it to a child."""
        job = ExtractJob(
            video=self.upload.path,
            fed_bytes=self._handed.fed_bytes,
            draft_folder=self._draft.parent,
            sampling=self._sampling,
            options=self._options,
            source_fingerprint=self.upload.fingerprint,
        )
        limits = Limits(
            stall_seconds=self._options.stall_seconds,
            total_seconds=self._options.total_seconds,
            memory_mib=self._options.memory_mib,
            threads=max(1, self._options.threads),
            file_bytes=MAX_DRAFT_BYTES,
        )
        try:
            with new_file(self._draft) as draft:
                child.start(job, limits, [self._handed.descriptor, draft.fileno()])
        except OSError as error:
            raise self._frame_store.refused(self._draft.parent, error) from error

    def finish(self, child: Child) -> FrameReport | VideoError | Upload:
        """Put the frames in place, or drop what was written.

        Returns:
            The upload as it is now, where that is not what the child was given to read.

        Raises:
            FrameStoreError: the frames cannot be stored.
        """
        try:
            result = self._report(child)
            try:
                now = self._uploads.get(self.upload.path)
            except UploadNotFoundError:
                found = f" ({result.reason})" if isinstance(result, VideoError) else ""
                return VideoError(self.upload.path, f"it was deleted while it was decoded{found}")
            if now.fingerprint != self.upload.fingerprint:
                return now
            if isinstance(result, VideoError):
                return result
            self._frame_store.publish(self.upload.path, self._draft)
            return result
        finally:
            self.clean_up()

    def _report(self, child: Child) -> FrameReport | VideoError:
        try:
            report = read_report(self.upload.path, child.value())
        except JobError as error:
            if error.kind == "full":
                raise StorageFullError(error.reason) from error
            return VideoError(self.upload.path, error.reason)
        except VideoError as error:
            return error
        return dataclasses.replace(report, source_fingerprint=self.upload.fingerprint)

    def clean_up(self) -> None:
        """Remove the draft of this upload, and close the upload."""
        self._handed.close()
        self._draft.unlink(missing_ok=True)
