"""Settings of the app: by options of `raydistal serve`, or by `args` of a Ray Serve config file."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from raydistal.errors import UserError

if TYPE_CHECKING:
    from raydistal.verdict.examine import Settings


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of what anyone may ask of the app."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    max_upload_mb: int = 200
    """Largest file, in 10^6 bytes."""
    max_seconds: float = 600
    """Longest video, in seconds."""
    max_pixels: int = 34_000_000
    """Most pixels of a frame or picture; 8K has 33 million."""
    max_queue: int = 16
    """Files being uploaded, waiting or examined at once; further ones are asked to come back later."""
    keep_minutes: float = 60
    """Minutes for which results are kept once they are there."""
    timeout_s: float = 300
    """Time limit for finding the faces of one video, and for drawing it, in seconds."""
    memory_mib: int = 2048
    """Memory limit for decoding or drawing one video, in MiB."""

    def __post_init__(self) -> None:
        if min(self.max_upload_mb, self.max_seconds, self.max_pixels, self.max_queue, self.keep_minutes) <= 0:
            raise UserError("need --max-upload-mb, --max-seconds, --max-pixels, --max-queue and --keep-minutes above 0")
        if self.timeout_s <= 0 or self.memory_mib < 64:
            raise UserError("need --timeout-s above 0 and --memory-mib of at least 64")


@dataclass(frozen=True, kw_only=True)
class App:
    """What is served."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "strict": True}

    detector: str
    """Detector directory, trained or exported: a URI, or a folder that all nodes see."""
    timeline: str = "fps:4"
    """Frames to examine besides those that the verdict rests on."""
    band: float = 0.1
    """Probabilities nearer than this to the threshold are unsure."""
    heatmaps: bool = True
    """Show which parts of a face make the detector call it fake; an exported one needs its source, as for detect."""
    draw: bool = True
    """Draw the boxes into a copy of the video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the detector runs; auto: on GPUs if the cluster has any now."""
    examiners: int = 0
    """Most videos examined at once, each on one CPU. 0: as many as the cluster has CPUs now."""
    scorers: int = 1
    """Most replicas of the detector."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that people ask for it by: app.example.org, *.example.org or *. Default: any; on 127.0.0.1, only that and
    localhost, so that no page of another site can pretend to be the app's own (DNS rebinding)."""
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for host in self.allowed_hosts:
            if not re.fullmatch(r"\*|(\*\.)?[^*:/\[\]]+|\[[0-9a-fA-F:.]+\]", host):
                raise UserError(f"--allowed-hosts {host}: give names without scheme and port, such as app.example.org")
        if self.examiners < 0 or self.scorers < 1:
            raise UserError("need --examiners of 0 or more and --scorers of at least 1")

    def settings(self) -> "Settings":
        """How each video is examined. Raises UserError if that cannot be done."""
        from raydistal.verdict.examine import Settings

        return Settings(
            timeline=self.timeline,
            band=self.band,
            draw=self.draw,
            draw_heat=False,  # it is shown beside each face; in the video, people want to see the faces
            timeout_s=self.limits.timeout_s,
            memory_mib=self.limits.memory_mib,
            max_seconds=self.limits.max_seconds,
            max_pixels=self.limits.max_pixels,
        )


def parse(arguments: Mapping[str, Any]) -> App:
    """The `args` of a config file. Raises UserError if a name or a value is wrong."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(App).validate_json(json.dumps(arguments))  # as JSON: strictly, but for the objects
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise UserError(f"args of the app: {wrong}") from None
