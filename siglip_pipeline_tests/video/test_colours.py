"""Colours come out right in every matrix, transfer and pixel format, and transparency is white."""

from pathlib import Path

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.video.geometry import DisplayGeometry
from siglip_pipeline.video.matrices import BT2020_CONSTANT, ICTCP, luma_of_primaries, to_rgb
from siglip_pipeline.video.picture import PictureMaker
from siglip_pipeline.video.tone import hlg_to_scene, scene_to_hlg
from siglip_pipeline_tests.video.ffmpeg_reference import (
    REPORTS,
    Indexed,
    ffmpeg,
    indexed,
    indexed_many,
    shown,
)

RED, GREEN, BLUE, YELLOW = (220, 30, 30), (30, 200, 30), (30, 30, 220), (230, 220, 40)
QUARTERS = "geq=r='{}':g='{}':b='{}'"
WIDTH, HEIGHT = 160, 96


def quarters() -> str:
    """A filter that paints four colours."""
    planes = zip(RED, GREEN, BLUE, YELLOW, strict=True)
    return QUARTERS.format(
        *(
            f"if(lt(Y,{HEIGHT // 2}),if(lt(X,{WIDTH // 2}),{a},{b}),if(lt(X,{WIDTH // 2}),{c},{d}))"
            for a, b, c, d in planes
        )
    )


def source(filters: str = "null") -> tuple[str, ...]:
    painted = f"color=black:s={WIDTH}x{HEIGHT}:r=5:d=1,format=gbrp,{quarters()},{filters}"
    return ("-f", "lavfi", "-i", painted)


