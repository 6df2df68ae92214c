"""Videos of every kind that Debian's ffmpeg makes are indexed as the ffmpeg program shows them.

A third of the combinations is looked at, by ``--conformance-seed``; all with ``--conformance-all``.
"""

import fnmatch
import tomllib
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.errors import VideoError
from siglip_pipeline_tests.video.combinations import CONTAINERS, COUNT, combinations, make
from siglip_pipeline_tests.video.ffmpeg_reference import (
    EXACTLY,
    Indexed,
    difference,
    ffmpeg,
    indexed_many,
)

ACCEPTED = tomllib.loads(Path(__file__).with_name("accepted_differences.toml").read_text())

WITHIN = 6.0
"""How far pictures may lie apart, for JPEG and the interpolation of colours."""

AS_SHOWN = (
    "bwdif=send_frame:auto:interlaced,"
    "scale=w='iw*max(sar,1)':h='ih/min(sar,1)':flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=rgb24"
)
"""Square pixels, and fields rebuilt; ffmpeg turns pictures by itself."""


@dataclass(frozen=True)
class Shown:
    """What the ffmpeg program shows."""

    seconds_N: NDArray[np.float64]
    pictures: list[NDArray[np.uint8]]


def reference(paths: list[Path], folder: Path) -> dict[str, Shown]:
    """Decode all files in one call of ffmpeg, to uncompressed video with times."""
    arguments: list[str | Path] = []
    for path in paths:
        arguments += [*EXACTLY, "-i", path]
    for number, path in enumerate(paths):
        times = ("-fps_mode", "passthrough", "-enc_time_base", "-1", "-c:v", "rawvideo")
        arguments += ["-map", f"{number}:v:0", "-vf", AS_SHOWN, *times, "-f", "nut"]
        arguments.append(folder / f"{path.name}.reference")
    ffmpeg(*arguments)
    return {path.name: _read(folder / f"{path.name}.reference") for path in paths}


def _read(path: Path) -> Shown:
    with av.open(str(path), format="nut") as container:
        frames = [f for f in container.decode(video=0) if isinstance(f, VideoFrame)]
        seconds = np.array([frame.time for frame in frames], np.float64)
        pictures = [np.asarray(frame.to_ndarray(), np.uint8) for frame in frames]
    return Shown(seconds - seconds[:1], pictures)


def differences(ours: Indexed | VideoError, theirs: Shown) -> list[str]:
    """Return what differs, in words that the file of accepted differences names."""
    if isinstance(ours, VideoError):
        return [f"verdict: {ours.reason}"]
    found = []
    if len(ours.pictures) != len(theirs.pictures):
        found.append(f"frames: {len(ours.pictures)} for {len(theirs.pictures)}")
    elif np.abs(ours.seconds_N - theirs.seconds_N).max() > 2e-3:
        found.append(f"times: {ours.seconds_N.round(3)} for {theirs.seconds_N.round(3)}")
    sizes = [{p.shape[:2] for p in pictures} for pictures in (ours.pictures, theirs.pictures)]
    if sizes[0] != sizes[1]:
        return [*found, f"size: {sizes[0]} for {sizes[1]}"]
    for number, picture in enumerate(ours.pictures[: len(theirs.pictures)]):
        near = range(max(0, number - 1), min(len(theirs.pictures), number + 2))
        apart = {n: difference(picture, theirs.pictures[n]) for n in near}
        if apart[number] > WITHIN or apart[number] > min(apart.values()) + 0.25:
            found.append(f"picture {number}: {apart}")
            break
    return found


@pytest.mark.parametrize("codec", CONTAINERS)
def test_what_ffmpeg_shows_is_indexed(
    codec: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    wanted = [one for one in combinations() if one.codec == codec]
    if not request.config.getoption("--conformance-all"):
        wanted = wanted[request.config.getoption("--conformance-seed") % 3 :: 3]
    if not wanted:
        pytest.skip("none of this third")
    paths = make(wanted, tmp_path)
    shown = reference(paths, tmp_path)
    stored = indexed_many(paths, tmp_path)
    assert len(stored) == len(shown) == len(wanted)
    wrong = {
        f"{name}: {difference}"
        for name in shown
        for difference in differences(stored[name], shown[name])
        if not any(
            fnmatch.fnmatch(name, accepted["name"])
            and difference.startswith(tuple(accepted["what"]))
            for accepted in ACCEPTED["difference"]
        )
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_there_are_enough() -> None:
    names = [one.name for one in combinations()]
    assert len({*names}) == len(names) >= min(COUNT, 300)
    assert all(accepted["reason"] for accepted in ACCEPTED["difference"])
