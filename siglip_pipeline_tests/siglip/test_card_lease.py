"""Cards that processes share out among themselves; the cards are made up, the processes are not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from siglip_pipeline.siglip import model as loader
from siglip_pipeline.siglip.card_lease import CardLease
from siglip_pipeline.siglip.device import card_names
from siglip_pipeline.siglip.model import get_model, release_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline_tests.siglip.conftest import Make

TWO = ("GPU-a", "GPU-b")
HOLD = """
import subprocess, sys
from pathlib import Path
from siglip_pipeline.siglip.card_lease import CardLease
lease = CardLease(sys.argv[2:], Path(sys.argv[1]))
helper = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL)
print(lease.card, lease.others, helper.pid, flush=True)
sys.stdin.read()
"""


class Holder:
    """A process that holds a card until it is killed, with a child that outlives it."""

    def __init__(self, folder: Path, names: tuple[str, ...]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder), *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.card, self.others, self._child = map(int, self.process.stdout.readline().split())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        self.kill()
        os.kill(self._child, signal.SIGKILL)


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Callable[..., Holder]]:
    holders: list[Holder] = []

    def start(names: tuple[str, ...] = TWO) -> Holder:
        holders.append(Holder(tmp_path / "cards", names))
        return holders[-1]

    yield start
    for holder in holders:
        holder.end()


def test_each_process_takes_a_card_of_its_own_and_a_third_shares(
    hold: Callable[..., Holder],
) -> None:
    holders = [hold(), hold(), hold(), hold()]
    assert [(h.card, h.others) for h in holders] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_the_card_of_a_killed_process_is_free_at_once(hold: Callable[..., Holder]) -> None:
    first, second = hold(), hold()
    first.kill()  # what it started lives on
    assert (hold().card, hold().others) == (0, 1)
    second.kill()
    assert hold().card == 1


def test_a_card_is_known_by_its_hardware(hold: Callable[..., Holder]) -> None:
    assert hold(("GPU-b",)).card == 0
    # Another process, to which CUDA_VISIBLE_DEVICES shows them in another order.
    assert hold(("GPU-b", "GPU-a")).card == 1


@pytest.fixture
def two_cards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with two cards, on which loading is stood in for; the devices asked for."""
    asked: list[str] = []

    def load(_options: ModelOptions, device: str, _dtype: Any, *, tower: str) -> Any:
        asked.append(device)
        return SimpleNamespace(tower=tower, spec=None, add_tower=lambda _: None)

    monkeypatch.setattr(loader, "load_model", load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=TWO[number])
    )
    return asked


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_process_loads_its_model_on_the_card_that_is_free(
    wanted: str, options_for: Make, tmp_path: Path, two_cards: list[str]
) -> None:
    folder = tmp_path / "cards"
    options = replace(options_for("siglip2"), device=wanted, card_leases=folder)
    release_model()
    other = CardLease(card_names(), folder)
    try:
        get_model(options, tower="image")
        get_model(options, tower="text")  # stays where the other tower is
        assert two_cards == ["cuda:1", "cuda:1"]
        get_model(replace(options, device="cuda:0"), tower="image")  # a name is obeyed
        assert two_cards[2:] == ["cuda:0"]
    finally:
        release_model()
        other.release()
    again = CardLease(card_names(), folder)
    assert (again.card, again.others) == (0, 0)  # nothing holds one any more
    again.release()


def test_without_a_place_for_leases_the_first_card_is_used(
    options_for: Make,
    tmp_path: Path,
    two_cards: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "cards"
    folder.write_text("")  # no folder can be made there
    release_model()
    options = replace(options_for("siglip2"), device="auto", card_leases=folder)
    for _ in range(3):
        get_model(options, tower="image")
    release_model()
    assert two_cards == ["cuda:0"]
    assert caplog.text.count("this process uses cuda:0, as others may: no lease") == 1


def test_one_card_needs_no_lease(
    options_for: Make, tmp_path: Path, two_cards: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    folder = tmp_path / "cards"
    release_model()
    get_model(replace(options_for("siglip2"), device="auto", card_leases=folder), tower="image")
    release_model()
    assert two_cards == ["cuda:0"]
    assert not folder.exists()
