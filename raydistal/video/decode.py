"""Sparse, exact decoding: only what the wanted frames need, and the same pixels as decoding everything.

Two passes over the packets (reading them costs about 2 % of decoding them). The first lists presentation times and key
frames. The second skips every group of pictures (GOP) without a wanted frame, stops each GOP after its last wanted
one, and lets the decoder drop frames that nothing refers to. Where a stream breaks the rules that this relies on (times
absent or repeated, a frame that does not come out) or is damaged, everything is decoded instead: to conceal damage, a
decoder borrows from frames that were skipped. Only what it then leaves in a picture as its memory was may differ, as it
may between two full decodes. Running out of memory is not damage to the file and is passed on (PyAV's MemoryError is an
FFmpegError, too).
"""

import dataclasses
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from itertools import chain
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from raydistal.errors import DecodeError

# Codecs in which a frame that is not a reference can be left out without a trace in any other frame. Not HEVC (a
# sub-layer non-reference frame may be referred to from a higher layer), not VP9 and AV1 (entropy contexts carry over).
SKIPPABLE = frozenset({"h264", "mpeg1video", "mpeg2video", "mpeg4"})
LUMA_FIRST = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "nv12", "gray"})
# Containers of videos and pictures. Not playlists (hls, concat, dash): a file must not make us open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,flv,asf,ogg,mxf,ivf,h264,hevc,obu,m4v,mpegvideo,mjpeg,nut,gif,"
    "jpeg_pipe,png_pipe,bmp_pipe,webp_pipe,tiff_pipe"
)
NUM_SIDE_DATA_TYPES = 40  # at least those of FFmpeg 8, by number
MAX_HELD = 16  # frames to wait for an earlier one: as many as H.264 and HEVC may reorder
MAX_PIXELS = 8192 * 8192  # per frame; a header that claims more is not a video of a face


