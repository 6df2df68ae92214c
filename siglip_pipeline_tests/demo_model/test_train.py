"""The training's command: a few steps, from rendering to a folder that loads."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.demo_model.evaluate import DemoModel

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_few_steps_write_a_model_that_loads_and_embeds(tmp_path: Path) -> None:
    steps = ["--pictures", "128", "--object-steps", "2", "--pair-steps", "2", "--workers", "1"]
    subprocess.run(
        [sys.executable, "-m", "tools.demo_model.train", "--output", tmp_path, *steps],
        cwd=ROOT,
        check=True,
    )
    assert DemoModel(tmp_path).embed_texts(["a red circle", "a blue star"]).shape == (2, 128)
