# mypy: ignore-errors
"""Pixeltable as its manual shows it: a view of frames, one a second, with an embedding index.

    python benchmarks/pixeltable_script.py MODEL VIDEO...

Embeds with the same SigLIP model as the other ways, called as Pixeltable's own `clip` calls one: in
batches of 32, in the checkpoint's number format. Prints the number of embedded frames. Part of
`bench_whole.py`; Pixeltable needs a virtual environment of its own.
"""

import sys
from typing import Any

import numpy as np
import pixeltable as pxt
import torch
import transformers
from PIL.Image import Image
from pixeltable.func import Batch
from pixeltable.functions.video import frame_iterator

MODEL, *VIDEOS = sys.argv[1:]
DIM = transformers.AutoConfig.from_pretrained(MODEL).vision_config.hidden_size
_loaded: list[Any] = []


def loaded() -> list[Any]:
    if not _loaded:
        model = transformers.AutoModel.from_pretrained(MODEL).eval()
        _loaded.extend([model, transformers.AutoProcessor.from_pretrained(MODEL)])
    return _loaded


@pxt.udf(batch_size=32)
def siglip_image(image: Batch[Image]) -> Batch[pxt.Array[(DIM,), pxt.Float]]:
    model, processor = loaded()
    with torch.no_grad():
        inputs = processor(images=[each.convert("RGB") for each in image], return_tensors="pt")
        output_ND = model.get_image_features(**inputs).pooler_output
        return list(torch.nn.functional.normalize(output_ND, dim=-1).numpy().astype(np.float32))


def main() -> None:
    pxt.create_dir("whole")
    videos = pxt.create_table("whole.videos", {"video": pxt.Video})
    frames = pxt.create_view("whole.frames", videos, iterator=frame_iterator(videos.video, fps=1.0))
    frames.add_embedding_index("frame", image_embed=siglip_image)
    videos.insert({"video": video} for video in VIDEOS)
    sys.stdout.write(f"\n{frames.count()}\n")


if __name__ == "__main__":
    main()
