"""The synthetic set: what lies where, that faces are found, and that a fake differs from its original only there."""

import csv
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from raydistal.datasets import layouts
from raydistal.datasets.synthetic import write_dataset, write_video
from raydistal.datasets.synthetic_fakes import FACE, METHODS
from raydistal.datasets.synthetic_scenes import TalkingHead
from raydistal.errors import DecodeError, UserError
from raydistal.faces.look import look

pytestmark = pytest.mark.slow

ARGUMENTS = {"num_identities": 2, "seconds": 0.8, "fps": 15}
HOSTILE = {
    "absurd_size.png": "decode_error",
    "audio_only.mp4": "decode_error",
    "empty.mp4": "decode_error",
    "jpeg_named.mp4": "ok",
    "mp4_named.avi": "ok",
    "no_face.mp4": "no_face",
    "text_named.mp4": "decode_error",
    "truncated.mp4": "decode_error",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "synthetic"
    assert write_dataset(str(path), **ARGUMENTS) == 2 * (1 + len(METHODS)) + len(HOSTILE)
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def num_found(frames: list[np.ndarray]) -> int:
    cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"))
    found = 0
    for frame in frames:
        height = round(frame.shape[0] * min(1, 640 / frame.shape[1]))
        luma = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        luma = cv2.resize(luma, (min(640, frame.shape[1]), height), interpolation=cv2.INTER_AREA)
        found += len(cascade.detectMultiScale(luma, 1.2, 5, minSize=(height // 10, height // 10))) > 0
    return found


def test_the_manifest_lists_every_file(folder: Path) -> None:
    expected = []
    for identity in ("id000", "id001"):
        real = f"real/{identity}_0.mp4"
        expected.append((real, "real", "", "", identity))
        expected += [(f"fake/{method}/{identity}_0.mp4", "fake", method, real, identity) for method in METHODS]
    expected += [(f"real/hostile_{name}", "real", "", "", f"hostile_{name.split('.')[0]}") for name in HOSTILE]
    with (folder / "manifest.csv").open() as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "label", "method", "original", "identity"]
    assert [tuple(row) for row in rows] == expected
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert on_disk == {row[0] for row in rows} | {"manifest.csv", "README.txt"}
    assert set(METHODS) == {"face_resynthesis", "hard_swap", "blended_swap", "mouth_retexture", "expression_warp"}


def test_the_index_groups_fakes_with_their_original(folder: Path) -> None:
    reading = layouts.read(str(folder))
    assert (reading.layout, reading.warnings) == ("manifest", [])
    groups: dict[str, set[str]] = {}
    for entry in reading.entries.to_pylist():
        groups.setdefault(entry["group"], set()).add(entry["path"])
    assert sorted(len(paths) for paths in groups.values()) == [1] * len(HOSTILE) + [6, 6]


def test_the_cascade_finds_the_face_in_real_and_fake_videos(folder: Path) -> None:
    videos = [path for path in folder.rglob("*.mp4") if not path.name.startswith("hostile")]
    assert len(videos) == 12
    for path in videos:
        frames = frames_of(path)
        assert (len(frames), frames[0].shape) == (12, (240, 320, 3))  # real and fake alike
        assert num_found(frames[::2]) >= 0.9 * 6, path


@pytest.mark.parametrize("size_px", [(854, 480), (480, 854), (1920, 1080)])
def test_the_cascade_finds_the_face_at_other_sizes(size_px: tuple[int, int]) -> None:
    scene = TalkingHead(5, 5, *size_px, num_frames=50, fps=25, noise=3)
    assert num_found([scene.frame(index) for index in range(0, 50, 12)]) == 5


def test_hostile_files_become_the_statuses_they_should(folder: Path) -> None:
    statuses = {}
    for path in sorted(folder.glob("real/hostile_*")):
        settings = {"scale_factor": 1.2, "min_neighbors": 5, "min_face": 0.1, "margin": 0.3, "size_px": 32}
        try:
            row = look(str(path), "id", "even:4", detector="haar", crops="none", **settings)
            statuses[path.name.removeprefix("hostile_")] = row["status"][0].as_py()
        except DecodeError as error:
            statuses[path.name.removeprefix("hostile_")] = error.status
    assert statuses == HOSTILE


def test_a_rerun_makes_only_what_is_missing_and_makes_it_the_same(folder: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in content()}

    before, times_before = content(), times()
    assert write_dataset(str(folder), **ARGUMENTS) == 0
    assert times() == times_before
    lost = {folder / "fake/blended_swap/id001_0.mp4", folder / "real/hostile_truncated.mp4"}
    for path in lost:
        path.unlink()
    assert write_dataset(str(folder), **ARGUMENTS) == len(lost)
    assert {path for path, time_ns in times().items() if time_ns != times_before[path]} == lost
    assert {path for path, bytes in content().items() if bytes != before.get(path)} == set()
    assert content().keys() == before.keys()


def test_numbers_decide_what_is_in_a_video(tmp_path: Path) -> None:
    def make(**arguments: int) -> bytes:
        write_video(tmp_path / "video.mp4", seconds=0.5, **arguments)
        return (tmp_path / "video.mp4").read_bytes()

    first = make(identity=4)
    shifts = [(make(identity=4) == first, bytearray(100_003 * number)) for number in range(10)]
    assert all(same for same, _ in shifts)  # x264 is not repeatable at other addresses unless asked
    assert first not in (make(identity=5), make(identity=4, clip=1))


@pytest.mark.parametrize("strength", [1, 4])
@pytest.mark.parametrize("method", METHODS)
def test_a_fake_differs_from_its_original_in_the_face_only(method: str, strength: float) -> None:
    scene = TalkingHead(8, 9, 320, 240, num_frames=40, fps=25, noise=2)
    fake = METHODS[method](scene, np.random.default_rng(1), strength)
    left, top, right, bottom = FACE
    for index in (0, 17, 39):
        real_HWC, fake_HWC, view = scene.frame(index), fake(index), scene.view(index)
        is_face_HW = np.zeros(real_HWC.shape[:2], bool)
        is_face_HW[view.part] = (left < view.x_HW) & (view.x_HW < right) & (top < view.y_HW) & (view.y_HW < bottom)
        assert (fake_HWC == real_HWC)[~is_face_HW].all()
        changed = (fake_HWC != real_HWC).any(-1)[is_face_HW].mean()
        assert changed > (0.15 if method == "mouth_retexture" else 0.5)
        weaker_HWC = METHODS[method](scene, np.random.default_rng(1), strength / 2)(index)
        assert (fake_HWC != weaker_HWC).any(-1)[is_face_HW].mean() > 0.1


def test_a_clip_is_the_same_at_any_size() -> None:
    small_HWC = TalkingHead(1, 2, 320, 240, num_frames=30, fps=25, noise=0).frame(20)
    large_HWC = TalkingHead(1, 2, 960, 720, num_frames=30, fps=25, noise=0).frame(20)
    shrunk_HWC = cv2.resize(large_HWC, (320, 240), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk_HWC.astype(int) - small_HWC).mean() < 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_identities": 3}, "tells of other videos"),
        ({"size_px": (321, 240)}, "must be even"),
        ({"size_px": (320, 64)}, "96 or more"),
        ({"seconds": 0.01}, "is no frame"),
        ({"num_fakes_per_clip": 6}, "from 0 to 5 fakes"),
        ({"num_identities": 0}, "at least one identity"),
        ({"strength": 0}, "strength"),
    ],
)
def test_a_bad_request_is_refused(folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_dataset(str(folder), **(ARGUMENTS | arguments))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        write_dataset(str(tmp_path))
    with pytest.raises(UserError, match="local folder"):
        write_dataset("s3://bucket/videos")
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]
