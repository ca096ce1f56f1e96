"""The files that a shared set was taken from: their content, and where a receiver's copy has them."""

import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raydistal import storage
from raydistal.errors import MissingError, OtherFileError, UserError
from raydistal.faces import crop
from raydistal.storage import Made


def file_digest(path: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 (as `sha256sum` prints it) of a local file. Raises OSError."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def crop_digest(image: bytes, size_px: int) -> str:
    """SHA-256 of the pixels, RGB HWC, of an encoded crop; "" if it is no image."""
    try:
        return hashlib.sha256(crop.decode(image, size_px).tobytes()).hexdigest()
    except ValueError:
        return ""


def with_copy(uri: str, use: Callable[[str], Made]) -> Made:
    """use(path of a local copy).

    Raises:
        MissingError: the file is not there or cannot be read, after some tries.
        VideoError: as `use` raises it.
    """
    try:
        return storage.with_copy(uri, use)
    except (OSError, UserError) as error:
        raise MissingError(f"cannot be read: {error}") from error


def check(path: str, num_bytes: int, sha256: str) -> None:
    """Raises OtherFileError unless the local file has this content; OSError if it cannot be read."""
    found = file_digest(path)
    if found != (num_bytes, sha256):
        raise OtherFileError(f"not the file that was shared: {found[0]} bytes, SHA-256 {found[1]}, not {sha256}")


def list_sizes(folder: str) -> dict[str, int]:
    """Size in bytes of every file below a folder, by its relative path.

    Raises:
        UserError: the folder is not there, is empty, or cannot be listed.
    """
    sizes = {name: info.size for name, info in storage.list_infos(folder).items()}
    if not sizes:
        raise UserError(f"there are no files in {folder}. Point --videos at your copy of the dataset.")
    return sizes


def at_their_paths(videos: pa.Table, sizes: Mapping[str, int]) -> npt.NDArray[np.bool_]:
    """Which rows of a shared set have a file of their size where they are said to be."""
    pairs = zip(videos["path"].to_pylist(), videos["num_bytes"].to_pylist(), strict=True)
    return np.array([sizes.get(path) == num_bytes for path, num_bytes in pairs], bool)


def candidates(videos: pa.Table, sizes: Mapping[str, int]) -> list[str]:
    """Files that may be those rows that are not where they are said to be: of their size, and nobody else's."""
    here_V = at_their_paths(videos, sizes)
    taken = set(videos["path"].filter(pa.array(here_V)).to_pylist())
    wanted = set(videos["num_bytes"].filter(pa.array(~here_V)).to_pylist())
    return sorted(path for path, size in sizes.items() if size in wanted and path not in taken)


def locate(videos: pa.Table, sizes: Mapping[str, int], digests: Mapping[str, str]) -> list[str]:
    """The path of each row's file: its own, or that of a file with its content, by `digests` (path of a candidate ->
    SHA-256). A row of which there is no file keeps its path.
    """
    path_of = {digest: path for path, digest in sorted(digests.items(), reverse=True)}
    rows = zip(videos["path"].to_pylist(), videos["sha256"].to_pylist(), at_their_paths(videos, sizes), strict=True)
    return [path if is_here else path_of.get(digest, path) for path, digest, is_here in rows]
