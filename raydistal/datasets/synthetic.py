"""A synthetic dataset: drawn talking heads, fakes of them by five methods, and broken files.

The seed and a file's name decide what is in it, so files are made by many processes in any order, and a run that was
stopped goes on where it was. Camera noise, light and encoding vary alike for real and fake.
"""

import csv
import hashlib
import io
import multiprocessing
import operator
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path

import av
import cv2
import numpy as np

from raydistal import storage
from raydistal.datasets.synthetic_fakes import METHODS
from raydistal.datasets.synthetic_scenes import Image, TalkingHead
from raydistal.errors import UserError

COLUMNS = ("path", "label", "method", "original", "identity")
Job = tuple[dict[str, str], Callable[[Path], None]]  # a row of the manifest, and what writes its file

README = """\
Synthetic videos, drawn by raydistal: nobody in them exists, and nothing was filmed.

real/            talking heads; hostile_* are files that cannot be used, are misnamed, or show no face
fake/METHOD/     the same clips, changed by one of five methods
manifest.csv     path, label, method, original, identity

Made with {settings}
"""


def write_dataset(
    folder: str,
    *,
    num_identities: int = 12,
    num_clips_per_identity: int = 1,
    num_fakes_per_clip: int = 5,
    seconds: float = 2.0,
    fps: int = 25,
    size_px: tuple[int, int] = (320, 240),
    strength: float = 1.0,
    seed: int = 0,
    hostile: bool = True,
) -> int:
    """Writes README.txt, real/*, fake/METHOD/* and, last, manifest.csv; says how many videos it had to make.

    Videos that are there are kept. Works in one process per CPU: a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Args:
        folder: local; absent, empty, or written before with the same arguments.
        num_identities: people.
        num_clips_per_identity: real clips of each person, each with its own motion, light and room.
        num_fakes_per_clip: fakes made from each real clip, at most one by each method; the methods take turns.
        seconds: length of each video.
        fps: frames per second.
        size_px: width and height.
        strength: how visible the fakes are, see `synthetic_fakes`.
        seed: another one gives other people and clips.
        hostile: also make files that are damaged, misnamed, without a face, or no video at all.

    Raises:
        UserError: the folder holds something else, or an argument is out of range.
    """
    if num_identities < 1 or num_clips_per_identity < 1 or not 0 <= num_fakes_per_clip <= len(METHODS):
        raise UserError(
            f"{num_identities} identities, {num_clips_per_identity} clips each, {num_fakes_per_clip} fakes of each: "
            f"use at least one identity, one clip, and from 0 to {len(METHODS)} fakes"
        )
    if not 0 < strength <= 8:
        raise UserError(f"the strength of the fakes must be above 0 and at most 8, not {strength}")
    _check(*size_px, seconds, fps)
    settings = f"{num_identities=} {num_clips_per_identity=} {num_fakes_per_clip=} {seconds=} {fps=} {size_px=}"
    _claim(folder, f"{settings} {strength=} {seed=} {hostile=}")
    width_px, height_px = size_px
    write = partial(write_video, width_px=width_px, height_px=height_px, seconds=seconds, fps=fps, strength=strength)
    jobs = list(_clips(write, num_identities, num_clips_per_identity, num_fakes_per_clip, seed))
    jobs += _hostile(write) if hostile else ()
    places = [(Path(folder, row["path"]), make) for row, make in jobs]
    missing = [partial(make, path) for path, make in places if not path.exists()]
    if missing:
        workers = min(os.cpu_count() or 1, len(missing))
        spawn = multiprocessing.get_context("spawn")  # a fork would copy the locks of the caller's threads
        with ProcessPoolExecutor(workers, spawn, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            for _ in pool.map(operator.call, missing):
                pass
    if not Path(folder, "manifest.csv").exists():
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(row for row, _ in jobs)
        storage.write_bytes(str(Path(folder, "manifest.csv")), text.getvalue().encode())
    return len(missing)


def write_video(
    path: str | Path,
    *,
    identity: int = 0,
    clip: int = 0,
    method: str | None = None,
    strength: float = 1.0,
    width_px: int = 320,
    height_px: int = 240,
    seconds: float = 2.0,
    fps: int = 25,
    noise: float = 2.0,
    crf: int = 23,
    gop: int = 25,
    bframes: int = 3,
    preset: str = "veryfast",
) -> None:
    """Writes one talking head as H.264 in MP4, whatever the path's suffix; the same arguments give the same file.

    Args:
        path: replaced if it is there.
        identity: which person; any non-negative number.
        clip: which motion, light and room.
        method: one of synthetic_fakes.METHODS to fake this clip; None leaves it real.
        strength: how visible that is, see `synthetic_fakes`.
        width_px: even, 96 or more, like height_px.
        height_px: the face is about 0.37 times as wide as this, or as width_px if that is less.
        seconds: length.
        fps: frames per second.
        noise: standard deviation of the camera's noise, in grey levels of 255.
        crf: x264's quality; larger is worse.
        gop: at most this many frames from one key frame to the next.
        bframes: at most this many B-frames in a row.
        preset: x264's.

    Raises:
        UserError: the size is odd or below 96 pixels, or the video has no frame.
    """
    _check(width_px, height_px, seconds, fps)
    num_frames = round(seconds * fps)
    scene = TalkingHead(identity, clip, width_px, height_px, num_frames, fps, noise)
    rng = np.random.default_rng([identity, clip, 1])
    draw = METHODS[method](scene, rng, strength) if method else scene.frame
    options = {"crf": str(crf), "g": str(gop), "bf": str(bframes), "preset": preset}
    _encode(Path(path), map(draw, range(num_frames)), (width_px, height_px), fps, options)


def _check(width_px: int, height_px: int, seconds: float, fps: int) -> None:
    if width_px % 2 or height_px % 2 or min(width_px, height_px) < 96:
        raise UserError(f"{width_px}x{height_px} pixels: width and height must be even, and 96 or more")
    if round(seconds * fps) < 1:
        raise UserError(f"{seconds} s at {fps} frames per second is no frame: make the videos longer")


def _claim(folder: str, settings: str) -> None:
    """Writes README.txt into an empty folder; raises UserError if the folder belongs to something else."""
    readme, text = Path(folder, "README.txt"), README.format(settings=settings)
    if storage.is_uri(folder):
        raise UserError(f"synthetic videos are written to a local folder, not to {folder}")
    if not Path(folder).exists() or not any(Path(folder).iterdir()):
        storage.write_bytes(str(readme), text.encode())
    elif not readme.exists():
        raise UserError(f"{folder} is not empty and holds no synthetic videos; choose another folder")
    elif readme.read_text() != text:
        raise UserError(f"{readme} tells of other videos than these ({settings}); choose another folder, or remove it")


def _clips(write: Callable[..., None], num_identities: int, num_clips: int, num_fakes: int, seed: int) -> Iterator[Job]:
    """Real clips, each followed by its fakes."""
    methods = cycle(METHODS)
    for person, number in product(range(num_identities), range(num_clips)):
        identity, name = f"id{person:03d}", f"id{person:03d}_{number}.mp4"
        noise = float(_rng(seed, name).uniform(0.5, 3))
        make = partial(write, identity=_number(seed, identity), clip=_number(seed, f"clip {name}"), noise=noise)
        real = f"real/{name}"
        yield {"path": real, "label": "real", "identity": identity}, partial(make, **_encoding(seed, real))
        for method in islice(methods, num_fakes):
            fake = f"fake/{method}/{name}"
            row = {"path": fake, "label": "fake", "method": method, "original": real, "identity": identity}
            yield row, partial(make, method=method, **_encoding(seed, fake))


def _encoding(seed: int, path: str) -> dict[str, int]:
    rng = _rng(seed, path)
    gop = int(rng.choice([12, 25, 50, 250]))
    return {"crf": int(rng.integers(18, 30)), "gop": gop, "bframes": int(rng.integers(0, 4))}


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng(_number(seed, name))


def _number(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")


def _encode(path: Path, frames: Iterable[Image], size_px: tuple[int, int], fps: int, options: dict[str, str]) -> None:
    """Frames (H, W, 3) as H.264 in MP4, renamed into place when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    # Without this, x264 gives other bytes from one call to the next (AVX rate control with B-frames).
    options = options | {"x264-params": "cpu-independent=1"}
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # x264's output depends on it
        stream.width, stream.height = size_px
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    temporary.replace(path)


def _hostile(write: Callable[..., None]) -> Iterator[Job]:
    """Files to stumble over. They count as real, each as a person of its own."""
    makers: dict[str, Callable[..., None]] = {
        "absurd_size.png": _write_absurd_size,
        "audio_only.mp4": _write_audio_only,
        "empty.mp4": partial(_write, b""),
        "jpeg_named.mp4": _write_jpeg,
        "mp4_named.avi": partial(write, identity=1),
        "no_face.mp4": _write_no_face,
        "text_named.mp4": partial(_write, b"This is not a video.\n"),
        "truncated.mp4": partial(_write_truncated, write),
    }
    for name, make in makers.items():
        identity = f"hostile_{name.partition('.')[0]}"
        yield {"path": f"real/hostile_{name}", "label": "real", "identity": identity}, make


def _write(content: bytes, path: Path) -> None:
    storage.write_bytes(str(path), content)


def _write_absurd_size(path: Path) -> None:
    """A PNG of a hundred bytes that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    _write(b"\x89PNG\r\n\x1a\n" + body, path)


def _write_audio_only(path: Path) -> None:
    """A second of 440 Hz as AAC in MP4."""
    temporary, rate = path.with_name(f".tmp-{path.name}"), 16_000
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate, dtype=np.float32) / rate, dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        sound = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        sound.sample_rate = rate
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    temporary.replace(path)


def _write_jpeg(path: Path) -> None:
    image = TalkingHead(2, 0, 320, 240, 1, 25, 1.0).frame(0)
    _write(bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]), path)


def _write_no_face(path: Path) -> None:
    scene = TalkingHead(3, 0, 320, 240, 25, 25, 2.0)
    _encode(path, map(scene.empty_frame, range(25)), (320, 240), 25, {"crf": "23", "preset": "veryfast"})


def _write_truncated(write: Callable[..., None], path: Path) -> None:
    """The first half of a video: the list of its frames, at the end of an MP4 file, is missing."""
    whole = path.with_name(f".tmp-whole-{path.name}")
    write(whole, identity=4)
    content = whole.read_bytes()
    whole.unlink()
    _write(content[: len(content) // 2], path)
