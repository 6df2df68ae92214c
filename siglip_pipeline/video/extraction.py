"""Decode one upload into its frame file. Runs in a decoding child."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

import av
import numpy as np

from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import RgbArray, VideoInfo
from siglip_pipeline.video.decode import DecodeCounts, DecodedFrame, decode_frames
from siglip_pipeline.video.decode_options import Progress
from siglip_pipeline.video.frame_file import FrameFileWriter, StoredFrame
from siglip_pipeline.video.frame_index import index_frames
from siglip_pipeline.video.frame_report import FrameReport
from siglip_pipeline.video.frame_selection import select_frames
from siglip_pipeline.video.memory import peak_memory_bytes
from siglip_pipeline.video.picture import PictureMaker, encode_jpeg, hash_distance, perceptual_hash
from siglip_pipeline.video.plan import plan_decode
from siglip_pipeline.video.scan import Scan, nothing_decoded_reason
from siglip_pipeline.video.scene_sampling import decode_scenes
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import is_picture, picture_frames, scan_picture

if TYPE_CHECKING:
    from siglip_pipeline.video.child_jobs import ExtractJob

DECODER_VERSION: Final = f"3 pyav {av.__version__} libavcodec " + ".".join(
    str(number) for number in av.library_versions["libavcodec"]
)
"""Versions that determine pixels and times of a file; noted in it, and compared with nothing."""

NEAR_IDENTICAL_BITS: Final = 2
"""Frames are duplicates if at most this many of the 64 bits of their perceptual hashes differ."""


def extract(
    job: "ExtractJob", source: MediaSource, draft: BinaryIO, progress: Progress = lambda step: None
) -> FrameReport:
    """Decode one video and write its frame file.

    Args:
        job: sampling and options.
        source: the upload.
        draft: an empty file to write to.
        progress: called during decoding.

    Raises:
        VideoError: the upload, or too much of it, cannot be decoded.
        StorageFullError: the disk is full.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    writer = FrameFileWriter(draft, folder=job.draft_folder)
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
            warnings=outcome.warnings,
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
        decode_cpu_seconds=time.process_time() - started_cpu,
        wall_seconds=time.perf_counter() - started,
        peak_memory_bytes=peak_memory_bytes(),
        warnings=outcome.warnings,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    info: VideoInfo
    planned_frames: int
    packets: int
    damaged_packets: int
    damaged_share: float
    warnings: tuple[str, ...] = ()


def _extract_picture(
    job: "ExtractJob", source: MediaSource, sink: "_Sink", progress: Progress
) -> _Outcome:
    scanned = scan_picture(source, on_progress=progress)
    pts_N = scanned.pts_N
    targets = select_frames(
        job.sampling,
        pts_N,
        time_base=scanned.info.time_base,
        end_pts=scanned.end_pts,
        key_N=np.arange(pts_N.size) == 0,
    )
    frames = picture_frames(source, targets, longest_side=job.options.longest_side)
    for position, pixels_HWC in frames:
        progress(position)
        pts = int(pts_N[position])
        sink.add(pixels_HWC, frame_index=position, pts=pts, time_seconds=pts / 1000)
    return _checked(
        job,
        _Outcome(
            info=scanned.info,
            planned_frames=targets.size,
            packets=scanned.expected,
            damaged_packets=scanned.expected - scanned.info.frame_count,
            damaged_share=scanned.lost_share,
            warnings=scanned.warnings,
        ),
    )


def _extract_video(
    job: "ExtractJob", source: MediaSource, sink: "_Sink", progress: Progress
) -> _Outcome:
    scanned = index_frames(source, on_progress=progress)
    packets = scanned.packets
    counts = DecodeCounts()
    pictures = PictureMaker(longest_side=job.options.longest_side, codec=scanned.codec)
    geometry = None
    taken = 0
    frames, planned = _sampled(job, source, scanned, counts, progress)
    for decoded in frames:
        frame_geometry = scanned.geometry(decoded.frame, decoded.sample_aspect_ratio)
        geometry = geometry or frame_geometry
        taken += 1
        sink.add(
            pictures.rgb(decoded.frame, frame_geometry),
            frame_index=decoded.frame_index,
            pts=decoded.pts,
            time_seconds=decoded.time_seconds,
        )
    if geometry is None:
        raise VideoError(job.video, nothing_decoded_reason(scanned))
    lost = packets.expected - len(packets)
    # Unless a pass decoded everything, assume the same share of damage in the rest.
    planned = taken if planned is None else planned
    missing_share = counts.lost_share
    if missing_share is None:
        missing_share = len(counts.missing) / planned
    share = (lost + max(counts.damaged_share, missing_share) * len(packets)) / packets.expected
    return _checked(
        job,
        _Outcome(
            info=scanned.info(geometry),
            planned_frames=planned,
            packets=packets.expected,
            damaged_packets=lost + counts.damaged_packets,
            damaged_share=share,
            warnings=_warnings(
                scanned,
                pictures,
                damaged_share=share,
                indexed_share=taken / planned * len(packets) / packets.expected,
            ),
        ),
    )


def _sampled(
    job: "ExtractJob", source: MediaSource, scanned: Scan, counts: DecodeCounts, progress: Progress
) -> tuple[Iterator[DecodedFrame], int | None]:
    """Return the frames to store, decoded as they are taken; their number, if it is known."""
    packets, threads = scanned.packets, max(1, job.options.threads)
    if job.sampling.kind == "scenes":
        frames = decode_scenes(
            source, scanned, counts=counts, threads=threads, on_progress=progress
        )
        return frames, None
    targets = select_frames(
        job.sampling,
        packets.pts_N,
        time_base=scanned.time_base,
        end_pts=packets.end_pts,
        key_N=packets.key_N,
    )
    frames = decode_frames(
        source,
        scanned,
        plan_decode(packets, targets),
        counts=counts,
        threads=threads,
        deinterlace=True,
        on_progress=progress,
    )
    return frames, targets.size


def _warnings(
    scanned: Scan, pictures: PictureMaker, *, damaged_share: float, indexed_share: float
) -> tuple[str, ...]:
    """Return the warnings of a video that is indexed nevertheless."""
    warnings = list(dict.fromkeys([*scanned.warnings, *pictures.warnings]))
    if times := scanned.packets.restarts:
        warnings.append(
            f"timestamps begin again {times} {'time' if times == 1 else 'times'}: the parts follow "
            "each other in the order of the file"
        )
    if damaged_share > 0:
        warnings.append(f"{_percent(damaged_share)} of it cannot be decoded")
    if indexed_share < 1:
        warnings.append(f"{_percent(1 - indexed_share)} of the footage is not indexed")
    return tuple(warnings)


def _percent(share: float) -> str:
    return f"{max(1, round(100 * share))}%"


def _checked(job: "ExtractJob", outcome: _Outcome) -> _Outcome:
    """Return the outcome.

    Raises:
        VideoError: less of the file can be decoded than the options require.
    """
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
    """Compresses pictures for the writer, and omits near-identical ones if the options say so."""

    def __init__(self, job: "ExtractJob", writer: FrameFileWriter) -> None:
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
