"""The page of a detector: what it was made of, how it was pruned, how it learnt, what it cost."""

import json
import shlex
from functools import partial
from typing import Any

from raydistal import schemas, storage
from raydistal.errors import UserError
from raydistal.report import figures, page
from raydistal.report.figures import Line, Panel, Picture, picture
from raydistal.report.page import Cell, Table, Tile, count, decimal, duration, millions, percent

About = dict[str, Any]


def write(location: str) -> str:
    """Writes LOCATION/report from LOCATION/detector.json and returns the path of the page.

    Raises:
        UserError: there is no detector.
    """
    try:
        about: About = json.loads(storage.read_bytes(storage.join(location, "detector.json")))
    except FileNotFoundError as error:
        raise UserError(f"no detector at {location}. Make it first: raydistal train --out {location}") from error
    pruned = about.get("pruning")
    pictures = [learning_curves(about)] if about["history"] else []
    pictures += [pruning_curves(pruned)] if pruned else []
    return page.write(
        location,
        "training.html.j2",
        pictures,
        about=about,
        is_synthetic=about["data"]["synthetic"],
        tiles=tiles(about),
        notices=notices(about),
        pruned=losses(pruned) if pruned else "",
        steps=steps(pruned) if pruned else None,
        layers=layers(pruned) if pruned else None,
        course=course(about),
        epochs=epochs(about),
        commands=commands(location, about),
        made_of=made_of(about),
        configs={about["technique"]: about["settings"]},
        versions=about["versions"],
    )


def tiles(about: About) -> list[Tile]:
    """The headline numbers."""
    best, data, cost = _best(about), about["data"], about["cost"]
    faces, of_val = data["num_faces"]["train"], data["num_faces"]["val"]
    measured = ["no validation faces"]
    if best.get("val_accuracy") is not None:
        measured = [f"accuracy {percent(best['val_accuracy']).text} %"]
        measured += [f"{sum(of_val.values()):,} faces of {count(data['num_videos']['val'], 'video')}"]
    num_videos = count(data["num_videos"]["train"], "video")
    parent = about["pruning"]["before"]["params"] if "pruning" in about else 0
    fewer = [f"{percent(1 - about['num_params'] / parent).text} % fewer than {millions(parent)}"] if parent else []
    side = f"{about['input_px']} x {about['input_px']} px"
    return [
        Tile("Faces learnt from", sum(faces.values()), [f"of {num_videos}"], (faces["real"], faces["fake"])),
        Tile("Validation AUC", decimal(best.get("val_auc")).text, measured),
        Tile("Parameters", millions(about["num_params"]), [*fewer, f"input {side}"]),
        Tile("Training time", duration(cost["seconds"]), [f"{cost['images']:,} images", _device(cost)]),
    ]


def notices(about: About) -> list[str]:
    """What a reader must know before believing the numbers."""
    found, history, faces = [], about["history"], about["data"]["num_faces"]["train"]
    if about["weights"] == "random":
        found.append("It started from random weights: most published detectors start from those of ImageNet.")
    if about["threshold"]["from"] != "val":
        found.append(
            "Without validation faces of both classes, the last epoch was kept and the threshold is the default. Index "
            "the data with a val split."
        )
    elif history and about["best_epoch"] == history[-1]["epoch"]:
        found.append("The last epoch was the best one: more --epochs may help.")
    of_val, accuracy = about["data"]["num_faces"]["val"], _best(about).get("val_accuracy")
    larger = max(of_val.values()) / max(1, sum(of_val.values()))
    if accuracy is not None and accuracy <= larger:
        found.append(
            f"Its accuracy on validation faces, {percent(accuracy).text} %, is no higher than that of calling them all "
            f"{max(of_val, key=lambda name: int(of_val[name]))}: {percent(larger).text} %."
        )
    few, many = sorted(faces.values())
    if many > 2 * few:
        found.append(
            f"The training faces are imbalanced: one class has {many / max(1, few):.3g} times as many as the other."
        )
    return found


def losses(pruned: About) -> str:
    """What pruning took away, in words."""
    before, after = pruned["before"], pruned["after"]
    kinds = {"params": "parameters", "macs": "multiply-accumulates (MACs)", "channels": "channels"}
    phrases = [
        f"{percent(1 - after[key] / before[key]).text} % of the {kind}, from {millions(before[key])} to "
        f"{millions(after[key])}"
        for key, kind in kinds.items()
    ]
    how = "One step" if len(pruned["steps"]) == 1 else f"{len(pruned['steps'])} steps, with training after each,"
    return f"{how} removed {', '.join(phrases[:-1])}, and {phrases[-1]}. The target was {_aim(pruned)}."


