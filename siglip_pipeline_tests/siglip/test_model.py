"""The loader: one model per process, the tower that is needed, and errors that say what to do."""

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from siglip_pipeline.errors import (
    CorruptWeightsError,
    DeviceUnavailableError,
    UnsupportedModelError,
)
from siglip_pipeline.siglip import model as loader
from siglip_pipeline.siglip.identity import model_spec
from siglip_pipeline.siglip.model import get_model, release_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.text_embeddings import extract_text_embeddings
from siglip_pipeline_tests.siglip.checkpoints import Kind, edit_json, make_checkpoint
from siglip_pipeline_tests.siglip.conftest import Make


@pytest.fixture(autouse=True)
def _start_empty() -> None:
    release_model()


@pytest.mark.parametrize("kind", ["siglip2", "siglip1", "naflex"])
def test_the_loaded_model_carries_the_spec_of_its_files(kind: Kind, options_for: Make) -> None:
    options = options_for(kind)
    model = get_model(options)
    assert model.spec == model_spec(options)
    assert (model.device, model.dtype, model.tower) == ("cpu", "float32", "both")
    assert "cpu" in repr(model)
    assert model.spec.key in repr(model)


def test_one_model_per_process_even_when_many_ask_at_once(
    options_for: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options_for("siglip2")
    loads = []
    load = loader.load_model
    barrier = threading.Barrier(8)

    def counted(*args: Any, **kwargs: Any) -> Any:
        loads.append(args)
        return load(*args, **kwargs)

    def ask(_: int) -> Any:
        barrier.wait()
        return get_model(options)

    monkeypatch.setattr(loader, "load_model", counted)
    with ThreadPoolExecutor(8) as pool:
        models = list(pool.map(ask, range(8)))
    assert len(loads) == 1
    assert all(model is models[0] for model in models)


@pytest.fixture
def _no_garbage_is_looked_for() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def weights_held_by_a_cycle(options: ModelOptions) -> "weakref.ref[torch.nn.Module]":
    """As errors that transformers keeps from its imports hold them: with the loader's frame."""
    model = get_model(options)
    model.held_by_itself = model  # type: ignore[attr-defined]
    return weakref.ref(model.vision)


@pytest.mark.usefixtures("_no_garbage_is_looked_for")
def test_release_lets_the_weights_go(options_for: Make) -> None:
    held = weights_held_by_a_cycle(options_for("siglip2"))
    release_model()
    assert held() is None


@pytest.mark.usefixtures("_no_garbage_is_looked_for")
def test_another_model_replaces_the_first(options_for: Make) -> None:
    held = weights_held_by_a_cycle(options_for("siglip2"))
    second = get_model(options_for("naflex"))
    assert held() is None
    assert second.spec.key != model_spec(options_for("siglip2")).key
    assert list(loader._loaded.values()) == [second]
    lower = get_model(replace(options_for("naflex"), dtype="bfloat16"))
    assert lower.dtype == "bfloat16"
    assert lower.spec.key == second.spec.key
    assert list(loader._loaded.values()) == [lower]


def bytes_of(module: torch.nn.Module) -> int:
    return sum(p.nbytes for p in module.parameters())


def test_a_search_process_loads_the_text_tower_alone(options_for: Make) -> None:
    options = options_for("siglip2")
    text = get_model(options, tower="text")
    assert text.tower == "text"
    assert get_model(options, tower="text") is text
    both = get_model(options)
    assert both.tower == "both"
    assert bytes_of(text.text) == bytes_of(both.text)
    # The whole model answers for its parts.
    assert get_model(options, tower="text") is both
    assert get_model(options, tower="image") is both


def test_the_towers_add_up_when_asked_for_one_after_the_other(options_for: Make) -> None:
    options = options_for("naflex")
    image = get_model(options, tower="image")
    assert image.tower == "image"
    weights = image.vision
    both = get_model(options, tower="text")
    assert both.tower == "both"
    assert both.vision is weights, "neither read again, nor there twice"
    assert len(extract_text_embeddings(["a cat"], model=both)) == 1


def test_towers_of_different_files_are_not_put_together(
    folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    options = copy_of(folders("siglip2"), tmp_path / "model")
    before = get_model(options, tower="image").spec.key
    make_checkpoint(tmp_path / "model", seed=1)
    both = get_model(options, tower="text")
    assert both.tower == "both"
    assert both.spec.key != before


def copy_of(folder: Path, to: Path) -> ModelOptions:
    return ModelOptions(
        name=str(shutil.copytree(folder, to)),
        fingerprints=to / "home" / "fingerprints.json",
        device="cpu",
    )


def test_weights_that_are_missing_are_not_filled_with_random_ones(
    folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    options = copy_of(folders("siglip2"), tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_model.head.weight"]
    save_file(tensors, file)
    with pytest.raises(CorruptWeightsError, match=r"1 of its weights are missing.*head\.weight"):
        get_model(options)
    # The other tower is whole, and may be used.
    assert get_model(options, tower="image").tower == "image"


def test_weights_of_another_shape_are_refused(
    folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    options = copy_of(folders("siglip2"), tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    vision = json.loads(config.read_text())["vision_config"]
    edit_json(config, vision_config={**vision, "intermediate_size": 80})
    with pytest.raises(CorruptWeightsError, match=r"config\.json (does not belong|belongs)"):
        get_model(options)


def test_no_code_from_a_checkpoint_is_run(folders: Callable[[Kind], Path], tmp_path: Path) -> None:
    options = copy_of(folders("siglip2"), tmp_path / "model")
    proof = tmp_path / "ran"
    (tmp_path / "model" / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass M: ...\n")
    edit_json(
        tmp_path / "model" / "config.json", auto_map={"AutoModel": "evil.M", "AutoConfig": "evil.M"}
    )
    edit_json(
        tmp_path / "model" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.M", None]}
    )
    model = get_model(options)
    model.tokenize(["a cat"])
    assert not proof.exists()


def test_a_missing_tokenizer_is_named_when_it_is_needed(
    folders: Callable[[Kind], Path], tmp_path: Path
) -> None:
    options = copy_of(folders("siglip2"), tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    model = get_model(options)  # pictures need no tokenizer
    with pytest.raises(UnsupportedModelError, match="its tokenizer cannot be loaded"):
        model.tokenize(["a cat"])


def test_an_absent_device_is_an_error(options_for: Make) -> None:
    options = replace(options_for("siglip2"), device="cuda:63")
    with pytest.raises(DeviceUnavailableError, match="SIGLIP_DEVICE='cuda:63' is not on this"):
        get_model(options)
    assert loader._loaded == {}
