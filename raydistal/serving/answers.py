"""The answers of the HTTP API, as /openapi.json documents them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["fake", "real", "unsure"]
Probability = Field(ge=0, le=1)


class Answer(BaseModel):
    """Base of all answers, which have no fields but those listed."""

    model_config = ConfigDict(extra="forbid")


class Problem(Answer):
    """The body of every answer with a status of 400 or more."""

    detail: str


class Health(Answer):
    """The app is up."""

    status: Literal["ok"] = "ok"


class Accepted(Answer):
    """The upload is in the queue."""

    id: str = Field(description="The only key to the result: whoever has it can read and delete it.")
    url: str
    expires_at: str = Field(description="UTC, ISO 8601; set again when the result is there.")


class Video(Answer):
    """The uploaded file."""

    name: str = Field(description="As uploaded, only for display; control characters are spelled out.")
    width_px: int | None
    height_px: int | None
    num_frames: int | None
    duration_s: float | None
    is_picture: bool | None


class Track(Answer):
    """One person, for as long as the face can be followed."""

    track: int = Field(ge=1)
    verdict: Verdict
    is_judged: bool = Field(description="False if the face was seen too briefly: it is unsure and decides nothing.")
    probability: float = Probability
    first_s: float
    last_s: float
    num_frames: int = Field(description="Frames in which the face was looked at.")
    thumbnail: str = Field(description="Name of a file.")
    heatmap: str | None = Field(description="Name of a file: where in the face the detector finds evidence for fake.")


class Moment(Answer):
    """One face in one frame."""

    track: int
    frame_index: int
    pts_s: float
    probability: float = Probability
    box_xyxy_px: list[float] = Field(min_length=4, max_length=4)
    is_sampled: bool = Field(description="Whether it counts towards the video's probability.")


class Detector(Answer):
    """The detector that judged."""

    name: str
    model_id: str
    architecture: str
    technique: str | None
    runtime: str
    precision: str
    trained_on: list[str]
    synthetic: bool = Field(description="Whether it learnt from drawn faces: its verdicts then mean nothing.")
    threshold: float
    low: float = Field(description="Probabilities from here on are unsure.")
    high: float = Field(description="Probabilities from here on are fake.")


class Protocol(Answer):
    """How the file was examined."""

    sample: str
    timeline: str
    aggregate: Literal["mean"]
    faces: dict[str, Any]


class Result(Answer):
    """The verdict, and what it rests on."""

    video: Video
    status: Literal["ok", "no_face", "decode_error", "crashed", "timeout"]
    error: str | None
    verdict: Verdict | None
    probability: float | None = Field(ge=0, le=1, description="That the video is fake, by this detector. Not a proof.")
    reason: str
    tracks: list[Track]
    timeline: list[Moment]
    annotated: str | None = Field(description="Name of a file: the video or picture with boxes.")
    detector: Detector
    protocol: Protocol
    raydistal: str


class Failed(Answer):
    """Why there is no result."""

    status: str
    message: str


class Status(Answer):
    """The state of an upload, and the result once it is done."""

    id: str
    name: str
    state: Literal["waiting", "faces", "drawing", "done", "failed"]
    ahead: int = Field(description="Waiting videos that were uploaded before it.")
    progress: float = Field(ge=0, le=1)
    error: Failed | None
    result: Result | None
    expires_at: str


class LimitsTold(Answer):
    """Limits above which an upload is refused."""

    max_upload_mb: int
    max_seconds: float
    max_pixels: int
    keep_minutes: float


class About(Answer):
    """The detector of this server, and the limits of uploads."""

    detector: Detector
    protocol: Protocol
    limits: LimitsTold