def corners(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.int64]:
    height, width = (side // 4 for side in pixels_HWC.shape[:2])
    return np.array(
        [pixels_HWC[y, x] for y in (height, 3 * height) for x in (width, 3 * width)], np.int64
    )


def assert_corners(out: Indexed, wanted: object, *, within: int = 3) -> None:
    assert out.pictures
    for pixels in out.pictures:
        np.testing.assert_allclose(corners(pixels), np.array(wanted), atol=within)


def test_ycgco_of_a_report(tmp_path: Path) -> None:
    out = indexed(REPORTS / "h264-ycgco.mp4", tmp_path)
    assert_corners(out, (RED, GREEN, BLUE, YELLOW))
    assert out.report.warnings == ()


MATRICES = {
    "smpte170m": "170m",
    "bt709": "709",
    "bt2020nc": "2020_ncl",
    "ycgco": "ycgco",
    "chroma-derived-nc": "chroma-derived-nc",
    "ictcp": "ictcp",
}
"""Names of FFmpeg's options, and of zscale's."""


def tagged(path: Path, pixel_format: str, **tags: str) -> list[str | Path]:
    """An output of ffmpeg: the source's colours in a matrix, transfer and range."""
    matrix, transfer = tags["colorspace"], tags["color_trc"]
    primaries = tags["color_primaries"]
    # ffmpeg 5.1 does not hand tags on from filters to encoders.
    said = [text for key, value in tags.items() for text in (f"-{key}", value)]
    same = f"setparams=color_trc={transfer}:color_primaries={primaries}:colorspace=gbr"
    scale = f"zscale=m={MATRICES[matrix]}:r={tags['color_range']}"
    filters = f"format=gbrp16le,{same}"
    if pixel_format.startswith("yuv"):
        filters += f",{scale}"
    return ["-vf", f"{filters},format={pixel_format}", *said, "-c:v", "ffv1", path]


def colours_of(paths: list[Path], folder: Path) -> dict[str, NDArray[np.int64]]:
    found = {}
    for name, out in indexed_many(paths, folder).items():
        assert isinstance(out, Indexed), name
        assert out.report.warnings == ()
        found[name] = corners(out.pictures[0])
    return found


@pytest.mark.parametrize("matrix", ["smpte170m", "bt709", "bt2020nc", "ycgco", "chroma-derived-nc"])
def test_matrices(matrix: str, tmp_path: Path) -> None:
    """FFmpeg's zscale goes there; what comes back are the colours that it was given."""
    outputs = [
        tagged(
            tmp_path / f"{pixel_format}-{color_range}.mkv",
            pixel_format,
            colorspace=matrix,
            color_range=color_range,
            color_trc="bt709",
            color_primaries="bt709",
        )
        for pixel_format in ("yuv444p", "yuv420p", "yuv422p10le", "yuv444p12le")
        for color_range in ("tv", "pc")
    ]
    ffmpeg(*source(), *(text for output in outputs for text in output))
    for name, found in colours_of([Path(output[-1]) for output in outputs], tmp_path).items():
        wanted = (RED, GREEN, BLUE, YELLOW)
        np.testing.assert_allclose(found, np.array(wanted), atol=4, err_msg=name)


HDR = ("smpte2084", "arib-std-b67")


def test_ictcp_of_pq(tmp_path: Path) -> None:
    """The same light as in a matrix that everybody knows."""
    outputs = [
        tagged(
            tmp_path / f"{matrix}.mkv",
            "yuv444p12le",
            colorspace=matrix,
            color_range="tv",
            color_trc="smpte2084",
            color_primaries="bt2020",
        )
        for matrix in ("bt2020nc", "ictcp")
    ]
    ffmpeg(*source(), *(text for output in outputs for text in output))
    known, found = colours_of([Path(output[-1]) for output in outputs], tmp_path).values()
    np.testing.assert_allclose(found, known, atol=3)


RGB = np.random.default_rng(1).random((8, 8, 3))


def back(yuv_HWC: NDArray[np.float64], matrix: int, transfer: int) -> NDArray[np.float64]:
    """RGB in [0, 1] of what is in limited range, through 16 bits."""
    codes = np.rint((yuv_HWC * (219, 224, 224) + (16, 128, 128)) * 256).astype(np.uint16)
    rgb = to_rgb(codes, matrix=matrix, primaries=9, transfer=transfer, full_range=False, bits=16)
    return rgb / 65535


def test_ictcp_of_hlg() -> None:
    """BT.2100-2, table 7; zscale makes it of display light."""
    lms = hlg_lms(RGB)
    matrix = np.array([[0.5, 0.5, 0], [3625 / 4096, -7465 / 4096, 3840 / 4096]])
    ictcp = np.vstack([matrix, np.array([[9500, -9212, -288]]) / 4096])
    np.testing.assert_allclose(back(lms @ ictcp.T, ICTCP, 18), RGB, atol=2e-3)


def hlg_lms(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    mixing = np.array([[1688, 2146, 262], [683, 2951, 462], [99, 309, 3688]]) / 4096
    return scene_to_hlg(hlg_to_scene(rgb) @ mixing.T)


def test_constant_luminance() -> None:
    """BT.2020-2, table 4; zscale makes it of display light."""
    light = np.where(RGB < 4.5 * 0.0181, RGB / 4.5, ((RGB + 0.0993) / 1.0993) ** (1 / 0.45))
    luminance = light @ (0.2627, 0.6780, 0.0593)
    y = np.where(luminance < 0.0181, 4.5 * luminance, 1.0993 * luminance**0.45 - 0.0993)
    u, v = RGB[..., 2] - y, RGB[..., 0] - y
    u, v = u / np.where(u <= 0, 1.9404, 1.5816), v / np.where(v <= 0, 1.7184, 0.9936)
    np.testing.assert_allclose(back(np.stack([y, u, v], 2), BT2020_CONSTANT, 14), RGB, atol=2e-3)


@pytest.mark.parametrize(
    ("primaries", "weights"), [(1, (0.2126, 0.0722)), (9, (0.2627, 0.0593)), (6, (0.212, 0.087))]
)
def test_luma_of_primaries(primaries: int, weights: tuple[float, float]) -> None:
    """As BT.709, BT.2020 and SMPTE 240M state them."""
    assert luma_of_primaries(primaries) == pytest.approx(weights, abs=6e-4)


@pytest.mark.parametrize(("number", "name"), [(11, "SMPTE ST 2085"), (13, "constant luminance")])
def test_a_matrix_that_is_not_known_is_named(number: int, name: str, tmp_path: Path) -> None:
    path = tmp_path / "unknown.mkv"
    ffmpeg(*source("format=yuv444p"), "-c:v", "ffv1", "-colorspace", str(number), path)
    (warning,) = indexed(path, tmp_path).report.warnings
    assert warning.startswith(f"colours are approximate: colour matrix {number} ({name}")


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_dolby_vision_without_a_base_layer_is_said(suffix: str, tmp_path: Path) -> None:
    path = REPORTS / "dolby-vision-profile-5.mp4"
    if suffix == "mkv":
        path = tmp_path / "dolby.mkv"
        ffmpeg("-i", REPORTS / "dolby-vision-profile-5.mp4", "-c", "copy", "-strict", "-2", path)
    (warning,) = indexed(path, tmp_path).report.warnings
    assert warning.startswith("colours are approximate: they are Dolby Vision's")


def test_dolby_vision_with_a_base_layer_is_as_other_video(tmp_path: Path) -> None:
    path = tmp_path / "profile8.mp4"
    raw = (REPORTS / "dolby-vision-profile-5.mp4").read_bytes()
    at = raw.index(b"dvcC") + 4
    path.write_bytes(raw[: at + 2] + bytes([8 << 1, raw[at + 3], 1 << 4]) + raw[at + 5 :])
    assert indexed(path, tmp_path).report.warnings == ()


FORMATS = (
    *("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le"),
    *("yuv422p12le", "yuv444p12le", "yuv444p16le", "gbrp10le", "gbrp12le", "rgb48le"),
)


@pytest.mark.parametrize("color_range", ["tv", "pc"])
@pytest.mark.parametrize("transfer", HDR)
def test_hdr_is_the_same_in_every_pixel_format(
    transfer: str, color_range: str, tmp_path: Path
) -> None:
    outputs = [
        tagged(
            tmp_path / f"{pixel_format}.mkv",
            pixel_format,
            colorspace="bt2020nc",
            color_range=color_range,
            color_trc=transfer,
            color_primaries="bt2020",
        )
        for pixel_format in FORMATS
    ]
    ffmpeg(*source(), *(text for output in outputs for text in output))
    found = colours_of([Path(output[-1]) for output in outputs], tmp_path)
    truth = found.pop("rgb48le.mkv")
    assert not np.allclose(truth, (RED, GREEN, BLUE, YELLOW), atol=20), "it was not mapped"
    for name, colours in found.items():
        within = 6 if name in ("yuv420p.mkv", "yuv422p.mkv", "yuv444p.mkv") else 2
        np.testing.assert_allclose(colours, truth, atol=within, err_msg=name)


def laid_on_white(path: Path, *options: str) -> NDArray[np.uint8]:
    """All frames [N, H, W, C] of ffmpeg, with their alpha."""
    filters = "split[a][b];[a]format=rgb24[c];[b]format=rgba,alphaextract,format=rgb24[d]"
    both: NDArray[np.int64] = shown(
        path,
        *options,
        filters=f"{filters};[c][d]vstack",
        size=f"{WIDTH}x{2 * HEIGHT}",
    ).astype(np.int64)
    colours, alpha = both[:, :HEIGHT], both[:, HEIGHT:]
    return np.asarray(np.rint(255 - (255 - colours) * alpha / 255), np.uint8)


ALPHA = {
    "qtrle": ("mov", "argb"),
    "png": ("mov", "rgba"),
    "prores_ks": ("mov", "yuva444p10le"),
    "ffv1": ("mkv", "yuva420p"),
    "utvideo": ("avi", "gbrap"),
    "hap": ("mov", "rgba"),
    "libvpx": ("webm", "yuva420p"),
    "libvpx-vp9": ("webm", "yuva420p"),
}
ALPHA_OPTIONS = {
    "prores_ks": ["-profile:v", "4444"],
    "hap": ["-format", "hap_alpha"],
    "libvpx": ["-auto-alt-ref", "0"],
    "libvpx-vp9": ["-auto-alt-ref", "0"],
}


@pytest.mark.parametrize("sampling", ["every:1", "fps:3"])
@pytest.mark.parametrize("codec", ALPHA)
def test_transparency_is_white(codec: str, sampling: str, tmp_path: Path) -> None:
    suffix, pixel_format = ALPHA[codec]
    path = tmp_path / f"alpha.{suffix}"
    veil = f"format=gbrap,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='255*lt(Y,{HEIGHT // 2})*X/W'"
    options = ALPHA_OPTIONS.get(codec, [])
    ffmpeg(*source(f"{veil},format={pixel_format}"), "-c:v", codec, "-b:v", "4M", *options, path)
    out = indexed(path, tmp_path, sampling=sampling)
    decoder = ["-c:v", codec] if "vpx" in codec else []
    expected = laid_on_white_of(path, decoder)[:: 1 if sampling == "every:1" else 2]
    assert len(out.pictures) == (5 if sampling == "every:1" else 3)
    for ours, theirs in zip(out.pictures, expected, strict=True):
        np.testing.assert_allclose(corners(ours), corners(theirs), atol=5)
    assert corners(out.pictures[0])[2:].min() > 250, "the lower half is white"
    assert out.report.warnings == ()


def laid_on_white_of(path: Path, decoder: list[str]) -> NDArray[np.uint8]:
    if not decoder:
        return laid_on_white(path)
    lossless = path.with_suffix(".decoded.mkv")
    ffmpeg(*decoder, "-i", path, "-c:v", "ffv1", "-pix_fmt", "yuva420p", lossless)
    return laid_on_white(lossless)


def test_transparency_of_a_report(tmp_path: Path) -> None:
    out = indexed(REPORTS / "qtrle-alpha-top-half-transparent.mov", tmp_path)
    for pixels in out.pictures:
        assert pixels[:50].min() > 245


def test_a_fourth_byte_that_nothing_was_written_to_is_not_transparency(tmp_path: Path) -> None:
    """Uncompressed AVI of 32 bits: most programs leave zeros there."""
    path = tmp_path / "raw.avi"
    veil = "format=gbrap,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a=0"
    ffmpeg(*source(f"{veil},format=bgra"), "-c:v", "rawvideo", "-pix_fmt", "bgra", path)
    assert_corners(indexed(path, tmp_path), (RED, GREEN, BLUE, YELLOW))


@pytest.mark.parametrize("pixel_format", ["rgba", "yuva444p10le", "gbrap"])
def test_the_colour_of_transparent_pixels_is_not_mixed_into_others(pixel_format: str) -> None:
    """Every second column is opaque and white; of the others, magenta is hidden."""
    codes = np.full((64, 96, 4), 255, np.uint8)
    codes[:, ::2] = (255, 0, 255, 0)
    frame = VideoFrame.from_ndarray(codes, format="rgba")
    geometry = DisplayGeometry(coded_width=96, coded_height=64)
    shrunk = PictureMaker(longest_side=48).rgb(frame.reformat(format=pixel_format), geometry)
    assert shrunk.shape == (32, 48, 3)
    assert shrunk.min() >= 252


def test_light_of_openexr_is_coded_for_a_display(tmp_path: Path) -> None:
    light = np.linspace(0, 1.2, 64 * 48, dtype=np.float32).reshape(48, 64)
    (tmp_path / "light").write_bytes(np.stack([light, light, light]).tobytes())
    raw = ("-f", "rawvideo", "-pixel_format", "gbrpf32le", "-video_size", "64x48")
    path = tmp_path / "light.exr"
    ffmpeg(*raw, "-i", tmp_path / "light", "-frames:v", "1", path)
    clipped = np.minimum(light, 1)
    curved = np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055)
    (found,) = indexed(path, tmp_path).pictures
    assert np.abs(found - 255 * curved[..., None]).mean() < 1
    assert np.abs(found - 255 * curved[..., None]).max() < 6, "JPEG"
