"""Judged queries against the demo's films: the command, comparisons, the gate and the check."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from siglip_pipeline.cli import main as cli
from siglip_pipeline.defs.quality_check import check_quality
from siglip_pipeline.demo.run import JUDGED_QUERIES, MODEL_FOLDER
from siglip_pipeline.errors import JudgedQueriesError, NothingIndexedError, StoreError
from siglip_pipeline.evaluation.annotations import read_judged
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate
from siglip_pipeline.evaluation.promotion import QualityGate, promote, promote_automatically
from siglip_pipeline.evaluation.quality_report import NOTHING_HERE, QualityReport
from siglip_pipeline.records import EmbeddingBatch
from siglip_pipeline.search import SearchOptions
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
from siglip_pipeline.store.index.index_options import IndexOptions
from siglip_pipeline.store.index.similarity_index import build_index
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.store.quality_results import (
    PastQuality,
    best_quality,
    promotions,
    quality_history,
    record_quality,
)
from siglip_pipeline.store.vectors import VectorStore
from siglip_pipeline.text.json_form import to_json
from siglip_pipeline.video.frame_store import FrameStore
from siglip_pipeline_tests.evaluation.conftest import Reels, write_lines

JUDGED = read_judged(JUDGED_QUERIES)


def options(reels: Reels, **values: Any) -> EvaluationOptions:
    chosen = reels.settings.model_copy(update=values)
    return EvaluationOptions(search=SearchOptions.from_settings(chosen))


def mean(report: QualityReport, metric: str, tag: str = "") -> float:
    value = next(t for t in report.tags if t.tag == tag).metric(metric)
    assert value is not None, metric
    return value.mean


def test_the_demo_judged_queries_are_what_the_renderer_says() -> None:
    from tools.demo_model.judge import judged_queries

    written = [json.loads(line) for line in JUDGED_QUERIES.read_text().splitlines()]
    assert written == [*judged_queries()], "run `python -m tools.demo_model.judge`"
    tags = [tag for document in written for tag in document["tags"]]
    assert len(written) == 200
    assert {"seen", "unseen", "two objects", "motion", "nothing here"} <= set(tags)


def test_the_demo_model_answers_its_judged_queries(reels: Reels) -> None:
    report = evaluate(reels.database, JUDGED, options(reels, search_min_probability=0.3))
    assert mean(report, "R@1", "caption") > 0.95
    assert mean(report, "R@1") > 0.85
    assert mean(report, "nDCG@10") > 0.9
    assert mean(report, NOTHING_HERE) > 0.5
    overall = report.overall.metric("R@1")
    assert overall is not None
    assert overall.low < overall.mean < overall.high
    assert overall.queries == 160, "those that something answers"
    assert len(report.queries) == 200


def test_a_query_does_not_find_itself(reels: Reels, tmp_path: Path) -> None:
    start, end, _ = reels.films["reel-1.mp4"].timeline[1]
    here = f'"video": "reel-1.mp4", "start_seconds": {start}, "end_seconds": {end}'
    path = write_lines(
        tmp_path / "judged.jsonl",
        f'{{"query": {{"like": "reel-1.mp4@{start + 0.5}"}}, "relevant": [{{{here}}}]}}',
    )
    report = evaluate(reels.database, read_judged(path), options(reels))
    assert mean(report, "R@10") == 0, "the moment that is the query is left out"


def test_videos_are_known_by_their_names(reels: Reels, tmp_path: Path) -> None:
    start, end, scene = reels.films["more/reel-5.mp4"].timeline[0]
    path = write_lines(tmp_path / "charades.txt", f"reel-5 {start} {end}##{scene.caption}")
    judged = read_judged(path, "charades-sta")
    report = evaluate(reels.database, judged, options(reels))
    assert mean(report, "R@1") == 1
    assert mean(report, "IoU@1") > 0.5, "a metric of the publishers"
    path = write_lines(tmp_path / "charades.txt", f"reel-5 {start} {end}##x", "reel-9 0 1##x")
    judged = read_judged(path, "charades-sta")
    with pytest.raises(JudgedQueriesError, match=r"line 2: 'reel-9'. Index them, or .*--skip-mis"):
        evaluate(reels.database, judged, options(reels))
    skipping = EvaluationOptions(
        search=SearchOptions.from_settings(reels.settings), skip_missing=True
    )
    report = evaluate(reels.database, judged, skipping)
    assert (len(report.queries), report.skipped) == (1, 1)


def test_queries_that_cannot_be_asked_are_named_with_their_line(
    reels: Reels, tmp_path: Path
) -> None:
    good = '{"query": {"like": "reel-5@1"}, "relevant": [{"video": "reel-5"}]}'
    for wrong, said in (
        ('{"query": {"like": "reel-9.mp4@1"}, "relevant": []}', r"line 2: 'reel-9\.mp4'"),
        ('{"query": {"image": "absent.png"}, "relevant": []}', r"line 2: .*absent\.png"),
        ('{"query": "x", "relevant": [], "videos": ["none/**"]}', "line 2: .*none/"),
    ):
        path = write_lines(tmp_path / "judged.jsonl", good, wrong)
        with pytest.raises(JudgedQueriesError, match=said):
            evaluate(reels.database, read_judged(path), options(reels))


def run_cli(
    monkeypatch: pytest.MonkeyPatch, reels: Reels, *arguments: str, **more: str
) -> int | str | None:
    for name, value in {**reels.settings.environment(), **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["siglip-pipeline", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return exited.value.code


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fourth of the demo's judged queries: those of the whole file are asked once or twice."""
    lines = JUDGED_QUERIES.read_text().splitlines()[::4]
    return write_lines(tmp_path_factory.mktemp("some") / JUDGED_QUERIES.name, *lines)


