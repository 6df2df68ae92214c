"""Read side data of frames that carry types unknown to PyAV.

PyAV lists the types of an older FFmpeg. Reading any side data of a frame that also carries a newer
type (EXIF, 3D displays, LCEVC) raises ValueError.
"""

from typing import Any, Final, Literal

from av.sidedata.sidedata import SideDataContainer, Type
from av.video.frame import VideoFrame

SideDataType = Literal[
    "DISPLAYMATRIX", "CONTENT_LIGHT_LEVEL", "MASTERING_DISPLAY_METADATA", "DOVI_METADATA"
]

TYPES: Final = 256
"""FFmpeg 8 has about forty."""


def side_data(frame: VideoFrame, kind: SideDataType) -> bytes | None:
    """Return the frame's side data of a type; None if it has none.

    A frame keeps what its ``side_data`` returned, which refers to it: such a cycle holds the pixels
    until Python looks for cycles, which takes gigabytes of large pictures.
    """
    of_frame: Any = SideDataContainer  # PyAV's types lack its parameter
    found = of_frame(frame).get(kind)
    return None if found is None else bytes(found)


def _admit_unlisted_types() -> None:
    """Add a member for every number, as :class:`enum.Flag` does for unnamed values."""
    for value in range(TYPES):
        if value not in Type._value2member_map_:
            member: Any = object.__new__(Type)
            member._name_, member._value_ = f"UNLISTED_{value}", value
            Type._value2member_map_[value] = member


_admit_unlisted_types()
