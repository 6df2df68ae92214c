"""What a user would write: PyAV, transformers and psycopg, a frame a second, an HNSW index.

    python benchmarks/plain_script.py MODEL POSTGRES_URL VIDEO...

Prints the number of stored vectors. Part of `bench_whole.py`.
"""

import sys
from typing import Any

import av
import numpy as np
import psycopg
import torch
import transformers as _transformers
from pgvector.psycopg import register_vector

transformers: Any = _transformers  # not typed enough to be checked
BATCH = 8


def frames_of(path: str) -> list[Any]:
    frames, due = [], 0.0
    with av.open(path) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= due:
                frames.append(frame.to_image())  # type: ignore[no-untyped-call]
                due += 1.0
    return frames


def main() -> None:
    name, url, *videos = sys.argv[1:]
    model = transformers.AutoModel.from_pretrained(name).eval()
    processor = transformers.AutoProcessor.from_pretrained(name)
    dim = model.config.vision_config.hidden_size
    stored = 0
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register_vector(connection)
        connection.execute(f"CREATE TABLE plain (video text, frame int, embedding vector({dim}))")
        for video in videos:
            frames = frames_of(video)
            for begin in range(0, len(frames), BATCH):
                inputs = processor(images=frames[begin : begin + BATCH], return_tensors="pt")
                with torch.no_grad():
                    output = model.get_image_features(**inputs).pooler_output
                vectors_ND = torch.nn.functional.normalize(output, dim=-1).numpy()
                for i, vector_D in enumerate(vectors_ND.astype(np.float32)):
                    connection.execute(
                        "INSERT INTO plain VALUES (%s, %s, %s)", [video, begin + i, vector_D]
                    )
                    stored += 1
        connection.execute("CREATE INDEX ON plain USING hnsw (embedding vector_cosine_ops)")
    sys.stdout.write(f"{stored}\n")


if __name__ == "__main__":
    main()
