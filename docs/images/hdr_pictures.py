"""Render an HDR scene, encode it in PQ and HLG, and show it before and after tone-mapping.

``python docs/images/hdr_pictures.py`` writes ``hdr_pq.jpg`` and ``hdr_hlg.jpg`` beside itself: on
the left the code values taken for BT.709's, on the right what the frame store holds.
"""

import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from siglip_pipeline.video.picture import PictureMaker
from siglip_pipeline.video.scan import scan
from siglip_pipeline.video.source import MediaSource
from siglip_pipeline.video.tone import HLG_GAMMA, HLG_LUMA, nits_to_pq

WIDTH, HEIGHT = 640, 360
# ITU-R BT.2087-0, M2: BT.709 to BT.2020, linear light.
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
PATCHES = [
    *((115, 82, 68), (194, 150, 130), (98, 122, 157), (87, 108, 67), (214, 126, 44), (80, 91, 166)),
    *((193, 90, 99), (157, 188, 64), (70, 148, 73), (243, 243, 242), (52, 52, 52)),
]


def scene() -> NDArray[np.float64]:
    """Light in nits [H, W, C], BT.709 primaries: paper at 203 nits, a sky above, a sun at 2,500."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    light = np.empty((HEIGHT, WIDTH, 3))
    sky = (1 - y / HEIGHT)[..., None] * np.array([60, 130, 330]) + np.array([250, 190, 120])
    distance = np.hypot(x - 470, y - 70)
    glow = np.exp(-((distance / 110) ** 2))[..., None] * np.array([500, 420, 250])
    light[:] = sky + glow
    light[distance < 26] = (2500, 2400, 2100)
    for height, wave, colour in ((170, 90, (60, 75, 95)), (215, 55, (22, 40, 26))):
        ridge = height + 24 * np.sin(x / wave) + 9 * np.sin(x / 17 + height)
        texture = 1 + 0.3 * np.sin(x / 3) * np.sin(y / 4)
        light[y > ridge] = (texture[..., None] * np.array(colour))[y > ridge]
    light[y > 265] = (9, 8, 7)
    for k, patch in enumerate(PATCHES):
        left = 14 + 57 * k
        light[285:340, left : left + 42] = 203 * (np.array(patch) / 255) ** 2.4
    return light


def to_pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Code values of PQ."""
    return nits_to_pq(light)


def to_hlg(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Code values of HLG on its 1,000-nit display (BT.2100 table 5, OOTF and EOTF backwards)."""
    display = np.clip(light / 1000, 0, 1)
    luma = np.maximum(display @ HLG_LUMA.astype(float), 1e-9)[..., None]
    scene_light = np.clip(display * luma ** ((1 - HLG_GAMMA) / HLG_GAMMA), 0, 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    upper = a * np.log(np.maximum(12 * scene_light - b, 1e-9)) + c
    codes = np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), upper)
    return np.asarray(codes, np.float64)


def encode(path: Path, codes: NDArray[np.float64], transfer: str) -> None:
    """Write the picture as HEVC with 10 bits, BT.2020."""
    frame = VideoFrame.from_ndarray(np.rint(codes * 65535).astype(np.uint16), format="rgb48le")
    frame = frame.reformat(format="yuv420p10le", dst_colorspace=9)
    parameters = f"colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:crf=8:log-level=none"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": parameters})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p10le"
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def before_and_after(path: Path) -> Image.Image:
    """Both pictures side by side, with a line between."""
    scanned = scan(MediaSource(path.name, path=path))
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    before = np.asarray(frame.to_ndarray(format="rgb24"))
    after = PictureMaker(longest_side=None).rgb(frame, scanned.geometry(frame))
    sheet = Image.new("RGB", (2 * WIDTH + 8, HEIGHT), "white")
    sheet.paste(Image.fromarray(before), (0, 0))
    sheet.paste(Image.fromarray(after), (WIDTH + 8, 0))
    draw = ImageDraw.Draw(sheet)
    draw.text((10, 8), "before: code values taken for BT.709's", fill="white")
    draw.text((WIDTH + 18, 8), "after", fill="white")
    return sheet


def main() -> None:
    """Write both pictures."""
    here = Path(__file__).parent
    light = scene() @ TO_BT2020.T
    with tempfile.TemporaryDirectory() as folder:
        for name, codes, transfer in (
            ("pq", to_pq(light), "smpte2084"),
            ("hlg", to_hlg(light), "arib-std-b67"),
        ):
            path = Path(folder) / f"{name}.mkv"
            encode(path, codes, transfer)
            before_and_after(path).save(here / f"hdr_{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
