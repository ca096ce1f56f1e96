"""Clips made on the spot: no media file lies in the repository."""

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from raydistal import schemas, tables
from raydistal.faces import crop

# Several processes share the cores: threads of PyTorch that wait would spin, and take them from those that compute.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any load")
MILLISECOND = Fraction(1, 1000)

# A shell that starts the tests in the background turns Ctrl-C off, also for the programs that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


ROOT = Path(__file__).parents[1]
MARKS = {"exported": "slow", "browser": "browser", "cluster": "ray"}  # of whoever uses these fixtures
LONG = ("tests/pipelines/", "tests/faults/", "tests/serving/test_app.py", "tests/browser/test_app.py")


@functools.cache
def scope(file: str) -> str:
    """What runs in one process: all that share the cluster of tests/pipelines/ or tests/faults/, else a file."""
    folder = file.rpartition("/")[0]
    is_shared = folder == "tests/pipelines" and "cluster" in (ROOT / file).read_text()
    return folder if is_shared or folder == "tests/faults" else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """By `scope`, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class ByScope(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return scope(nodeid.split("::")[0])

    config.option.loadscopereorder = False  # by the number of tests
    return ByScope(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that take longest come first."""
    for item in items:
        for fixture, mark in MARKS.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)
    items.sort(key=lambda item: next((place for place, name in enumerate(LONG) if item.nodeid.startswith(name)), 9))


