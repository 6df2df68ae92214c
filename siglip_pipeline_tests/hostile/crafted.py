"""Uploads that try to have other files read, or sockets opened."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """What crafted files point at."""

    secret: Path
    """A video outside of the uploads."""
    beside: str
    """Another upload, in the same folder."""
    tcp: int
    udp: int

    @property
    def http(self) -> str:
        """An address that must not be asked for."""
        return f"http://127.0.0.1:{self.tcp}/film.ts"


def hls(entry: str, *more: str) -> bytes:
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:9", *more, "#EXTINF:9,", entry]
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""]).encode()


def hls_master(uri: str) -> bytes:
    return f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\n{uri}\n".encode()


def ffconcat(*entries: str) -> bytes:
    return "\n".join(["ffconcat version 1.0", *(f"file '{e}'" for e in entries), ""]).encode()


def sdp(port: int) -> bytes:
    lines = ["v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=film", "c=IN IP4 127.0.0.1", "t=0 0"]
    lines += [f"m=video {port} RTP/AVP 96", "a=rtpmap:96 H264/90000", ""]
    return "\r\n".join(lines).encode()


def dash(url: str) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="video/mp4">'
        f'<Representation id="1" bandwidth="9"><BaseURL>{url}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    ).encode()


def xml(root: str, inside: str) -> bytes:
    return f'<?xml version="1.0"?>\n<{root}>{inside}</{root.split()[0]}>\n'.encode()


def box(kind: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I", 8 + len(data)) + kind + data


def reference_movie(url: str) -> bytes:
    """A QuickTime movie that is nothing but the address of another one."""
    address = url.encode() + b"\0"
    rdrf = box(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(address)), address)
    return box(b"ftyp", b"qt  ", bytes(4), b"qt  ") + box(b"moov", box(b"rmra", box(b"rmda", rdrf)))


def alias(path: Path) -> bytes:
    """A Macintosh alias to a file, by its absolute path."""
    name, full = path.name.encode()[:63], str(path).encode()
    head = bytes(10) + b"\x03vol" + bytes(24) + bytes(12)
    head += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">HH", 0, 0)
    end = struct.pack(">Hh", 0, -1)
    path_at = struct.pack(">HH", 2, len(full)) + full + bytes(len(full) % 2)
    return head + bytes(16) + path_at + end


def external_data(movie: bytes, entry: bytes) -> bytes:
    """A movie whose samples lie in another file, by an entry of its data reference box."""
    start = movie.rindex(b"moov") - 4
    assert movie[start:].find(b"mdat") < 0, "the index must come last"

    def rebuilt(data: bytes) -> bytes:
        done = b""
        while data:
            (size,) = struct.unpack_from(">I", data)
            kind, content = data[4:8], data[8:size]
            if kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                content = rebuilt(content)
            elif kind == b"dref":
                content = bytes(4) + struct.pack(">I", 1) + entry
            done += box(kind, content)
            data = data[size:]
        return done

    return movie[:start] + rebuilt(movie[start:])


Make = Callable[[Target, bytes], bytes]
"""Given what to point at, and an MP4 file to build upon."""

PLAYLISTS: dict[str, Make] = {
    "hls-absolute.mp4": lambda to, _: hls(str(to.secret)),
    "hls-relative.mp4": lambda to, _: hls(f"../{to.secret.name}"),
    "hls-beside.m3u8": lambda to, _: hls(to.beside),
    "hls-http.mp4": lambda to, _: hls(to.http),
    "hls-file.mp4": lambda to, _: hls(f"file:{to.secret}"),
    "hls-data.mp4": lambda to, _: hls("data:video/mp2t;base64,AAAA", f"# or {to.http}"),
    "hls-crypto.ts": lambda to, _: hls(f"crypto:{to.secret}"),
    "hls-subfile.mp4": lambda to, _: hls(f"subfile,,start,0,end,0,,:{to.secret}"),
    "hls-concat.mp4": lambda to, _: hls(f"concat:{to.secret}|{to.secret}"),
    "hls-cache.mkv": lambda to, _: hls(f"cache:{to.http}"),
    "hls-key.mp4": lambda to, _: hls(to.beside, f'#EXT-X-KEY:METHOD=AES-128,URI="{to.http}"'),
    "hls-map.mp4": lambda to, _: hls(to.beside, f'#EXT-X-MAP:URI="{to.secret}"'),
    "hls-master.mp4": lambda to, _: hls_master(to.http),
    "hls-utf16.mp4": lambda to, _: hls(to.http).decode().encode("utf-16"),
    "concat.mp4": lambda to, _: ffconcat(to.beside),
    "concat-absolute.mkv": lambda to, _: ffconcat(str(to.secret)),
    "concat-http.txt": lambda to, _: b"ffconcat version 1.0\n" + ffconcat(to.http)[21:],
    "concat-no-header.mp4": lambda to, _: ffconcat(str(to.secret)).partition(b"\n")[2],
    "session.sdp": lambda to, _: sdp(to.udp),
    "session.mp4": lambda to, _: sdp(to.udp).replace(b"\r\n", b"\n"),
    "dash.mpd": lambda to, _: dash(to.http),
    "dash.mp4": lambda to, _: dash(str(to.secret)),
    "rtsp.mp4": lambda to, _: f"rtsp://127.0.0.1:{to.tcp}/film\n".encode(),
    "rtsptext.mov": lambda to, _: f"RTSPtext\nrtsp://127.0.0.1:{to.tcp}/film\n".encode(),
    "tee.mp4": lambda to, _: f"tee:{to.secret}|{to.http}\n".encode(),
    "strm.mp4": lambda to, _: to.http.encode(),
    "list.m3u": lambda to, _: f"{to.secret}\n{to.beside}\n".encode(),
    "list.pls": lambda to, _: f"[playlist]\nFile1={to.http}\nNumberOfEntries=1\n".encode(),
    "list.asx": lambda to, _: xml('asx version="3"', f'<entry><ref href="{to.http}"/></entry>'),
    "reference.asf": lambda to, _: f"[Reference]\r\nRef1={to.http}\r\n".encode(),
    "list.wpl": lambda to, _: b"<?wpl?>" + xml("smil", f'<media src="{to.beside}"/>')[22:],
    "list.smil": lambda to, _: xml("smil", f'<body><video src="{to.beside}"/></body>'),
    "package.xml": lambda to, _: xml(
        'CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"',
        f"<Path>{to.secret}</Path>",
    ),
    "script.avs": lambda to, _: f'FFmpegSource2("{to.secret}")\n'.encode(),
    "script.vpy": lambda to, _: f'core.ffms2.Source("{to.secret}").set_output()\n'.encode(),
    "subtitles.idx": lambda to, _: b"# VobSub index file, v7\nid: en, index: 0\n",
    "cue.mp4": lambda to, _: f'FILE "{to.secret}" MP4\n  TRACK 01 VIDEO\n'.encode(),
    "graph.mp4": lambda to, _: f"movie=filename={to.secret}[out0]\n".encode(),
    "drawing.svg": lambda to, _: xml("svg", f'<image href="file://{to.secret}"/>'),
    "pic%d.jpg": lambda to, _: b"pic0.jpg\n",
    "pic%03d.png": lambda to, _: b"file pic000.png\n",
    "pic*.jpg": lambda to, _: b"pic0.jpg\n",
    "reference.mov": lambda to, _: reference_movie(f"file://{to.secret}"),
    "reference-http.mp4": lambda to, _: reference_movie(to.http),
    "alias.mov": lambda to, movie: external_data(movie, box(b"alis", bytes(4), alias(to.secret))),
}
"""Each fails for being a playlist."""
