import base64
import struct
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from raydistal.errors import DecodeError
from raydistal.verdict import annotate as annotate_module
from raydistal.verdict import sound
from raydistal.verdict.annotate import Canvas, annotate
from raydistal.verdict.drawing import STYLES
from raydistal.video.decode import Frame, decode_frames, read_index


def track(number=1, verdict="fake", box=(40, 30, 100, 90), pts_s=(0.0, 0.5, 1.0, 1.5), **more):
    boxes = more.pop("boxes", [box] * len(pts_s))
    about = {"track": number, "verdict": verdict, "probability": 0.93, "pts_s": list(pts_s), "box_xyxy_px": boxes}
    return about | {"heat": None, "margin": 0.3} | more


@pytest.fixture
def out(tmp_path):
    return str(tmp_path / "annotated.mp4")


def run(path, out, *tracks):
    *_, last = (table.to_pylist()[0] for table in annotate(str(path), out, list(tracks)))
    return last


def times_s(path):
    return read_index(str(path)).pts_s_N.tolist()


def frames_of(path):
    index = read_index(str(path))
    return list(decode_frames(str(path), index, np.arange(len(index.pts_N))))


def packets_of(path):
    with av.open(str(path)) as container:
        return [
            (round(packet.pts * packet.time_base, 4), bytes(packet))
            for packet in container.demux(audio=0)
            if packet.size
        ]


def write_with_sound(
    path: Path,
    codec: str = "aac",
    *,
    rate: int = 48_000,
    layout: str = "stereo",
    click_s: float = 1.0,
    late_s: float = 0.0,
    picture_late_s: float = 0.0,
    title: str = "",
    size: tuple[int, int] = (160, 120),
    num_frames: int = 50,
) -> Path:
    """25 frames per second: a grey picture that gets brighter; silence, from `click_s` on a tone."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = title
        video = container.add_stream(
            "libx264",
            rate=25,
            options={"g": "10", "bf": "2", "x264-params": "b-adapt=0"},
        )
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream(codec, rate=rate)
        audio.layout = layout
        channels = audio.codec_context.layout.nb_channels
        time_N = np.arange(2 * rate) / rate
        wave_N = np.where(time_N >= click_s, 0.5 * np.sin(2 * np.pi * 440 * time_N), 0)
        for number in range(num_frames):
            picture = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), 75 + 2 * number, np.uint8), format="rgb24")
            picture.pts, picture.time_base = number + round(25 * picture_late_s), Fraction(1, 25)
            container.mux(video.encode(picture))
            part = slice(number * rate // 25, (number + 1) * rate // 25)
            samples = np.repeat(wave_N[None, part].astype(np.float32), channels, 0)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
            frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = part.start + round(late_s * rate)
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def tone_starts_s(path):
    """When the sound of a file gets loud, in the file's time."""
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            stride = 1 if frame.format.is_planar else frame.layout.nb_channels
            samples_N = frame.to_ndarray()[0, ::stride]
            loud = np.flatnonzero(
                np.abs(samples_N) > (0.1 if samples_N.dtype.kind == "f" else 0.1 * np.iinfo(samples_N.dtype).max)
            )
            if len(loud):
                return float(frame.pts * frame.time_base) + loud[0] / frame.sample_rate
    raise AssertionError("silence")


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.ts", "clip.avi"])
def test_every_frame_keeps_its_time(make_clip, out, name):
    steps_ms = [40] if name.endswith("avi") else [40, 10, 90, 33]
    path = make_clip(name, num_frames=30, steps_ms=steps_ms, options={"g": "8"})
    told = run(path, out, track())
    assert told == {"frames_done": 30, "total": 30}
    assert times_s(out) == pytest.approx(times_s(path), abs=1e-9)
    with av.open(out) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.codec_context.width, stream.codec_context.height) == (96, 64)


def test_pictures_stay_what_they_are_where_nothing_is_drawn(make_clip, out):
    path = make_clip("clip.mp4", num_frames=12, size=(160, 120))
    run(path, out)
    for old, new in zip(frames_of(path), frames_of(out), strict=True):
        # The codec loses up to 6, not always the same; two pictures of the clip differ by 60.
        assert np.abs(old.rgb().astype(int) - new.rgb()).mean() < 8


