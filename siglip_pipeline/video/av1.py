"""Find the AV1 packets to which no other frame refers.

AV1's decoder has no option to skip non-reference frames, so their packets must not be given to it.
A frame's header lists the reference slots that it fills (``refresh_frame_flags``). All state that
AV1 carries from frame to frame, entropy contexts and segmentation included, is in these slots, so a
frame that fills none can be omitted without an effect on others. (VP9 keeps contexts elsewhere.)

Follows sections 5.3 to 5.9 of the AV1 Bitstream & Decoding Process Specification, version 1.0.0
with errata 1. A packet that this module cannot parse counts as a reference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SEQUENCE_HEADER: Final = 1
FRAME_HEADER: Final = 3
FRAME: Final = 6
PADDING_AND_MORE: Final = frozenset({2, 4, 5, 7, 8, 15})
"""Temporal delimiter, tile group, metadata, redundant header, tile list, padding."""

KEY_FRAME: Final = 0
INTRA_ONLY_FRAME: Final = 2
SWITCH_FRAME: Final = 3
SELECT: Final = 2


class UnreadableError(Exception):
    """The bits are invalid, or use a feature that this module does not parse."""


class Bits:
    """Reads bits from the most significant one on."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def read(self, count: int = 1) -> int:
        """Return the next ``count`` bits as a number.

        Raises:
            UnreadableError: fewer bits are left.
        """
        self._left -= count
        if self._left < 0:
            raise UnreadableError
        return self._value >> self._left & ((1 << count) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceHeader:
    """The fields of a sequence header that are needed to read a frame header."""

    reduced: bool
    frame_id_bits: int
    screen_content_tools: int
    integer_mv: int
    order_hint_bits: int


class ReferenceReader:
    """Tells reference packets from others, in decoding order.

    Args:
        extradata: the container's copy of the sequence header (``av1C``), if it has one.
    """

    def __init__(self, extradata: bytes | None) -> None:
        self._sequence: SequenceHeader | None = None
        if extradata and len(extradata) > 4:
            self.is_reference(extradata[4:])

    def is_reference(self, packet: bytes | memoryview) -> bool:
        """Return whether a frame of this temporal unit may be a reference, or cannot be parsed."""
        frames = 0
        try:
            for kind, payload in units(packet):
                fills = self._fills_slots(kind, payload)
                if fills:
                    return True
                frames += fills is not None
        except UnreadableError:
            return True
        return frames == 0

    def _fills_slots(self, kind: int, payload: bytes) -> bool | None:
        """Return whether a frame fills a reference slot; None for a unit that is not a frame."""
        if kind == SEQUENCE_HEADER:
            self._sequence = _read_sequence_header(Bits(payload))
            return None
        if kind in (FRAME_HEADER, FRAME):
            if self._sequence is None:
                raise UnreadableError
            return _read_refresh_flags(Bits(payload), self._sequence) != 0
        if kind in PADDING_AND_MORE:
            return None
        raise UnreadableError


def units(data: bytes | memoryview) -> Iterator[tuple[int, bytes]]:
    """Yield type and first bytes of each open bitstream unit (section 5.3)."""
    position = 0
    while position < len(data):
        header = data[position]
        position += 1 + (header >> 2 & 1)
        if not header >> 1 & 1:  # without a size it is the last unit
            size = len(data) - position
        else:
            size = shift = 0
            while True:
                if position >= len(data) or shift > 28:
                    raise UnreadableError
                byte = data[position]
                position += 1
                size |= (byte & 127) << shift
                shift += 7
                if not byte & 128:
                    break
        if header >> 7 or position + size > len(data):
            raise UnreadableError
        # Headers are shorter than this; the rest is coded picture.
        yield header >> 3 & 15, bytes(data[position : position + min(size, 64)])
        position += size


def _read_sequence_header(bits: Bits) -> SequenceHeader:
    """Read the fields of a sequence header that frame headers need (section 5.5.1)."""
    bits.read(3 + 1)  # profile, still_picture
    reduced = bool(bits.read())
    if reduced:
        bits.read(5)
    else:
        if bits.read():  # timing_info_present_flag: decoder models, which are not parsed here
            raise UnreadableError
        display_delay = bits.read()
        for _ in range(bits.read(5) + 1):
            bits.read(12)
            if bits.read(5) > 7:
                bits.read()
            if display_delay and bits.read():
                bits.read(4)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    bits.read(width_bits)
    bits.read(height_bits)
    frame_id_bits = order_hint_bits = 0
    screen_content_tools = integer_mv = SELECT
    if not reduced and bits.read():
        frame_id_bits = bits.read(4) + 2
        frame_id_bits += bits.read(3) + 1
    bits.read(3)
    if not reduced:
        bits.read(4)
        if enable_order_hint := bits.read():
            bits.read(2)
        if not bits.read():
            screen_content_tools = bits.read()
        if screen_content_tools > 0 and not bits.read():
            integer_mv = bits.read()
        if enable_order_hint:
            order_hint_bits = bits.read(3) + 1
    return SequenceHeader(
        reduced=reduced,
        frame_id_bits=frame_id_bits,
        screen_content_tools=screen_content_tools,
        integer_mv=integer_mv,
        order_hint_bits=order_hint_bits,
    )


def _read_refresh_flags(bits: Bits, sequence: SequenceHeader) -> int:
    """Return the reference slots that a frame fills, one bit each (section 5.9.2)."""
    if sequence.reduced:
        return 0xFF
    if bits.read():  # show_existing_frame: nothing is decoded, and a key frame fills all slots
        return 0xFF
    frame_type = bits.read(2)
    show_frame = bits.read()
    if not show_frame:
        bits.read()  # showable_frame
    is_shown_key = frame_type == KEY_FRAME and show_frame
    error_resilient = True if frame_type == SWITCH_FRAME or is_shown_key else bool(bits.read())
    bits.read()  # disable_cdf_update
    tools = sequence.screen_content_tools
    if tools == SELECT:
        tools = bits.read()
    if tools and sequence.integer_mv == SELECT:
        bits.read()
    bits.read(sequence.frame_id_bits)
    if frame_type != SWITCH_FRAME:
        bits.read()  # frame_size_override_flag
    bits.read(sequence.order_hint_bits)
    if frame_type not in (KEY_FRAME, INTRA_ONLY_FRAME) and not error_resilient:
        bits.read(3)  # primary_ref_frame
    if frame_type == SWITCH_FRAME or is_shown_key:
        return 0xFF
    return bits.read(8)
