"""Vectors against transformers' own processor and model, and one test per silent mistake.

A silent mistake gives vectors that look fine and are wrong. Each test here first shows that the
mistake would change the vector of this very input, then that ours is the right one.
"""

import io
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from siglip_pipeline.errors import EmbeddingError, ModelError
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.jpeg_decoding import ImageLike
from siglip_pipeline.siglip.label_prompts import label_frames
from siglip_pipeline.siglip.model import SiglipModel, get_model
from siglip_pipeline.siglip.model_options import DType, ModelOptions
from siglip_pipeline.siglip.preprocess import assemble, prepare
from siglip_pipeline.siglip.similarity import probability
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline_tests.siglip.checkpoints import GIANT_TEXT, GIANT_VISION, Kind, make_checkpoint
from siglip_pipeline_tests.siglip.conftest import Make, jpeg, picture, real_jpegs
from siglip_pipeline_tests.siglip.reference import TEXTS, Reference, cosines, unit

KINDS: tuple[Kind, ...] = ("siglip2", "siglip1", "naflex")


@pytest.fixture(scope="module")
def references(folders: Callable[[Kind], Path]) -> Callable[[Kind], Reference]:
    made: dict[Kind, Reference] = {}

    def reference(kind: Kind) -> Reference:
        return made.setdefault(kind, Reference(folders(kind)))

    return reference


@pytest.fixture
def model(options_for: Make) -> SiglipModel:
    return get_model(options_for("siglip2"))


@pytest.fixture
def reference(references: Callable[[Kind], Reference]) -> Reference:
    return references("siglip2")


# -- against the reference ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_agree_with_the_reference(
    kind: Kind, options_for: Make, references: Callable[[Kind], Reference]
) -> None:
    shapes = [(432, 768), (768, 432), (300, 300), (64, 64), (50, 40), (1, 1), (9, 700)]
    pictures = [Image.fromarray(picture(h, w, seed=i)) for i, (h, w) in enumerate(shapes)]
    pictures += [Image.open(io.BytesIO(data)) for data in real_jpegs()]
    ours = extract_image_embeddings(pictures, model=get_model(options_for(kind)))
    theirs = references(kind).images(pictures)
    assert ours.dtype == np.float32
    assert cosines(ours, theirs).min() >= 0.9999
    # The bar means something: different pictures are far below it.
    assert cosines(theirs[:-1], theirs[1:]).max() < 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_jpegs_decoded_at_a_fraction_agree_with_the_reference(
    kind: Kind, options_for: Make, references: Callable[[Kind], Reference]
) -> None:
    data = [jpeg(picture(h, w, seed=h)) for h, w in [(432, 768), (1080, 1920), (800, 600)]]
    data += real_jpegs()
    ours = extract_image_embeddings(data, model=get_model(options_for(kind)))
    theirs = references(kind).images([Image.open(io.BytesIO(d)).convert("RGB") for d in data])
    assert cosines(ours, theirs).min() >= 0.9999


@pytest.mark.parametrize("kind", KINDS)
def test_texts_agree_with_the_reference(
    kind: Kind, options_for: Make, references: Callable[[Kind], Reference]
) -> None:
    ours = extract_text_embeddings(TEXTS, model=get_model(options_for(kind)))
    theirs = references(kind).texts([text.lower() for text in TEXTS])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_the_giants_towers_of_different_width_agree_with_the_reference(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "giant", text=GIANT_TEXT, **GIANT_VISION)
    options = ModelOptions(
        name=str(folder), fingerprints=tmp_path / "fingerprints.json", device="cpu", dtype="float32"
    )
    model, reference = get_model(options), Reference(folder)
    assert (model.spec.dim, model.recipe.size, model.recipe.patch_size) == (1536, 256, 16)
    frames = real_jpegs()[:3]
    ours = extract_image_embeddings(frames, model=model)
    assert ours.shape == (3, 1536)
    theirs = reference.images([Image.open(io.BytesIO(data)) for data in frames])
    assert cosines(ours, theirs).min() >= 0.9999
    right = reference.texts(["a cat", "a dog"])
    texts = extract_text_embeddings(["A cat", "a dog"], model=model)
    np.testing.assert_allclose(texts, right, atol=1e-5)


