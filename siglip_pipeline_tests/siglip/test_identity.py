"""Opening checkpoints: which are refused, with which message, and what the key depends on."""

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from siglip_pipeline.errors import (
    CorruptWeightsError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from siglip_pipeline.siglip.identity import model_spec, model_version, vectors_code_version
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline_tests.siglip.checkpoints import Kind, edit_json, make_checkpoint
from siglip_pipeline_tests.siglip.conftest import Make


@pytest.fixture
def copy_of(folders: Callable[[Kind], Path], tmp_path: Path) -> Callable[..., Path]:
    def copy(kind: Kind = "siglip2", name: str = "model") -> Path:
        return Path(shutil.copytree(folders(kind), tmp_path / name))

    return copy


def spec(folder: Path | str, home: Path, **options: Any) -> object:
    return model_spec(
        ModelOptions(name=str(folder), fingerprints=home / "fingerprints.json", **options)
    )


def key(folder: Path, home: Path, **options: Any) -> str:
    return model_spec(
        ModelOptions(name=str(folder), fingerprints=home / "fingerprints.json", **options)
    ).key


def test_the_spec_is_read_from_files(options_for: Make) -> None:
    found = model_spec(options_for("siglip1"))
    assert found.dim == 32
    assert found.logit_scale == pytest.approx(4.7)
    assert found.logit_bias == pytest.approx(-16.5)
    assert found.revision is None
    assert found.preprocess["image"] == {
        "resample": "bicubic",
        "antialias": True,
        "scale": pytest.approx(1 / 255),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "patch_size": 14,
        "size": 64,
    }
    assert found.preprocess["text"] == {"lowercase": True, "padding": "max_length", "length": 64}
    json.dumps(found.preprocess)


def test_the_key_stays_when_nothing_that_matters_changes(
    copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    first = key(folder, tmp_path / "a")
    assert first.startswith("model-")
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(folder, moved)
    assert key(moved, tmp_path / "b") == first
    edit_json(folder / "config.json", transformers_version="9.9.9", dtype="bfloat16")
    for device, dtype in [("cpu", "bfloat16"), ("auto", "float16")]:
        assert key(folder, tmp_path, device=device, dtype=dtype) == first


@pytest.mark.parametrize(
    "change",
    ["name", "weights", "mean", "resample", "scale", "tokenizer", "activation", "text length"],
)
def test_the_key_changes_with_whatever_changes_vectors(
    change: str, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    before = key(folder, tmp_path)
    config, processor = folder / "config.json", folder / "processor_config.json"
    image = json.loads(processor.read_text())["image_processor"]
    if change == "name":
        folder = folder.rename(tmp_path / "other")
    elif change == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["vision_model.encoder.layers.1.mlp.fc1.bias"][3] += 1e-4
        save_file(tensors, folder / "model.safetensors")
    elif change == "mean":
        edit_json(processor, image_processor={**image, "image_mean": [0.48, 0.5, 0.5]})
    elif change == "resample":
        edit_json(processor, image_processor={**image, "resample": 3})
    elif change == "scale":
        edit_json(processor, image_processor={**image, "rescale_factor": 1 / 127.5})
    elif change == "tokenizer":
        with (folder / "tokenizer.json").open("a") as stream:
            stream.write("\n")
    else:
        text = json.loads(config.read_text())["text_config"]
        edited = (
            {"hidden_act": "gelu"} if change == "activation" else {"max_position_embeddings": 32}
        )
        edit_json(config, text_config={**text, **edited})
    assert key(folder, tmp_path) != before


def test_naflex_patches_are_part_of_the_key(options_for: Make) -> None:
    options = options_for("naflex")
    assert model_spec(options).preprocess["image"]["max_num_patches"] == 64
    fewer = replace(options, max_num_patches=32)
    assert model_spec(fewer).preprocess["image"]["max_num_patches"] == 32
    assert model_spec(fewer).key != model_spec(options).key


def test_max_num_patches_is_refused_for_a_fixed_resolution(options_for: Make) -> None:
    options = replace(options_for("siglip2"), max_num_patches=32)
    with pytest.raises(UnsupportedModelError, match="SIGLIP_MAX_NUM_PATCHES=32 is for NaFlex"):
        model_spec(options)


def test_weights_are_hashed_once(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    folder, home = copy_of(), tmp_path / "home"
    first = key(folder, home)
    cache = home / "fingerprints.json"
    [(file, (state, _))] = json.loads(cache.read_text()).items()
    # What the cache says is believed as long as the file looks the same …
    cache.write_text(json.dumps({file: [state, "0" * 64]}))
    assert key(folder, home) != first
    # … and a damaged cache, or a file that looks different, costs a hash and nothing else.
    cache.write_text("{")
    assert key(folder, home) == first
    cache.write_text(json.dumps({file: ["1-2-3", "0" * 64]}))
    assert key(folder, home) == first


def test_a_hub_snapshot_is_known_by_its_commit(
    folders: Callable[[Kind], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache as the hub's client lays it out: offline, the model in it is found."""
    import huggingface_hub.constants

    commit, sha256 = "c0ffee" + "0" * 34, "ab" * 32
    repository = tmp_path / "hub" / "models--google--siglip2-tiny"
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folders("siglip2"), snapshot)
    weights = snapshot / "model.safetensors"
    weights.rename(repository / "blobs" / sha256)
    weights.symlink_to(repository / "blobs" / sha256)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    options = ModelOptions(
        name="google/siglip2-tiny", fingerprints=tmp_path / "home" / "fingerprints.json"
    )
    found = model_spec(options)
    assert found.revision == commit
    assert found.key.startswith("siglip2-tiny-")
    # The blob's name is its SHA-256: nothing was read to find it.
    assert not (tmp_path / "home" / "cache").exists()
    pinned = replace(options, revision=commit)
    assert model_spec(pinned) == found
    with pytest.raises(ModelNotFoundError, match="at revision 'v2' is not in the local cache"):
        model_spec(replace(options, revision="v2"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("google/siglip2-not-cached", r"hub cannot be reached.*hf download google/siglip2-not"),
        ("/no/such/folder", "there is no such folder"),
        ("./no-such-folder", "there is no such folder"),
        ("models/siglip/base", "there is no such folder"),
        ("not a valid id!", "neither a folder that exists nor a hub id"),
    ],
)
def test_a_model_that_is_not_there(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=says):
        spec(name, tmp_path)


def test_clip_is_refused_by_name(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of()
    edit_json(folder / "config.json", model_type="clip")
    with pytest.raises(UnsupportedModelError, match=r"is a 'clip' model; allowed are 'siglip'"):
        spec(folder, tmp_path)


def test_one_tower_alone_is_refused(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    del tensors["logit_bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match=r"has no logit_bias.*both towers"):
        spec(folder, tmp_path)


@pytest.mark.parametrize("missing", ["config.json", "processor_config.json"])
def test_a_folder_without_its_json(
    missing: str, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    (folder / missing).unlink()
    with pytest.raises(UnsupportedModelError, match=r"has no (config|preprocessor_config)\.json"):
        spec(folder, tmp_path)
    (folder / missing).write_text("[1, 2")
    with pytest.raises(UnsupportedModelError, match="is not JSON"):
        spec(folder, tmp_path)


def test_older_processor_files_are_read(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of()
    before = key(folder, tmp_path)
    combined = folder / "processor_config.json"
    image = json.loads(combined.read_text())["image_processor"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    combined.write_text(json.dumps({"processor_class": "SiglipProcessor"}))
    assert key(folder, tmp_path) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resample": 1}, r"resample=1; allowed are true and 2 \(bilinear\) or 3"),
        ({"do_resize": False}, "do_resize=False"),
        ({"size": {"height": 32, "width": 32}}, "built for 64 x 64 pixels"),
        ({"size": {"shortest_edge": 64}}, "built for 64 x 64 pixels"),
        ({"image_std": [0.5, 0.0, 0.5]}, "three numbers other than 0"),
        ({"image_mean": [0.5, 0.5]}, "expected three numbers"),
    ],
)
def test_preprocessing_that_cannot_be_followed_is_refused(
    change: dict[str, object], says: str, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    file = folder / "processor_config.json"
    image = json.loads(file.read_text())["image_processor"]
    edit_json(file, image_processor={**image, **change})
    with pytest.raises(UnsupportedModelError, match=says):
        spec(folder, tmp_path)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.001])
def test_truncated_weights(keep: float, copy_of: Callable[..., Path], tmp_path: Path) -> None:
    file = copy_of() / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(CorruptWeightsError, match=r"model\.safetensors.*download it again"):
        spec(file.parent, tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x80\x04\x95" * 500, struct.pack("<Q", 4) + b"{]{]"]
)
def test_what_is_not_safetensors(
    content: bytes, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptWeightsError, match="download it again"):
        spec(folder, tmp_path)


def test_a_pickle_is_never_an_alternative(copy_of: Callable[..., Path], tmp_path: Path) -> None:
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CorruptWeightsError, match=r"only pytorch_model\.bin, and pickles are"):
        spec(folder, tmp_path)


def test_shards_are_one_model_and_a_missing_one_is_named(
    copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for number, part in enumerate([names[::2], names[1::2]], start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    options = ModelOptions(name=str(folder), fingerprints=tmp_path / "fingerprints.json")
    assert model_spec(options).logit_bias == pytest.approx(-16.5)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CorruptWeightsError, match=r"model-00002-of-00002\.safetensors.*missing"):
        model_spec(options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_scalars_of_any_precision(
    dtype: torch.dtype, copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()
    tensors = load_file(folder / "model.safetensors")
    tensors["logit_scale"] = torch.tensor([4.75], dtype=dtype)
    save_file(tensors, folder / "model.safetensors")
    assert (
        model_spec(
            ModelOptions(name=str(folder), fingerprints=tmp_path / "fingerprints.json")
        ).logit_scale
        == 4.75
    )
    tensors["logit_scale"] = torch.tensor([float("nan")], dtype=dtype)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CorruptWeightsError, match="logit_scale is nan"):
        spec(folder, tmp_path)


def test_the_giant_is_as_wide_as_its_vision_tower(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "giant", "siglip2", hidden_size=32, intermediate_size=96)
    assert (
        model_spec(ModelOptions(name=str(folder), fingerprints=tmp_path / "fingerprints.json")).dim
        == 32
    )


def test_the_code_version_of_vectors_is_of_the_weights_and_not_of_their_place(
    copy_of: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copy_of()

    def version(of: Path | str, **options: Any) -> str:
        return vectors_code_version(ModelOptions(name=str(of), **options))

    first = version(folder)
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere" / "model"))
    assert version(moved) == version(moved, device="cpu", dtype="bfloat16") == first
    weights = load_file(moved / "model.safetensors")
    name = max(weights, key=lambda tensor: weights[tensor].numel())
    save_file({**weights, name: weights[name] + 1}, moved / "model.safetensors")
    assert version(moved) != first
    assert version(folder, max_num_patches=16) != first
    # Loading the definitions must not fail because of it: the run says what is wrong.
    (folder / "config.json").unlink()
    assert version(folder) == str(folder)


def test_a_hub_model_is_told_by_the_commit_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    options = ModelOptions(name="owner/model")
    assert vectors_code_version(options) == "owner/model"
    commit = "0123456789" * 4
    repository = tmp_path / "models--owner--model"
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    assert vectors_code_version(options) == f"owner/model@{commit}"
    assert vectors_code_version(replace(options, revision="v1")) == "owner/model@v1"


def test_machines_agree_on_a_model_by_its_files_and_by_its_name_where_these_are_missing(
    copy_of: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run and its worker do: see `SiglipResource.spec`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def agree(one: Path | str, other: Path | str, **options: Any) -> bool:
        asked = model_version(ModelOptions(name=str(one)))
        return asked.agrees(model_version(ModelOptions(name=str(other), **options)))

    folder = copy_of()
    moved = Path(shutil.copytree(folder, tmp_path / "elsewhere" / folder.name))
    assert agree(folder, moved)
    assert agree(f"/not/here/{folder.name}", moved)
    assert not agree(folder, moved, max_num_patches=16)
    assert not agree("/not/here/another", moved)
    weights = load_file(moved / "model.safetensors")
    name = max(weights, key=lambda tensor: weights[tensor].numel())
    save_file({**weights, name: weights[name] + 1}, moved / "model.safetensors")
    assert not agree(folder, moved)

    commit = "0123456789" * 4
    assert agree("owner/model", "owner/model", revision="v1")
    assert agree("owner/model", "owner/model", revision=commit)
    assert not agree("owner/model", "another/model")
    pinned = model_version(ModelOptions(name="owner/model", revision=commit))
    other = model_version(ModelOptions(name="owner/model", revision="f" * 40))
    assert not pinned.agrees(other)
    assert str(pinned) == f"owner/model ({commit})"