def test_the_file_can_be_played_while_it_is_loaded(make_clip, out):
    run(make_clip("clip.mp4", num_frames=12), out, track())
    content = Path(out).read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert not Path(f"{out}.part").exists()


@pytest.mark.parametrize(
    ("codec", "suffix"), [("aac", ".mp4"), ("aac", ".mkv"), ("aac", ".ts"), ("libmp3lame", ".mp4")]
)
def test_sound_that_browsers_play_is_copied(tmp_path, out, codec, suffix):
    path = write_with_sound(tmp_path / f"clip{suffix}", codec)
    run(path, out, track())
    old, new = packets_of(path), packets_of(out)
    header = 7 if suffix == ".ts" else 0  # in transport streams each packet of AAC has one
    assert [content[header:] for _, content in old] == [content for _, content in new]
    assert [now_s for now_s, _ in new] == pytest.approx([now_s for now_s, _ in old], abs=0.0011)
    assert tone_starts_s(out) == pytest.approx(tone_starts_s(path), abs=0.002)


@pytest.mark.parametrize(
    ("codec", "suffix", "about"),
    [
        ("pcm_s16le", ".mkv", {"rate": 44_100}),
        ("libopus", ".mkv", {}),
        ("pcm_s16le", ".mov", {"rate": 96_000, "layout": "mono"}),
        ("ac3", ".mkv", {"layout": "5.1"}),
        ("flac", ".mkv", {"late_s": 0.4}),
        ("flac", ".mkv", {"picture_late_s": 0.6}),
    ],
)
def test_other_sound_becomes_aac_and_stays_in_time(tmp_path, out, codec, suffix, about):
    path = write_with_sound(tmp_path / f"clip{suffix}", codec, **about)
    run(path, out, track())
    with av.open(out) as container:
        codec_context = container.streams.audio[0].codec_context
        assert codec_context.name == "aac"
        assert codec_context.layout.nb_channels == (1 if about.get("layout") == "mono" else 2)
    assert tone_starts_s(out) == pytest.approx(tone_starts_s(path), abs=0.004)
    assert times_s(out) == pytest.approx(times_s(path), abs=1e-9)


@pytest.mark.parametrize("codec", ["mp2", "aac"])
def test_a_recording_that_starts_late_starts_at_0(tmp_path, out, codec):
    path = write_with_sound(tmp_path / "clip.ts", codec, late_s=3600, picture_late_s=3600)
    seen_s = times_s(path)
    assert seen_s[0] >= 3600
    run(path, out, track(pts_s=seen_s[10:20]))
    assert times_s(out) == pytest.approx([now_s - seen_s[0] for now_s in seen_s], abs=1e-6)
    assert tone_starts_s(out) == pytest.approx(tone_starts_s(path) - seen_s[0], abs=0.004)
    shown = [np.ptp(frame.rgb()[60, 38:43].astype(int), 1).max() > 40 for frame in frames_of(out)]
    assert shown == [10 <= number < 20 for number in range(50)]


@pytest.mark.parametrize("codec", ["aac", "flac", "libopus"])
def test_damaged_sound_does_not_cost_the_video(tmp_path, out, codec):
    path = write_with_sound(tmp_path / "clip.mkv", codec)
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    large = [packet for _, packet in packets_of(path) if len(packet) > 60]
    assert len(large) > 10
    for packet in large[2:]:
        place = content.index(packet)
        content[place + 10 : place + 50] = rng.bytes(40)
    path.write_bytes(content)
    run(path, out, track())
    assert len(times_s(out)) == 50
    assert packets_of(out)


@pytest.mark.parametrize("trouble", [av.error.InvalidDataError(1, "x"), ValueError("another format"), DecodeError("x")])
def test_sound_is_kept_up_to_where_it_breaks(trouble):
    def breaking():
        yield 0.0, "packet"
        raise trouble

    assert list(sound._unbroken(breaking())) == [(0.0, "packet")]


