"""Measure the demo model on scenes that training never saw.

``python -m tools.demo_model.evaluate`` renders held-out scenes, twice: as stills, and as films
that are encoded with H.264 and decoded again, which is what the pipeline embeds. "seen" scenes
hold colour-shape pairs that occur in training (in other scenes); in "unseen" scenes every pair is
one of ``HELD_OUT``, which no training picture and no training caption contains.

Measured are

- recall@1: of 100 frames, is the one with the highest cosine to a caption the caption's own? The
  captions are distinct, and each is true of its own frame only.
- short queries: colour, shape and motion alone ("a red circle moving left"); right when the query
  is true of the frame found.
- zero-shot: scenes of one object, prompts ``this is a photo of a {shape}.`` and ``this is a photo
  of a {colour} object.``

It runs on plain transformers, so that it measures the model and not this package's search.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from siglip_pipeline.demo.drawing import render_frame
from siglip_pipeline.demo.films import render_video
from siglip_pipeline.demo.run import MODEL_FOLDER
from siglip_pipeline.demo.scenes import COLOURS, HELD_OUT, SEEN_PAIRS, SHAPES, Scene, random_scene
from siglip_pipeline.records import FloatArray
from tools.demo_model.captions import (
    Claim,
    ObjectClaim,
    encode,
    full_claim,
    phrase,
    truth_matrix,
)

SHAPE_PROMPT = "this is a photo of a {shape}."
COLOUR_PROMPT = "this is a photo of a {colour} object."
GROUP = 100
"""Frames, and captions, that one recall@1 is measured among."""
# Far from any seed of training: np.random.default_rng((seed, 1, chunk)) there.
_SEED = 20_000


class DemoModel:
    """The model and its processor, loaded offline with transformers' Auto classes."""

    def __init__(self, folder: str | Path = MODEL_FOLDER) -> None:
        import transformers

        library: Any = transformers  # its Auto classes are not typed throughout
        self.model = library.AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.processor = library.AutoProcessor.from_pretrained(folder, local_files_only=True)

    def embed_images(self, images: Sequence[Image.Image], *, batch: int = 100) -> FloatArray:
        """Return unit vectors ``[N, D]`` of the pictures."""
        import torch

        rows = []
        for start in range(0, len(images), batch):
            inputs = self.processor(images=list(images[start : start + batch]), return_tensors="pt")
            with torch.inference_mode():
                rows.append(self.model.get_image_features(**inputs).pooler_output.numpy())
        return _unit(np.concatenate(rows))

    def embed_texts(self, texts: Sequence[str], *, batch: int = 200) -> FloatArray:
        """Return unit vectors ``[N, D]`` of the texts, which are lower-cased."""
        import torch

        rows = []
        for start in range(0, len(texts), batch):
            inputs = self.processor(
                text=[text.lower() for text in texts[start : start + batch]],
                padding="max_length",
                max_length=64,
                truncation=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                output = self.model.get_text_features(input_ids=inputs["input_ids"])
            rows.append(output.pooler_output.numpy())
        return _unit(np.concatenate(rows))


def _unit(rows_ND: FloatArray) -> FloatArray:
    unit: FloatArray = rows_ND / np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What one set of scenes gave; shares from 0 to 1."""

    scenes: int
    recall_at_1: float
    recall_at_1_reworded: float
    """The same captions with synonyms, other articles and another order."""
    short_query_precision_at_1: float
    zero_shot_shape: float
    zero_shot_colour: float


def distinct_scenes(
    rng: np.random.Generator, *, pairs: Sequence[tuple[str, str]], count: int = GROUP
) -> list[Scene]:
    """Draw scenes of which each one's caption is true of itself only."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        candidate = random_scene(rng, pairs=pairs)
        seen, said = encode([candidate]), encode([full_claim(candidate)])
        if scenes:
            all_seen, all_said = encode(scenes), encode([full_claim(scene) for scene in scenes])
            if truth_matrix(all_seen, said).any() or truth_matrix(seen, all_said).any():
                continue
        scenes.append(candidate)
    return scenes


def stills(scenes: Sequence[Scene], rng: np.random.Generator) -> list[Image.Image]:
    """Render one frame of each scene, at a random moment."""
    return [Image.fromarray(render_frame(scene, moment=float(rng.random()))) for scene in scenes]


def film_frames(scenes: Sequence[Scene], *, crf: int = 30) -> list[Image.Image]:
    """Return one frame of each scene from an H.264 video of them all: 320x180, two frames each."""
    import av  # here, because stills must not need FFmpeg

    with tempfile.TemporaryDirectory() as folder:
        film = render_video(
            Path(folder) / "film.mp4",
            scenes,
            seconds_per_scene=0.2,
            fps=10,
            size=(320, 180),
            crf=crf,
        )
        with av.open(str(film.path)) as container:
            frames: list[Any] = list(container.decode(video=0))
    return [frame.to_image() for frame in frames[1::2]]


def _recall(images_ND: FloatArray, texts_ND: FloatArray) -> float:
    best = (texts_ND @ images_ND.T).argmax(axis=1)
    return float((best == np.arange(len(texts_ND))).mean())


def _short_claim(scene: Scene) -> Claim:
    item = scene.objects[0]
    moving = None if item.motion == "still" else item.motion
    return Claim(objects=(ObjectClaim(colour=item.colour, shape=item.shape, motion=moving),))


def evaluate_groups(
    model: DemoModel,
    *,
    pairs: Sequence[tuple[str, str]],
    groups: int,
    filmed: bool,
    seed: int = _SEED,
) -> Scores:
    """Measure on ``groups`` times 100 scenes whose objects are drawn from ``pairs``."""
    rng = np.random.default_rng(seed)
    recalls, reworded, short = [], [], []
    shapes: list[bool] = []
    colours: list[bool] = []
    for _ in range(groups):
        scenes = distinct_scenes(rng, pairs=pairs)
        images = film_frames(scenes) if filmed else stills(scenes, rng)
        images_ND = model.embed_images(images)
        captions = [scene.caption for scene in scenes]
        recalls.append(_recall(images_ND, model.embed_texts(captions)))
        others = [phrase(full_claim(scene), rng, unknown=0) for scene in scenes]
        reworded.append(_recall(images_ND, model.embed_texts(others)))
        claims = [_short_claim(scene) for scene in scenes]
        queries_ND = model.embed_texts([phrase(claim, rng, unknown=0) for claim in claims])
        best = (queries_ND @ images_ND.T).argmax(axis=1)
        truth_NM = truth_matrix(encode(scenes), encode(claims))
        short.append(float(truth_NM[best, np.arange(len(claims))].mean()))
        more_shapes, more_colours = _zero_shot(model, scenes, images_ND)
        shapes += more_shapes
        colours += more_colours
    return Scores(
        scenes=groups * GROUP,
        recall_at_1=float(np.mean(recalls)),
        recall_at_1_reworded=float(np.mean(reworded)),
        short_query_precision_at_1=float(np.mean(short)),
        zero_shot_shape=float(np.mean(shapes)),
        zero_shot_colour=float(np.mean(colours)),
    )


def _zero_shot(
    model: DemoModel, scenes: Sequence[Scene], images_ND: FloatArray
) -> tuple[list[bool], list[bool]]:
    """Return whether shape and colour are right, for each scene of a single object."""
    shapes_ND = model.embed_texts([SHAPE_PROMPT.format(shape=shape) for shape in SHAPES])
    colours_ND = model.embed_texts([COLOUR_PROMPT.format(colour=colour) for colour in COLOURS])
    names = tuple(COLOURS)
    right_shapes, right_colours = [], []
    for scene, image_D in zip(scenes, images_ND, strict=True):
        if len(scene.objects) == 1:
            right_shapes.append(
                SHAPES[int((shapes_ND @ image_D).argmax())] == scene.objects[0].shape
            )
            right_colours.append(
                names[int((colours_ND @ image_D).argmax())] == scene.objects[0].colour
            )
    return right_shapes, right_colours


def evaluate(folder: str | Path = MODEL_FOLDER, *, groups: int = 5) -> dict[str, Scores]:
    """Return all four measurements, each on ``groups`` times 100 scenes.

    Returns:
        ``seen_stills``, ``unseen_stills``, ``seen_film`` and ``unseen_film``.
    """
    model = DemoModel(folder)
    sets = {"seen": SEEN_PAIRS, "unseen": tuple(sorted(HELD_OUT))}
    return {
        f"{name}_{'film' if filmed else 'stills'}": evaluate_groups(
            model, pairs=pairs, groups=groups, filmed=filmed
        )
        for filmed in (False, True)
        for name, pairs in sets.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure the demo model on held-out scenes.")
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument(
        "--groups", type=int, default=5, help="groups of 100 scenes in each of the four sets"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    scores = evaluate(options.model, groups=options.groups)
    if options.json:
        json.dump({name: asdict(score) for name, score in scores.items()}, sys.stdout, indent=2)
        print()
        return
    print(
        f"{'':15}{'scenes':>8}{'recall@1':>10}{'reworded':>10}{'short':>8}{'shape':>8}{'colour':>8}"
    )
    for name, s in scores.items():
        shares = (s.recall_at_1, s.recall_at_1_reworded, s.short_query_precision_at_1)
        zero_shot = (s.zero_shot_shape, s.zero_shot_colour)
        print(
            f"{name:15}{s.scenes:8}{shares[0]:10.3f}{shares[1]:10.3f}{shares[2]:8.3f}"
            f"{zero_shot[0]:8.3f}{zero_shot[1]:8.3f}"
        )


if __name__ == "__main__":
    main()
