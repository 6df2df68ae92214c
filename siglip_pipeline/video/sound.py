"""Decode the sound of a section of a video, in step with its frames.

Sound has timestamps of its own. Where it pauses or begins late, silence takes its place; where it
overlaps itself, the repeated part is dropped. So its samples count from the section's first frame.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer
from numpy.typing import NDArray

from siglip_pipeline.video.container import demux, open_container
from siglip_pipeline.video.scan import Scan
from siglip_pipeline.video.source import MediaSource

Samples = NDArray[np.float32]
"""[2, S]: left and right."""

RATE: Final = 48_000
LAYOUT: Final = "stereo"
SAMPLE_FORMAT: Final = "fltp"

SLACK_SECONDS: Final = 0.1
"""Smaller gaps and overlaps are inaccurate timestamps."""
LEAD_SECONDS: Final = 2.0
"""Sound is decoded from so long before the section, and sought until so long after it."""
_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """The sound of a section."""

    pieces: Iterator[Samples] | None
    """The samples from the first frame on; None if there is no sound."""
    failure: str | None = None
    """Why there is none although the file has some."""


def read_sound(
    source: MediaSource,
    scanned: Scan,
    begin_seconds: float,
    end_seconds: float,
    *,
    on_progress: Callable[[], None] = lambda: None,
) -> Sound:
    """Open the sound of a section of a video.

    Args:
        source: what to read.
        scanned: its video track.
        begin_seconds: time of the section's first frame, by the timestamps of the scan.
        end_seconds: end of the section.
        on_progress: called while reading.
    """
    section = _Section(source, scanned, begin_seconds, end_seconds, on_progress)
    pieces = section.pieces()
    first = next(pieces, None)
    if first is not None:
        return Sound(pieces=itertools.chain([first], pieces))
    unreadable = section.packets and not section.frames
    failure = f"its sound ({section.codec}) cannot be decoded" if unreadable else None
    return Sound(pieces=None, failure=failure)


class _Section:
    """Reads one section; the arguments are those of :func:`read_sound`."""

    def __init__(
        self,
        source: MediaSource,
        scanned: Scan,
        begin_seconds: float,
        end_seconds: float,
        on_progress: Callable[[], None],
    ) -> None:
        self._source = source
        self._scan = scanned
        self._begin_seconds = begin_seconds
        self._end_seconds = end_seconds
        self._on_progress = on_progress
        self.packets = 0
        """Packets of sound in the section, and shortly before it."""
        self.frames = 0
        """What was decoded of them."""
        self.codec = ""

    def pieces(self) -> Iterator[Samples]:
        """Yield the samples from the first frame on, without gaps."""
        written = 0
        total = round((self._end_seconds - self._begin_seconds) * RATE)
        slack = round(SLACK_SECONDS * RATE)
        for seconds, samples in self._resampled():
            begin = written
            if seconds is not None:
                begin = round((seconds - self._begin_seconds) * RATE)
            if written and abs(begin - written) <= slack:
                begin = written
            while written < min(begin, total):  # a piece at a time: a pause may last for hours
                silence = np.zeros((2, min(begin - written, total - written, RATE)), np.float32)
                yield silence
                written += silence.shape[1]
            kept = samples[:, max(0, written - begin) :][:, : total - written]
            if kept.shape[1]:
                yield np.ascontiguousarray(kept)
                written += kept.shape[1]

    def _resampled(self) -> Iterator[tuple[float | None, Samples]]:
        """Yield decoded samples with the time of the first; None continues those before."""
        resampler, kind = AudioResampler(), None
        for seconds, frame in self._decoded():
            changed = frame.format.name, frame.layout.name, frame.sample_rate
            if changed != kind:
                resampler, kind = AudioResampler(SAMPLE_FORMAT, LAYOUT, RATE), changed
            try:
                parts = resampler.resample(frame)
            except (av.error.FFmpegError, ValueError):  # channels without a place
                continue
            for part in parts:
                yield seconds, part.to_ndarray().astype(np.float32, copy=False)
                seconds = None

    def _decoded(self) -> Iterator[tuple[float | None, AudioFrame]]:
        with open_container(self._source) as container:
            video = container.streams[self._scan.stream_index]
            track = container.streams.best("audio", related=video)
            if not isinstance(track, AudioStream):
                return
            self.codec = track.codec_context.name if track.codec_context else "an unknown codec"
            for seconds, packet in self._packets_of(container, track):
                self.packets += 1
                try:
                    frames = packet.decode()
                except (av.error.FFmpegError, AttributeError):  # damaged; no decoder
                    continue
                for frame in frames:
                    self.frames += 1
                    yield seconds, frame
                    seconds = None

    def _packets_of(
        self, container: InputContainer, track: AudioStream
    ) -> Iterator[tuple[float | None, Any]]:
        """Yield the packets of the section and some before it, each with its time."""
        shift_P, time_base = self._scan.packets.shift_P, self._scan.time_base
        first = self._begin_seconds - LEAD_SECONDS
        if first > 0 and shift_P is None and container.format.name.startswith(("mov,", "matroska")):
            container.seek(int(first * _MICROSECONDS))  # their index is exact
        ordinal, shift = 0, 0.0
        streams: list[Any] = [container.streams[self._scan.stream_index], track]
        for packet in demux(container, *streams):
            self._on_progress()
            is_video = packet.stream_index == self._scan.stream_index
            if is_video and shift_P is not None and ordinal < len(shift_P):
                # The clock of the sound restarts where that of the frames beside it does.
                shift = float(int(shift_P[ordinal]) * time_base)
                ordinal += 1
            stamp = packet.dts if is_video or packet.pts is None else packet.pts
            base = packet.time_base
            seconds = None if stamp is None or base is None else float(stamp * base) + shift
            if is_video:
                if seconds is not None and seconds >= self._end_seconds + LEAD_SECONDS:
                    return
            elif seconds is None or first <= seconds < self._end_seconds:
                yield seconds, packet
