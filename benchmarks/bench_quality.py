"""What does each technique of SIGLIP_RANKING do to judged queries, and to the time of a search?

Indexes the videos in a home of its own, which is removed afterwards, then asks the judged queries
once with each ranking. A second set asks for two things at once, each a text with the stored moment
of another query's answer: both are relevant. Nobody has to watch it: videos that cannot be decoded,
and queries about videos that are not there, are left out and counted. Prints tables in Markdown,
with wins, losses and a paired test beside the first ranking; --json has all metrics and intervals.

    python benchmarks/bench_quality.py                       # the demo's films, model and queries
    python benchmarks/bench_quality.py --model google/siglip2-so400m-patch14-384 \\
        --dataset charades-sta:charades_sta_test.txt --videos Charades_v1_480 > charades.md

--dataset is FORM:FILE. FORM is judged (JSON Lines of your own) or a published form: FORMS.
docs/quality.md says which file of a benchmark that is. The videos lie anywhere below --videos,
named as the benchmark names them, with any suffix.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from fresh_home import fresh_home

from siglip_pipeline.demo.films import render_demo_videos
from siglip_pipeline.demo.run import JUDGED_QUERIES, MODEL_FOLDER
from siglip_pipeline.errors import SiglipPipelineError
from siglip_pipeline.evaluation.annotations import FORMS, read_judged
from siglip_pipeline.evaluation.comparing import Comparison, compare_reports
from siglip_pipeline.evaluation.evaluating import EvaluationOptions, evaluate, on_uploads
from siglip_pipeline.evaluation.judged_queries import JudgedQueries, JudgedQuery
from siglip_pipeline.evaluation.quality_report import QualityReport
from siglip_pipeline.search import MomentTerm, SearchOptions, SearchService, TextTerm
from siglip_pipeline.search.ranking import Ranking
from siglip_pipeline.settings import Settings
from siglip_pipeline.store.database import Database, DatabaseOptions, open_database
from siglip_pipeline.store.models import ModelStore
from siglip_pipeline.text.json_form import to_json

RANKINGS = (
    *("", "frames:2", "frames:4", "smooth:1", "smooth:2"),
    *("hubness:0.25", "hubness:0.5", "hubness:0.75", "prompts", "frames:4+prompts"),
)
OF_MIXES = ("", "centred", "frames:4+centred")
SHOWN = ("R@1", "R@5", "MRR", "nDCG@10", "mAP", "R@1 IoU0.5")
DECIDES = "nDCG@10"
TIMED = 100
"""Texts whose searches are timed."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.replace("FORMS", "\n" + ", ".join(FORMS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default=str(MODEL_FOLDER), help="folder or hub id (default: the demo's)"
    )
    parser.add_argument(
        "--dataset", metavar="FORM:FILE", help="judged queries (default: the demo's)"
    )
    parser.add_argument(
        "--videos", type=Path, metavar="FOLDER", help="the dataset's videos; they are only read"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda … (default: auto)")
    parser.add_argument(
        "--rankings",
        nargs="+",
        default=RANKINGS,
        metavar="RANKING",
        help='values of SIGLIP_RANKING to compare with the first; "" is the default of searches',
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    if (arguments.dataset is None) != (arguments.videos is None):
        parser.error("--dataset and --videos belong together")
    form, _, file = (arguments.dataset or f"judged:{JUDGED_QUERIES}").partition(":")
    if not file:
        parser.error(
            f"--dataset {form}: give FORM:FILE, such as charades-sta:charades_sta_test.txt"
        )
    try:
        judged = read_judged(Path(file), form)
        for ranking in arguments.rankings:
            Ranking.parse(ranking)
    except SiglipPipelineError as error:
        parser.error(str(error))
    if arguments.videos is not None and not arguments.videos.is_dir():
        parser.error(f"--videos {arguments.videos}: there is no such folder")
    own = {} if arguments.videos is None else {"uploads": str(arguments.videos.resolve())}
    # With hubness the build of the index estimates the biases.
    chosen = {"model_name": arguments.model, "device": arguments.device, "ranking": "hubness:1"}
    with fresh_home(**chosen, **own) as settings:
        if arguments.dataset is None:
            render_demo_videos(Path(settings.uploads))
        command = [sys.executable, "-m", "siglip_pipeline.cli.main", "materialize", "--all-missing"]
        # 1: some videos failed; the queries about them are left out.
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode not in (0, 1):
            parser.exit(2, "the videos could not be indexed: see above\n")
        with open_database(DatabaseOptions.from_settings(settings)) as database:
            try:
                asked = indexed(database, judged)
            except SiglipPipelineError as error:
                parser.exit(2, f"{error}\n")
            left_out = len(judged.queries) - len(asked.queries)
            sys.stderr.write(f"{len(asked.queries)} queries, {left_out} left out\n")
            tables = [measured(database, settings, asked, arguments.rankings)]
            if mixed := mixes(asked):
                tables.append(measured(database, settings, mixed, OF_MIXES))
    if arguments.json:
        rows = [[to_json(report) | {"ms": ms} for report, ms in table] for table in tables]
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
    else:
        for table in tables:
            sys.stdout.write("\n".join(markdown(table)) + "\n\n")


def indexed(database: Database, judged: JudgedQueries) -> JudgedQueries:
    """The queries whose videos are indexed, with the paths of these."""
    active = ModelStore(database).active()
    assert active is not None, "materialize has built an index"
    return replace(
        judged, queries=tuple(on_uploads(database, judged, active.model_id, skip_missing=True))
    )


def mixes(judged: JudgedQueries) -> JudgedQueries | None:
    """Queries for two things: the text of one judged query, and the moment that answers another.

    None where fewer than two texts are answered by moments.
    """
    texts = [
        query
        for query in judged.queries
        if query.relevant and query.relevant[0].has_times and isinstance(query.terms[0], TextTerm)
    ]
    half = len(texts) // 2
    pairs = []
    for text, other in zip(texts[:half], texts[half:], strict=False):
        moment = other.relevant[0]
        like = MomentTerm(moment.video, (moment.start_seconds + moment.end_seconds) / 2)
        pairs.append(
            replace(
                text,
                label=f"{text.label} + {other.label}",
                terms=(*text.terms, like),
                relevant=tuple(dict.fromkeys((*text.relevant, moment))),
                videos=_both(text, other),
                tags=(),
            )
        )
    return replace(judged, name=f"{judged.name}, mixed", queries=tuple(pairs)) if pairs else None


def _both(text: JudgedQuery, other: JudgedQuery) -> tuple[str, ...] | None:
    if text.videos is None or other.videos is None:
        return None
    return tuple(dict.fromkeys((*text.videos, *other.videos)))


def measured(
    database: Database, settings: Settings, judged: JudgedQueries, rankings: Sequence[str]
) -> list[tuple[QualityReport, float]]:
    """The report of each ranking, and the median milliseconds of its searches."""
    reports = []
    for ranking in rankings:
        options = SearchOptions.from_settings(settings.model_copy(update={"ranking": ranking}))
        report = evaluate(database, judged, EvaluationOptions(search=options))
        assert len(report.queries) == len(judged.queries)
        reports.append((report, search_ms(SearchService(database, options), judged)))
    return reports


def search_ms(service: SearchService, judged: JudgedQueries) -> float:
    """The median time of a search for ten hits, its texts embedded before."""
    spent = []
    for query in (judged.queries[:TIMED]) * 2:
        began = time.perf_counter()
        service.by_mix(query.terms)
        spent.append(1000 * (time.perf_counter() - began))
    return sorted(spent[len(spent) // 2 :])[len(spent) // 4]


def markdown(table: Sequence[tuple[QualityReport, float]]) -> Iterator[str]:
    base = table[0][0]
    shown = [name for name in SHOWN if base.overall.metric(name)]
    yield f"{base.judged}, {base.model_key}: {len(base.queries)} queries"
    yield ""
    yield f"| ranking | {' | '.join(shown)} | {DECIDES}: wins / losses, p | search, ms |"
    yield "|---" * (len(shown) + 3) + "|"
    for report, ms in table:
        found = {value.metric: f"{value.mean:.3f}" for value in report.overall.metrics}
        compared = next(c for c in compare_reports(base, report) if c.metric == DECIDES)
        values = " | ".join(found[name] for name in shown)
        name = f"`{report.ranking}`" if report.ranking else "default"
        yield f"| {name} | {values} | {beside(compared)} | {ms:.1f} |"


def beside(compared: Comparison) -> str:
    return f"{compared.wins} / {compared.losses}, {compared.p_value:.3f}"


if __name__ == "__main__":
    main()
