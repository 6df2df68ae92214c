"""HDR and wide gamut become BT.709 as the standards say."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from siglip_pipeline.video import tone
from siglip_pipeline.video.geometry import DisplayGeometry
from siglip_pipeline.video.matrices import _CHROMATICITIES
from siglip_pipeline.video.picture import PictureMaker
from siglip_pipeline.video.tone import (
    TO_BT709,
    Primaries,
    ToneMapper,
    Transfer,
    hlg_to_scene,
    nits_to_pq,
    pq_to_nits,
    roll_off,
    scene_to_hlg,
)
from siglip_pipeline_tests.video.rendering import render


def test_pq_by_the_values_of_its_standard() -> None:
    # BT.2408 table 1 and ST 2084: code value of 100, 203, 1000 and 10,000 nits.
    for nits, code in ((0, 0), (100, 0.508), (203, 0.581), (1000, 0.752), (10_000, 1.0)):
        assert float(nits_to_pq(nits)) == pytest.approx(code, abs=0.001)
    codes = np.linspace(0, 1, 101)
    assert np.allclose(nits_to_pq(pq_to_nits(codes)), codes, atol=1e-6)


def test_hlg_by_the_values_of_its_standard() -> None:
    # BT.2100 table 5: half of the code values hold the lower twelfth of the light.
    light = hlg_to_scene(np.array([0, 0.5, 0.75, 1.0]))
    assert light.tolist() == pytest.approx([0, 1 / 12, 0.2650, 1.0], abs=1e-3)


def test_highlights_are_rolled_off_and_the_rest_stays() -> None:
    nits = np.array([0.0, 1, 10, 80, 203, 500, 1000, 5000])
    mapped = roll_off(nits, peak_nits=1000, target_nits=203)
    assert mapped[:4] == pytest.approx(nits[:4], rel=1e-3)
    assert (np.diff(mapped) >= 0).all()
    assert mapped[4] < 203
    assert mapped[6] == pytest.approx(203, rel=1e-3)
    assert mapped[7] == pytest.approx(203, rel=1e-3)
    assert roll_off(nits, peak_nits=100, target_nits=203).max() == 203


def hdr_frame(transfer: int, codes: list[float]) -> VideoFrame:
    """Grey columns of 64 pixels with these code values, limited-range 10 bits, BT.2020."""
    frame = VideoFrame(64 * len(codes), 32, "yuv420p10le")
    luma = np.repeat([round(64 + 876 * code) for code in codes], 64).astype(np.uint16)
    for plane, row in zip(frame.planes, (luma, *2 * [np.full(luma.size // 2, 512)]), strict=True):
        rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
        rows[:, : row.size] = row
        plane.update(rows.tobytes())
    frame.colorspace, frame.color_range, frame.color_trc, frame.color_primaries = 9, 1, transfer, 9
    return frame


def greys(frame: VideoFrame) -> list[int]:
    geometry = DisplayGeometry(coded_width=frame.width, coded_height=frame.height)
    pixels = PictureMaker(longest_side=None).rgb(frame, geometry).astype(int)
    assert np.ptp(pixels, axis=2).max() <= 1, "grey stays grey"
    return [int(value) for value in pixels[16, 32::64, 1]]


def test_pq_greys_end_where_bt1886_puts_them() -> None:
    nits = [0.0, 1, 10, 50, 203, 400, 1000]
    found = greys(hdr_frame(16, [float(nits_to_pq(n)) for n in nits]))
    mapped = roll_off(np.array(nits), peak_nits=1000, target_nits=203)
    truth = 255 * (mapped / 203) ** (1 / 2.4)
    assert found == pytest.approx(truth, abs=2)
    assert found[4] > 220, "white paper looks white"
    assert found[-1] == 255


def test_hlg_is_mapped_by_its_own_curve() -> None:
    codes = [0.0, 0.25, 0.5, 0.75, 1.0]
    found = greys(hdr_frame(18, codes))
    nits = 1000 * hlg_to_scene(np.array(codes)) ** 1.2
    truth = 255 * (roll_off(nits, peak_nits=1000, target_nits=203) / 203) ** (1 / 2.4)
    assert found == pytest.approx(truth, abs=2)
    # BT.2408: HLG's reference white is code value 0.75, the same 203 nits as in PQ.
    assert found[3] == pytest.approx(greys(hdr_frame(16, [0.5807]))[0], abs=2)


def test_wide_gamut_becomes_bt709() -> None:
    """BT.709's red, written in BT.2020 primaries, must come back as BT.709's red."""
    to_bt2020 = np.array(
        [[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]]
    )  # BT.2087, M2
    for colour in np.eye(3) * 0.6 + 0.2:
        light = to_bt2020 @ colour**2.4
        codes = np.rint(65535 * light ** (1 / 2.4)).astype(np.uint16)
        mapped = ToneMapper("sdr", "bt2020").apply(codes.reshape(1, 1, 3))[0, 0]
        assert np.abs(mapped - 255 * colour).max() <= 2


@pytest.mark.parametrize(("name", "number"), [("bt2020", 9), ("p3", 12)])
def test_matrices_to_bt709_follow_from_the_chromaticities(name: Primaries, number: int) -> None:
    """H.273, equations 32 to 37, with both whites D65: white stays white, grey is not tinted."""

    def to_xyz(primaries: int) -> NDArray[np.float64]:
        x_y = np.array(_CHROMATICITIES[primaries]).reshape(4, 2)
        xyz = np.column_stack([x_y, 1 - x_y.sum(axis=1)]) / x_y[:, 1:]
        return np.asarray(xyz[:3].T * np.linalg.solve(xyz[:3].T, xyz[3]))

    expected = np.linalg.inv(to_xyz(1)) @ to_xyz(number)
    np.testing.assert_allclose(TO_BT709[name], expected, atol=1e-4)
    greys = np.repeat(np.linspace(0, 65535, 9).astype(np.uint16), 3).reshape(1, 9, 3)
    mapped = ToneMapper("sdr", name).apply(greys).astype(int)
    assert np.abs(mapped - np.rint(greys / 257)).max() <= 1


def test_hdr_files_are_recognised_and_their_peak_is_read(tmp_path: Path) -> None:
    parameters = (
        "hdr10=1:colorprim=bt2020:transfer=smpte2084:colormatrix=bt2020nc:log-level=none:"
        "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(40000000,50)"
    )
    for extra, peak_nits in ((":max-cll=600,200", 600), ("", 4000)):
        path = render(
            tmp_path / "hdr.mkv",
            codec="libx265",
            frames=2,
            pixel_format="yuv420p10le",
            options={"x265-params": parameters + extra},
        )
        with av.open(str(path)) as container:
            mapper = ToneMapper.for_frame(next(container.decode(video=0)))
        assert mapper is not None
        assert (mapper.transfer, mapper.primaries) == ("pq", "bt2020")
        assert mapper.peak_nits == peak_nits


def test_standard_pictures_are_left_alone(tmp_path: Path) -> None:
    with av.open(str(render(tmp_path / "sdr.mp4", frames=2))) as container:
        assert ToneMapper.for_frame(next(container.decode(video=0))) is None


def test_pq_is_the_formula_of_st_2084() -> None:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    light = np.linspace(0, 1, 1001)
    codes = ((c1 + c2 * light**m1) / (1 + c3 * light**m1)) ** m2
    np.testing.assert_allclose(nits_to_pq(10_000 * light), codes, rtol=1e-12)
    np.testing.assert_allclose(pq_to_nits(codes), 10_000 * light, rtol=1e-9, atol=1e-9)
    assert pq_to_nits(np.array([0.0, codes[0] / 2])).tolist() == [0, 0], "below black is black"


def test_hlg_is_the_formula_of_bt_2100() -> None:
    light = np.append(np.linspace(0, 1, 1001), 1 / 12)
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    codes = [(3 * x) ** 0.5 if x <= 1 / 12 else a * np.log(12 * x - b) + c for x in light]
    np.testing.assert_allclose(scene_to_hlg(light), codes, atol=1e-7)
    np.testing.assert_allclose(hlg_to_scene(np.array(codes)), light, atol=1e-7)


@pytest.mark.parametrize("peak_nits", [204.0, 1000.0, 4000.0, 10_000.0])
def test_the_roll_off_is_the_spline_of_bt_2390(peak_nits: float) -> None:
    """A cubic in PQ that leaves the straight line smoothly, and is level at the target."""
    peak = float(nits_to_pq(peak_nits))
    target = float(nits_to_pq(203)) / peak
    knee = 1.5 * target - 0.5
    below, above = np.linspace(0, knee, 50), np.linspace(knee, 1, 200)

    def rolled(codes: NDArray[np.float64]) -> NDArray[np.float64]:
        nits = roll_off(pq_to_nits(codes * peak), peak_nits=peak_nits, target_nits=203)
        return nits_to_pq(nits) / peak

    np.testing.assert_allclose(rolled(below), below, atol=2e-6)
    t = (above - knee) / (1 - knee)
    cubic = np.polynomial.Polynomial.fit(t, rolled(above), 3, domain=[0, 1], window=[0, 1])
    np.testing.assert_allclose(rolled(above), cubic(t), atol=1e-9)
    slope = cubic.deriv()
    ends = (cubic(0), slope(0), cubic(1), slope(1))
    assert ends == pytest.approx((knee, 1 - knee, target, 0), abs=1e-6)


def test_light_that_a_display_can_show_stays() -> None:
    nits = np.array([0, 100, 203, 204])
    for peak_nits in (100, 203):
        assert roll_off(nits, peak_nits=peak_nits, target_nits=203).tolist() == [0, 100, 203, 203]


def by_definition(
    rgb: NDArray[np.float64], transfer: Transfer, primaries: Primaries, peak_nits: float
) -> NDArray[np.float64]:
    """What code values from 0 to 1 become, from 0 to 255, in double precision."""
    if transfer == "sdr":
        light = rgb**2.4
    else:
        if transfer == "pq":
            nits = np.minimum(pq_to_nits(rgb), peak_nits)
        else:
            scene = hlg_to_scene(rgb)
            nits = peak_nits * scene * (scene @ (0.2627, 0.6780, 0.0593))[..., None] ** 0.2
        largest = nits.max(axis=-1, keepdims=True)
        rolled = roll_off(largest, peak_nits=peak_nits, target_nits=203)
        light = nits / np.maximum(largest, 1e-9) * rolled / 203
    if primaries != "bt709":
        light = light @ TO_BT709[primaries].T
    return np.asarray(255 * np.clip(light, 0, 1) ** (1 / 2.4))


@pytest.mark.parametrize("peak_nits", [400.0, 1000.0, 4000.0])
@pytest.mark.parametrize("primaries", ["bt709", "bt2020", "p3"])
@pytest.mark.parametrize("transfer", ["pq", "hlg", "sdr"])
def test_colours_are_mapped_by_the_definition(
    transfer: Transfer, primaries: Primaries, peak_nits: float
) -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    codes[0] = np.linspace(0, 65535, 50)[:, None]  # greys
    mapped = ToneMapper(transfer, primaries, peak_nits).apply(codes)
    truth = by_definition(codes / 65535, transfer, primaries, peak_nits)
    np.testing.assert_allclose(mapped, truth, atol=0.6)


@pytest.mark.parametrize(
    ("transfer", "primaries", "mapper"),
    [
        *((16, 9, ("pq", "bt2020")), (16, 12, ("pq", "p3")), (16, 1, ("pq", "bt2020"))),
        *((18, 9, ("hlg", "bt2020")), (18, 12, ("hlg", "p3")), (18, 2, ("hlg", "bt2020"))),
        *((1, 9, ("sdr", "bt2020")), (13, 12, ("sdr", "p3")), (2, 9, ("sdr", "bt2020"))),
        *((1, 1, None), (2, 2, None), (15, 10, None), (14, 8, None)),
        *((17, 11, ("sdr", "p3")), (1, 11, ("sdr", "p3")), (16, 11, ("pq", "p3"))),
    ],
)
def test_what_a_frame_says_of_its_colours_chooses_the_mapping(
    transfer: int, primaries: int, mapper: tuple[Transfer, Primaries] | None
) -> None:
    frame = VideoFrame(32, 32, "yuv420p10le")
    frame.color_trc, frame.color_primaries = transfer, primaries
    assert ToneMapper.for_frame(frame) == (mapper and ToneMapper(*mapper, 1000.0))


def mastering(numerator: int, denominator: int, *, has_luminance: int = 1) -> bytes:
    """AVMasteringDisplayMetadata: chromaticities, the least and the largest light, and flags."""
    return struct.pack("=16i", *range(1, 17)) + struct.pack(
        "=6i", 1, 10_000, numerator, denominator, 1, has_luminance
    )


@pytest.mark.parametrize(
    ("side_data", "peak_nits"),
    [
        ({}, 1000),
        ({"CONTENT_LIGHT_LEVEL": struct.pack("=2I", 600, 200)}, 600),
        ({"CONTENT_LIGHT_LEVEL": struct.pack("=I", 600)}, 600),
        ({"CONTENT_LIGHT_LEVEL": b"\x58\x02\0"}, 1000),
        ({"CONTENT_LIGHT_LEVEL": struct.pack("=2I", 1, 0)}, 203),
        ({"CONTENT_LIGHT_LEVEL": struct.pack("=2I", 2**32 - 1, 0)}, 10_000),
        ({"MASTERING_DISPLAY_METADATA": mastering(40_000_000, 10_000)}, 4000),
        ({"MASTERING_DISPLAY_METADATA": mastering(40_000_000, 10_000)[:-1]}, 1000),
        ({"MASTERING_DISPLAY_METADATA": mastering(4000, 1, has_luminance=0)}, 1000),
        ({"MASTERING_DISPLAY_METADATA": mastering(4000, 0)}, 1000),
        ({"MASTERING_DISPLAY_METADATA": mastering(100, 1)}, 203),
    ],
)
def test_the_peak_is_what_the_content_or_its_display_reaches(
    monkeypatch: pytest.MonkeyPatch, side_data: dict[str, bytes], peak_nits: float
) -> None:
    monkeypatch.setattr(tone, "side_data", lambda frame, name: side_data.get(name))
    frame = VideoFrame(32, 32, "yuv420p10le")
    for transfer, expected in ((16, peak_nits), (18, 1000)):
        frame.color_trc = transfer
        mapper = ToneMapper.for_frame(frame)
        assert mapper is not None
        assert mapper.peak_nits == expected
    both = {"CONTENT_LIGHT_LEVEL": struct.pack("=2I", 0, 0)} | side_data
    monkeypatch.setattr(tone, "side_data", lambda frame, name: both.get(name))
    frame.color_trc = 16
    mapper = ToneMapper.for_frame(frame)
    assert mapper is not None
    assert mapper.peak_nits == peak_nits, "a level of zero says nothing"
