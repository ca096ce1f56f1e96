"""What compression saves, on SYNTHETIC faces whose fakes are easy to see; networks from random weights, at 128 pixels.

How much smaller and faster a pruned, distilled int8 network is than its teacher; what a sweep gains from a teacher who
speaks only once; how many trials a joint search needs to get where the thesis got one step after the other.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.clips import FOLDER
from benchmarks.extractors import cluster
from benchmarks.measure import Ratio, clock
from raydistal import tables
from raydistal.compression.teaching import Teaching
from raydistal.datasets.synthetic import write_dataset
from raydistal.detector.examples import Limits
from raydistal.pipelines import cost, evaluate, export, extract, index, prune, search, select, teach, train
from raydistal.pipelines.trainings import Training
from raydistal.pipelines.trial import Pruning

TARGET = 0.25  # of the teacher's size, and of its latency with 32 faces
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)  # thesis 6.2.5.1
RATIOS = (0.2, 0.4, 0.6, 0.8)  # of parameters
INPUT_PX = 128
OPTIONS: dict[str, Any] = {"recipe": "ckd-vanilla", "weights": "random", "learning_rate": 5e-4, "input_px": INPUT_PX}


def run(console: Console, *, identities: int) -> list[Ratio]:
    """On the faces of that many synthetic people, a real video and two fakes of each."""
    folder = FOLDER / f"compress-{identities}"
    with cluster():
        data = make_faces(folder, identities)
        teacher = fit(data, folder / "teacher", "efficientnet_b0", epochs=10)
        ratios = against_teacher(console, data, folder, teacher)
        ratios += cached_teacher(console, data, folder, teacher)
        ratios += joint_search(console, data, folder, teacher)
    return ratios


def make_faces(folder: Path, identities: int) -> str:
    """A run of synthetic faces, made once: two of five fakes of every person, three frames of each video."""
    videos, data = str(folder / "videos"), str(folder / "run")
    write_dataset(videos, num_identities=identities, num_fakes_per_clip=2, seconds=0.4, strength=8, hostile=False)
    index.run(index.Config(videos=videos, out=data))
    features = extract.Features(backbone="timm:test_efficientnet", weights="random")  # not looked at
    extract.run(extract.Config(out=data, sample="even:3", features=features))
    return data


def fit(data: str, out: Path, architecture: str, epochs: int, *more: Teaching | Limits) -> str:
    """A detector from random weights."""
    options: dict[str, Any] = {"teaching" if isinstance(one, Teaching) else "limits": one for one in more}
    train.run(train.Config(data=data, out=str(out), architecture=architecture, epochs=epochs, **options, **OPTIONS))
    return str(out)


def against_teacher(console: Console, data: str, folder: Path, teacher: str) -> list[Ratio]:
    """EfficientNet-Lite0, distilled from B0, 70 % of its multiply-accumulates pruned under the teacher, int8."""
    teaching = Teaching(teachers=(teacher,))
    student = fit(data, folder / "student", "efficientnet_lite0", 6, teaching)
    pruned = str(folder / "pruned")
    options = {name: OPTIONS[name] for name in ("recipe", "learning_rate")}
    prune.run(
        prune.Config(
            detector=student,
            data=data,
            out=pruned,
            ratio=0.7,
            of="macs",
            steps=2,
            epochs=3,
            teaching=teaching,
            **options,
        )
    )
    exported = {"B0": str(folder / "teacher-onnx"), "Lite0, KD, pruned, int8": str(folder / "pruned-int8")}
    export.run(export.Config(detector=teacher, out=exported["B0"]))
    export.run(export.Config(detector=pruned, out=exported["Lite0, KD, pruned, int8"], precision="int8"))
    places = (teacher, student, pruned, *exported.values())
    found = evaluate.run(evaluate.Config(detectors=places, data=(data,), out=str(folder / "evaluation")))
    print_accuracy(console, found["results"])
    costs = folder / f"cost-{time.time_ns()}"  # measured anew
    cost.run(cost.Config(detectors=tuple(exported.values()), out=str(costs)))
    rows = {
        (row["detector"], row["batch_size"]): row
        for row in tables.read_table(str(costs / "cost"), "cost").to_pylist()
        if row["device"] == "cpu"
    }
    small = Path(exported["Lite0, KD, pruned, int8"]).name
    print_costs(console, rows)
    size = rows[small, 32]["size_mb"] / rows[Path(exported["B0"]).name, 32]["size_mb"]
    return [
        Ratio("compress", "size, Lite0 distilled, pruned, int8 : B0", size, TARGET),
        Ratio("compress", "latency of 32 faces, the same, both in ONNX Runtime", rows[small, 32]["ratio"], TARGET),
    ]


def cached_teacher(console: Console, data: str, folder: Path, teacher: str) -> list[Ratio]:
    """Five alphas, three epochs each: the teacher looks at every face in each of them, or once."""
    spent: dict[str, list[float]] = {}
    for outputs in ("live", "cached"):
        out = folder / f"sweep-{outputs}-{time.time_ns()}"
        with clock() as clocked:
            if outputs == "cached":
                teach.run(teach.Config(teachers=(teacher,), data=data))
            for alpha in ALPHAS:
                teaching = Teaching(teachers=(teacher,), alpha=alpha, outputs=outputs)
                limits = Limits(max_faces=600)
                fit(data, out / f"{alpha}", "timm:resnet10t", 3, teaching, limits)
        spent[outputs] = [clocked.wall_s, clocked.cpu_s]
    (wall, cpu) = (cached / live for live, cached in zip(spent["live"], spent["cached"], strict=True))
    console.print(f"compress: sweep of five alphas, teacher cached : live, CPU time {cpu:.2f}")
    return [Ratio("compress", "time of five alphas with a B0 teacher, cached : live", wall, 0.8)]


def joint_search(console: Console, data: str, folder: Path, teacher: str) -> list[Ratio]:
    """The thesis: alpha, then how far to prune without losing 3 points, then int8. Pareto: all three at once.

    The joint search goes on, four trials at a time, until one of its detectors is at least as accurate on val and no
    larger. Both learn from the better three tenths of the training videos.
    """
    select.run(select.Config(out=data, frames=200))
    spent: dict[str, tuple[int, float]] = {}
    out = str(folder / f"search-{time.time_ns()}")

    def trials(name: str, *space: str, **options: Any) -> list[dict[str, Any]]:
        search.run(
            search.Config(
                data=data,
                out=f"{out}-{name}",
                architecture="timm:resnet10t",
                space=("data=0.3", *space),
                training=Training(epochs=4, **OPTIONS),
                teaching=Teaching(teachers=(teacher,)),
                pruning=Pruning(prune_steps=1, finetune_recipe="ckd-vanilla", finetune_epochs=2, finetune_rate=1e-3),
                **options,
            )
        )
        rows: list[dict[str, Any]] = tables.read_table(f"{out}-{name}/trials", "search").to_pylist()
        spent[name] = len(rows), sum(row["cpu_seconds"] for row in rows)
        return rows

    first = max(trials("sequential", f"alpha={','.join(map(str, ALPHAS))}"), key=lambda row: row["accuracy"])
    alpha, best = f"alpha={first['alpha']}", first
    for ratio in RATIOS:
        row = next(row for row in trials("sequential", alpha, f"prune={ratio}") if row["prune"] == ratio)
        if row["accuracy"] < first["accuracy"] - 0.03:
            break
        best = row
    rows = trials("sequential", alpha, f"prune={best['prune']}", "bits=8")
    best = next(row for row in rows if row["bits"] == 8)
    for num_trials in range(4, 25, 4):
        found = trials("joint", "alpha=0..1", "prune=0..0.9", "bits=32,8", strategy="pareto", num_trials=num_trials)
        if any(row["accuracy"] >= best["accuracy"] and row["size_mb"] <= best["size_mb"] for row in found):
            break
    else:
        console.print("compress: the joint search did NOT reach the point of the sequential one within 24 trials")
    told = ", ".join(f"{name} {num} trials and {cpu_s:.0f} CPU s" for name, (num, cpu_s) in spent.items())
    console.print(f"compress: {told}, to accuracy {best['accuracy']:.3f} of val and {best['size_mb']:.2f} MB")
    (num_before, cpu_before_s), (num, cpu_s) = spent["sequential"], spent["joint"]
    return [
        Ratio("compress", "trials to the same point, joint : sequential search", num / num_before, 1),
        Ratio("compress", "CPU time to the same point, joint : sequential search", cpu_s / cpu_before_s, 1),
    ]


def print_accuracy(console: Console, results: list[dict[str, Any]]) -> None:
    """Of videos of the test split."""
    table = Table("detector", "accuracy", "AUC", "95 %", title="compress: on SYNTHETIC test videos")
    for one in results:
        low, high = one["auc_interval"]
        table.add_row(one["detector"], f"{one['accuracy']:.3f}", f"{one['auc']:.3f}", f"{low:.3f} to {high:.3f}")
    console.print(table)


def print_costs(console: Console, rows: Mapping[tuple[str, int], Mapping[str, Any]]) -> None:
    """Ratios to the first, in pairs."""
    table = Table("detector", "faces", "size, MB", "latency ratio", title=f"compress: one thread, {INPUT_PX} pixels")
    for (name, num), row in rows.items():
        table.add_row(name, str(num), f"{row['size_mb']:.2f}", f"{row['ratio']:.3f}")
    console.print(table)