def test_sound_that_mp4_does_not_take_is_left_out(tmp_path, out, monkeypatch):
    path = write_with_sound(tmp_path / "clip.avi", "adpcm_ms")
    monkeypatch.setattr(sound, "COPIED", {"adpcm_ms"})
    run(path, out, track())
    assert len(times_s(out)) == 50
    with av.open(out) as container:
        assert not container.streams.audio


def test_frames_of_an_avi_come_in_order(tmp_path):
    path = write_with_sound(tmp_path / "clip.avi", "adpcm_ms")
    frames = frames_of(path)
    assert [frame.index for frame in frames] == list(range(50))
    assert (np.diff([frame.luma().mean() for frame in frames]) > 0).all()


def test_metadata_and_other_streams_stay_behind(tmp_path, out):
    path = write_with_sound(tmp_path / "clip.mkv", title="a name, a place")
    assert b"a name, a place" in path.read_bytes()
    run(path, out, track())
    assert b"a name, a place" not in Path(out).read_bytes()


def set_rotation(path, degrees):
    """Writes a rotation into the track header of an MP4 (its 3 x 3 matrix, 16.16 fixed point)."""
    content = bytearray(path.read_bytes())
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_comes_upright_with_boxes_where_they_were_found(make_clip, out, degrees):
    path = make_clip("clip.mp4", num_frames=6, size=(160, 120))
    set_rotation(path, degrees)
    run(path, out, track(box=(60, 70, 100, 110)))
    for old, new in zip(frames_of(path), frames_of(out), strict=True):
        assert new.picture.rotation == 0
        assert old.rgb().shape == new.rgb().shape
        difference_HW = np.abs(old.rgb().astype(int) - new.rgb()).mean(2)
        assert difference_HW[75:105, 65:95].mean() < 14, "inside the box"
        assert is_like(new.rgb()[75:105, 100], STYLES["fake"].fill)


def is_like(rgb_N3, colour, tolerance=45):
    return bool((np.abs(np.median(rgb_N3, 0) - colour) < tolerance).all())


@pytest.mark.parametrize("verdict", sorted(STYLES))
@pytest.mark.parametrize("size", [(320, 240), (1280, 720)])
def test_lines_have_the_colour_of_the_verdict(tmp_path, out, verdict, size):
    path = write_with_sound(tmp_path / "clip.mp4", size=size, num_frames=2)
    run(path, out, track(verdict=verdict, box=(100, 80, 220, 200)))
    rgb_HWC = frames_of(out)[0].rgb()
    assert is_like(rgb_HWC[183:197, 100], STYLES[verdict].fill), np.median(rgb_HWC[183:197, 100], 0)


def test_boxes_move_with_the_face(tmp_path, out):
    path = write_with_sound(tmp_path / "clip.mp4", size=(320, 240), num_frames=26)
    run(path, out, track(pts_s=[0.0, 1.0], boxes=[[20, 80, 100, 160], [120, 80, 200, 160]]))
    for frame in frames_of(out)[::5]:
        red_W = frame.rgb()[110:150, :, 0].mean(0) - frame.rgb()[110:150, :, 1].mean(0)
        assert np.flatnonzero(red_W > 60)[0] == pytest.approx(20 + 100 * frame.pts_s, abs=2)


def test_heat_is_laid_over_the_face(make_clip, out):
    path = make_clip("clip.mp4", num_frames=4, size=(320, 240))
    hot = base64.b64encode(bytes([255] * 9)).decode()
    heat = {"heat": [hot] * 4, "heat_shape": [3, 3]}
    run(path, out, track(box=(120, 80, 200, 160), **heat))
    old, new = frames_of(path)[0].rgb(), frames_of(out)[0].rgb()
    changed_HW = np.abs(old.astype(int) - new).mean(2)
    assert changed_HW[100:140, 140:180].mean() > 40
    assert changed_HW[100:200, 5:70].mean() < 8