@dataclasses.dataclass(frozen=True)
class Frame:
    """One decoded frame. Pixels are converted on request and come upright."""

    index: int  # in presentation order, from 0
    pts_s: float
    picture: VideoFrame

    def rgb(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8."""
        return self.upright(self.picture.to_ndarray(format="rgb24"))

    def luma(self) -> npt.NDArray[np.uint8]:
        """(H, W) uint8 brightness, in the stream's own range and without a copy for the usual formats."""
        if self.picture.format.name not in LUMA_FIRST:
            return self.upright(self.picture.to_ndarray(format="gray"))
        plane = self.picture.planes[0]
        luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        return self.upright(luma[: self.picture.height, : self.picture.width])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels of the upright picture."""
        height_px, width_px = self.picture.height, self.picture.width
        return (width_px, height_px) if self.turns % 2 else (height_px, width_px)

    @property
    def turns(self) -> int:
        """Quarter turns, counter-clockwise as np.rot90 turns, that set the picture upright: 0 to 3."""
        degrees = self.picture.rotation  # out of range if the file's matrix has no angle, as one of zeros
        return round(degrees / 90) % 4 if abs(degrees) <= 180 else 0

    @cached_property
    def is_mirrored(self) -> bool:
        """True if top and bottom change places before the turns (EXIF orientations 2, 4, 5 and 7)."""
        try:
            side_data = _side_data(self.picture)
        except ValueError:
            side_data = _side_data(_with_known_side_data(self.picture))
        if "DISPLAYMATRIX" not in side_data:
            return False
        a, b, _, c, d = struct.unpack("=5i", bytes(side_data["DISPLAYMATRIX"])[:20])
        return bool(a * d < b * c)

    def upright(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """An image in the picture's own orientation, turned upright: a view."""
        image = image[::-1] if self.is_mirrored else image
        return np.rot90(image, self.turns) if self.turns else image


def _side_data(picture: VideoFrame) -> SideDataContainer:
    """Not `picture.side_data`: it and the picture refer to each other, and would not be freed when they are dropped."""
    return SideDataContainer(picture)  # type: ignore[call-arg]


def _with_known_side_data(picture: VideoFrame) -> VideoFrame:
    """The picture, sharing its pixels, without side data of the types that PyAV does not know, such as EXIF.

    PyAV lists no side data at all where one type is unknown.
    """
    graph = Graph()
    source = graph.add_buffer(
        width=picture.width,
        height=picture.height,
        format=picture.format,
        time_base=picture.time_base or Fraction(1),
    )
    unknown = range(len(SideDataType), NUM_SIDE_DATA_TYPES)
    filters = [graph.add("sidedata", f"mode=delete:type={number}") for number in unknown]
    graph.link_nodes(source, *filters, graph.add("buffersink")).configure()
    graph.vpush(picture)
    return graph.vpull()


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """What the packets say of a video, in decoding order (P packets) and in presentation order (N frames)."""

    pts_P: npt.NDArray[np.int64]  # stream ticks
    is_key_P: npt.NDArray[np.bool_]
    pts_N: npt.NDArray[np.int64]
    pts_s_N: npt.NDArray[np.float64]
    sparse: bool  # false: times are not those of the packets but of a full decode, which must be repeated


def read_index(path: str) -> PacketIndex:
    """Lists the frames of the first video stream (not cover art) without decoding them where that is possible.

    Raises:
        DecodeError: no readable video in the file, or larger than 8192 x 8192 pixels.
    """
    pts: list[int | None] = []
    flags: list[tuple[bool, bool]] = []
    with open_media(path) as (container, stream):
        for packet in _packets(container, stream):
            pts.append(packet.pts)
            flags.append((packet.is_keyframe, not packet.is_discard and not packet.is_corrupt))
        time_base = float(stream.time_base or 0)
        # An AVI keeps no times: those made up for it are in decoding order.
        known = None not in pts and not (container.format.name == "avi" and stream.codec_context.has_b_frames)
    is_key_P, is_shown_P = np.array(flags, bool).reshape(-1, 2).T
    pts_P = np.array(pts if known else [], np.int64)
    pts_N = np.sort(pts_P[is_shown_P]) if known else pts_P
    if known and time_base and len(pts_N) and (np.diff(pts_N) > 0).all():
        return PacketIndex(pts_P, is_key_P, pts_N, pts_N.astype(np.float64) * time_base, sparse=True)
    return _index_by_decoding(path)


def decode_frames(path: str, index: PacketIndex, wanted_K: npt.NDArray[np.int64]) -> Iterator[Frame]:
    """Yields the frames with these indices in ascending order, without those that the decoder gives up as damaged.

    Raises DecodeError as `read_index` does.
    """
    wanted = {int(index.pts_N[i]): int(i) for i in np.sort(wanted_K)}
    if index.sparse:
        expected = iter(list(wanted.values()))
        for frame in _wanted_frames(_decode_sparse(path, index, wanted), index, wanted):
            if frame.index != next(expected):
                break  # one before it did not come out: damaged, or held back until an intra refresh was complete
            del wanted[int(index.pts_N[frame.index])]
            yield frame
    if wanted:
        yield from _decode_all(path, index, wanted)


def _decode_sparse(path: str, index: PacketIndex, wanted: dict[int, int]) -> Iterator[VideoFrame]:
    is_wanted_P = np.isin(index.pts_P, list(wanted))
    last_P = _last_packet_needed(index, is_wanted_P)
    with open_media(path) as (container, stream):
        codec = stream.codec_context
        codec.options = {"err_detect": "explode"}  # damage is an error, not concealed
        skippable = codec.name in SKIPPABLE
        fresh = True  # the next picture is the first since the decoder started or was flushed
        for number, packet in enumerate(_packets(container, stream)):
            if number > last_P[number]:
                continue
            if skippable:
                codec.skip_frame = "DEFAULT" if is_wanted_P[number] else "NONREF"
            try:
                pictures = codec.decode(packet)
                if number == last_P[number]:
                    pictures += codec.decode(None)
                    codec.flush_buffers()
            except MemoryError:
                raise
            except av.FFmpegError:
                return  # damaged: what is missing is fetched by decoding everything
            if fresh and pictures and pictures[0].pict_type != PictureType.I:
                return  # intra refresh: a "key" packet that leans on what came before it
            fresh = number == last_P[number] or (fresh and not pictures)
            yield from (picture for picture in pictures if not picture.is_corrupt)


def _last_packet_needed(index: PacketIndex, is_wanted_P: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """For each packet, the number of the packet after which decoding may stop and start afresh at a key frame.

    -1 where nothing is needed. Runs of packets that must be decoded without a break share one value.
    """
    starts = np.flatnonzero(index.is_key_P)
    if not len(starts) or starts[0] != 0:
        starts = np.concatenate([[0], starts])
    last_P = np.full(len(index.pts_P), -1, np.int64)
    run_end = -1  # end of a run that began in a later GOP and needs this one as well
    for start, end in zip(starts[::-1], np.append(starts[1:], len(last_P))[::-1], strict=True):
        needed = np.flatnonzero(is_wanted_P[start:end])
        if not len(needed) and run_end < 0:
            continue
        last = run_end if run_end >= 0 else int(start + needed[-1])
        last_P[start:end] = last
        # Open GOP: frames shown before their key frame refer to the GOP before it.
        leads = bool((index.pts_P[start:end][is_wanted_P[start:end]] < index.pts_P[start]).any())
        run_end = last if leads and start else -1
    return last_P


def _decode_all(path: str, index: PacketIndex, wanted: dict[int, int]) -> Iterator[Frame]:
    pictures = (picture for _, picture in _every_picture(path))
    if index.sparse:
        yield from _ascending(_wanted_frames(pictures, index, wanted))
        return
    last, wanted_indices = max(wanted.values()), set(wanted.values())
    for number, picture in enumerate(pictures):
        if number in wanted_indices:
            yield Frame(number, float(index.pts_s_N[number]), picture)
        if number >= last:
            return


def _wanted_frames(pictures: Iterator[VideoFrame], index: PacketIndex, wanted: dict[int, int]) -> Iterator[Frame]:
    for picture in pictures:
        number = wanted.get(picture.pts) if picture.pts is not None else None
        if number is not None:
            yield Frame(number, float(index.pts_s_N[number]), picture)


def _ascending(frames: Iterator[Frame]) -> Iterator[Frame]:
    """The frames in order, which damage may mix up; one that comes far too late, or again, is dropped."""
    held: dict[int, Frame] = {}
    last = -1
    for frame in frames:
        if frame.index > last:
            held.setdefault(frame.index, frame)
        if len(held) > MAX_HELD:
            last = min(held)
            yield held.pop(last)
    yield from (held[index] for index in sorted(held))


def _index_by_decoding(path: str) -> PacketIndex:
    pts_s: list[float] = []
    for rate, picture in _every_picture(path):
        pts_s.append(float(picture.time) if picture.time is not None else len(pts_s) / rate)
    pts_s_N = np.array(pts_s)
    if len(pts_s_N) and not (np.diff(pts_s_N) > 0).all():
        pts_s_N = np.arange(len(pts_s_N)) / rate
    none = np.empty(0, np.int64)
    return PacketIndex(none, none.astype(bool), np.arange(len(pts_s_N)), pts_s_N, sparse=False)


def _every_picture(path: str) -> Iterator[tuple[float, VideoFrame]]:
    """The frame rate and each undamaged picture, in presentation order; packets that do not decode are passed over."""
    with open_media(path) as (container, stream):
        rate = float(stream.average_rate or 25)
        for packet in chain(_packets(container, stream), [None]):
            try:
                pictures = stream.codec_context.decode(packet)
            except MemoryError:
                raise
            except av.FFmpegError:
                continue
            yield from ((rate, picture) for picture in pictures if not picture.is_corrupt)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator["av.Packet[VideoStream]"]:
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except MemoryError:
        raise
    except av.FFmpegError:  # the file breaks off: what came before it is good
        return


@contextmanager
def open_media(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container of an untrusted file and its first video stream (not cover art). Nothing else opens such files.

    Raises:
        DecodeError: as `read_index`.
    """
    try:
        # By a nameless file object: FFmpeg can open no other file, and a name like %03d.jpg is no pattern to it.
        with open(path, "rb") as file:
            nameless = SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell)
            with av.open(nameless, "r", buffer_size=1 << 20, options={"format_whitelist": FORMATS}) as container:
                yield container, _video_stream(container)
    except MemoryError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(f"cannot be read as a video: {getattr(error, 'strerror', None) or error}") from error


def _video_stream(container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        raise DecodeError("the file holds no video")
    codec = streams[0].codec_context
    if codec is None or codec.width * codec.height > MAX_PIXELS:
        size = "of an unknown codec" if codec is None else f"of {codec.width} x {codec.height} pixels"
        raise DecodeError(f"a video {size} is not supported")
    codec.thread_count = 1  # one process per core decodes more videos than one process with threads
    return streams[0]