def stored_by_command(reels: Reels) -> list[PastQuality]:
    with reels.database.connection() as connection:
        return quality_history(connection, judged=JUDGED.name, purpose="command")


def test_the_command_shows_and_stores(
    reels: Reels, some: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(some)
    compare = ("--compare", "SIGLIP_SEARCH_MIN_PROBABILITY=0.9")
    before = len(stored_by_command(reels))
    assert not run_cli(monkeypatch, reels, "evaluate", file, "--min-probability", "0.3", *compare)
    shown = capsys.readouterr().out
    for part in ("R@1 IoU0.7", "R@10 IoU0.3", "nDCG@10", "caption", "losses"):
        assert part in shown
    assert not run_cli(monkeypatch, reels, "evaluate", file, "--json", *compare)
    document = json.loads(capsys.readouterr().out)
    assert document["report"]["min_probability"] == 0
    assert document["compared"]["min_probability"] == 0.9
    rows = {row["metric"]: row for row in document["comparison"]}
    assert rows["R@1"]["ties"] == 40, "ranks do not depend on what is hidden"
    history = stored_by_command(reels)
    assert len(history) == before + 4
    assert history[0].queries == len(document["compared"].pop("queries")) == 50
    assert history[0].report == document["compared"]
    listing = ("evaluations", "--judged", JUDGED.name, "--limit", "2")
    assert not run_cli(monkeypatch, reels, *listing, "--json")
    listed = json.loads(capsys.readouterr().out)
    with reels.database.connection() as connection:
        assert listed["total"] == len(quality_history(connection, judged=JUDGED.name))
    assert [past["min_probability"] for past in listed["evaluations"]] == [0.9, 0]
    assert listed["evaluations"][0]["tags"] == document["compared"]["tags"]
    assert not run_cli(monkeypatch, reels, *listing)
    shown = capsys.readouterr().out
    assert shown.count(JUDGED.name) == 2
    assert "nDCG@10" in shown
    for arguments, said in (
        (("--compare", "SIGLIP_SAMPLING=fps:2"), "searches do not read this setting; allowed are"),
        (("--compare", "no-such-key"), "no model 'no-such-key'"),
        (("--form", "coco"), "there is no form 'coco'"),
    ):
        assert run_cli(monkeypatch, reels, "evaluate", file, *arguments) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_the_commands_explain_and_prove(
    reels: Reels, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start, _, scene = reels.films["reel-1.mp4"].timeline[1]
    asked = (scene.caption, f"reel-1.mp4@{start + 0.5}")
    assert not run_cli(monkeypatch, reels, "explain", *asked, "--video", "reel-2.mp4", "--json")
    document = json.loads(capsys.readouterr().out)
    assert [cause["cause"] for cause in document["causes"]] == ["filtered"]
    assert not run_cli(monkeypatch, reels, "explain", *asked)
    assert "hit 1 of 10" in capsys.readouterr().out
    assert run_cli(monkeypatch, reels, "explain", "x", "reel-1.mp4") == 2
    assert "is not VIDEO@SECONDS" in capsys.readouterr().err

    assert not run_cli(monkeypatch, reels, "search", "a star", "--prove", "--permalink", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["proof"]["complete"] is True
    pin = document["pin"]
    assert not run_cli(monkeypatch, reels, "search", "a star", "--prove", "--pin", pin)
    assert "The index missed nothing" in " ".join(capsys.readouterr().out.split())
    old = pin.replace("@1.", "@7.")
    assert not run_cli(monkeypatch, reels, "search", "a star", "--pin", old)
    assert "not the answer that was pinned" in " ".join(capsys.readouterr().err.split())


@pytest.fixture(scope="module")
def worse_model(reels: Reels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The demo's model with noise in its text tower, registered and indexed beside it; its key."""
    folder = tmp_path_factory.mktemp("worse") / "model"
    shutil.copytree(MODEL_FOLDER, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if n.endswith("text_model.head.weight"))
    noise = np.random.default_rng(3).standard_normal(weights[name].shape)
    weights[name] = (weights[name] + 0.2 * noise).astype(weights[name].dtype)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = reels.settings.model_copy(update={"model_name": str(folder)})
    model = get_model(ModelOptions.from_settings(settings), tower="image")
    models, vectors = ModelStore(reels.database), VectorStore(reels.database)
    model_id = models.register(model.spec)
    with reels.database.connection() as connection:
        hashes = dict(connection.execute("SELECT path, source_sha256 FROM videos").fetchall())
    for video in reels.films:
        [batch] = FrameStore(settings.frame_store_url).read(video, batch_size=10_000)
        vectors.load(
            model_id,
            EmbeddingBatch(
                video=video,
                frame_index_N=batch.frame_index_N,
                time_seconds_N=batch.time_seconds_N,
                embeddings_ND=extract_image_embeddings(batch.jpegs, model=model),
            ),
            source_sha256=hashes[video],
            sampling="fps:1",
        )
    with pytest.raises(NothingIndexedError, match="no index is published for model"):
        evaluate(
            reels.database,
            JUDGED,
            EvaluationOptions(
                search=SearchOptions.from_settings(settings), model_key=model.spec.key
            ),
        )
    build_index(reels.database, model_id, options=IndexOptions.from_settings(settings), force=True)
    yield model.spec.key
    models.promote(models.get(reels.model_id).key)


@pytest.fixture
def gate(reels: Reels, some: Path) -> QualityGate:
    settings = reels.settings.model_copy(update={"judged_queries": some})
    found = QualityGate.from_settings(settings)
    assert found is not None
    assert QualityGate.from_settings(reels.settings) is None
    return found


def test_a_model_that_answers_worse_is_not_promoted(
    reels: Reels, worse_model: str, gate: QualityGate
) -> None:
    models = ModelStore(reels.database)
    good = models.get(reels.model_id).key
    with pytest.raises(StoreError) as refused:
        promote(reels.database, worse_model, gate)
    said = str(refused.value)
    assert f"model {worse_model} answers judged_queries.jsonl worse than {good}" in said
    assert "nDCG@10 falls from 0.9" in said
    assert "SIGLIP_QUALITY_MARGIN allows 0.02; use --force" in said
    worst = said.splitlines()[1]
    assert worst.startswith("  line ")
    assert worst.endswith("1.000 to 0.000")
    active = models.active()
    assert active is not None
    assert active.key == good
    refusal = promote_automatically(reels.database, models.get(worse_model).model_id, gate)
    assert refusal == said

    promote(reels.database, worse_model, gate, force=True)
    [recorded, *_] = promotions(reels.database)
    assert (recorded.model_key, recorded.replaced_key) == (worse_model, good)
    assert recorded.overridden == said
    promote(reels.database, good, gate)
    [recorded, *_] = promotions(reels.database)
    assert (recorded.model_key, recorded.overridden) == (good, None), "better is welcome"


def test_the_command_refuses_names_the_worse_queries_and_records_force(
    reels: Reels,
    worse_model: str,
    some: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = ModelStore(reels.database).get(reels.model_id).key
    gate = {"SIGLIP_JUDGED_QUERIES": str(some)}
    assert run_cli(monkeypatch, reels, "models", "promote", worse_model, **gate) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"model {worse_model} answers judged_queries.jsonl worse than {good}" in said
    assert "1.000 to 0.000" in said
    assert not run_cli(monkeypatch, reels, "models", "promote", worse_model, "--force", **gate)
    assert not run_cli(monkeypatch, reels, "models", "list", "--json")
    newest = json.loads(capsys.readouterr().out.partition("from now on.\n")[2])["promotions"][0]
    assert newest["model_key"] == worse_model
    assert "1.000 to 0.000" in newest["overridden"]
    assert not run_cli(monkeypatch, reels, "models", "list")
    assert "was promoted with --force" in " ".join(capsys.readouterr().out.split())
    assert not run_cli(monkeypatch, reels, "models", "promote", good)


def test_two_models_are_compared(
    reels: Reels,
    worse_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ("evaluate", str(JUDGED_QUERIES), "--compare", worse_model, "--json")
    assert not run_cli(monkeypatch, reels, *arguments)
    document = json.loads(capsys.readouterr().out)
    row = next(r for r in document["comparison"] if r["metric"] == "nDCG@10")
    for side, report in (("before", "report"), ("after", "compared")):
        [alone] = [
            value["mean"]
            for value in document[report]["tags"][0]["metrics"]
            if value["metric"] == "nDCG@10"
        ]
        assert row[side] == pytest.approx(alone, abs=2e-6)
    assert row["before"] > row["after"] + 0.09
    assert row["losses"] > row["wins"]
    assert row["p_value"] < 0.001
    assert document["worse"][0]["before"] > document["worse"][0]["after"]
    assert document["compared"]["model_key"] == worse_model


def test_the_check_compares_with_the_best_so_far(
    reels: Reels, worse_model: str, gate: QualityGate
) -> None:
    first = check_quality(reels.database, reels.model_id, gate, promoting=False)
    assert first.passed
    again = check_quality(reels.database, reels.model_id, gate, promoting=False)
    assert again.passed
    assert first.metadata["nDCG@10"] == again.metadata["best_so_far"]
    worse_id = ModelStore(reels.database).get(worse_model).model_id
    fallen = check_quality(reels.database, worse_id, gate, promoting=True)
    assert not fallen.passed
    assert "answers judged_queries.jsonl worse" in str(fallen.metadata["not_promoted"].value)
    history = fallen.metadata["history"]
    assert isinstance(history, dg.TableMetadataValue)
    assert len(history.records) == 2, "the two before it"


def test_the_best_result_is_not_forgotten(reels: Reels, tmp_path: Path) -> None:
    """However many worse ones came since: small falls would add up."""
    (start, end, _), (_, _, scene) = reels.films["reel-1.mp4"].timeline[:2]
    moment = {"video": "reel-1.mp4", "start_seconds": start, "end_seconds": end}
    path = write_lines(
        tmp_path / "one.jsonl", json.dumps({"query": scene.caption, "relevant": [moment]})
    )
    search = SearchOptions.from_settings(reels.settings)
    gate = QualityGate(judged=path, metric="MRR", margin=0.02, search=search)
    usual = gate.evaluate(reels.database)
    assert gate.value(usual) < 0.9, "the moment that the query is about comes first"
    best = to_json(usual)
    for value in best["tags"][0]["metrics"]:
        value["mean"] = 1.0
    record_quality(reels.database, best, purpose="check")
    for _ in range(60):
        record_quality(reels.database, to_json(usual), purpose="check")
    result = check_quality(reels.database, reels.model_id, gate, promoting=False)
    best_so_far = result.metadata["best_so_far"]
    assert isinstance(best_so_far, dg.FloatMetadataValue)
    assert best_so_far.value == 1
    assert not result.passed
    elsewhere = best_quality(reels.database, "MRR", judged=path.name, digest="of others")
    assert elsewhere is None


def test_a_file_that_does_not_fit_fails_the_check_alone(
    reels: Reels, gate: QualityGate, tmp_path: Path
) -> None:
    from dataclasses import replace

    broken = replace(gate, judged=write_lines(tmp_path / "judged.jsonl", "{"))
    result = check_quality(reels.database, reels.model_id, broken, promoting=False)
    assert not result.passed
    assert "line 1: no JSON" in str(result.metadata["reason"].value)
