"""The three kinds of trouble: a bad request is a `UserError`, a bad video is a `VideoError`, anything else is a bug."""

from typing import ClassVar


class UserError(Exception):
    """A request that cannot be served. The message says what to do; the command line exits with code 2."""


class VideoError(Exception):
    """One video cannot be used. Its row gets this status; the job goes on."""

    status: ClassVar[str]


class DecodeError(VideoError):
    """The file cannot be read as a video: missing, empty, truncated, not a video, an absurd size."""

    status = "decode_error"


class CrashedError(VideoError):
    """The process that decoded the video died, ran out of the memory it was allowed, or failed unforeseeably."""

    status = "crashed"


class TimeLimitError(VideoError):
    """The video took longer than it was allowed."""

    status = "timeout"


class OverLimitError(VideoError):
    """The video is longer, or has larger frames, than whoever examines it allows."""

    status = "over_limit"


class MissingError(VideoError):
    """The file of a shared set is not in this copy of the dataset, or cannot be read."""

    status = "missing"


class OtherFileError(VideoError):
    """The file is there, and is not the one that was shared."""

    status = "other_file"
