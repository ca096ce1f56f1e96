"""Clips of people who do not exist."""

import av
import cv2
import numpy as np
import pytest

from raydistal.datasets.synthetic_scenes import TalkingHead

SIZE_PX, FPS = (192, 144), 12


def draw(identity: int, num_frames: int = 24) -> list[np.ndarray]:
    scene = TalkingHead(identity, 0, *SIZE_PX, num_frames, FPS, 1.0)
    return [scene.frame(number) for number in range(num_frames)]


def write(path, frames) -> str:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20", "g": "12", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame_HWC in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, str]:
    """Paths: one (person), two (side by side), cut (from one to another), wall (nobody), picture (of two)."""
    folder = tmp_path_factory.mktemp("clips")
    one, other = draw(1), draw(3)
    two = [np.hstack(pair) for pair in zip(one, other, strict=True)]
    cv2.imwrite(str(folder / "two.png"), cv2.cvtColor(two[0], cv2.COLOR_RGB2BGR))
    scene = TalkingHead(1, 0, *SIZE_PX, 8, FPS, 1.0)
    return {
        "one": write(folder / "one.mp4", one),
        "two": write(folder / "two.mp4", two),
        "cut": write(folder / "cut.mp4", one[:12] + other[:12]),
        "wall": write(folder / "wall.mp4", [scene.empty_frame(number) for number in range(8)]),
        "picture": str(folder / "two.png"),
    }


@pytest.fixture(scope="session")
def faces() -> dict[str, object]:
    """How faces are found, as detector.json tells it."""
    haar = {"detector": "haar", "scale_factor": 1.2, "min_neighbors": 5, "min_face": 0.1}
    return haar | {"margin": 0.3, "size_px": 64, "crops": "png"}
