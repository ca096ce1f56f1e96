"""Sparse decoding gives the pixels of a full decode: the reference decodes everything and picks afterwards."""

import gc
import struct
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from raydistal.errors import DecodeError
from raydistal.video.decode import MAX_HELD, SKIPPABLE, Frame, _ascending, _decode_sparse, decode_frames, read_index


def full_decode(path):
    with av.open(str(path)) as container:
        return [
            (picture.pts, picture.to_ndarray(format="rgb24"))
            for picture in container.decode(video=0)
            if not picture.is_corrupt
        ]


def assert_exact(path, wanted):
    reference = full_decode(path)
    index = read_index(str(path))
    assert len(index.pts_s_N) == len(reference)
    frames = list(decode_frames(str(path), index, np.array(wanted)))
    assert [frame.index for frame in frames] == wanted
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb(), reference[frame.index][1])
    return index


X264_OPEN = {"x264-params": "open-gop=1"}
X265 = "log-level=none:pools=none"
CODECS = [
    ("libx264", "mp4", {}, "yuv420p"),
    ("libx264", "mkv", X264_OPEN, "yuv420p"),
    ("libx264", "ts", X264_OPEN, "yuv420p"),
    ("libx264", "ts", {"x264-params": "interlaced=1"}, "yuv420p"),
    ("libx264", "mp4", {"x264-params": "intra-refresh=1"}, "yuv420p"),
    ("libx264", "mov", {"x264-params": "b-pyramid=strict"}, "yuv422p"),
    ("libx264", "mp4", {}, "yuv420p10le"),
    ("libx264", "avi", {}, "yuv420p"),
    ("libx265", "mp4", {"x265-params": X265 + ":open-gop=0"}, "yuv420p"),
    ("libx265", "mkv", {"x265-params": X265 + ":open-gop=1"}, "yuv420p"),
    ("libx265", "mkv", {"x265-params": X265 + ":temporal-layers=3"}, "yuv420p"),
    ("mpeg4", "mp4", {}, "yuv420p"),
    ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "8"}, "yuv420p"),
    ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "8"}, "yuv420p"),
    ("libsvtav1", "mp4", {"preset": "12"}, "yuv420p"),
    ("mjpeg", "avi", {}, "yuvj420p"),
    ("ffv1", "mkv", {}, "yuv420p"),
]


@pytest.mark.slow
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codec=st.sampled_from(CODECS),
    gop=st.sampled_from([1, 5, 12, 40]),
    bframes=st.sampled_from([0, 2, 4]),
    steps_ms=st.sampled_from([[40], [17, 80, 33], [10, 200]]),
    wanted=st.sets(st.integers(0, 29), min_size=1, max_size=8),
)
@example(codec=CODECS[4], gop=12, bframes=0, steps_ms=[40], wanted={0, 12, 22})  # 12 to 21 come out of no GOP alone
def test_exact_over_codecs(make_clip, codec, gop, bframes, steps_ms, wanted):
    name, suffix, options, pix_fmt = codec
    if suffix == "avi":
        steps_ms = [40]  # AVI has no times, only a rate
    options = {**options, "g": str(gop)}
    if name in ("libx264", "mpeg4"):
        options["bf"] = str(min(bframes, 2) if name == "mpeg4" else bframes)
    if name == "libx265":
        options["x265-params"] += f":keyint={gop}:bframes={bframes}"
    path = make_clip(
        f"clip.{suffix}", name, options=options, num_frames=30, size=(64, 64), pix_fmt=pix_fmt, steps_ms=steps_ms
    )
    assert_exact(path, sorted(wanted))


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_unwanted_groups_and_frames_are_not_decoded(make_clip, suffix):
    path = make_clip(f"clip.{suffix}", options={"g": "10", "bf": "3"}, num_frames=60)
    index = assert_exact(path, [25, 27])
    decoded = list(_decode_sparse(str(path), index, {int(index.pts_N[i]): i for i in (25, 27)}))
    assert len(decoded) <= 8  # of 60: one group of ten, without its unused B-frames


