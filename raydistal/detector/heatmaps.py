"""Where in a face a detector finds evidence for fake: Grad-CAM++ (Chattopadhay et al. 2018) of its logit.

For the last maps A (K channels) before pooling, the logit z of fake and its gradient g = dz/dA, with Y = exp(z) as in
the paper (its equations 19, 10 and 11; the derivatives of Y are Y g, Y g^2 and Y g^3, and Y drops out):

    alpha_kij = g_kij^2 / (2 g_kij^2 + sum_ab A_kab g_kij^3) = 1 / (2 + g_kij sum_ab A_kab)
    w_k       = sum_ij alpha_kij relu(g_kij)
    heat_ij   = relu(sum_k w_k A_kij), divided by the largest of the face

So a map says where, not how much: its maximum is 1 even where the detector is sure that the face is real.

N crops of S pixels a side, S = input_px; h, w cells of a map; C channels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from raydistal.detector import checkpoint
from raydistal.detector.runtime import mixed_precision
from raydistal.detector.scoring import enough_memory
from raydistal.detector.zoo import Detector
from raydistal.errors import UserError


class Heatmaps:
    """(N, S, S, 3) uint8 crops to (N, h, w) maps from 0 to 1 of the evidence for fake.

    h and w are those of the network's last feature maps: 7 by 7 for most networks and crops of 224 pixels. Only the
    layers after these maps are differentiated, so a heatmap costs little more than a probability.

    Args:
        detector: a convolutional one, pruned and adapted ones included. Moved to the device and put into
            evaluation mode.
        device: "cpu" or "cuda", see `runtime.start`.
        batch_size: crops per forward pass.

    Raises:
        UserError: the network has no maps before its classifier, such as a transformer.
    """

    def __init__(self, detector: Detector, device: str = "cpu", batch_size: int = 64) -> None:
        self.input_px, self.batch_size = detector.input_px, batch_size
        self.detector = detector.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = torch.device(device)
        _, heat_1hw = self._explain(torch.zeros(1, self.input_px, self.input_px, 3, device=device))
        self.shape: tuple[int, int] = (heat_1hw.shape[1], heat_1hw.shape[2])

    def __call__(self, crops_NHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """The maps, (N, h, w). A face without evidence for fake has a map of zeros."""
        return self.explain(crops_NHWC)[1]

    def explain(self, crops_NHWC: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """(N,) probabilities of fake and the (N, h, w) maps.

        Raises:
            UserError: the device runs out of memory; the message says what to lower.
        """
        num = len(crops_NHWC)
        probability_N, heat_Nhw = np.empty(num, np.float32), np.empty((num, *self.shape), np.float32)
        for begin in range(0, num, self.batch_size):
            some = slice(begin, begin + self.batch_size)
            with enough_memory(self.batch_size):
                logit_n, heat_nhw = self._explain(torch.tensor(crops_NHWC[some]).to(self.device))
            probability_N[some] = torch.sigmoid(logit_n).cpu().numpy()
            heat_Nhw[some] = heat_nhw.cpu().numpy()
        return probability_N, heat_Nhw

    def _explain(self, crops_NHWC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        network, (autocast, _) = self.detector.network, mixed_precision(self.device)
        with torch.inference_mode(False):
            with torch.no_grad(), autocast:
                maps = network.forward_features(self.detector._normalise(crops_NHWC)).float()
            if maps.ndim != 4:
                raise UserError(
                    f"{self.detector.architecture} has no maps before its classifier that a heatmap could be made of: "
                    "heatmaps need a convolutional network"
                )
            with torch.enable_grad():
                logit_N = network.forward_head(maps.requires_grad_())[:, 0]
                (gradient,) = torch.autograd.grad(logit_N.sum(), maps)
        logit_N, maps = logit_N.detach(), maps.detach()
        if getattr(network, "output_fmt", "NCHW") == "NHWC":
            maps, gradient = maps.permute(0, 3, 1, 2), gradient.permute(0, 3, 1, 2)
        return logit_N, grad_cam_pp(maps, gradient)


def grad_cam_pp(maps_NCHW: torch.Tensor, gradient_NCHW: torch.Tensor) -> torch.Tensor:
    """The module's equations: maps A and gradients g to heat, (N, h, w)."""
    # Without the relus, alpha would have a pole where g or the sum of A is negative. Negative g adds nothing to w_k
    # anyway; the paper's maps (ReLU) are never negative, those of SiLU are.
    alpha_NCHW = 1 / (2 + gradient_NCHW.relu() * maps_NCHW.sum((2, 3), keepdim=True).relu())
    weight_NC11 = (alpha_NCHW * gradient_NCHW.relu()).sum((2, 3), keepdim=True)
    heat_Nhw = (weight_NC11 * maps_NCHW).sum(1).relu()
    return heat_Nhw / heat_Nhw.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat_Nhw.dtype).tiny)


def explainer(location: str) -> str:
    """Location of the detector whose maps explain the one at `location`: itself, or what it was exported from.

    Raises:
        UserError: no detector is there, or it was exported and its parent is gone or was replaced by another.
    """
    about = checkpoint.read_about(location)
    if about["runtime"] == "torch":
        return location
    parent = about.get("parent") or {}
    try:
        is_it = checkpoint.model_id(checkpoint.read_about(parent["location"])) == parent["model_id"]
    except (UserError, KeyError):
        is_it = False
    if not is_it:
        raise UserError(
            f"{location} was exported for {about['runtime']}, which gives no gradients, and the detector that it was "
            f"made from is not at {parent.get('location')} any more. Give a trained detector."
        )
    return str(parent["location"])


def shape(about: Mapping[str, Any]) -> tuple[int, int]:
    """(h, w) of the maps of a detector, from the content of its detector.json: costs no computation.

    Raises:
        UserError: as `Heatmaps`.
    """
    with torch.device("meta"):
        maps = Heatmaps(Detector(about["architecture"], about["input_px"]), "meta")
    return maps.shape


def of(location: str, device: str = "cpu", batch_size: int = 64) -> Heatmaps:
    """Heatmaps of the detector at `location`; of an exported one, by the detector that it was exported from.

    Raises:
        UserError: as `explainer`, `checkpoint.load` and `Heatmaps`.
    """
    return Heatmaps(checkpoint.load(explainer(location))[0], device, batch_size)
