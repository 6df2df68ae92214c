"""Open files with FFmpeg's demuxers, so that they cannot open other files. Nothing else opens them.

Playlists, session descriptions and names with patterns make FFmpeg open other files and sockets. So
it gets a file object without a name, a list of formats that hold everything in one file, and an
empty list of protocols.
"""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, Literal

import av
import av.error
import av.logging
from av.container import InputContainer, OutputContainer
from av.video.stream import VideoStream

from siglip_pipeline.errors import VideoError
from siglip_pipeline.video.source import DescriptorReader, MediaSource

FORMATS: Final = (
    # Containers of cameras, telephones, editors, recorders and archives.
    "mov,mp4,m4a,3gp,3g2,mj2 matroska,webm avi mpegts mpeg flv live_flv kux asf asf_o ogg mxf nut "
    "rm ivr wtv dv swf nsv gxf lxf r3d ty pva dhav nuv mlv cine ser ifv mxg smjpeg mtv "
    # Streams without a container.
    "h261 h263 h264 hevc vvc m4v mpegvideo mjpeg mjpeg_2000 dirac vc1 vc1test av1 obu ivf dnxhd "
    "apv evc cavsvideo avs2 avs3 yuv4mpegpipe "
    # Pictures that Pillow does not read.
    "apng gif bmp_pipe tiff_pipe jpeg_pipe jpegls_pipe jpegxl_pipe jpegxl_anim j2k_pipe png_pipe "
    "webp_pipe dpx_pipe exr_pipe qoi_pipe "
    # Sound alone, to give a clear reason.
    "aac ac3 eac3 aiff amr caf dts flac mp3 w64 wav wv"
)
"""FFmpeg's names of the allowed demuxers. None of them opens other files."""

_RAW: Final = {"h264": "h264", "264": "h264", "hevc": "hevc", "h265": "hevc", "265": "hevc"}
"""Demuxers of streams without a container, by suffix."""

_LISTS: Final = {"format_whitelist": FORMATS.replace(" ", ","), "protocol_whitelist": "none"}

MAX_READ_FAILURES: Final = 1000
"""Consecutive read errors after which demuxing ends."""

_HEAD_BYTES: Final = 2**16
_TAIL_BYTES: Final = 2**20

_LEADS_ELSEWHERE: Final = re.compile(
    r"^#EXT|^\W*ffconcat|^v=0\s|<MPD\b|<(smil|asx|wpl|playlist|CompositionPlaylist)\b|<\?wpl"
    r"|^\[(playlist|reference)\]|^# VobSub index|^RTSPtext|^SMILtext|Source\s*\(|://"
    r"|^\s*(file|stream)\s|\.(m3u8?|mpd|mp4|m4[sv]|mov|mkv|webm|avi|ts|vob|mxf|jpe?g|png|h26[45])\b",
    re.IGNORECASE | re.MULTILINE,
)
"""Matches a text that names other files."""

_DATA_REFERENCE: Final = re.compile(
    rb"dref.{4}\0\0\0[\1-\xff].{4}(alis|url |urn |rsrc)(....)", re.DOTALL
)
"""Matches in QuickTime's index: kind, version and flags of the first data reference."""
_SELF_CONTAINED: Final = 1

PLAYLIST: Final = "a playlist, not a video: upload the files that it names"

av.logging.set_level(None)  # no messages of FFmpeg on stderr; errors arrive as exceptions