def test_skippable_codecs_are_those_proven_here():
    assert {"h264", "mpeg4"} <= SKIPPABLE
    assert not SKIPPABLE & {"hevc", "vp9", "av1"}


def test_presentation_times(make_clip):
    path = make_clip("clip.mp4", num_frames=5, steps_ms=[10, 100])
    frames = list(decode_frames(str(path), read_index(str(path)), np.arange(5)))
    start = frames[0].pts_s
    assert [round(frame.pts_s - start, 3) for frame in frames] == [0, 0.01, 0.11, 0.12, 0.22]


UPRIGHT = {  # by EXIF orientation, of a picture as it is stored
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 3),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
# By orientation, the upper left of the display matrix: rows are where the stored x and y axes point.
MATRICES = {1: (0, 0, 0, 0), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1)}  # of zeros: a broken one
MATRICES |= {5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0)}


def set_orientation(path: Path, orientation: int) -> None:
    """Writes a matrix into the track header of an MP4 (3 x 3, 16.16 fixed point)."""
    content = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in MATRICES[orientation])
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


@pytest.mark.parametrize("orientation", MATRICES)
def test_turned_and_mirrored_video_comes_upright(make_clip, orientation):
    path = make_clip("clip.mp4", num_frames=12)
    stored = full_decode(path)
    set_orientation(path, orientation)
    (frame,) = decode_frames(str(path), read_index(str(path)), np.array([7]))
    np.testing.assert_array_equal(frame.rgb(), UPRIGHT[orientation](stored[7][1]))
    assert frame.shape == frame.luma().shape == frame.rgb().shape[:2]


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_picture_with_exif_comes_upright(make_clip, orientation):
    path = make_clip("clip.jpg", "mjpeg", pix_fmt="yuvj420p", num_frames=1)
    stored = full_decode(path)[0][1]
    directory = struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)  # one entry: the orientation, a short
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + directory
    content = path.read_bytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:])
    (frame,) = decode_frames(str(path), read_index(str(path)), np.array([0]))
    np.testing.assert_array_equal(frame.rgb(), UPRIGHT[orientation](stored))
    assert frame.shape == frame.luma().shape == frame.rgb().shape[:2]


@pytest.mark.slow
def test_frames_leave_the_memory_without_the_garbage_collector(make_clip):
    path = str(make_clip("clip.mp4", num_frames=12))
    gc.collect()
    gc.disable()
    try:
        for frame in decode_frames(path, read_index(path), np.arange(12)):
            assert frame.rgb().shape[:2] == frame.luma().shape
        del frame
        assert not any(isinstance(found, av.VideoFrame) for found in gc.get_objects())
    finally:
        gc.enable()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("keep", [0.35, 0.8])
def test_truncated_file_gives_the_frames_it_holds(make_clip, suffix, keep):
    options = {"g": "12"} | ({"movflags": "frag_keyframe+empty_moov"} if suffix == "mp4" else {})
    path = make_clip(f"clip.{suffix}", num_frames=60, options={"g": "12"})
    if suffix == "mp4":  # an index at the end would be cut off, and with it everything
        with av.open(str(path)) as source, av.open(str(path.with_stem("cut")), "w", options=options) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = path.with_stem("cut")
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    reference = dict(full_decode_while_it_lasts(path))
    index = read_index(str(path))
    frames = list(decode_frames(str(path), index, np.arange(len(index.pts_s_N))))
    assert len(frames) >= 12
    for frame in frames:
        np.testing.assert_array_equal(frame.rgb(), reference[frame.picture.pts])


