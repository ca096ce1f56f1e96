"""A copy of the video with its faces marked. Runs in the child process of a `Sandbox`.

H.264 and AAC or MP3 in MP4, which every browser plays, at the source's own times: a frame is shown when the source
shows it, so that a timeline made from the source fits. Decoded, drawn on and encoded frame by frame: memory does not
grow with the video's length.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
import pyarrow as pa
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter
from av.video.stream import VideoStream

from raydistal.errors import DecodeError
from raydistal.faces.crop import encode
from raydistal.verdict.drawing import DrawnTrack, Painter, Planes
from raydistal.verdict.sound import sound_packets
from raydistal.verdict.watch import start_of
from raydistal.video.decode import Frame, PacketIndex, decode_frames, open_media, read_index

MAX_SIZE_PX = (3840, 2160)  # longer and shorter side: the most that browsers' hardware decoders take
CRF, PRESET = 22, "superfast"  # as good as 20 with veryfast for 0.6 of its time; the file is half as large again
THREADS = 1  # as in decoding: one process per core has more throughput, and each thread of x264 holds frames
KEY_EVERY_S = 2  # a click on the timeline has to decode from the last key frame
FINEST_TICKS = 10_000_000  # per second
TICKS = 90_000  # where the source has no usable times
REPORT_EVERY_S = 0.5
BT709, BT601, UNKNOWN_MATRIX, LIKE_BT601 = 1, 6, (0, 2, 3), (4, 5, 6, 7)  # as AVFrame.colorspace has them


def annotate(path: str, out: str, tracks: Sequence[dict[str, Any]]) -> Iterator[pa.Table]:
    """Writes the video at `path` with boxes, labels and heat to `out`; yields its progress, lastly the end.

    Frames keep their times (after `start_of`); damaged ones are left out. The video is written upright, with even
    sides (an odd last row or column is cut off), scaled down to lie within 3840 x 2160 pixels or 2160 x 3840. Sound is
    kept (`sound_packets`); subtitles, cover art and metadata are not.

    Args:
        path: a local file.
        out: path of the MP4; or, if it ends in .jpg, of a JPEG of the first frame. It appears once it is complete.
        tracks: track, verdict, probability, pts_s, box_xyxy_px; and for heat: heat (base64 of h * w uint8 per face),
            heat_shape ([h, w]) and margin (it covers the square around the box with this margin; None: the box).

    Yields:
        frames_done int32 and total int32.

    Raises:
        DecodeError: nothing of it can be decoded.
    """
    index = read_index(path)
    found = [DrawnTrack.read(track) for track in tracks]
    part = f"{out}.part"
    try:
        if out.endswith(".jpg"):
            yield from _picture(path, index, part, found)
        else:
            try:
                yield from _video(path, index, part, found, has_sound=True)
            except MemoryError:
                raise
            except (av.FFmpegError, DecodeError):  # perhaps the sound does not fit into the file: do without it
                yield from _video(path, index, part, found, has_sound=False)
        os.replace(part, out)
    finally:
        with suppress(FileNotFoundError):
            os.remove(part)


def _picture(path: str, index: PacketIndex, out: str, tracks: Sequence[DrawnTrack]) -> Iterator[pa.Table]:
    frame = next(decode_frames(path, index, np.arange(len(index.pts_N))), None)
    if frame is None:
        raise DecodeError("no frame of it could be decoded")
    rgb_HWC = np.asarray(Canvas(frame, tracks).drawn(frame).to_ndarray(format="rgb24"), np.uint8)
    with open(out, "wb") as file:
        file.write(encode(rgb_HWC, "jpeg:92"))
    yield _progress(1, 1)


def _video(
    path: str, index: PacketIndex, out: str, tracks: Sequence[DrawnTrack], has_sound: bool
) -> Iterator[pa.Table]:
    start_s = start_of(index.pts_s_N)
    frames = decode_frames(path, index, np.arange(len(index.pts_N)))
    first = next(frames, None)
    if first is None:
        raise DecodeError("no frame of it could be decoded")
    canvas = Canvas(first, tracks)
    # An absolute path: FFmpeg takes a:b for a protocol.
    with av.open(os.path.abspath(out), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = _stream(path, container, canvas, first, index)
        tick = stream.codec_context.time_base
        assert tick
        sound = sound_packets(path, container, start_s, float(index.pts_s_N[-1])) if has_sound else iter(())
        ticks_N = np.round((index.pts_s_N - start_s) / float(tick)).astype(np.int64).tolist()
        sound_s, reported_at, num_done = -np.inf, time.monotonic(), 0
        for frame in chain([first], frames):
            picture = canvas.drawn(frame)
            picture.pts, picture.time_base = ticks_N[frame.index], tick
            if frame.index + 1 < len(ticks_N):
                picture.duration = ticks_N[frame.index + 1] - picture.pts
            container.mux(stream.encode(picture))
            while sound_s <= frame.pts_s and (packet := next(sound, None)):
                sound_s = packet[0]
                container.mux(packet[1])
            num_done += 1
            if time.monotonic() - reported_at > REPORT_EVERY_S:
                reported_at = time.monotonic()
                yield _progress(num_done, len(ticks_N))
        container.mux(stream.encode(None))
        for _, packet_left in sound:
            container.mux(packet_left)
    yield _progress(num_done, num_done)


def _stream(path: str, container: OutputContainer, canvas: "Canvas", first: Frame, index: PacketIndex) -> VideoStream:
    num_frames, length_s = len(index.pts_s_N), float(index.pts_s_N[-1] - index.pts_s_N[0])
    rate = Fraction((num_frames - 1) / length_s).limit_denominator(1001) if length_s > 0 else Fraction(25)
    rate = min(max(rate, Fraction(1)), Fraction(240))  # a hint to the encoder only: times are the frames' own
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = canvas.width_px, canvas.height_px, "yuv420p"
    codec = stream.codec_context
    codec.options = {"preset": PRESET, "crf": str(CRF)}
    codec.thread_count, codec.gop_size = THREADS, round(KEY_EVERY_S * rate)
    codec.color_range, codec.colorspace = ColorRange.MPEG, canvas.matrix
    codec.color_primaries, codec.color_trc = first.picture.color_primaries, first.picture.color_trc
    with open_media(path) as (_, source):
        aspect = source.sample_aspect_ratio  # of a pixel
    if aspect:
        codec.sample_aspect_ratio = 1 / aspect if first.turns % 2 else aspect
    tick = first.picture.time_base
    codec.time_base = tick if index.sparse and tick and tick.denominator <= FINEST_TICKS else Fraction(1, TICKS)
    return stream


def _progress(num_done: int, total: int) -> pa.Table:
    return pa.table({"frames_done": pa.array([num_done], pa.int32()), "total": pa.array([total], pa.int32())})


class Canvas:
    """Turns decoded frames into frames to encode: upright, of one even size, in 8-bit YUV 4:2:0, with drawings."""

    def __init__(self, first: Frame, tracks: Sequence[DrawnTrack]) -> None:
        height_px, width_px = first.shape
        longer, shorter = MAX_SIZE_PX
        scale = min(1.0, longer / max(width_px, height_px), shorter / min(width_px, height_px))
        self.width_px, self.height_px = (max(2, int(side * scale) & ~1) for side in (width_px, height_px))
        self.matrix = first.picture.colorspace
        if first.picture.format.is_rgb or first.picture.format.has_palette:
            self.matrix = BT601  # it is converted with this one
        elif self.matrix in UNKNOWN_MATRIX:
            self.matrix = BT709 if height_px >= 720 else BT601  # players guess the same
        self._painter = Painter(tracks, self.width_px, self.height_px, self.matrix not in LIKE_BT601)
        self._reformatter = VideoReformatter()

    def drawn(self, frame: Frame) -> VideoFrame:
        """A new frame, without a time."""
        picture, size = frame.picture, (self.width_px, self.height_px)
        source_size = picture.width, picture.height
        if frame.turns % 2:
            size, source_size = size[::-1], source_size[::-1]
        # A surplus row or column is cut off: scaling by one pixel would blur the whole frame.
        fits = picture.width - size[0] in (0, 1) and picture.height - size[1] in (0, 1)
        width_px, height_px = (None, None) if fits else size
        picture = self._reformatter.reformat(
            picture,
            width_px,
            height_px,
            "yuv420p",
            interpolation=Interpolation.AREA,
            dst_color_range=ColorRange.MPEG if picture.color_range == ColorRange.JPEG else None,
            threads=1,
        )
        out = VideoFrame(self.width_px, self.height_px, "yuv420p")
        out.colorspace, out.color_range = self.matrix, ColorRange.MPEG
        planes = _views(out, self.width_px, self.height_px)
        for target, plane in zip(planes, _views(picture, *size), strict=True):
            target[:] = frame.upright(plane)
        self._painter.draw(planes, frame.pts_s, source_size)
        return out


def _views(picture: VideoFrame, width_px: int, height_px: int) -> Planes:
    """The planes of a frame, without a copy, down to this size."""
    y, u, v = (np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size) for plane in picture.planes)
    chroma = np.s_[: height_px // 2, : width_px // 2]
    return y[:height_px, :width_px], u[chroma], v[chroma]