def write_clip(
    path: Path,
    codec: str = "libx264",
    *,
    options: dict[str, str] | None = None,
    num_frames: int = 40,
    size: tuple[int, int] = (96, 64),
    pix_fmt: str = "yuv420p",
    steps_ms: list[int] | None = None,
    seed: int = 0,
) -> Path:
    """A noisy moving pattern; frame i is shown for steps_ms[i % len(steps_ms)] ms."""
    rng = np.random.default_rng(seed)
    width_px, height_px = size
    base_HWC = rng.integers(0, 255, (height_px, width_px, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, pix_fmt
        stream.time_base = stream.codec_context.time_base = MILLISECOND
        pts_ms = 0
        for number in range(num_frames):
            noise_HWC = rng.integers(-6, 7, base_HWC.shape)
            image_HWC = np.clip(np.roll(base_HWC, (2 * number, 3 * number), (0, 1)) + noise_HWC, 0, 255)
            frame = av.VideoFrame.from_ndarray(image_HWC.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = pts_ms, MILLISECOND
            pts_ms += (steps_ms or [40])[number % len(steps_ms or [40])]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def make_clip(tmp_path: Path) -> Callable[..., Path]:
    """make_clip(name, ...) writes tmp_path/name as `write_clip` does."""

    def make(name: str, *args: object, **kwargs: object) -> Path:
        return write_clip(tmp_path / name, *args, **kwargs)

    return make


@pytest.fixture(scope="session")
def clip_writer() -> Callable[..., Path]:
    """`write_clip` itself, for tests that choose the folder."""
    return write_clip


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a local S3-compatible server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """s3://BUCKET, new and empty, reached as users reach theirs: by AWS_* variables."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture
def load_paper(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """load_paper(name) imports jobs/papers/NAME.py, which is no part of a package."""

    def load(name: str) -> ModuleType:
        monkeypatch.setattr(sys, "path", sys.path.copy())  # the scripts change it
        path = Path(__file__).parents[1] / "jobs/papers" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


FACES = {"sample": "even:6", "sample_fake": "even:6", "detector": "none", "scale_factor": 1.2, "min_neighbors": 5}
FACES |= {"min_face": 0.1, "margin": 0.3, "size_px": 40, "crops": "png"}  # how a faces table was made
SPLITS = ("train",) * 8 + ("val",) * 3 + ("test",) * 3


def write_faces(
    run: Path,
    videos_per_part: int = 5,
    faces_per_video: int = 6,
    crops: str = "png",
    splits: tuple[str, ...] = SPLITS,
    size_px: int = 40,
) -> None:
    """The tables videos and faces of a run: noise, the fakes brighter. Ready to train a detector on.

    A real video and a fake of it per group, of two methods in turn; the last pair has no faces.
    """
    rng = np.random.default_rng(0)
    videos, faces = [], []
    for group, split in enumerate(splits):
        for label in (0, 1):
            video_id = f"g{group:02}-{label}"
            method = ("swap", "talk")[group % 2] if label else None
            videos.append({"video_id": video_id, "dataset": "made up", "uri": f"/{video_id}.mp4", "label": label})
            videos[-1] |= {"method": method, "group_id": f"g{group:02}", "split": split}
            num = 0 if group == len(splits) - 1 else faces_per_video
            images = rng.integers(0, 160, (num, size_px, size_px, 3)) + 60 * label
            row = {"video_id": video_id, "status": "ok" if num else "no_face", "num_frames_seen": 9}
            row |= {"error": None if num else "no face in 9 frames", "frame_index": list(range(0, 10 * num, 10))}
            row |= {"pts_s": [0.4 * place for place in range(num)], "box_xyxy_px": [[0, 0, 9, 9]] * num}
            row |= {"detection_score": [1.0] * num, "feature": [[0.0, 1.0]] * num}
            faces.append(row | {"crop": [crop.encode(image.astype(np.uint8), "png") for image in images]})
            if crops == "none":
                faces[-1]["crop"] = None
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    schema = schemas.faces_schema(2)
    for start in range(0, len(faces), videos_per_part):
        part = pa.Table.from_pylist(faces[start : start + videos_per_part], schema)
        tables.write_part(f"{run}/faces", part, FACES | {"crops": crops, "size_px": size_px})
    tables.write_info(f"{run}/faces", FACES | {"crops": crops, "size_px": size_px}, num_rows=len(faces), counts={})


@pytest.fixture(scope="session")
def write_run() -> Callable[..., None]:
    """`write_faces`."""
    return write_faces


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, write_run: Callable[..., None]) -> Path:
    """A folder with a run, a detector that has learnt a little from it, and the same exported as onnx and as int8."""
    import torch

    from raydistal.detector import checkpoint, zoo
    from raydistal.pipelines import export

    folder = tmp_path_factory.mktemp("exported")
    write_run(folder / "run")
    detector = zoo.create("timm:test_resnet", "random", 0, 32)
    optimizer = torch.optim.Adam(detector.parameters(), 1e-3)
    rng = np.random.default_rng(0)
    for _ in range(12):
        label_N = np.arange(16) % 2
        crops_NHWC = rng.integers(0, 160, (16, 32, 32, 3)) + 60 * label_N[:, None, None, None]
        logit_N = detector(torch.from_numpy(crops_NHWC.astype(np.uint8)))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_N, torch.from_numpy(label_N).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data = {"location": str(folder / "run"), "dataset": ["made up"], "synthetic": True, "methods": ["swap", "talk"]}
    data["faces"] = FACES
    about = {
        "technique": "train",
        "parent": None,
        "data": data,
        "threshold": {"video": 0.4, "frame": 0.6, "from": "val"},
    }
    about |= {"recipe": {"name": "thesis", "epochs": 1}, "cost": {"images": 192, "seconds": 1.0, "gpu_seconds": 0.0}}
    about |= {"history": [{"epoch": 0, "val_loss": 0.1, "val_accuracy": 0.9, "val_auc": 0.95}], "best_epoch": 0}
    learnt = {"video_id": ["g00-0", "g08-0"], "group_id": ["g00", "g08"], "split": ["train", "val"]}
    tables.write_table(f"{folder}/detector/trained_on", pa.table(learnt, schemas.TRAINED_ON), {})
    checkpoint.save(str(folder / "detector"), detector, about)
    for out, precision in (("onnx", "float32"), ("int8", "int8")):
        export.run(export.Config(detector=f"{folder}/detector", out=f"{folder}/{out}", precision=precision))
    return folder


@pytest.fixture(scope="session")
def drawn_once() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Within drawn_once(), a figure is drawn bright and wide, in few pixels, and that stands in for its other forms."""
    from matplotlib.colors import to_hex

    from raydistal.report import figures

    @contextlib.contextmanager
    def draw() -> Iterator[None]:
        content, to_png = b"", figures._png

        def png(figure: Any) -> bytes:
            nonlocal content
            if figure.get_figwidth() == figures.WIDE_IN and to_hex(figure.get_facecolor()) == figures.LIGHT.panel:
                content = to_png(figure)
            return content

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(figures, "DPI", 40)
            patch.setattr(figures, "_png", png)
            yield

    return draw


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless chromium. Not for longer: while it is there, asyncio takes the thread for one with a running loop."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()
