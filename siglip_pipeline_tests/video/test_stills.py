"""Pictures and animations as uploads."""

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from av.error import InvalidDataError
from numpy.typing import NDArray
from PIL import Image, ImageCms

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.frame_selection import select_frames
from siglip_pipeline.video.sampling import Sampling
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.stills import _reading, is_picture, picture_frames, scan_picture
from siglip_pipeline_tests.video.rendering import numbered_picture, read_number, render


def source_of(path: Path) -> MediaSource:
    return MediaSource(path.name, path=path)


def only_picture(path: Path, longest_side: int | None = None) -> NDArray[np.uint8]:
    assert is_picture(source_of(path))
    ((position, pixels),) = picture_frames(
        source_of(path), np.array([0]), longest_side=longest_side
    )
    assert position == 0
    return pixels


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif"])
def test_a_still_is_a_video_of_one_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"still.{suffix}"
    picture = numbered_picture(77)
    Image.fromarray(picture).save(path)
    scanned = scan_picture(source_of(path))
    info = scanned.info
    assert (info.width, info.height, info.frame_count, info.frame_rate) == (160, 96, 1, None)
    assert info.duration_seconds == 0.04
    assert info.size_bytes == path.stat().st_size
    pixels = only_picture(path)
    assert read_number(pixels) == 77
    assert np.abs(pixels.astype(int) - picture).mean() < 12
    assert only_picture(path, longest_side=80).shape == (48, 80, 3)
    assert only_picture(path, longest_side=1000).shape == (96, 160, 3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_a_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving.{suffix}"
    first, *others = [Image.fromarray(numbered_picture(3 * n)) for n in range(6)]
    durations = [100, 200, 400, 800, 1600, 50]
    first.save(path, save_all=True, append_images=others, duration=durations, lossless=True)
    scanned = scan_picture(source_of(path))
    assert scanned.pts_N.tolist() == [0, 100, 300, 700, 1500, 3100]
    assert scanned.info.duration_seconds == 3.15
    chosen = select_frames(
        Sampling.parse("fps:1"),
        scanned.pts_N,
        time_base=scanned.info.time_base,
        end_pts=scanned.end_pts,
    )
    assert chosen.tolist() == [0, 3, 4, 5][: chosen.size]
    frames = dict(picture_frames(source_of(path), chosen, longest_side=None))
    assert [read_number(frames[position]) for position in frames] == [3 * n for n in chosen]


def test_frames_too_short_to_see_last_as_long_as_in_browsers(tmp_path: Path) -> None:
    path = tmp_path / "fast.gif"
    first, *others = [Image.fromarray(numbered_picture(n)) for n in range(3)]
    first.save(path, save_all=True, append_images=others, duration=0)
    assert scan_picture(source_of(path)).pts_N.tolist() == [0, 100, 200]


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    picture = numbered_picture(5)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to show
    path = tmp_path / "telephone.jpg"
    Image.fromarray(np.rot90(picture)).save(path, exif=exif, quality=95)
    info = scan_picture(source_of(path)).info
    assert (info.width, info.height) == (160, 96)
    assert read_number(only_picture(path)) == 5


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        path = tmp_path / f"clear_{mode}.png"
        Image.new(mode, (8, 8), colour).save(path)
        assert (only_picture(path) == 255).all()


def test_sixteen_bits_of_grey_keep_their_shade(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(path)
    assert (only_picture(path) == 0x80).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (16, 16), "white").convert(mode).save(path)
    assert (only_picture(path) >= 250).all()


def test_embedded_profiles_are_applied(tmp_path: Path) -> None:
    """A profile with linear light changes the file's grey in sRGB."""
    lab = ImageCms.createProfile("LAB")
    broken, path = tmp_path / "broken.png", tmp_path / "profile.png"
    grey = Image.new("RGB", (8, 8), (120, 120, 120))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    grey.save(path, icc_profile=srgb)
    assert (only_picture(path) == 120).all()
    for bad in (b"no profile at all", ImageCms.ImageCmsProfile(lab).tobytes()):
        grey.save(broken, icc_profile=bad)
        assert (only_picture(broken) == 120).all(), "a profile that cannot apply changes nothing"


def profile_of_a_print() -> bytes:
    """A profile for CMYK by which no ink is white and any ink black (ICC.1:2001-04, 6.5.9)."""
    identity = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    paper = bytes([255, 128, 128]) + bytes([0, 128, 128]) * 15
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + paper + ramp * 3
    return icc_profile(b"prtr", b"CMYK", b"Lab ", b"A2B0", table)


def profile_of_grey() -> bytes:
    """A profile for grey, with linear light."""
    return icc_profile(b"scnr", b"GRAY", b"XYZ ", b"kTRC", b"curv" + bytes(8))


def icc_profile(device: bytes, space: bytes, connection: bytes, tag: bytes, data: bytes) -> bytes:
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    at = 128 + 4 + 2 * 12
    tags = struct.pack(">I4sII4sII", 2, b"wtpt", at, 20, tag, at + 20, len(data))
    size = struct.pack(">I", at + 20 + len(data))
    head = size + bytes(4) + b"\2\x10\0\0" + device + space + connection + bytes(12) + b"acsp"
    return (head + bytes(28) + white[8:]).ljust(128, b"\0") + tags + white + data


@pytest.mark.parametrize(
    ("mode", "profile", "code"),
    [
        ("RGB", profile_of_grey(), (200, 100, 50)),
        ("RGBA", profile_of_grey(), (200, 100, 50)),
        ("RGB", profile_of_a_print(), (200, 100, 50)),
        ("L", profile_of_a_print(), (100, 100, 100)),
        ("L", profile_of_grey(), (168, 168, 168)),
        ("CMYK", profile_of_grey(), (0, 255, 255)),
        ("CMYK", profile_of_a_print(), (0, 0, 0)),
    ],
)
def test_a_profile_for_other_colours_than_the_picture_has(
    mode: str, profile: bytes, code: tuple[int, int, int], tmp_path: Path
) -> None:
    """Editors leave the profile of a print in what they save as RGB."""
    path = tmp_path / "a.tif"
    colours = {"RGB": (200, 100, 50), "RGBA": (200, 100, 50, 255), "CMYK": (255, 0, 0, 0)}
    Image.new(mode, (8, 8), colours.get(mode, 100)).save(path, icc_profile=profile)
    assert np.abs(only_picture(path).astype(int) - code).max() <= 1


def test_a_picture_that_is_cut_off(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(numbered_picture(1)).save(buffer, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    with pytest.raises(VideoError, match="damaged or cut off"):
        scan_picture(source_of(path))


def test_a_picture_of_which_only_the_first_bytes_are_one(tmp_path: Path) -> None:
    path = tmp_path / "no.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(VideoError, match="no picture follows its first bytes") as caught:
        scan_picture(source_of(path))
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (EOFError(), "its decoder fails with EOFError"),
        (OSError(5, "Input/output error", "/secret/a.png"), "Input/output error"),
        (InvalidDataError(1, "Invalid data found", "avcodec_send_packet()"), "Invalid data found"),
        (ValueError("its end is missing"), "its end is missing"),
    ],
)
def test_the_reason_of_a_decoder_in_words(error: Exception, words: str, tmp_path: Path) -> None:
    wanted = re.escape(f"damaged or cut off ({words}); upload it again")
    with pytest.raises(VideoError, match=wanted), _reading(source_of(tmp_path / "a.png")):
        raise error


def test_an_animation_that_is_cut_off_is_known_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    first, *others = [Image.fromarray(numbered_picture(50 * n)) for n in range(10)]
    first.save(path, save_all=True, append_images=others, duration=100)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 6 // 10])
    scanned = scan_picture(source_of(path))
    assert scanned.expected == 10
    assert 3 <= scanned.info.frame_count <= 7


def test_absurdly_large_pictures_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with pytest.raises(VideoError, match="20000x10000 pixels"):
        scan_picture(source_of(path))


def test_videos_are_no_pictures(tmp_path: Path) -> None:
    assert not is_picture(source_of(render(tmp_path / "a.mp4", frames=2)))
    assert not is_picture(source_of(render(tmp_path / "a.webm", codec="libvpx", frames=2)))
    motion = render(
        tmp_path / "a.mjpeg",
        codec="mjpeg",
        frames=4,
        pixel_format="yuvj420p",
        container_format="mjpeg",
    )
    assert not is_picture(source_of(motion))
    assert not is_picture(source_of(tmp_path / "gone.png"))
