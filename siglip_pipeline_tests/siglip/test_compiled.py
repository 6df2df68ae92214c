"""Compilation in the background delays no batch, and changes no vector."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from siglip_pipeline.siglip.compiled import CompiledForward
from siglip_pipeline.siglip.engine import EmbeddingEngine, Progress
from siglip_pipeline.siglip.engine_report import Meter
from siglip_pipeline.siglip.model import SiglipModel
from siglip_pipeline_tests.siglip.conftest import Make, jpeg, picture, vectors_of, video

FILM = video("film.mp4", [jpeg(picture(72, 96, seed=i)) for i in range(10)])


def vectors(engine: EmbeddingEngine) -> Any:
    [result] = engine.embed([FILM])
    return vectors_of(result)


Compiling = tuple[EmbeddingEngine, CompiledForward, threading.Event]
"""The engine, its forward pass, and what lets the compiler begin."""


def compiled_by(
    model: SiglipModel, compiler: Callable[[torch.nn.Module], Callable[..., Any]]
) -> Compiling:
    go = threading.Event()

    def waiting(vision: torch.nn.Module) -> Callable[..., Any]:
        assert go.wait(30)
        return compiler(vision)

    engine = EmbeddingEngine(model, batch_size=4, compiler=waiting)
    assert isinstance(model.forward, CompiledForward)
    return engine, model.forward, go


def compile_now(compiling: Compiling) -> Any:
    """Embed until it is compiled; return the vectors of the run before."""
    engine, forward, go = compiling
    before = vectors(engine)
    assert engine.report.forward == "eager"
    assert forward.thread is not None
    go.set()
    forward.thread.join(30)
    return before


def test_batches_run_eagerly_until_it_is_compiled(model: SiglipModel) -> None:
    seen: list[int] = []

    def compiler(vision: torch.nn.Module) -> Callable[..., Any]:
        def run(**arguments: torch.Tensor) -> Any:
            seen.append(len(arguments["pixel_values"]))
            return vision(**arguments)

        return run

    engine, _, _ = compiling = compiled_by(model, compiler)
    before = compile_now(compiling)
    assert seen == [4]
    np.testing.assert_allclose(vectors(engine), before, atol=1e-5)
    assert seen == [4, 4, 4]  # of 10 frames, the last two have no batch of that size
    assert (engine.report.forward, engine.report.notes) == ("compiled", ())


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore"), "found)"),
        (MemoryError("no room"), "not compiled (MemoryError: no room): batches run eagerly"),
    ],
)
def test_a_compiler_that_fails_is_a_note(
    model: SiglipModel, error: Exception, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    def compiler(vision: torch.nn.Module) -> Callable[..., Any]:
        raise error

    engine, _, _ = compiling = compiled_by(model, compiler)
    before = compile_now(compiling)
    np.testing.assert_allclose(vectors(engine), before, atol=1e-5)
    assert says in engine.report.notes[0]
    assert says in caplog.text


def test_other_vectors_are_not_used(model: SiglipModel) -> None:
    def compiler(vision: torch.nn.Module) -> Callable[..., Any]:
        def run(**arguments: torch.Tensor) -> Any:
            output = vision(**arguments)
            output.pooler_output += 0.05 * output.pooler_output.norm()
            return output

        return run

    engine, _, _ = compiling = compiled_by(model, compiler)
    before = compile_now(compiling)
    np.testing.assert_allclose(vectors(engine), before, atol=1e-5)
    assert "cosine of 0." in engine.report.notes[0]
    assert engine.report.forward == "eager"


def test_larger_batches_are_forgotten(model: SiglipModel) -> None:
    engine, forward, _ = compiling = compiled_by(model, lambda vision: vision)
    compile_now(compiling)
    forward.forget(above=2)
    vectors(engine)
    assert engine.report.forward == "eager"


@pytest.mark.parametrize(("seconds", "begins"), [(900.0, False), (None, False), (3600.0, True)])
def test_auto_compiles_for_long_runs(
    model: SiglipModel, seconds: float | None, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = CompiledForward(model.vision, lambda vision: vision)
    model.forward = forward
    engine = EmbeddingEngine(model, batch_size=4, compile_from_seconds=1800)
    progress = Meter.progress

    def expect(meter: Meter, frames_total: int | None) -> Progress:
        return replace(progress(meter, frames_total), seconds_left=seconds)

    monkeypatch.setattr(Meter, "progress", expect)
    assert len(list(engine.embed([FILM] * 40, frames_total=400))) == 40
    assert (forward.thread is not None) is begins


@pytest.mark.long
@pytest.mark.timeout(960)
def test_the_real_compiler_gives_the_same_vectors(options_for: Make, tmp_path: Path) -> None:
    """In a process of its own, as compiling changes torch's state; it takes a minute or more."""
    code = """
import sys, torch
from siglip_pipeline.siglip.compiled import CompiledForward, inductor
from siglip_pipeline.siglip.model import load_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.siglip.preprocess import Prepared, assemble

model = load_model(ModelOptions(name=sys.argv[1]), "cpu", torch.float32, tower="image")
torch.set_num_threads(1)
side = model.recipe.size
pixels = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8)
inputs = model.inputs(assemble([Prepared(each, side, side) for each in pixels]))
forward = CompiledForward(model.vision, inductor)
forward.compile_for(4)
eager = forward(model, inputs, capacity=4)
forward.thread.join()
assert not forward.notes, forward.notes
compiled = forward(model, inputs, capacity=4)
assert forward.name == "compiled"
print(float((eager * compiled).sum(dim=1).min()))
"""
    cache = tmp_path / "compiled"
    done = subprocess.run(
        [sys.executable, "-c", code, options_for("siglip2").name],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 0.9999
    assert any(cache.rglob("*.so"))