@contextlib.contextmanager
def open_container(
    source: MediaSource, *, options: dict[str, str] | None = None
) -> Iterator[InputContainer]:
    """Open a source with FFmpeg.

    Raises:
        VideoError: FFmpeg cannot open the file, with the reason.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(contextlib.closing(source.open_for_ffmpeg()))
            if file.seek(0, 2) == 0:  # a demuxer that is chosen by suffix seeks to before its start
                raise VideoError(source.video, "the file is empty (0 bytes); upload it again")
            file.seek(0)
            container = _open_input(file, source, options or {})
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise VideoError(source.video, _open_failure_reason(source)) from error
        assert isinstance(container, InputContainer)
        yield stack.enter_context(container)


@contextlib.contextmanager
def write_mp4(file: BinaryIO) -> Iterator[OutputContainer]:
    """Open an unbuffered file to write an MP4 whose index comes first."""

    def io_open(url: str, flags: int, options: object) -> DescriptorReader:
        return DescriptorReader(file.fileno())  # FFmpeg reads the data to move it after the index

    options = {"movflags": "+faststart"}
    container = _open(file, "w", format="mp4", options=options, io_open=io_open)
    assert isinstance(container, OutputContainer)
    with container:
        yield container


def _open_input(
    file: Any, source: MediaSource, options: dict[str, str]
) -> InputContainer | OutputContainer:
    try:
        return _open(file, "r", metadata_errors="replace", options=options)
    except av.error.InvalidDataError:
        # The first bytes of a stream that was cut anywhere tell nothing; its name does.
        format = _RAW.get(source.video.rpartition(".")[2].lower())
        if format is None:
            raise
        file.seek(0)
        return _open(file, "r", format=format, metadata_errors="replace", options=options)


def _open(
    file: object, mode: Literal["r", "w"], *, options: dict[str, str], **more: Any
) -> InputContainer | OutputContainer:
    return av.open(file, mode, options={**options, **_LISTS}, **more)


def _open_failure_reason(source: MediaSource) -> str:
    """Return a sentence that says why FFmpeg does not open a file, and the remedy."""
    try:
        with source.open() as file:
            head = file.read(_HEAD_BYTES)
    except OSError as io_error:
        return f"cannot be read: {io_error.strerror or io_error}"
    if not head.strip(b"\0"):
        return "the file begins with zeros only: the upload was not finished; upload it again"
    if leads_elsewhere(source):
        return PLAYLIST
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"free", b"wide", b"skip"):
        return (
            "the MP4 index (moov) is missing or damaged, so that no frame can be found: the upload "
            "or the recording was cut off; upload it again"
        )
    if _text_of(head) is not None:
        return "this is text, not a video, whatever its name says"
    return (
        "it is neither a video nor a picture of a kind that is read here; convert a video to MP4, "
        "a picture to PNG"
    )


def leads_elsewhere(source: MediaSource) -> bool:
    """Return whether the video of a file is in other files, which it names."""
    with source.open() as file:
        head = file.read(_HEAD_BYTES)
        if (text := _text_of(head)) is not None:
            return _LEADS_ELSEWHERE.search(text) is not None
        file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
        tail = file.read(_TAIL_BYTES)
    if b"rmra" in head or b"rmra" in tail:  # a QuickTime reference movie
        return True
    found = _DATA_REFERENCE.search(head) or _DATA_REFERENCE.search(tail)
    return found is not None and not found[2][3] & _SELF_CONTAINED


def _text_of(head: bytes) -> str | None:
    encoding = "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # otherwise only the last character was cut
            return None
        text = head[: error.start].decode(encoding)
    plain = all(character.isprintable() or character.isspace() for character in text)
    return text if plain else None


def demux(container: InputContainer, *streams: VideoStream) -> Iterator["av.Packet[VideoStream]"]:
    """Yield the packets of these streams that have data, and skip what cannot be read.

    The same file gives the same packets every time, so their ordinals identify them.
    """
    failures = 0
    packets: Iterator[Any] = container.demux(*streams)
    while failures < MAX_READ_FAILURES:
        try:
            packet = next(packets)
        except (StopIteration, av.error.EOFError):
            return
        except (av.error.FFmpegError, IndexError):
            # IndexError: a packet of a stream that appeared later (FLV, MPEG-TS), which PyAV does
            # not know. After either error the iterator has ended, but the container has not.
            failures += 1
            packets = container.demux(*streams)
            continue
        failures = 0
        if packet.size:
            yield packet