def _aim(pruned: About) -> str:
    kinds = {"params": "parameters", "macs": "MACs", "channels": "channels"}
    scopes = {
        "global": "the least important of all",
        "local": "the same share of each layer",
        "isomorphic": "the least important among layers of one kind",
    }
    return f"{percent(pruned['ratio']).text} % of the {kinds[pruned['of']]}, {scopes[pruned['scope']]}"


def pruning_curves(pruned: About) -> Picture:
    """Channels by layer before and after, and what each step did on validation faces."""
    widths = list(pruned["widths"].values())
    number = list(range(1, len(widths) + 1))
    lines = [
        Line(name=name, x=number, y=[width[place] for width in widths])
        for place, name in enumerate(("before", "after"))
    ]
    panels = [Panel(title="channels by layer", xlabel="layer, from the input on", ylabel="", lines=lines)]
    gone = [100 * step["reached"] for step in pruned["steps"]]
    scores = [
        Line(name=name, x=gone, y=[step[key] for step in pruned["steps"]])
        for name, key in (("validation accuracy", "val_accuracy"), ("validation AUC", "val_auc"))
    ]
    if len(gone) > 1 and pruned["steps"][0]["val_loss"] is not None:
        panels.append(Panel(title="on validation faces", xlabel=f"{pruned['of']} gone, %", ylabel="", lines=scores))
    alt = f"Channels of {len(widths)} layers before and after pruning. {losses(pruned)}"
    return picture("pruning", alt, partial(figures.curves, panels=panels))


def steps(pruned: About) -> Table:
    """What each step left, and the validation results after its fine-tuning."""
    columns = ["step", f"{pruned['of']} gone, %", "parameters", "MACs", "channels", "multiple of"]
    columns += ["validation loss", "accuracy", "AUC", "epochs", "seconds"]
    rows = [
        [
            Cell(str(number)),
            percent(step["reached"])._replace(note=f"aim {percent(step['ratio']).text}"),
            *(Cell(millions(step[name])) for name in ("params", "macs", "channels")),
            Cell(str(step["round_to"])),
            *(decimal(step[name]) for name in ("val_loss", "val_accuracy", "val_auc")),
            Cell(str(step["epochs"])),
            Cell(f"{step['seconds']:,.1f}"),
        ]
        for number, step in enumerate(pruned["steps"], 1)
    ]
    return Table("Every step", columns, rows)


def layers(pruned: About) -> Table:
    """Channels of each layer."""
    rows = [
        [Cell(name), Cell(f"{before:,}"), Cell(f"{after:,}"), percent(after / before)]
        for name, (before, after) in pruned["widths"].items()
    ]
    return Table("Every layer", ["layer", "channels before", "after", "kept, %"], rows)


def learning_curves(about: About) -> Picture:
    """Loss, validation metrics and learning rate by epoch: the training plots of the thesis, figure 6.2.1.2."""
    history, best = about["history"], _best(about)
    epoch = [row["epoch"] + 1 for row in history]

    def line(name: str, key: str) -> list[Line]:
        """Nothing if it was never measured."""
        values = [row[key] for row in history]
        return [Line(name=name, x=epoch, y=values)] if any(value is not None for value in values) else []

    losses = line("training loss", "train_loss") + line("validation loss", "val_loss")
    scores = line("validation accuracy", "val_accuracy") + line("validation AUC", "val_auc")
    mark = (best["epoch"] + 1, f"kept: epoch {best['epoch'] + 1}")
    panels = [Panel(title="loss", xlabel="epoch", ylabel="", lines=losses, mark=mark)]
    if scores:
        lowest = min(value for curve in scores for value in curve.y if value is not None)
        panels.append(
            Panel(
                title="on validation faces",
                xlabel="epoch",
                ylabel="",
                lines=scores,
                ylim=(min(0.5, lowest) - 0.02, 1.02),
                mark=mark,
            )
        )
    rates = line("learning rate", "learning_rate")
    panels.append(Panel(title="learning rate", xlabel="epoch", ylabel="", lines=rates))
    return picture("learning", f"Learning curves by epoch. {course(about)}", partial(figures.curves, panels=panels))


def course(about: About) -> str:
    """How the training went, in words."""
    history, best = about["history"], _best(about)
    if not history:
        return "No epoch was trained."
    first, last = history[0], history[-1]
    text = (
        f"{count(len(history), 'epoch')}: the training loss went from {first['train_loss']:.3f} to "
        f"{last['train_loss']:.3f}. Epoch {best['epoch'] + 1} was kept"
    )
    if best["val_loss"] is None:
        return f"{text}."
    accuracy, auc = percent(best["val_accuracy"]).text, decimal(best["val_auc"]).text
    return f"{text}, with a validation loss of {best['val_loss']:.3f}, an accuracy of {accuracy} % and an AUC of {auc}."