def test_bytes_arrays_and_pil_images_are_the_same_picture(model: SiglipModel) -> None:
    pixels = picture(120, 160)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    images: list[ImageLike] = [pixels, Image.fromarray(pixels), stream.getvalue()]
    vectors = extract_image_embeddings(images, model=model)
    np.testing.assert_allclose(vectors, vectors[[0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_stays_close_on_real_frames(
    kind: Kind, dtype: DType, options_for: Make
) -> None:
    full = options_for(kind)
    half = get_model(replace(full, dtype=dtype))
    frames = real_jpegs()
    low = extract_image_embeddings(frames, model=half)
    low_text = extract_text_embeddings(TEXTS, model=half)
    assert low.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(low, axis=1), 1, atol=1e-6)
    whole = get_model(full)
    assert cosines(low, extract_image_embeddings(frames, model=whole)).mean() >= 0.999
    assert cosines(low_text, extract_text_embeddings(TEXTS, model=whole)).mean() >= 0.999


def test_no_weight_is_copied_for_every_patch(model: SiglipModel) -> None:
    """The pooling head's matmul, on a model that is frozen, expands its weights by the patches."""
    inputs = model.inputs(assemble([prepare(real_jpegs()[0], model.recipe)] * 2))
    patches = inputs.patches // 2
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        model.encode_images(inputs)
    batched = [e.input_shapes for e in profiler.events() if e.name == "aten::bmm"]
    assert not [shapes for shapes in batched if shapes[0][0] == patches], batched
    # The bar means something: freezing brings the copies back.
    model.vision.requires_grad_(False)
    try:
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
            model.encode_images(inputs)
    finally:
        model.vision.requires_grad_(True)
    batched = [e.input_shapes for e in profiler.events() if e.name == "aten::bmm"]
    assert [shapes for shapes in batched if shapes[0][0] == patches]


# -- silent mistakes: texts --------------------------------------------------------------------


def test_text_is_lowercased(model: SiglipModel, reference: Reference) -> None:
    mistaken = reference.texts(["A Red CAR"])
    assert np.abs(mistaken - reference.texts(["a red car"])).max() > 1e-3
    ours = extract_text_embeddings(["A Red CAR", "a red car"], model=model)
    np.testing.assert_allclose(ours, reference.texts(["a red car"] * 2), atol=1e-5)


def test_text_is_padded_to_the_full_length(model: SiglipModel, reference: Reference) -> None:
    # The last position is pooled: without padding it holds another token.
    mistaken = reference.texts(["a cat"], padding=False)
    right = reference.texts(["a cat"])
    assert np.abs(mistaken - right).max() > 1e-3
    np.testing.assert_allclose(extract_text_embeddings(["a cat"], model=model), right, atol=1e-5)


def test_a_text_does_not_depend_on_its_neighbours(model: SiglipModel) -> None:
    alone = extract_text_embeddings(["a cat"], model=model)[0]
    crowd = ["a dog on the beach", "a cat", *(f"text number {i}" for i in range(150))]
    np.testing.assert_allclose(extract_text_embeddings(crowd, model=model)[1], alone, atol=1e-6)


def test_the_attention_mask_is_dropped(model: SiglipModel, reference: Reference) -> None:
    mistaken = reference.texts(["a cat"], mask=True)
    right = reference.texts(["a cat"])
    assert np.abs(mistaken - right).max() > 1e-4
    np.testing.assert_allclose(extract_text_embeddings(["a cat"], model=model), right, atol=1e-5)


def test_long_text_is_cut_and_the_log_says_by_how_much(
    model: SiglipModel, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a cat and a dog " * 40
    count = len(reference.tokens([long], padding=False, truncation=False)["input_ids"][0])
    assert count > 64
    with caplog.at_level(logging.WARNING):
        ours = extract_text_embeddings(["short", long], model=model)
    np.testing.assert_allclose(ours[1:], reference.texts([long]), atol=1e-5)
    [record] = caplog.records
    assert f"the last {count - 64} of its {count} tokens" in record.getMessage()


def test_a_text_of_exactly_the_length_is_not_cut(
    model: SiglipModel, reference: Reference, caplog: pytest.LogCaptureFixture
) -> None:
    words = 1
    while len(reference.tokens(["x " * words], padding=False)["input_ids"][0]) < 64:
        words += 1
    fits, too_long = "x " * words, "x " * words + "x x x"
    with caplog.at_level(logging.WARNING):
        extract_text_embeddings([fits], model=model)
        assert not caplog.records
        extract_text_embeddings([too_long], model=model)
        assert len(caplog.records) == 1


def test_tokens_end_with_padding_on_the_right(model: SiglipModel) -> None:
    ids = model.tokenize(["a cat"]).ids_NT
    assert ids.shape == (1, 64)
    pad = int(ids[0, -1])
    begin = int((ids[0] == pad).argmax())
    assert 0 < begin < 10
    assert (ids[0, begin:] == pad).all()


# -- silent mistakes: pictures -----------------------------------------------------------------


def test_the_checkpoints_own_filter_is_used(
    options_for: Make, references: Callable[[Kind], Reference]
) -> None:
    sharp = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8))
    theirs = references("siglip1")
    right, mistaken = theirs.images([sharp]), theirs.images([sharp], resample=2)
    assert cosines(right, mistaken)[0] < 0.9999
    ours = extract_image_embeddings([sharp], model=get_model(options_for("siglip1")))
    assert cosines(ours, right)[0] >= 0.9999


def test_naflex_keeps_the_aspect_ratio_and_masks_padding(
    options_for: Make, references: Callable[[Kind], Reference]
) -> None:
    model, theirs = get_model(options_for("naflex")), references("naflex")
    wide, tall = picture(90, 320), picture(320, 90)
    pictures = [Image.fromarray(wide), Image.fromarray(tall), Image.fromarray(picture(200, 180))]
    right = theirs.images(pictures)
    inputs = theirs.processor.image_processor(pictures, return_tensors="pt", max_num_patches=64)
    assert len({tuple(shape) for shape in inputs["spatial_shapes"].tolist()}) == 3
    blind = {**inputs, "pixel_attention_mask": torch.ones_like(inputs["pixel_attention_mask"])}
    turned = {**inputs, "spatial_shapes": inputs["spatial_shapes"].flip(1)}
    with torch.no_grad():
        for mistake in (blind, turned):
            mistaken = unit(theirs.model.get_image_features(**mistake).pooler_output)
            assert cosines(mistaken, right).min() < 0.9999
    assert cosines(extract_image_embeddings(pictures, model=model), right).min() >= 0.9999


def test_naflex_vectors_do_not_depend_on_the_batch(options_for: Make) -> None:
    model = get_model(options_for("naflex"))
    pictures = [picture(90, 320), picture(200, 200), picture(64, 33), picture(320, 90)]
    together = extract_image_embeddings(pictures, model=model)
    alone = [extract_image_embeddings([one], model=model)[0] for one in pictures]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_naflex_follows_the_setting(options_for: Make, folders: Callable[[Kind], Path]) -> None:
    options = replace(options_for("naflex"), max_num_patches=25)
    pictures = [Image.fromarray(picture(200, 300))]
    ours = extract_image_embeddings(pictures, model=get_model(options))
    theirs = Reference(folders("naflex"))
    assert cosines(ours, theirs.images(pictures, max_num_patches=25))[0] >= 0.9999
    assert cosines(ours, theirs.images(pictures))[0] < 0.9999


def test_grey_transparent_and_palette_pictures(model: SiglipModel, reference: Reference) -> None:
    rgba = np.dstack([picture(80, 80), np.full((80, 80), 90, np.uint8)])
    pictures = [
        Image.fromarray(picture(80, 80)[:, :, 0]),
        Image.fromarray(rgba),
        Image.fromarray(picture(80, 80)).quantize(16),
        Image.fromarray(picture(80, 80)).convert("CMYK"),
    ]
    ours = extract_image_embeddings(pictures, model=model)
    # Laid on white here, as transformers' processor does it in some versions only (not in 5.17).
    white = Image.new("RGBA", (80, 80), "white")
    pictures[1] = Image.alpha_composite(white, pictures[1]).convert("RGB")
    assert cosines(ours, reference.images(pictures)).min() >= 0.9999


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photo_is_turned_as_its_exif_says(model: SiglipModel, orientation: int) -> None:
    upright = Image.fromarray(picture(400, 640))
    turned = upright.rotate({1: 0, 3: 180, 6: 90, 8: 270}[orientation], expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    turned.save(stream, "JPEG", quality=95, exif=exif)
    ours = extract_image_embeddings([stream.getvalue(), upright], model=model)
    assert ours[0] @ ours[1] > 0.999


# -- vectors -----------------------------------------------------------------------------------


def test_the_probability_is_the_models_own(model: SiglipModel, reference: Reference) -> None:
    image, texts = Image.fromarray(picture(100, 100)), ["a cat", "a dog", "a red sofa"]
    tokens = reference.tokens(texts)
    pixels = reference.processor.image_processor([image], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = reference.model(input_ids=tokens["input_ids"], pixel_values=pixels)
    right = torch.sigmoid(output.logits_per_image)[0].numpy()
    cosine = (
        extract_image_embeddings([image], model=model)
        @ extract_text_embeddings(texts, model=model).T
    )
    ours = probability(cosine[0], model.spec.logit_scale, model.spec.logit_bias)
    np.testing.assert_allclose(ours, right, rtol=1e-3)
    softmax = torch.softmax(output.logits_per_image, dim=-1)[0].numpy()
    assert np.abs(softmax - right).max() > 0.01


def test_labels_use_the_template_and_each_its_own_probability(
    model: SiglipModel, reference: Reference
) -> None:
    frames = extract_image_embeddings(real_jpegs(), model=model)
    found = label_frames(frames, ["cat", "Red Sofa"], model=model)
    texts = reference.texts(["this is a photo of cat.", "this is a photo of red sofa."])
    np.testing.assert_allclose(found.cosine_NL, frames @ texts.T, atol=1e-5)
    np.testing.assert_allclose(
        found.probability_NL, probability(found.cosine_NL, 4.7, -16.5), rtol=1e-4
    )
    best = found.best(0, k=1)
    assert best[0][0] == found.labels[int(found.cosine_NL[0].argmax())]
    assert best[0][1] == pytest.approx(found.probability_NL[0].max())


@pytest.mark.parametrize(
    ("labels", "template", "says"),
    [
        ([], "a {label}", "at least one"),
        (["cat", " "], "a {label}", "none of them empty"),
        ("cat", "a {label}", "at least one label"),
        (["cat"], "a photo", r"no \{label\}"),
    ],
)
def test_labels_that_make_no_sense(
    labels: list[str], template: str, says: str, model: SiglipModel
) -> None:
    with pytest.raises(ValueError, match=says):
        label_frames(np.ones((1, 32), np.float32), labels, model=model, template=template)


def test_nothing_in_nothing_out(model: SiglipModel) -> None:
    assert extract_image_embeddings([], model=model).shape == (0, 32)
    assert extract_text_embeddings([], model=model).shape == (0, 32)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"", "not a picture that can be read"),
        (b"no picture at all", "not a picture that can be read"),
        (jpeg(picture(99, 99))[:400], "not a picture that can be read"),
        (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\), expected uint8 \[H, W, 3\]"),
        (np.zeros((4, 4, 3), np.float32), "image is float32"),
        (np.zeros((0, 4, 3), np.uint8), "expected uint8"),
    ],
)
def test_a_bad_picture_is_named_by_its_place(bad: Any, says: str, model: SiglipModel) -> None:
    with pytest.raises(ValueError, match=rf"images\[2\]: .*{says}"):
        extract_image_embeddings([picture(9, 9), picture(9, 9), bad], model=model)


