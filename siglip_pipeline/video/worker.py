"""The decoding child: takes jobs, decodes, writes frame files, and says how it goes."""

import contextlib
import ctypes
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import av
import av.error
import numpy as np
import pyarrow as pa
from av.video.frame import VideoFrame

from siglip_pipeline.errors import SiglipPipelineError, StorageFullError, VideoError
from siglip_pipeline.records import IntArray, VideoInfo
from siglip_pipeline.video.decode import DecodeCounts, decode_frames
from siglip_pipeline.video.frame_file import FrameFileWriter, StoredFrame
from siglip_pipeline.video.jobs import ExtractJob, FrameReport
from siglip_pipeline.video.picture import (
    PictureMaker,
    RgbArray,
    encode_jpeg,
    hash_distance,
    perceptual_hash,
)
from siglip_pipeline.video.plan import plan_decode, plan_everything
from siglip_pipeline.video.probe import Scan, nothing_decoded_reason, scan
from siglip_pipeline.video.shots import content_scores, find_cuts
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import is_picture, picture_frames, scan_picture

DECODER_VERSION: Final = f"1 pyav {av.__version__} libavcodec " + ".".join(
    str(number) for number in av.library_versions["libavcodec"]
)
"""Changes when the same file may give other pixels."""

Progress = Callable[[int], None]
"""Called with the number of packets or frames so far, as often as there are any."""

PROGRESS_SECONDS: Final = 0.25

M_MMAP_THRESHOLD: Final = -3
"""Parameter number of ``mallopt``, from glibc's malloc.h."""
MMAP_THRESHOLD_BYTES: Final = 2**17
"""glibc's own default (mallopt(3)), which otherwise rises with each large block that is freed."""

NEAR_IDENTICAL_BITS: Final = 2
"""Deduplication: at most so many of 64 bits of the perceptual hash differ."""


def main(descriptor: int, *, parent: int) -> None:
    """Serve jobs until the parent process goes away."""
    return_freed_memory()
    threading.Thread(target=_leave_with_parent, args=[parent], daemon=True).start()
    connection = Connection(descriptor)
    connection.send(("ready", None))
    while True:
        try:
            job: ExtractJob = connection.recv()
        except (EOFError, OSError):
            return
        progress = _Progress(connection)
        try:
            message: tuple[str, object] = ("done", extract(job, progress))
        except VideoError as error:
            message = ("failed", error.reason)
        except StorageFullError as error:  # no fault of this video's
            message = ("full", str(error))
        except SiglipPipelineError as error:
            message = ("failed", str(error))
        except av.error.FFmpegError as error:
            message = ("failed", f"FFmpeg cannot go on with it ({error}); the file is damaged")
        except MemoryError:
            message = ("failed", "decoding it ran out of memory")
        except Exception as error:  # a defect must cost one video, and must be seen
            traceback.print_exc()
            message = ("failed", f"unexpected {type(error).__name__}: {error}")
        connection.send(message)


def return_freed_memory() -> None:
    """Have large blocks go back to the system when they are freed, in this whole process.

    Otherwise the index of a long file, which is read once to plan and once to decode, stays in the
    heap as holes, and Arrow's own pool keeps what row groups took.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    with contextlib.suppress(AttributeError, OSError, TypeError):  # only glibc has mallopt
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)


def _leave_with_parent(parent: int) -> None:
    """End with the parent, even when a decoder hangs: nobody is left to end this process."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Progress:
    """Tells the parent, a few times a second, that decoding goes on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._last = time.monotonic()

    def __call__(self, step: int = 0) -> None:
        now = time.monotonic()
        if now - self._last >= PROGRESS_SECONDS:
            self._last = now
            self._connection.send(("progress", step))


def extract(job: ExtractJob, progress: Progress = lambda step: None) -> FrameReport:
    """Decode one video and write its frame file to the job's draft.

    Raises:
        VideoError: it cannot be decoded, or too little of it can.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    if job.path is not None:
        source = MediaSource(job.video, path=job.path)
    else:
        uploads = job.uploads
        assert uploads is not None
        source = MediaSource(job.video, opener=lambda: uploads.open(job.video))
    writer = FrameFileWriter(job.draft)
    try:
        sink = _Sink(job, writer)
        read = _extract_picture if is_picture(source) else _extract_video
        outcome = read(job, source, sink, progress)
        sha256 = source.sha256(progress)
        writer.close(
            outcome.info,
            source_sha256=sha256,
            sampling=job.recipe,
            decoder_version=DECODER_VERSION,
        )
    except BaseException:
        writer.abort()
        raise
    return FrameReport(
        info=outcome.info,
        sampling=job.recipe,
        planned_frames=outcome.planned_frames,
        frames=writer.frames,
        packets=outcome.packets,
        damaged_packets=outcome.damaged_packets,
        damaged_share=outcome.damaged_share,
        source_sha256=sha256,
        source_fingerprint=job.source_fingerprint,
        decode_cpu_seconds=time.process_time() - started_cpu,
        wall_seconds=time.perf_counter() - started,
        peak_memory_bytes=_peak_memory_bytes(),
    )


def _peak_memory_bytes() -> int:
    with contextlib.suppress(OSError):
        # getrusage would give the parent's peak where that is larger: Linux keeps it over exec.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    info: VideoInfo
    planned_frames: int
    packets: int
    damaged_packets: int
    damaged_share: float