def test_sides_become_even_without_scaling(make_clip, out):
    path = make_clip("clip.mkv", num_frames=3, size=(97, 65), pix_fmt="yuv444p")
    run(path, out)
    old, new = frames_of(path)[1].luma(), frames_of(out)[1].luma()
    assert new.shape == (64, 96)
    assert np.abs(old[:64, :96].astype(int) - new).mean() < 8


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((7680, 4320), (3840, 2160)),
        ((4096, 2160), (3840, 2024)),
        ((2160, 3840), (2160, 3840)),
        ((1, 1), (2, 2)),
        ((1919, 1081), (1918, 1080)),
    ],
)
def test_no_larger_than_browsers_decode(source, expected):
    canvas = Canvas(Frame(0, 0.0, av.VideoFrame(*source, "yuv420p")), [])
    assert (canvas.width_px, canvas.height_px) == expected


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "full", "rgb24", "gray", "yuv420p10le", "pal8"])
def test_colours_are_right_whatever_the_source_has(pix_fmt):
    rgb_HWC = np.full((64, 64, 3), (120, 120, 120) if pix_fmt == "gray" else (200, 90, 40), np.uint8)
    picture = av.VideoFrame.from_ndarray(rgb_HWC, format="rgb24")
    if pix_fmt == "pal8":
        picture = av.VideoFrame.from_ndarray((np.zeros((64, 64), np.uint8), palette((200, 90, 40))), format="pal8")
    elif pix_fmt == "full":
        picture = picture.reformat(format="yuv420p", dst_color_range=ColorRange.JPEG)
    elif pix_fmt != "rgb24":
        picture = picture.reformat(format=pix_fmt)
    frame = Frame(0, 0.0, picture)
    drawn = Canvas(frame, []).drawn(frame).to_ndarray(format="rgb24")
    assert np.abs(drawn[10].astype(int) - rgb_HWC[10]).max() <= 4


def palette(rgb):
    return np.tile(np.array([255, *rgb], np.uint8), (256, 1))


def test_pixels_that_are_not_square_stay_so(make_clip, tmp_path, out):
    path = tmp_path / "wide.mp4"
    with av.open(str(make_clip("clip.mp4", num_frames=4))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for frame in source.decode(video=0):
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    run(path, out, track())
    with av.open(out) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


@pytest.mark.parametrize("codec", ["aac", "flac"])
def test_a_file_that_breaks_off_gives_what_it_holds(tmp_path, out, codec):
    path = write_with_sound(tmp_path / "clip.mkv", codec, click_s=0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    whole = [frame.pts_s for frame in frames_of(path)]
    assert 10 < len(whole) < 50
    assert run(path, out, track())["frames_done"] == len(whole)
    assert times_s(out) == pytest.approx(whole, abs=1e-9)
    assert packets_of(out)[-1][0] > 0.5


def test_what_is_given_up_leaves_nothing_behind(make_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(annotate_module, "REPORT_EVERY_S", -1)
    path = make_clip("clip.mp4", num_frames=30)
    told = annotate(str(path), str(tmp_path / "annotated.mp4"), [track()])
    assert [next(told)["frames_done"][0].as_py() for _ in range(20)] == list(range(1, 21))
    assert Path(tmp_path, "annotated.mp4.part").exists()
    told.close()
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["annotated.mp4", "annotated.jpg"])
def test_what_is_no_video_leaves_nothing_behind(tmp_path, name):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(500))
    with pytest.raises(DecodeError):
        run(path, str(tmp_path / name), track())
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_gives_a_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    picture_HWC = np.repeat(np.repeat(rng.integers(60, 200, (30, 40, 3), np.uint8), 8, 0), 8, 1)
    path, out = tmp_path / "face.png", tmp_path / "annotated.jpg"
    cv2.imwrite(str(path), picture_HWC)
    told = run(path, str(out), track(box=(100, 80, 220, 200), pts_s=[0.0]))
    assert told == {"frames_done": 1, "total": 1}
    assert out.read_bytes()[:3] == b"\xff\xd8\xff"
    bgr_HWC = cv2.imread(str(out))
    assert bgr_HWC.shape == picture_HWC.shape
    assert is_like(bgr_HWC[120:190, 99:101].reshape(-1, 3)[:, ::-1], STYLES["fake"].fill)
    assert np.abs(bgr_HWC[:40].astype(int) - picture_HWC[:40]).mean() < 8
