"""Encrypted tracks fail with that reason: none of their grey pictures is indexed."""

from pathlib import Path

import pytest

from siglip_pipeline.errors import VideoError
from siglip_pipeline_tests.video.ffmpeg_reference import ffmpeg, indexed

KEY = "76a6c65c5ea762046bd749a2e632ccbb"
SOURCE = ("-f", "lavfi", "-i", "testsrc2=s=160x128:r=10:d=2", "-g", "10")

MP4 = {
    "cenc": (b"", b""),
    "cbcs": (b"cenc\0\1\0\0", b"cbcs\0\1\0\0"),
    "no original format": (b"frma", b"free"),
    "no scheme": (b"schm", b"free"),
    "no protection": (b"sinf", b"free"),
    "FairPlay": (b"encv", b"drmi"),
}
"""What is replaced in a file that ffmpeg encrypts."""


def assert_fails(path: Path, scheme: str, folder: Path) -> None:
    with pytest.raises(VideoError, match=rf"the video track is encrypted \({scheme}"):
        indexed(path, folder)


@pytest.mark.parametrize("flags", ["faststart", "frag_keyframe+delay_moov", "0"])
@pytest.mark.parametrize("kind", MP4)
def test_mp4(kind: str, flags: str, tmp_path: Path) -> None:
    path = tmp_path / "encrypted.mp4"
    encryption = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", KEY]
    ffmpeg(
        *SOURCE, "-c:v", "libx264", *encryption, "-encryption_kid", KEY, "-movflags", flags, path
    )
    path.write_bytes(path.read_bytes().replace(*MP4[kind]))
    scheme = kind if kind in ("cenc", "cbcs") else "(cenc|encv)"
    assert_fails(path, scheme, tmp_path)


def test_a_track_whose_samples_are_in_the_clear_is_none(tmp_path: Path) -> None:
    """An encrypted sample entry may say that samples are not, unless they say otherwise."""
    path = tmp_path / "clear.mp4"
    ffmpeg(*SOURCE, "-c:v", "libx264", path)
    raw = path.read_bytes()
    scheme = box(b"schm", bytes(4) + b"cenc\0\1\0\0")
    information = box(b"schi", box(b"tenc", bytes(6) + b"\0\0" + bytes(16)))
    protection = box(b"sinf", box(b"frma", b"avc1") + scheme + information)
    entry = raw.index(b"avc1", raw.index(b"stsd")) - 4
    end = entry + int.from_bytes(raw[entry : entry + 4])
    raw = raw[:entry] + raw[entry:end].replace(b"avc1", b"encv") + protection + raw[end:]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"encv"):
        at = raw.index(kind) - 4
        size = int.from_bytes(raw[at : at + 4]) + len(protection)
        raw = raw[:at] + size.to_bytes(4) + raw[at + 4 :]
    path.write_bytes(raw)
    assert indexed(path, tmp_path).report.frames == 20


def box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4) + kind + content


@pytest.mark.parametrize("suffix", ["ts", "m2ts"])
@pytest.mark.parametrize("share", [1.0, 0.1])
def test_scrambled_broadcasts(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"scrambled.{suffix}"
    stride = 188 if suffix == "ts" else 192
    ffmpeg(*SOURCE, "-c:v", "mpeg2video", path)
    raw = bytearray(path.read_bytes())
    pid = 0x100 if suffix == "ts" else 0x1011
    for start in range(stride - 188, round(len(raw) * share), stride):
        if (raw[start + 1] & 0x1F) << 8 | raw[start + 2] != pid:
            continue
        raw[start + 3] |= 0x80
        field = 1 + raw[start + 4] if raw[start + 3] & 0x20 else 0
        for at in range(start + 4 + field, start + 188):
            raw[at] ^= 0x5A
    path.write_bytes(raw)
    if share == 1:
        assert_fails(path, "scrambled", tmp_path)
    else:
        assert indexed(path, tmp_path).report.frames >= 10


def test_scrambled_discs(tmp_path: Path) -> None:
    path = tmp_path / "scrambled.vob"
    ffmpeg(*SOURCE, "-c:v", "mpeg2video", path)
    assert indexed(path, tmp_path).report.frames == 20
    raw = bytearray(path.read_bytes())
    at = raw.find(b"\0\0\1\xe0")
    while at >= 0:
        raw[at + 6] |= 0x10
        at = raw.find(b"\0\0\1\xe0", at + 4)
    path.write_bytes(raw)
    assert_fails(path, "scrambled", tmp_path)


def test_matroska(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.webm"
    ffmpeg(*SOURCE, "-c:v", "libvpx", "-f", "webm", "-live", "1", path)
    raw = path.read_bytes()
    key = element(b"\x47\xe1", b"\x05") + element(b"\x47\xe2", b"0123456789abcdef")
    encryption = element(b"\x50\x33", b"\x01") + element(b"\x50\x35", key)
    encodings = element(b"\x6d\x80", element(b"\x62\x40", encryption))
    # Tracks of one entry, each with its size in one to eight bytes.
    at = raw.rindex(b"\x16\x54\xae\x6b")
    tracks, end = content_of(raw, at + 4)
    entry, _ = content_of(tracks, tracks.index(b"\xae") + 1)
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", entry + encodings))
    path.write_bytes(raw[:at] + tracks + raw[end:])
    assert_fails(path, "Matroska", tmp_path)


def element(identity: bytes, content: bytes) -> bytes:
    return identity + (len(content) | 1 << 56).to_bytes(8) + content


def content_of(raw: bytes, at: int) -> tuple[bytes, int]:
    length = 9 - raw[at].bit_length()
    size = int.from_bytes(raw[at : at + length]) & (1 << 7 * length) - 1
    return raw[at + length : at + length + size], at + length + size


def test_windows_media(tmp_path: Path) -> None:
    path = tmp_path / "encrypted.wmv"
    ffmpeg(*SOURCE, "-c:v", "wmv2", path)
    raw = path.read_bytes()
    texts = b"".join(len(t).to_bytes(4, "little") + t for t in (b"secret", b"DRM", b"key", b"url"))
    protection = bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e")
    protection += (24 + len(texts)).to_bytes(8, "little") + texts
    size = int.from_bytes(raw[16:24], "little") + len(protection)
    count = int.from_bytes(raw[24:28], "little") + 1
    head = raw[:16] + size.to_bytes(8, "little") + count.to_bytes(4, "little") + raw[28:30]
    path.write_bytes(head + protection + raw[30:])
    assert_fails(path, "Windows Media", tmp_path)
