"""How likely is it that a face is fake? Needs numpy, torch, executorch and opencv-python-headless,
and the files beside this one.

python example.py FACE.png ...

A picture is a square crop of a face, margin included, as the detector has learnt from.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent


def main(paths: list[str]) -> None:
    """Prints P(fake) and a verdict for each picture."""
    import torch
    from executorch.runtime import Runtime

    about = json.loads((FOLDER / "detector.json").read_text())
    program = Runtime.get().load_program(FOLDER / "model.pte")  # keep it: the method reads from it
    method = program.load_method("forward")
    for path in paths:
        crop = read(path, about["input_px"])
        (logit,) = method.execute([torch.from_numpy(crop[None])])[0]  # one crop at a time
        probability = 1 / (1 + np.exp(-float(logit)))
        verdict = "fake" if probability > about["threshold"]["frame"] else "real"
        print(f"{path}\t{probability:.6f}\t{verdict}")


def read(path: str, size_px: int) -> npt.NDArray[np.uint8]:
    """(size_px, size_px, 3) RGB from 0 to 255: the model itself normalises it."""
    bgr = cv2.imread(path, cv2.IMREAD_COLOR)
    if bgr is None:
        sys.exit(f"{path} is not a picture")
    picture = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
    if picture.shape[:2] == (size_px, size_px):
        return picture
    is_larger = picture.shape[0] * picture.shape[1] > size_px**2
    how = cv2.INTER_AREA if is_larger else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, (size_px, size_px), interpolation=how), np.uint8)


if __name__ == "__main__":
    main(sys.argv[1:])
