# mypy: ignore-errors
"""Pixeltable as its manual shows it: a view of frames, one a second, with an embedding index.

    SIGLIP_MODEL_NAME=MODEL python benchmarks/pixeltable_script.py VIDEO...

Embeds with the same SigLIP model as the other ways, in batches of 32 and in the checkpoint's number
format. Prints the number of embedded frames. Part of `bench_whole.py`; Pixeltable needs a virtual
environment of its own.
"""

import sys

import pixeltable as pxt
from pixeltable.functions.video import frame_iterator
from pixeltable_siglip import siglip_image


def main() -> None:
    pxt.create_dir("whole")
    videos = pxt.create_table("whole.videos", {"video": pxt.Video})
    frames = pxt.create_view("whole.frames", videos, iterator=frame_iterator(videos.video, fps=1.0))
    frames.add_embedding_index("frame", image_embed=siglip_image)
    videos.insert([{"video": video} for video in sys.argv[1:]])
    sys.stdout.write(f"\n{frames.count()}\n")


if __name__ == "__main__":
    main()