def _extract_picture(
    job: ExtractJob, source: MediaSource, sink: "_Sink", progress: Progress
) -> _Outcome:
    scanned = scan_picture(source, on_progress=progress)
    pts_N = scanned.pts_N
    targets = job.sampling.select(
        pts_N,
        time_base=scanned.info.time_base,
        end_pts=scanned.end_pts,
        key_N=np.arange(pts_N.size) == 0,
        cuts=np.empty(0, np.int64),
    )
    frames = picture_frames(source, targets, longest_side=job.options.longest_side)
    for position, pixels_HWC in frames:
        progress(position)
        pts = int(pts_N[position])
        sink.add(pixels_HWC, frame_index=position, pts=pts, time_seconds=pts / 1000)
    lost = scanned.expected - scanned.info.frame_count
    return _checked(
        job,
        _Outcome(
            info=scanned.info,
            planned_frames=targets.size,
            packets=scanned.expected,
            damaged_packets=lost,
            damaged_share=lost / scanned.expected,
        ),
    )


def _extract_video(
    job: ExtractJob, source: MediaSource, sink: "_Sink", progress: Progress
) -> _Outcome:
    scanned = scan(source, on_progress=progress)
    packets = scanned.packets
    targets = job.sampling.select(
        packets.pts_N,
        time_base=scanned.time_base,
        end_pts=packets.end_pts,
        key_N=packets.key_N,
        cuts=_cuts(source, scanned, job, progress) if job.sampling.kind == "scenes" else None,
    )
    counts = DecodeCounts()
    pictures = PictureMaker(longest_side=job.options.longest_side)
    geometry = None
    for decoded in decode_frames(
        source,
        scanned,
        plan_decode(packets, targets),
        counts=counts,
        threads=max(1, job.options.threads),
        on_progress=progress,
    ):
        frame_geometry = scanned.geometry(decoded.frame)
        geometry = geometry or frame_geometry
        sink.add(
            pictures.rgb(decoded.frame, frame_geometry),
            frame_index=decoded.frame_index,
            pts=decoded.pts,
            time_seconds=decoded.time_seconds,
        )
    if geometry is None:
        raise VideoError(job.video, nothing_decoded_reason(scanned))
    lost = packets.expected - len(packets)
    # Only part of the packets is decoded: what fails among those stands for the rest.
    missing_share = len(counts.missing) / targets.size
    share = (lost + max(counts.damaged_share, missing_share) * len(packets)) / packets.expected
    return _checked(
        job,
        _Outcome(
            info=scanned.info(geometry),
            planned_frames=targets.size,
            packets=packets.expected,
            damaged_packets=lost + counts.damaged_packets,
            damaged_share=share,
        ),
    )


def _cuts(source: MediaSource, scanned: Scan, job: ExtractJob, progress: Progress) -> IntArray:
    """Where shots begin; decodes everything once, and keeps a number per frame."""
    everything = np.arange(scanned.packets.pts_N.size)
    scores_N = np.zeros(everything.size, np.float32)
    positions: list[int] = []

    def frames() -> Iterator[VideoFrame]:
        for decoded in decode_frames(
            source,
            scanned,
            plan_everything(scanned.packets, everything),
            threads=max(1, job.options.threads),
            on_progress=progress,
        ):
            positions.append(decoded.frame_index)
            yield decoded.frame

    for score in content_scores(frames()):
        scores_N[positions[-1]] = score
    return find_cuts(scores_N, scanned.packets.pts_N, time_base=scanned.time_base)


def _checked(job: ExtractJob, outcome: _Outcome) -> _Outcome:
    """The outcome, unless too much of the file is lost."""
    share = 1 - outcome.damaged_share
    if share < job.options.min_decodable_share:
        raise VideoError(
            job.video,
            f"only {share:.0%} of it can be decoded, and at least "
            f"{job.options.min_decodable_share:.0%} is asked for "
            "(SIGLIP_MIN_DECODABLE_SHARE); upload it again",
        )
    return outcome


class _Sink:
    """Compresses pictures and hands them to the writer, without repeats where that is wanted."""

    def __init__(self, job: ExtractJob, writer: FrameFileWriter) -> None:
        self._options = job.options
        self._writer = writer
        self._kept: tuple[int, int] | None = None

    def add(self, pixels_HWC: RgbArray, *, frame_index: int, pts: int, time_seconds: float) -> None:
        """Store one sampled frame."""
        picture_hash = perceptual_hash(pixels_HWC)
        same_as = None
        if self._options.deduplicate and self._kept is not None:
            kept_index, kept_hash = self._kept
            if hash_distance(kept_hash, picture_hash) <= NEAR_IDENTICAL_BITS:
                same_as = kept_index
        jpeg = None
        if same_as is None:
            jpeg = encode_jpeg(pixels_HWC, quality=self._options.jpeg_quality)
            self._kept = (frame_index, picture_hash)
        height, width = pixels_HWC.shape[:2]
        self._writer.add(
            StoredFrame(
                frame_index=frame_index,
                pts=pts,
                time_seconds=time_seconds,
                width=width,
                height=height,
                jpeg=jpeg,
                perceptual_hash=picture_hash,
                same_as=same_as,
            )
        )