def full_decode_while_it_lasts(path):
    """Every packet up to the break, then what the decoder still holds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = []
        with suppress(av.FFmpegError):
            for packet in container.demux(stream):
                packets += [packet] if packet.size else []
        for packet in [*packets, None]:
            with suppress(av.FFmpegError):
                for picture in stream.codec_context.decode(packet):
                    yield picture.pts, picture.to_ndarray(format="rgb24")


def test_concealed_damage_looks_the_same_whatever_else_is_wanted(make_clip):
    path = make_clip("clip.mp4", num_frames=36, options={"g": "12", "bf": "3"})
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][12]  # the second key frame
    content = bytearray(path.read_bytes())
    middle = packet.pos + packet.size // 2
    content[middle : middle + 8] = bytes(8)
    path.write_bytes(content)
    index = read_index(str(path))
    whole = {frame.index: frame.rgb() for frame in decode_frames(str(path), index, np.arange(36))}
    assert {11, 17, 23} <= whole.keys()
    for wanted in ([17], [11, 23]):
        for frame in decode_frames(str(path), index, np.array(wanted)):
            np.testing.assert_array_equal(frame.rgb(), whole[frame.index])


def test_frames_that_a_decoder_mixes_up_come_in_order():
    def ascending(*indices):
        return [frame.index for frame in _ascending(Frame(index, 0.0, None) for index in indices)]

    assert ascending(30, 32, 47, 33, 33, 31, 32, 35) == [30, 31, 32, 33, 35, 47]
    late = [0, *range(2, MAX_HELD + 2)]
    assert ascending(*late, 1) == [0, 1, *late[1:]]
    assert ascending(*late, MAX_HELD + 4, 1, 2) == [*late, MAX_HELD + 4]


def test_luma_is_the_brightness(make_clip):
    for pix_fmt in ("yuv420p", "yuv420p10le"):
        path = make_clip("clip.mp4", pix_fmt=pix_fmt, num_frames=2)
        (frame,) = decode_frames(str(path), read_index(str(path)), np.array([1]))
        reference = frame.picture.to_ndarray(format="gray" if pix_fmt != "yuv420p" else "yuv420p")
        np.testing.assert_array_equal(frame.luma(), reference[:64])


def test_cover_art_and_sound_are_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        for _ in range(20):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.rate = 44100
            container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(DecodeError, match="no video"):
        read_index(str(path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.mp4", b""),
        ("text.mp4", b"hello, I am a text file\n" * 100),
        ("playlist.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n"),
        ("concat.mp4", b"ffconcat version 1.0\nfile /etc/passwd\n"),
        ("zeros.mkv", bytes(5000)),
    ],
)
def test_not_a_video(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError):
        read_index(str(tmp_path / name))


def test_absurd_size_gives_no_frame(tmp_path):
    header = struct.pack("<IIIIiiHHIIiiII", 60000 * 4, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0)
    (tmp_path / "huge.bmp").write_bytes(b"BM" + header)
    path = str(tmp_path / "huge.bmp")
    index = read_index(path)
    assert list(decode_frames(path, index, np.arange(len(index.pts_s_N)))) == []


def test_missing_file_is_a_decode_error(tmp_path):
    with pytest.raises(DecodeError, match="No such file"):
        read_index(str(tmp_path / "absent.mp4"))


def test_a_pattern_in_a_file_name_opens_no_other_file(make_clip, tmp_path):
    make_clip("a.png", "png", pix_fmt="rgb24", num_frames=1).rename(tmp_path / "%03d.png")
    index = read_index(str(tmp_path / "%03d.png"))
    assert len(list(decode_frames(str(tmp_path / "%03d.png"), index, np.arange(len(index.pts_s_N))))) == 1


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_end_in_frames_or_a_decode_error(make_clip, clip_bytes, tmp_path, data):
    content = bytearray(clip_bytes[data.draw(st.sampled_from(sorted(clip_bytes)))])
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=20)
    ):
        content[position] = value
    content = content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path / "damaged"
    path.write_bytes(content)
    try:
        index = read_index(str(path))
        frames = list(decode_frames(str(path), index, np.arange(0, len(index.pts_s_N), 3)))
    except (DecodeError, MemoryError):  # a damaged header may ask for any amount
        return
    assert all(frame.rgb().shape[2] == 3 for frame in frames)


@pytest.fixture(scope="module")
def clip_bytes(tmp_path_factory, clip_writer):
    folder = tmp_path_factory.mktemp("clips")
    clips = {}
    for suffix, codec in (
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("ts", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
    ):
        clips[suffix] = clip_writer(folder / f"clip.{suffix}", codec, num_frames=15, size=(64, 48)).read_bytes()
    return clips
