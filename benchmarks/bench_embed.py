"""How fast are stored frames turned into vectors, and how close is that to the model alone?

For each model the same stored frames go three ways, in turn, several rounds:

engine        FrameStore.read -> EmbeddingEngine -> vectors: what the pipeline does
ceiling       the vision tower alone on tensors that lie ready, same batch, dtype and device: the
              best of eager (channels-last), on a card also one captured graph and torch.compile
plain loop    AutoProcessor + AutoModel over the same JPEGs, in batches of the engine's size and in
              its number format: what a user who measures would write
single loop   a picture at a time, in the checkpoint's own number format: the model cards' example

The models have the exact vision tower of siglip2-base-patch16-256 and siglip2-so400m-patch14-384
with seeded random weights, built in a temporary folder; their text tower is small, since no text is
embedded (``--memory`` builds it whole and measures what each tower takes). The demo model is the
one that ships, where the model is cheap and everything else shows.

On a CPU the base model also runs eagerly and compiled in turns, as with ``SIGLIP_COMPILE=on``
(``--only compile`` for that alone; not with ``--quick``).

Then stored frames are embedded again, from a folder and from S3, with their vectors stored
(:mod:`reembedding`): 100,000 with the base model on a GPU, few with the demo model on a CPU.

Made to run unattended on a GPU in less than 6 minutes, and on 2 CPU cores with ``--quick`` in less
than 5.
What could not be measured is listed under ``not_measured`` with the reason.
"""

import argparse
import importlib
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # every model is local
# Threads that wait by spinning take the cores from each other on a machine that has other work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import numpy as np
import reembedding
import torch
import transformers as _transformers
from PIL import Image
from store_report import processor_name

import siglip_pipeline
from siglip_pipeline.cpu import available_cores
from siglip_pipeline.errors import VideoError
from siglip_pipeline.records import FloatArray, VideoInfo
from siglip_pipeline.settings import keep_compiled_code
from siglip_pipeline.siglip.compiled import CompiledForward, inductor
from siglip_pipeline.siglip.device import device_name, is_out_of_memory
from siglip_pipeline.siglip.engine import EmbeddingEngine, EngineReport
from siglip_pipeline.siglip.forward import GraphForward
from siglip_pipeline.siglip.model import SiglipModel, get_model, release_model
from siglip_pipeline.siglip.model_options import DType, ModelOptions
from siglip_pipeline.siglip.preprocess import assemble, prepare
from siglip_pipeline.siglip.workers import plan_workers
from siglip_pipeline.video.frame_store import FrameStore, StoredFrame

transformers: Any = _transformers

FRAMES = Path(__file__).parents[1] / "siglip_pipeline_tests" / "siglip" / "frames"
DEMO = Path(siglip_pipeline.__file__).parent / "demo" / "model"

ARCHITECTURES: dict[str, dict[str, int]] = {
    "siglip2-base-patch16-256": {
        "image_size": 256, "patch_size": 16, "hidden_size": 768, "intermediate_size": 3072,
        "num_hidden_layers": 12, "num_attention_heads": 12,
    },
    "siglip2-so400m-patch14-384": {
        "image_size": 384, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304,
        "num_hidden_layers": 27, "num_attention_heads": 16,
    },
}  # fmt: skip
# As the demo model that ships; for a checkout in which it was not trained yet.
DEMO_ARCHITECTURE = {
    "image_size": 72, "patch_size": 12, "hidden_size": 128, "intermediate_size": 384,
    "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip
TEXT_TOWERS: dict[str, dict[str, int]] = {
    "siglip2-base-patch16-256": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "siglip2-so400m-patch14-384": {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
        "num_attention_heads": 16,
    },
}  # fmt: skip
GEMMA_VOCABULARY = 256_000

WAY_SECONDS = 6.0
"""Most that one way may take in one round, by the speed of the model alone."""
PLAIN_SECONDS = 3.0
"""Most that the plain loop may take where that is less: on a card it is thirty times slower."""
DISTINCT = 2048
"""Different JPEGs."""
MODEL_SECONDS = 60.0
"""No round of a model begins later than this after the first."""

# Dense bfloat16 peak in TFLOP/s, from NVIDIA's data sheets, by a part of the card's name.
PEAK_BF16_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "GH200": 989.0, "B200": 2250.0,
    "A100": 312.0, "A10G": 70.0, "A10": 125.0, "L40S": 362.0, "L40": 181.0, "L4": 121.0,
    "RTX 4090": 165.0, "RTX 3090": 71.0,
}  # fmt: skip


