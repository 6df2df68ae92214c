"""The commands `search`, `labels` and `duplicates`; `cli/main.py` adds them to the others.

Imports only what a question to a running service needs; `cli/search_work.py` does the rest.
"""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from siglip_pipeline.cli.common import Json, load_settings
from siglip_pipeline.cli.completion import complete_moment, complete_video
from siglip_pipeline.cli.filter_options import (
    NO_FILTER,
    FromSeconds,
    ToSeconds,
    Videos,
    with_filter_options,
)
from siglip_pipeline.errors import LaunchError
from siglip_pipeline.hits import SearchFilter, SearchResult
from siglip_pipeline.settings import Settings, compute_in_one_thread
from siglip_pipeline.siglip.prompt_template import PROMPT_TEMPLATE
from siglip_pipeline.terminal import console
from siglip_pipeline.text.in_words import counted
from siglip_pipeline.text.json_form import to_json

if TYPE_CHECKING:
    from siglip_pipeline.search.export import Exported

Text = Annotated[
    str | None,
    typer.Argument(help='What to look for, as in a caption; or a mix: \'+"snow" -"people"^0.5\'.'),
]
Image = Annotated[Path | None, typer.Option(help="Look for what a picture shows.")]
Like = Annotated[
    str | None,
    typer.Option(
        help="VIDEO@SECONDS: look for what that moment shows.", autocompletion=complete_moment
    ),
]
Clip = Annotated[Path | None, typer.Option(help="Look for what a short video file shows.")]


@with_filter_options
def search(
    text: Text = None,
    image: Image = None,
    like: Like = None,
    clip: Clip = None,
    k: Annotated[int, typer.Option("--k", "-k", help="How many moments at the most.")] = 10,
    filter: SearchFilter = NO_FILTER,
    open_: Annotated[
        bool,
        typer.Option(
            "--open", help="Open the best hit in the search page of a running `up` or `serve`."
        ),
    ] = False,
    export: Annotated[
        Path | None, typer.Option(help="Write a thumbnail of each hit to this folder.")
    ] = None,
    clips: Annotated[
        bool, typer.Option("--clips", help="With --export: the moments as MP4, not thumbnails.")
    ] = False,
    prove: Annotated[
        bool,
        typer.Option("--prove", help="Also search exactly, and say what the index missed."),
    ] = False,
    permalink: Annotated[
        bool, typer.Option("--permalink", help="Print a pin that names the state of the index.")
    ] = False,
    pin: Annotated[
        str | None,
        typer.Option(help="Say whether the answer is still that of this pin (--permalink)."),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Say on stderr which process answered.")
    ] = False,
    json_: Json = False,
) -> None:
    """Find moments by text, picture, another moment, a clip, or several of these at once.

    TEXT, --image and --like together make one query of terms of equal weight. A running `up` or
    `serve` of this collection answers a TEXT alone, as its model is loaded; without one, this
    process does.

    Exits 1 when a hit could not be exported, 2 when the search failed. No hits is not an error.
    """
    settings = load_settings()
    if clips and export is None:
        raise typer.BadParameter("--clips needs --export FOLDER")
    if (clip is not None) == any(term is not None for term in (text, image, like)):
        raise typer.BadParameter(
            "give TEXT, --image FILE, --like VIDEO@SECONDS or several of them, or --clip FILE"
        )
    has_receipt = prove or permalink or pin is not None
    if clip is not None and has_receipt:
        raise typer.BadParameter("--prove, --permalink and --pin are not for --clip")
    result, answered_by = None, "this process"
    if text is not None and image is None and like is None and not has_receipt:
        from siglip_pipeline.cli.service_search import ask_service

        result, answered_by = ask_service(settings, text, k=k, filter=filter) or (None, answered_by)
    if result is None:
        compute_in_one_thread()
        from siglip_pipeline.cli.search_work import find
        from siglip_pipeline.search import Receipt

        receipt = Receipt(prove=prove, permalink=permalink, pin=pin)
        result = find(settings, text, image, like, clip, k=k, filter=filter, receipt=receipt)
    if verbose:
        console.err.print(f"answered by {answered_by}")
    exported = _export(result, export, settings, clips=clips)
    opened = _open(result, settings) if open_ and result.hits else None
    if json_:
        document = to_json(result)
        if exported is not None:
            document["exported"] = [to_json(file) for file in exported]
        if opened is not None:
            document["opened"] = opened
        console.print_json(document)
    else:
        _show(result, exported or (), opened, title=text or f"like {clip or image or like}")
    failed = any(file.path is None for file in exported or ())
    raise typer.Exit(1 if failed else 0)


