"""The sound of a file, for an MP4 that browsers play."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from raydistal.errors import DecodeError
from raydistal.video.decode import open_media

COPIED = frozenset({"aac", "mp3"})  # every browser plays them in MP4; not so Opus
RATES = frozenset({8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000})
BIT_RATE = 160_000
BEFORE_S = 0.1  # an encoder's run-up lies before 0
MAX_JUMP_S = 10.0  # a time that is this far beyond the picture and the sound so far is damage
JITTER_S = 0.002  # of times in whole milliseconds, as Matroska has them

Packets = Iterator[tuple[float, "av.Packet[AudioStream]"]]


def sound_packets(path: str, container: OutputContainer, start_s: float, end_s: float) -> Packets:
    """Adds the first sound track of `path` to a container; yields its packets, to be muxed in this order.

    AAC and MP3 are copied, all else becomes AAC, in stereo if it has more than one channel. Sound that cannot be
    decoded is left out.

    Args:
        path: a local file. Without sound there are no packets.
        container: where they go; nothing has been muxed yet.
        start_s: the time in the source that is 0 in the container.
        end_s: time of the last picture of the source, in seconds.

    Yields:
        The packet's time in the source, in seconds, and the packet.
    """
    with open_media(path) as (source, _):
        audio = next(iter(source.streams.audio), None)
        codec = audio and audio.codec_context
        if not audio or not codec or not codec.sample_rate or not codec.layout.nb_channels:
            return iter(())
        if codec.name.removesuffix("float") in COPIED:
            stream = container.add_stream_from_template(audio)
            return _unbroken(_copied(path, stream, start_s, end_s))
        stream = container.add_stream("aac", rate=codec.sample_rate if codec.sample_rate in RATES else 48_000)
        stream.codec_context.layout = "mono" if codec.layout.nb_channels == 1 else "stereo"
        stream.codec_context.bit_rate = BIT_RATE
        return _unbroken(_encoded(path, stream, start_s, end_s))


def _unbroken(packets: Packets) -> Packets:
    try:
        yield from packets
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, DecodeError):  # damaged: what came before is kept
        return


def _source_packets(path: str, start_s: float, end_s: float) -> Packets:
    """The packets of the source's sound, less those with impossible times."""
    with open_media(path) as (source, _):
        latest_s = end_s
        for packet in source.demux(source.streams.audio[0]):
            if packet.size and packet.pts is not None and packet.time_base:
                now_s = float(packet.pts * packet.time_base)
                if start_s - BEFORE_S <= now_s <= latest_s + MAX_JUMP_S:
                    latest_s = max(latest_s, now_s)
                    yield now_s, packet


def _copied(path: str, stream: AudioStream, start_s: float, end_s: float) -> Packets:
    rate, frame_size = stream.codec_context.sample_rate, stream.codec_context.frame_size
    expected, last = None, None
    for now_s, packet in _source_packets(path, start_s, end_s):
        pts = round((now_s - start_s) * rate)
        if expected is not None and abs(pts - expected) <= JITTER_S * rate:
            pts = expected
        if last is not None and pts <= last:
            continue
        duration = round(float((packet.duration or 0) * (packet.time_base or 0)) * rate)
        expected, last = (pts + frame_size if frame_size else None), pts
        packet.time_base = Fraction(1, rate)
        packet.pts = packet.dts = pts
        packet.duration = frame_size or duration
        packet.stream = stream
        yield now_s, packet


def _encoded(path: str, stream: AudioStream, start_s: float, end_s: float) -> Packets:
    last = None
    for frame in chain(_decoded(path, start_s, end_s), [None]):
        for packet in stream.encode(frame):
            if packet.pts is None or not packet.time_base or (last is not None and packet.pts <= last):
                continue
            last = packet.pts
            yield float(packet.pts * packet.time_base) + start_s, packet


def _decoded(path: str, start_s: float, end_s: float) -> Iterator[av.AudioFrame]:
    for _, packet in _source_packets(path, start_s, end_s):
        try:
            frames = packet.decode()
        except MemoryError:
            raise
        except av.FFmpegError:
            continue
        for frame in frames:
            if frame.pts is not None and frame.time_base:
                frame.pts -= round(start_s / frame.time_base)
            yield frame