def epochs(about: About) -> Table:
    """The history in numbers."""
    columns = ["epoch", "training loss", "validation loss", "accuracy", "AUC", "learning rate", "images", "seconds"]
    rows: list[list[Cell]] = [
        [
            Cell(f"{row['epoch'] + 1}", "kept" if row["epoch"] == about["best_epoch"] else ""),
            *(decimal(row[name]) for name in ("train_loss", "val_loss", "val_accuracy", "val_auc")),
            Cell(f"{row['learning_rate']:.3g}"),
            Cell(f"{row['images']:,}"),
            Cell(f"{row['seconds']:,.1f}"),
        ]
        for row in about["history"]
    ]
    return Table("Every epoch", columns, rows)


def made_of(about: About) -> dict[str, dict[str, Any]]:
    """Tables of settings, by heading."""
    data, threshold, cost = about["data"], about["threshold"], about["cost"]
    origin = {"val": "chosen on validation faces", "default": "default, nothing to choose it on"}
    detector = {
        "architecture": about["architecture"],
        "started from": about["weights"],
        **({"trained": about["trainable"]} if about.get("trainable", "all") != "all" else {}),
        **({"adapters that stayed": about["adapter"]} if about.get("adapter") else {}),
        "parameters": f"{about['num_params']:,}",
        "input": f"{about['input_px']} x {about['input_px']} px",
        "threshold, video": f"P(fake) > {threshold['video']:.4g}",
        "threshold, frame": f"P(fake) > {threshold['frame']:.4g}",
        "threshold from": origin.get(threshold["from"], threshold["from"]),
    }
    of_data = {
        "dataset": ", ".join(data["dataset"]),
        "run": data["location"],
        **({"learnt from": data["manifest"]} if data["manifest"] else {}),
        **{f"videos, {split}": f"{number:,}" for split, number in data["num_videos"].items()},
        **{f"faces, {split}": f"{by['real']:,} real, {by['fake']:,} fake" for split, by in data["num_faces"].items()},
        "fingerprint": data["fingerprint"],
    }
    spent = {
        "images": f"{cost['images']:,}",
        "time": duration(cost["seconds"]),
        "GPU time": duration(cost["gpu_seconds"]),
        "workers": str(cost["num_workers"]),
        "device": cost["device"],
    }
    taught = {"Taught by": _teaching(about["teaching"])} if about.get("teaching") else {}
    return {"Detector": detector, "Data": of_data, **taught, "Recipe": about["recipe"], "Cost": spent}


def _teaching(teaching: dict[str, Any]) -> dict[str, str]:
    """Settings that its kind of distillation reads, and who taught."""
    names = ("kd", *schemas.KD_SETTINGS[teaching["kd"]], "outputs")
    teachers = {
        f"teacher {number}": f"{teacher['location']} ({teacher['model_id']})"
        for number, teacher in enumerate(teaching["teachers"], 1)
    }
    how = {name.replace("_", " "): str(teaching[name]) for name in names}
    return how | teachers


def commands(location: str, about: About) -> list[tuple[str, str]]:
    """What to type next, each with its purpose."""
    detector, run = shlex.quote(location), shlex.quote(about["data"]["location"])
    architecture = shlex.quote(about["architecture"])
    parent = f"{shlex.quote(about['parent']['location'])} " if about.get("parent") else ""
    return [
        (
            f"Measure it{' and its parent' * bool(parent)} on videos never seen, of this and of other datasets",
            f"raydistal evaluate --detectors {parent}{detector} --data {run} OTHER_RUN --out EVALUATION",
        ),
        (
            "Train another one on from here",
            f"raydistal train --data OTHER_RUN --architecture {architecture} --weights {detector} --recipe finetune "
            "--out NEW_DETECTOR",
        ),
        (
            "Make it smaller",
            f"raydistal prune --detector {detector} --data {run} --ratio 0.3 --out SMALLER_DETECTOR",
        ),
    ]


def _best(about: About) -> dict[str, Any]:
    """The row of the epoch that was kept; {} if none was trained."""
    return next((row for row in about["history"] if row["epoch"] == about["best_epoch"]), {})


def _device(cost: dict[str, Any]) -> str:
    workers = f"{cost['num_workers']} x " if cost["num_workers"] > 1 else ""
    return f"on {workers}{cost['device']}"
