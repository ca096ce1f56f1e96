"""Turns encoded crops into probabilities, in the same way for evaluating and for detecting.

N crops, S pixels a side.
"""

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from raydistal.detector.runtime import Exported, start
from raydistal.detector.zoo import Detector
from raydistal.errors import UserError
from raydistal.faces import crop


def decode_crops(
    images: Sequence[bytes], sizes_px: Sequence[int]
) -> tuple[dict[int, npt.NDArray[np.uint8]], list[int]]:
    """The (N, S, S, 3) crops for each size S, and their places in `images`; what is not an image is left out."""
    found: dict[int, list[crop.Image]] = {size_px: [] for size_px in sizes_px}
    places = []
    for place, image in enumerate(images):
        try:
            decoded = crop.decode_sizes(image, sizes_px)
        except ValueError:
            continue
        places.append(place)
        for size_px, crop_HWC in zip(sizes_px, decoded, strict=True):
            found[size_px].append(crop_HWC)
    none = {size_px: np.empty((0, size_px, size_px, 3), np.uint8) for size_px in sizes_px}
    return {size_px: np.stack(crops) if crops else none[size_px] for size_px, crops in found.items()}, places


@contextlib.contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """Raises UserError, which says what to lower, where the memory of the device does not suffice."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory with {batch_size} faces at once. Lower --batch-size.") from error


class Scorer:
    """Runs a detector: (N, S, S, 3) crops to (N,) probabilities of fake.

    Args:
        model: trained or exported, see `runtime.start`.
        device: "cpu" or "cuda".
        batch_size: crops per forward pass.
    """

    def __init__(self, model: Detector | Exported, device: str = "cpu", batch_size: int = 64) -> None:
        self.input_px, self.batch_size = model.input_px, batch_size
        self.logits = start(model, device)

    def __call__(self, crops_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Raises UserError if the device runs out of memory; the message says what to lower."""
        probability_N = np.empty(len(crops_NHWC), np.float32)
        for begin in range(0, len(crops_NHWC), self.batch_size):
            some = slice(begin, begin + self.batch_size)
            with enough_memory(self.batch_size):
                logit_N = self.logits(crops_NHWC[some]).astype(np.float64)
            probability_N[some] = np.exp(-np.logaddexp(0, -logit_N))  # a sigmoid that does not overflow
        return probability_N
