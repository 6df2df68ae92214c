"""Decode the frames that the sampling ``scenes`` selects, in one pass that finds the cuts as well.

Only frames that others refer to are decoded and compared: a shot begins and ends with one of them,
a few frames from its cut at most. Interlaced frames take a second pass, which decodes those next to
them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame

from siglip_pipeline.video.decode import DecodeCounts, DecodedFrame, decode_frames, timed
from siglip_pipeline.video.decoder_pass import Pass
from siglip_pipeline.video.plan import plan_decode, plan_references
from siglip_pipeline.video.sampling import SceneSampler
from siglip_pipeline.video.scan import Scan
from siglip_pipeline.video.shots import ContentScore, CutFinder
from siglip_pipeline.video.source import MediaSource


@dataclass(frozen=True, slots=True)
class Held:
    """A frame that may be selected."""

    frame_index: int
    frame: VideoFrame


def decode_scenes(
    source: MediaSource,
    scan: Scan,
    *,
    counts: DecodeCounts,
    threads: int = 1,
    on_progress: Callable[[int], None] = lambda packets: None,
) -> Iterator[DecodedFrame]:
    """Yield the first, a middle and the last frame of each shot, in time order.

    Args:
        source: the file that was scanned.
        scan: its packets.
        counts: filled with what was done.
        threads: decoder threads.
        on_progress: called with the number of packets read.

    Raises:
        VideoError: the file cannot be opened any more, or its frames become too large.
    """
    pts_N = scan.packets.pts_N
    decoding = Pass(source, scan, counts.begin(), threads, on_progress)
    sampler = SceneSampler[Held](scan.time_base)

    def selected() -> Iterator[Held]:
        for held, begins_shot in compared(decoding, scan):
            pts = int(pts_N[held.frame_index])
            yield from sampler.add(pts, held, begins_shot=begins_shot)
        yield from sampler.finish()

    later: list[int] = []
    first: int | None = None
    for held in selected():
        first = held.frame_index if first is None else first
        if later or held.frame.interlaced_frame:
            later.append(held.frame_index)
        else:
            yield DecodedFrame.of(held.frame, held.frame_index, decoding, scan)
    if later:
        plan = plan_decode(scan.packets, np.array(later, np.int64), neighbours=True)
        again = DecodeCounts()
        yield from decode_frames(
            source,
            scan,
            plan,
            counts=again,
            threads=threads,
            deinterlace=True,
            on_progress=on_progress,
        )
        counts.missing += again.missing
    if first:  # are the frames before it lost, or does nothing refer to them?
        before = DecodeCounts()
        plan = plan_decode(scan.packets, np.arange(first))
        for _ in decode_frames(source, scan, plan, counts=before, on_progress=on_progress):
            pass
        counts.lost_share = before.lost_share


def compared(decoding: Pass, scan: Scan) -> Iterator[tuple[Held, bool]]:
    """Yield the frames that others refer to, and whether each begins a shot."""
    pts_N = scan.packets.pts_N
    score, finder = ContentScore(), CutFinder(scan.time_base)
    last: Held | None = None
    for frame in timed(decoding.frames(plan_references(scan.packets).steps_P), scan):
        index = -1 if frame.pts is None else int(np.searchsorted(pts_N, frame.pts))
        if index < 0 or index == pts_N.size or pts_N[index] != frame.pts:
            continue
        passed = 1 if last is None else index - last.frame_index
        if passed < 1:
            continue
        held = Held(index, frame)
        yield held, finder.begins_shot(score.of(frame), int(pts_N[index]), frames=passed)
        last = held