def labels(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[VIDEO] LABEL...",
            help="A video (path or glob below SIGLIP_UPLOADS), then the labels; with --all labels "
            "alone. A label is a noun: 'a red car'.",
            autocompletion=complete_video,
        ),
    ],
    every: Annotated[bool, typer.Option("--all", help="Judge all videos.")] = False,
    sure: Annotated[
        float | None,
        typer.Option(help="Probability from which a frame has a label. Default: 0.5."),
    ] = None,
    from_seconds: FromSeconds = None,
    to_seconds: ToSeconds = None,
    template: Annotated[
        str, typer.Option(help="The sentence that is compared with the frames.")
    ] = PROMPT_TEMPLATE,
    json_: Json = False,
) -> None:
    """Show which of the given labels fit a video, or all videos: zero-shot, frame by frame.

    Each label is judged independently: several may fit, or none. Put -- before text that begins
    with a dash.
    """
    settings = load_settings()
    videos = None if every else words[:1]
    names = words if every else words[1:]
    if not names:
        raise typer.BadParameter("give a VIDEO and at least one LABEL, or --all and labels")
    limits = SearchFilter(from_seconds=from_seconds, to_seconds=to_seconds, min_probability=sure)
    from siglip_pipeline.cli.search_work import label_report, labels_table

    report = label_report(settings, names, videos=videos, filter=limits, template=template)
    if json_:
        console.print_json(report)
    elif report.videos:
        console.out.print(labels_table(report))
    else:
        console.out.print("Nothing to judge: these videos have no vectors yet.")


def duplicates(
    video: Annotated[
        str | None,
        typer.Argument(
            help="Only what this video shares: path below SIGLIP_UPLOADS.",
            autocompletion=complete_video,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--segments", help="Also stretches that make no copy: intros, quotes.")
    ] = False,
    json_: Json = False,
) -> None:
    """List videos that are copies of each other, wholly or in part.

    Shows the latest result of the asset `video_similarity`.
    """
    from siglip_pipeline.cli.search_work import duplicates_table, shared_segments

    segments = shared_segments(load_settings(), video, duplicates_only=not every)
    if json_:
        console.print_json({"segments": [to_json(segment) for segment in segments]})
    elif segments:
        console.out.print(duplicates_table(segments))
    else:
        console.out.print("No copies are known. The asset video_similarity looks for them.")


def export(
    to: Annotated[
        Path, typer.Option("--to", help="The Parquet file, or the folder of the other forms.")
    ],
    format: Annotated[
        Literal["parquet", "webdataset", "fiftyone"],
        typer.Option("--format", help="parquet; webdataset or fiftyone with the pictures."),
    ] = "parquet",
    video: Videos = None,
    json_: Json = False,
) -> None:
    """Write all frames with their times and vectors to files that need no database.

    Parquet has a row per frame; WebDataset and FiftyOne's dataset a picture, its facts and its
    vector. No other tool is needed for it.
    """
    from siglip_pipeline.cli.search_work import export_frames

    done = export_frames(load_settings(), to, format=format, videos=video or None)
    if json_:
        console.print_json(done)
    else:
        console.out.print(
            f"Wrote {counted(done.frames, 'frame')} of {counted(done.videos, 'video')} to "
            f"{done.path} (vectors of {done.model}, {done.model_key})."
        )


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(export)
    app.command()(search)
    app.command()(labels)
    app.command()(duplicates)


def _export(
    result: SearchResult, folder: Path | None, settings: Settings, *, clips: bool
) -> "tuple[Exported, ...] | None":
    if folder is None:
        return None
    from siglip_pipeline.cli.search_work import export_found

    return export_found(result, folder, settings, clips=clips)


def _open(result: SearchResult, settings: Settings) -> str:
    """Show the best hit in the browser and return its address."""
    from siglip_pipeline.cli.search_work import page_address

    address = page_address(settings, result.hits[0])
    if not webbrowser.open(address):
        raise LaunchError(f"no browser could be started; the hit is at {address}")
    return address


def _show(
    result: SearchResult, exported: "tuple[Exported, ...]", opened: str | None, *, title: str
) -> None:
    rates_text = result.query.rates_text
    if result.hits:
        console.out.print(console.hits_table(title, result.hits, rates_text=rates_text))
    else:
        console.out.print("Nothing here: no moment passes the filters and is probable enough.")
    _show_receipt(result)
    for file in exported:
        if file.path is None:
            console.err.print(f"not exported: {file.reason}", style="yellow")
        else:
            without = f" without sound: {file.reason}" if file.reason else ""
            console.err.print(f"wrote {file.path}{without}")
    if opened:
        console.err.print(f"opened {opened}")


def _show_receipt(result: SearchResult) -> None:
    if result.proof is not None:
        from siglip_pipeline.search.results import proof_sentence

        console.out.print(proof_sentence(result.proof))
        if result.proof.missed:
            console.out.print(
                console.hits_table(
                    "missed by the index", result.proof.missed, rates_text=result.query.rates_text
                )
            )
    if result.pin is not None:
        console.out.print(f"pin {result.pin}")
    if result.reproduced is not None and not result.reproduced.same:
        console.err.print(
            f"This is not the answer that was pinned: {result.reproduced.reason}.",
            style="yellow",
        )
