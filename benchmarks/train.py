"""Training fed by Ray Data, against a plain PyTorch DataLoader over the same crops in memory: wall time of epochs."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.extractors import FACES, cluster
from benchmarks.measure import Ratio
from raydistal import schemas, tables
from raydistal.detector.augmentation import augment
from raydistal.detector.examples import Batch, rebatch, shuffled_shares
from raydistal.detector.training import Training
from raydistal.faces import crop
from raydistal.faces.look import look
from raydistal.pipelines import epochs, train

TARGET = 0.9
NUM_WORKERS = 2  # of the DataLoader

Epoch = Callable[[int], Iterator[Batch]]  # its number -> its batches


def run(
    console: Console,
    *,
    size: str,
    num_clips: int,
    num_faces: int,
    seconds: float = 10,
    rounds: int = 3,
    architecture: str = "efficientnet_lite0",
) -> list[Ratio]:
    """`num_faces` in all, from `num_clips` clips. Ray Data reads Parquet; the DataLoader has the encoded crops."""
    paths = make_clips(size, 48, num_clips, seconds)
    console.print(f"train: {architecture}, {num_faces} faces of {describe(paths)}, {FACES.size_px} pixels, PNG")
    with tempfile.TemporaryDirectory() as folder, cluster():
        images = write_run(folder, paths, num_faces // num_clips)
        config = train.Config(data=folder, out=f"{folder}/detector", architecture=architecture, weights="random")
        ways = {"Ray Data": ray_data(config), "DataLoader": data_loader(config, images)}
        costs_s: dict[str, list[float]] = {name: [] for name in ways}
        training = new_training(config, len(images[0]))
        for number in range(rounds + 1):  # the first warms up
            for name, epoch in ways.items():
                began = time.monotonic()
                fitted = training.fit(epoch(number))
                costs_s[name].append((time.monotonic() - began) / fitted["images"])
    table = Table("fed by", "faces/s of each epoch", title="train")
    per_s = {name: [1 / cost for cost in found[1:]] for name, found in costs_s.items()}
    for name, found in per_s.items():
        table.add_row(name, " ".join(f"{value:.1f}" for value in found))
    console.print(table)
    ray, plain = (statistics.median(found) for found in per_s.values())
    return [Ratio("train", f"{architecture}, faces/s against a DataLoader", ray / plain, TARGET, at_most=False)]


def write_run(folder: str, paths: Sequence[Path], faces_per_clip: int) -> tuple[list[bytes], list[int]]:
    """The tables of a run, a video and a part per clip, real and fake in turn; the crops and labels of all faces."""
    images: list[bytes] = []
    labels: list[int] = []
    videos = []
    settings = {name: getattr(FACES, name) for name in FACES.__dataclass_fields__}
    for number, path in enumerate(paths):
        row = look(str(path), path.stem, f"even:{faces_per_clip}", **settings).drop_columns(["pixels"])
        found = row["crop"][0].as_py()
        feature = schemas.list_column(np.zeros((len(found), 1), np.float16), [len(found)])
        row = schemas.conform(row.append_column("feature", feature), schemas.faces_schema(1))
        tables.write_part(f"{folder}/faces", row, settings)
        images += found
        labels += [number % 2] * len(found)
        names = dict.fromkeys(("video_id", "group_id", "uri"), path.stem)
        videos.append(names | {"dataset": "synthetic", "label": number % 2, "split": "train"})
    tables.write_info(f"{folder}/faces", settings)
    tables.write_table(f"{folder}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    return images, labels


def new_training(config: train.Config, num_faces: int) -> Training:
    """A detector with random weights."""
    from raydistal.detector.zoo import create

    detector = create(config.architecture, "random", config.seed)
    recipe = config.full_recipe()
    return Training(detector, recipe, -(-num_faces // recipe.batch_size), "cpu", 0, config.seed)


def ray_data(config: train.Config) -> Epoch:
    """As `raydistal train` feeds one worker."""
    import ray

    from raydistal.detector.zoo import create

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    examples = train.examples_of(config, train.videos_of(config))
    claim = tables.Claim(config.out, "")
    job = train._job(config, {}, claim, create(config.architecture, "random"), examples)
    known = ray.put(job)

    def epoch(number: int) -> Iterator[Batch]:
        windows = shuffled_shares(job.train["part"].to_numpy(), 1, config.seed, number)[0]
        return rebatch(epochs._feed("train", windows, number, job=known), config.full_recipe().batch_size, min_last=2)

    return epoch


class InMemory(torch.utils.data.Dataset[tuple[np.ndarray, int]]):
    """Encoded crops, decoded and augmented when asked for."""

    def __init__(self, images: list[bytes], labels: list[int], size_px: int) -> None:
        self.images, self.labels, self.size_px = images, labels, size_px

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(torch.initial_seed() + number)
        return augment(crop.decode(self.images[number], self.size_px), rng), self.labels[number]


def data_loader(config: train.Config, found: tuple[list[bytes], list[int]]) -> Epoch:
    """As most people would."""
    from raydistal.detector.zoo import parse_architecture

    dataset = InMemory(*found, parse_architecture(config.architecture).input_px)
    batch_size = config.full_recipe().batch_size
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=NUM_WORKERS, persistent_workers=True, collate_fn=collate
    )
    return lambda _: iter(loader)


def collate(faces: list[tuple[np.ndarray, int]]) -> Batch:
    """One batch."""
    return Batch(np.stack([face[0] for face in faces]), np.array([face[1] for face in faces]))