# -- models and frames -------------------------------------------------------------------------


def build(folder: Path, name: str, *, whole_text_tower: bool = False) -> Path:
    """A checkpoint of the architecture ``name`` with seeded random weights."""
    vision = ARCHITECTURES.get(name, DEMO_ARCHITECTURE)
    text: dict[str, Any] = {
        "vocab_size": 600, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "projection_size": vision["hidden_size"],
        "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip
    if whole_text_tower:
        text |= TEXT_TOWERS[name] | {"vocab_size": GEMMA_VOCABULARY}
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    transformers.SiglipModel(config).save_pretrained(folder)
    side = vision["image_size"]
    transformers.SiglipImageProcessorPil(
        size={"height": side, "width": side}, resample=2
    ).save_pretrained(folder)
    return folder


def stored_frame(i: int, jpeg: bytes) -> StoredFrame:
    return StoredFrame(
        frame_index=25 * i, pts=i, time_seconds=float(i), width=768, height=432, jpeg=jpeg,
        perceptual_hash=0,
    )  # fmt: skip


def jpeg_of(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, "JPEG", quality=90)
    return stream.getvalue()


def made_jpegs(count: int) -> list[bytes]:
    """So many different JPEGs, made once: each takes some milliseconds."""
    pictures = [Image.open(file).convert("RGB") for file in sorted(FRAMES.glob("*.jpg"))]
    for number in range(len(_MADE), count):
        rng = np.random.default_rng(number)
        base = pictures[int(rng.integers(len(pictures)))]
        left, top = rng.uniform(0, 0.15, 2) * base.size
        right, bottom = base.size - rng.uniform(0, 0.15, 2) * base.size
        box = (left, top, right, bottom)
        _MADE.append(jpeg_of(base.resize((768, 432), Image.Resampling.BICUBIC, box)))
    return _MADE[:count]


_MADE: list[bytes] = []


def store_frames(store: FrameStore, count: int, *, videos: int) -> list[str]:
    """768 x 432 JPEGs made from real frames, at most ``DISTINCT`` of them, spread over videos."""
    jpegs = made_jpegs(min(count, DISTINCT))
    rng = np.random.default_rng(0)
    names = []
    stored = 0
    for number in range(videos):
        frames = []
        for i in range(count // videos + (number < count % videos)):
            place = stored if stored < len(jpegs) else int(rng.integers(len(jpegs)))
            frames.append(stored_frame(i, jpegs[place]))
            stored += 1
        info = VideoInfo(
            video=f"{number}.mp4", container="mp4", codec="h264", width=768, height=432,
            rotation_degrees=0, time_base=Fraction(1), start_pts=0,
            duration_seconds=float(len(frames)), frame_count=25 * len(frames), frame_rate=25.0,
            size_bytes=1,
        )  # fmt: skip
        store.write(
            info.video,
            info,
            frames,
            source_sha256=str(number),
            sampling="fps:1",
            decoder_version="bench",
        )  # fmt: skip
        names.append(info.video)
    return names


# -- the ways ----------------------------------------------------------------------------------


def run_engine(model: SiglipModel, store: FrameStore, names: list[str], batch: int) -> EngineReport:
    engine = EmbeddingEngine(model, batch_size=batch)
    for result in engine.embed((name, store.read(name)) for name in names):
        if isinstance(result, VideoError):
            raise result
    stored = sum(store.metadata(name).frames for name in names)
    assert engine.report.frames == stored, f"{engine.report.frames} of {stored} frames"
    return engine.report


def is_on_card(model: SiglipModel) -> bool:
    return model.torch_device.type == "cuda"


def ceiling(
    name: str, model: SiglipModel, jpegs: list[bytes], batch: int, skipped: list[str]
) -> Callable[[int], float]:
    """A function that runs so many frames through the model and returns the seconds.

    On a card it takes the fastest of eager, a captured graph and torch.compile.
    """
    ready = assemble([prepare(jpegs[i % len(jpegs)], model.recipe) for i in range(batch)])
    inputs = model.inputs(ready.to(model.torch_device))
    pixels = inputs.arguments["pixel_values"]
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    ways: dict[str, Callable[[], torch.Tensor]] = {"eager": lambda: model.encode_images(inputs)}
    if is_on_card(model):
        graph = GraphForward()
        compiled = torch.compile(model.vision)
        ways["graph"] = lambda: graph(model, inputs, capacity=batch)
        ways["compiled"] = lambda: compiled(**inputs.arguments).pooler_output
    seconds: dict[str, float] = {}
    with torch.inference_mode():
        for way, once in ways.items():
            try:
                once().cpu()  # captured or compiled
                seconds[way] = timed(once, 4 * batch, batch)
            except Exception as error:  # a compiler that is missing, or does not fit
                skipped.append(f"{name}: ceiling {way}: {type(error).__name__}: {error}")
    best = min(seconds, key=lambda way: seconds[way])
    log(f"{name}: ceiling {best} of {seconds}")

    def run(frames: int) -> float:
        with torch.inference_mode():
            return timed(ways[best], frames, batch)

    return run


def timed(once: Callable[[], torch.Tensor], frames: int, batch: int) -> float:
    """Seconds of so many frames in batches."""
    begin = time.perf_counter()
    vectors = None
    for _ in range(frames // batch):
        vectors = once()
    if vectors is not None:
        vectors.cpu()
    return time.perf_counter() - begin


def plain_loop(
    folder: Path, device: str, jpegs: list[bytes], batch: int, dtype: torch.dtype | None
) -> Callable[[int], float]:
    """What transformers' documentation leads a user to write; ``dtype`` None is its default."""
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    chosen = {} if dtype is None else {"dtype": dtype}
    plain = transformers.AutoModel.from_pretrained(folder, **chosen).to(device).eval()

    def run(frames: int) -> float:
        begin = time.perf_counter()
        vectors: list[FloatArray] = []
        for start in range(0, frames, batch):
            images = [
                Image.open(io.BytesIO(jpegs[i % len(jpegs)])).convert("RGB")
                for i in range(start, min(start + batch, frames))
            ]
            inputs = processor(images=images, return_tensors="pt").to(device)
            inputs["pixel_values"] = inputs["pixel_values"].to(plain.dtype)
            with torch.no_grad():
                features = plain.get_image_features(**inputs).pooler_output.float()
            vectors.append((features / features.norm(dim=-1, keepdim=True)).cpu().numpy())
        return time.perf_counter() - begin

    return run


def sentence_transformers_loop(
    folder: Path, model: SiglipModel, jpegs: list[bytes], batch: int
) -> Callable[[int], float]:
    """The same pictures through the library of that name, in the engine's number format."""
    library: Any = importlib.import_module("sentence_transformers")  # not a dependency
    encoder = library.SentenceTransformer(
        str(folder), device=model.device, model_kwargs={"dtype": model.torch_dtype}
    )

    def run(frames: int) -> float:
        begin = time.perf_counter()
        images = [
            Image.open(io.BytesIO(jpegs[i % len(jpegs)])).convert("RGB") for i in range(frames)
        ]
        encoder.encode(images, batch_size=batch, normalize_embeddings=True)
        return time.perf_counter() - begin

    return run


def best_batch(model: SiglipModel, store: FrameStore, names: list[str]) -> int:
    """The batch size that the engine finds for itself on these frames."""
    engine = EmbeddingEngine(model)
    for _ in engine.embed((name, store.read(name)) for name in names):
        pass
    return engine.report.batch_size


# -- cases -------------------------------------------------------------------------------------


def measure(
    name: str, folder: Path, store: FrameStore, options: argparse.Namespace, *, frames: int,
    rounds: int, batch: int | None, goals: dict[str, float], skipped: list[str],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Cases of one model: each way in turn, the median over rounds.

    ``frames`` is the most; fewer are taken where one way would need more than ``WAY_SECONDS``, and
    rounds end after ``MODEL_SECONDS``.
    """
    model = get_model(ModelOptions(name=str(folder), device=options.device), tower="image")
    names = store_frames(store, frames, videos=max(1, frames // 48))
    jpegs = [data for video in names for part in store.read(video) for data in part.jpegs]
    batch = batch or best_batch(model, store, names)
    alone = ceiling(name, model, jpegs, batch, skipped)
    alone(batch)  # warm
    whole = batch * len(plan_workers(model, torch.get_num_threads()))
    affordable = int(WAY_SECONDS / alone(batch) * batch)
    frames = max(whole, min(frames, affordable) // whole * whole)
    if frames < len(jpegs):
        names = store_frames(store, frames, videos=max(1, frames // 48))
    ways = {
        "ceiling": alone,
        "plain loop": plain_loop(folder, model.device, jpegs, batch, model.torch_dtype),
        "single loop": plain_loop(folder, model.device, jpegs, 1, None),
    }
    if "sentence-transformers" in goals:
        ways["sentence-transformers"] = sentence_transformers_loop(folder, model, jpegs, batch)
    # A picture at a time is too slow to be repeated for long, and only telling for a cheap model.
    counts = {"single loop": 32 if name == "demo" else 0}
    if is_on_card(model):
        ways["plain loop"](batch)
        affordable = int(PLAIN_SECONDS / ways["plain loop"](batch)) * batch
        counts["plain loop"] = min(frames, max(batch, affordable))
    run_engine(model, store, names[:1], batch)
    rates: dict[str, list[float]] = {"engine": [], **{way: [] for way in ways}}
    reports = []
    began = time.perf_counter()
    for done in range(rounds):
        if done and time.perf_counter() - began > MODEL_SECONDS:
            skipped.append(f"{name}: rounds after the first {done} of {rounds}, for want of time")
            break
        report = run_engine(model, store, names, batch)
        reports.append(report)
        rates["engine"].append(report.frames_per_second)
        for way, run in ways.items():
            if count := counts.get(way, frames):
                rates[way].append(count / run(count))
    for way, goal in goals.items():
        yield {
            "name": f"{name} engine vs {way}",
            **compared(rates["engine"], rates[way], way),
            "goal": goal,
            "better": "higher",
            "batch_size": batch,
            "device": model.device,
            "dtype": model.dtype,
            **described(reports),
        }
    if name in ARCHITECTURES:
        yield share_of_peak(name, model, statistics.median(rates["engine"]))


def compilation(
    name: str, model: SiglipModel, batch: int, rounds: int, skipped: list[str]
) -> Iterator[dict[str, Any]]:
    """Cases of the vision tower compiled as a long run compiles it, by threads of the model.

    Eager and compiled take turns on one batch; the value is the median of the rounds.
    """
    usual = torch.get_num_threads()
    pictures = [prepare(jpeg, model.recipe) for jpeg in made_jpegs(batch)]
    inputs = model.inputs(assemble(pictures))
    for threads in sorted({1, usual}):
        torch.set_num_threads(threads)
        torch.compiler.reset()
        forward = CompiledForward(model.vision, inductor)
        forward.compile_for(batch)
        began = time.perf_counter()
        eager_ND = forward(model, inputs, capacity=batch)
        assert forward.thread is not None
        forward.thread.join()
        seconds = time.perf_counter() - began
        compiled_ND = forward(model, inputs, capacity=batch)
        if forward.notes:
            skipped.append(f"{name} compiled: {forward.notes[0]}")
            break
        rates: dict[str, list[float]] = {"compiled": [], "eager": []}
        for _ in range(rounds):
            once = lambda: forward(model, inputs, capacity=batch)  # noqa: B023, E731
            rates["compiled"].append(batch / timed(once, batch, batch))
            assert forward.name == "compiled", forward.name
            rates["eager"].append(batch / timed(lambda: model.encode_images(inputs), batch, batch))
        yield {
            "name": f"{name} compiled, {model.dtype}, {threads} threads",
            **compared(rates["compiled"], rates["eager"], "eager"),
            "goal": None,
            "better": "higher",
            "batch_size": batch,
            "least_cosine": float((eager_ND * compiled_ND).sum(dim=1).min()),
            "seconds_to_compile": round(seconds, 1),
        }
    torch.set_num_threads(usual)


def compared(own: list[float], others: list[float], way: str) -> dict[str, Any]:
    """Return the rates of the engine and of one way, round by round, as fields of a case."""
    ratios = [a / b for a, b in zip(own, others, strict=True)]
    return {
        "value": statistics.median(own),
        "unit": "frames_per_second",
        "reference": way,
        "reference_value": statistics.median(others),
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def described(reports: list[EngineReport]) -> dict[str, Any]:
    """Return what the engine reported over the rounds, as fields of a case."""
    return {
        "frames": reports[-1].frames,
        "rounds": len(reports),
        "model_workers": reports[-1].model_workers,
        "decoder": reports[-1].decoder,
        "forward": reports[-1].forward,
        "notes": reports[-1].notes,
        "model_busy_share": statistics.median(report.model_busy_share for report in reports),
        "peak_memory_bytes": max(report.peak_memory_bytes for report in reports),
    }


def flops_per_frame(name: str) -> float:
    """Multiply-adds times two of the vision tower: linear layers, attention and pooling head."""
    a = ARCHITECTURES[name]
    tokens = (a["image_size"] // a["patch_size"]) ** 2
    width, inner = a["hidden_size"], a["intermediate_size"]
    layer = tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width
    patches = tokens * width * 3 * a["patch_size"] ** 2
    head = tokens * 2 * width**2 + 2 * width**2 + 2 * width * inner
    return 2.0 * (a["num_hidden_layers"] * layer + patches + head)


def share_of_peak(name: str, model: SiglipModel, rate: float) -> dict[str, Any]:
    teraflops = rate * flops_per_frame(name) / 1e12
    card = torch.cuda.get_device_name(model.device) if model.device.startswith("cuda") else ""
    peak = next((tf for part, tf in PEAK_BF16_TFLOPS.items() if part in card), None)
    return {
        "name": f"{name} arithmetic",
        "value": teraflops,
        "unit": "teraflops",
        "reference": f"bfloat16 peak of {card}" if peak else "no peak known for this device",
        "reference_value": peak,
        "ratio": teraflops / peak if peak else None,
        "goal": None,
        "better": "higher",
    }


_MEMORY = """
import sys, psutil
from siglip_pipeline.siglip.embeddings import extract_image_embeddings
from siglip_pipeline.siglip.model import get_model
from siglip_pipeline.siglip.model_options import ModelOptions
import numpy, transformers.models.siglip.modeling_siglip
before = psutil.Process().memory_info().rss
options = ModelOptions(name=sys.argv[1], device="cpu", dtype="float32")
model = get_model(options, tower=sys.argv[3])
model.encode_texts(numpy.random.default_rng(0).integers(0, 256_000, (1, model.recipe.text_length)))
if sys.argv[3] == "both":
    extract_image_embeddings([numpy.zeros((256, 256, 3), numpy.uint8)], model=model)
used = psutil.Process().memory_info().rss - before
towers = [t for t in (model._text, model._vision) if t is not None]
print(used, sum(p.nbytes for tower in towers for p in tower.parameters()))
"""


def tower_memory(name: str, work: Path) -> Iterator[dict[str, Any]]:
    """What the text tower alone takes, and both, each in a fresh process that was used once.

    Weights are mapped from the file: of the vocabulary, only the rows that were asked for become
    resident.
    """
    folder = build(work / f"{name}-whole", name, whole_text_tower=True)
    resident, weights = {}, {}
    for tower in ("text", "both"):
        command = [sys.executable, "-c", _MEMORY, str(folder), str(work), tower]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        resident[tower], weights[tower] = (int(n) / 1e6 for n in done.stdout.split())
    for what, taken in (("weights", weights), ("resident after a query", resident)):
        yield {
            "name": f"{name} text tower alone, {what}",
            "value": taken["text"],
            "unit": "megabytes",
            "reference": "both towers",
            "reference_value": taken["both"],
            "ratio": taken["text"] / taken["both"],
            "goal": None,
            "better": "lower",
        }


def machine(device: str) -> dict[str, Any]:
    return {
        "cpu": processor_name(),
        "cores": available_cores(),
        "device": device_name(device),
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def cases(options: argparse.Namespace, work: Path, skipped: list[str]) -> Iterator[dict[str, Any]]:
    cuda = options.device.startswith("cuda")
    plans: list[tuple[str, int, int, int | None, dict[str, float]]] = []
    demo_is_there = (DEMO / "config.json").is_file()
    if not demo_is_there:
        skipped.append("demo weights: not trained in this checkout; random ones of the same shape")
    # Five times the batched loop would be faster than the model alone: results/embed.md says why.
    goals = {"single loop": 5.0, "plain loop": 1.0, "ceiling": 0.0}
    if importlib.util.find_spec("sentence_transformers") is None:
        skipped.append("sentence-transformers: not installed")
    elif demo_is_there:
        goals["sentence-transformers"] = 1.0
        skipped.append("sentence-transformers: with the demo model only, the others have no words")
    plans.append(("demo", 256 if options.quick else 1024, 3 if cuda else 5, 32, goals))
    base, large = ARCHITECTURES
    if cuda:
        plans.append((base, 6144, 3, None, {"ceiling": 0.85, "plain loop": 1.0}))
        plans.append((large, 1536, 3, None, {"ceiling": 0.95, "plain loop": 1.0}))
    else:
        rounds, count = (3, 32) if options.quick else (5, 64)
        plans.append((base, count, rounds, 8, {"ceiling": 0.95, "plain loop": 1.0}))
        if options.quick:
            skipped.append(f"{large}: some 100 s on two CPU cores; left out by --quick")
        else:
            plans.append((large, 4, 2, 2, {"ceiling": 0.95, "plain loop": 1.0}))
        skipped.append("GPU: none was used; the share of its peak, the side stream and pinned "
                       "memory were not measured")  # fmt: skip
    for name, count, rounds, batch, goals in plans:
        if options.only and options.only not in name:
            continue
        began = time.perf_counter()
        folder = DEMO if name == "demo" and demo_is_there else build(work / name, name)
        try:
            yield from measure(
                name, folder, FrameStore(work / f"frames-{name}"), options, frames=count,
                rounds=rounds, batch=batch, goals=goals, skipped=skipped,
            )  # fmt: skip
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            skipped.append(f"{name}: not enough memory ({error})")
        release_model()
        log(f"{name}: {time.perf_counter() - began:.0f} s")
    if cuda:
        skipped.append("SIGLIP_COMPILE: for CPUs; on a card the ceiling has a compiled way")
    elif options.only == "compile" or not (options.only or options.quick):
        keep_compiled_code(work / "compiled")  # nothing from earlier runs
        folder = build(work / f"{base}-compiled", base)
        formats: tuple[DType, ...] = ("bfloat16", "auto")
        for dtype in formats:
            chosen = ModelOptions(name=str(folder), device="cpu", dtype=dtype)
            model = get_model(chosen, tower="image")
            if dtype != "auto" or model.dtype != "bfloat16":
                yield from compilation(base, model, 8, 5, skipped)
            release_model()
    elif options.quick:
        skipped.append("SIGLIP_COMPILE: some minutes on two CPU cores; left out by --quick")
    if not options.only or options.only in "re-embedding":
        name, count = (base, 100_000) if cuda else ("demo", 400 if options.quick else 2000)
        folder = DEMO if name == "demo" and demo_is_there else work / name
        if not folder.is_dir():
            build(folder, name)
        model = get_model(ModelOptions(name=str(folder), device=options.device), tower="image")
        fill = lambda store, frames, videos: store_frames(store, frames, videos=videos)  # noqa: E731
        yield from reembedding.cases(model, fill, count, work, skipped)
        release_model()
    if options.memory:
        yield from tower_memory(base, work)
    else:
        skipped.append("memory of the towers: only with --memory (writes 1.5 GB)")
    skipped.append("open_clip: needs torchvision, and loads weights of its own format only")


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="within 5 minutes on 2 cores")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--memory", action="store_true", help="also measure what each tower takes")
    parser.add_argument("--only", help="cases whose model's name contains this")
    default = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="default: cuda:0, or cpu")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    skipped: list[str] = []
    document: dict[str, Any] = {
        "benchmark": "embed",
        "machine": machine(options.device),
        "versions": {
            name: version(name) for name in (
                "torch", "transformers", "pillow", "simplejpeg", "numpy", "pyarrow"
            )
        } | {"python": platform.python_version()},
        "cases": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="bench-embed-") as folder:
        for case in cases(options, Path(folder), skipped):
            document["cases"].append(case)
            if not options.json:
                ratio = "" if case["ratio"] is None else f"  ratio {case['ratio']:.3f}"
                goal = f" (goal {case['goal']})" if case["goal"] else ""
                print(f"{case['name']:55} {case['value']:10.2f} {case['unit']}{ratio}{goal}")
    document["not_measured"] = skipped
    document["seconds"] = round(time.perf_counter() - began, 1)
    if options.json:
        print(json.dumps(document, indent=1))
    else:
        print("not measured:", *skipped, sep="\n  ")


if __name__ == "__main__":
    main()