@pytest.mark.parametrize("texts", ["a cat", [b"a cat"], [None]])
def test_what_is_not_a_list_of_strings(texts: Any, model: SiglipModel) -> None:
    with pytest.raises(TypeError, match="sequence of strings"):
        extract_text_embeddings(texts, model=model)


def test_a_vector_that_is_not_finite_is_an_error(model: SiglipModel) -> None:
    def poison(_module: Any, _args: Any, output: Any) -> Any:
        output.pooler_output[1, 3] = float("inf")
        return output

    cases: list[tuple[torch.nn.Module, Callable[[], Any]]] = [
        (model.vision, lambda: extract_image_embeddings([picture(9, 9)] * 3, model=model)),
        (model.text, lambda: extract_text_embeddings(["a", "b", "c"], model=model)),
    ]
    for tower, call in cases:
        handle = tower.register_forward_hook(poison)
        try:
            with pytest.raises(EmbeddingError, match=r"(images|texts)\[1\]: .*not finite"):
                call()
        finally:
            handle.remove()


def test_a_tower_that_is_not_loaded(options_for: Make) -> None:
    from siglip_pipeline.siglip.model import release_model

    release_model()
    text_only = get_model(options_for("siglip2"), tower="text")
    with pytest.raises(ModelError, match="cannot embed pictures"):
        extract_image_embeddings([picture(9, 9)], model=text_only)
    release_model()
    image_only = get_model(options_for("siglip2"), tower="image")
    with pytest.raises(ModelError, match="cannot embed texts"):
        extract_text_embeddings(["a"], model=image_only)


def test_many_threads_get_the_same_vectors(model: SiglipModel) -> None:
    texts = [f"thread {i} asks for something" for i in range(24)]
    alone = extract_text_embeddings(texts, model=model)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda t: extract_text_embeddings([t], model=model)[0], texts))
    np.testing.assert_allclose(np.stack(together), alone, atol=1e-5)
