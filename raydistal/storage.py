"""Access to data wherever it lies: local paths and s3://, gs:// ... URIs.

S3-compatible stores: set AWS_ENDPOINT_URL (or add ?endpoint_override=host:port&scheme=http to the URI). Credentials
come from the environment (AWS_ACCESS_KEY_ID ...), never from a URI that is written into a table.
"""

import os
import posixpath
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from raydistal.errors import UserError

ATTEMPTS = 4  # to read a video
Made = TypeVar("Made")


def is_uri(location: str) -> bool:
    """True for scheme://..., false for a local path."""
    return "://" in location


def resolve(location: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a local path or URI, and the path within it.

    Raises:
        UserError: the URI's scheme is unknown or its store cannot be set up.
    """
    if not is_uri(location):
        return fs.LocalFileSystem(), str(Path(location).expanduser().absolute())
    place, query = _split_query(location)
    scheme, _, path = place.partition("://")
    bucket, _, key = path.partition("/")
    if scheme == "s3":  # else pyarrow makes three requests for each file that it writes, however small
        query += ("&" if query else "?") + "allow_delayed_open=true"
    try:
        filesystem, root = _set_up(f"{scheme}://{bucket}/{query}")
    except (pa.ArrowInvalid, OSError, ImportError) as error:
        raise UserError(f"cannot open {location}: {error}. Give a local path or an s3:// or gs:// URI.") from error
    return filesystem, f"{root.rstrip('/')}/{key}".rstrip("/")


@lru_cache(maxsize=16)
def _set_up(root: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a bucket; cached, as each takes 10 ms of CPU time, its own connections and credentials."""
    made: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(root)
    return made


def join(location: str, *names: str) -> str:
    """`location` with `names` appended; a query (?endpoint_override=...) stays at the end."""
    if not is_uri(location):
        return str(Path(location, *names))
    place, query = _split_query(location)
    return "/".join([place.rstrip("/"), *names]) + query


def parent(location: str) -> str:
    """The folder that `location` lies in."""
    if not is_uri(location):
        return str(Path(location).parent)
    place, query = _split_query(location)
    return place.rstrip("/").rpartition("/")[0] + query


def _split_query(location: str) -> tuple[str, str]:
    """A URI without its query, and the query with its question mark; if it is not key=value, it is part of the name."""
    place, query = re.fullmatch(r"(.*?)(\?(?:\w+=[^&/]*&?)+)?", location, re.DOTALL).groups("")  # type: ignore[union-attr]
    return place, query


def absolute(location: str) -> str:
    """`location` as every process of the job can open it: local paths become absolute, URIs stay."""
    return location if is_uri(location) else resolve(location)[1]


def distinct_names(option: str, locations: Sequence[str]) -> list[str]:
    """Names for locations: the last part of each path, preceded by as many parts as make them differ.

    Raises:
        UserError: a location is named twice; the message names `option`.
    """
    paths = [resolve(location)[1].strip("/").split("/") for location in locations]
    if len({tuple(path) for path in paths}) < len(paths):
        raise UserError(f"{option} names a folder twice: {' '.join(locations)}. Name each once.")
    lengths = [1] * len(paths)
    while True:
        names = ["-".join(path[-length:]) for path, length in zip(paths, lengths, strict=True)]
        if len(set(names)) == len(names):
            return names
        lengths = [length + (names.count(name) > 1) for name, length in zip(names, lengths, strict=True)]


def refuse_input(out: str, inputs: Iterable[str]) -> None:
    """Raises UserError if the folder `out` of a job is one of those that it reads."""
    if absolute(out) in map(absolute, inputs):
        raise UserError(f"--out {out} is one of the folders to read: its report would be lost. Use another.")


def read_bytes(location: str) -> bytes:
    """The whole file. Raises FileNotFoundError or another OSError."""
    filesystem, path = resolve(location)
    with filesystem.open_input_stream(path) as stream:
        return bytes(stream.read())


def write_bytes(location: str, content: bytes | pa.Buffer) -> None:
    """Writes a file so that no reader ever sees half of it: renamed into place, or one atomic upload."""
    filesystem, path = resolve(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        # Closing its stream publishes an upload, for whatever reason: Ctrl-C or SIGTERM before the bytes are written
        # would leave an empty file. They reach this thread, not that of the upload, and wait for its end.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_upload, filesystem, path, content).result()
        return
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".tmp-{uuid.uuid4().hex}")  # tempfile's files cannot be read by others
    try:
        temporary.write_bytes(content)
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _upload(filesystem: fs.FileSystem, path: str, content: bytes | pa.Buffer) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(content)


def delete(location: str) -> None:
    """Removes a file; one that is not there is no error."""
    filesystem, path = resolve(location)
    with suppress(FileNotFoundError):
        filesystem.delete_file(path)


def delete_folder(location: str) -> None:
    """Removes a folder and all below it; one that is not there is no error."""
    filesystem, path = resolve(location)
    if filesystem.get_file_info(path).type == fs.FileType.Directory:
        filesystem.delete_dir(path)


def exists(location: str) -> bool:
    """True if a file or folder is there."""
    filesystem, path = resolve(location)
    return bool(filesystem.get_file_info(path).type != fs.FileType.NotFound)


def list_files(location: str) -> list[str]:
    """Paths, relative to `location`, of all files below it, sorted. A missing or empty folder gives [].

    Raises:
        UserError: the folder cannot be listed.
    """
    filesystem, path = resolve(location)
    if not isinstance(filesystem, fs.LocalFileSystem):
        return list(list_infos(location))
    found = []
    with _listing(location):
        for folder, below, names in os.walk(path, onerror=_unless_absent, followlinks=True):
            below[:] = [name for name in below if not _leads_back(posixpath.join(folder, name))]
            found += [posixpath.relpath(posixpath.join(folder, name), path) for name in names]
        "".join(found).encode()
    return sorted(found)


def list_infos(location: str) -> dict[str, fs.FileInfo]:
    """As `list_files`, with size and time of the last change of each file, by the clock of the store."""
    filesystem, path = resolve(location)
    with _listing(location):
        if isinstance(filesystem, fs.LocalFileSystem):  # its selector fails if a file vanishes
            names = list_files(location)
            found = dict(zip(names, infos(location, names), strict=True))
        else:
            selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
            found = {info.path.removeprefix(f"{path}/"): info for info in filesystem.get_file_info(selector)}
    return {name: found[name] for name in sorted(found) if found[name].type == fs.FileType.File}


@contextmanager
def _listing(location: str) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise UserError(
            f"cannot list {location}: a file name in it is not UTF-8. Rename it (convmv -t utf8)."
        ) from error
    except OSError as error:
        raise UserError(f"cannot list {location}: {error}. Check that it exists and that you may read it.") from error


def sizes(location: str, names: Sequence[str]) -> list[int]:
    """Bytes of each of these files below `location`. Raises FileNotFoundError if one is not there."""
    found = infos(location, names)
    if missing := [info.path for info in found if info.type == fs.FileType.NotFound]:
        raise FileNotFoundError(missing[0])
    return [info.size for info in found]


def infos(location: str, names: Sequence[str]) -> list[fs.FileInfo]:
    """Type, size and time of the last change of each of these files below `location`, by the clock of the store.

    The type of a file that is not there is NotFound.

    Raises:
        UserError: the folder cannot be listed.
    """
    filesystem, path = resolve(location)
    paths = [posixpath.join(path, name) for name in names]
    if isinstance(filesystem, fs.LocalFileSystem):
        return list(filesystem.get_file_info(paths))
    found = list_infos(location)  # a thousand per request, not one
    there = (found.get(name) for name in names)
    return [info or fs.FileInfo(path, fs.FileType.NotFound) for info, path in zip(there, paths, strict=True)]


def refuse_credentials(option: str, location: str) -> None:
    """Raises UserError if the URI given as `option`, which will be written into a table, holds credentials."""
    if is_uri(location) and "@" in urlsplit(location).netloc:
        raise UserError(
            f"{option} holds credentials, which would be written into the table; set them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        )


def _leads_back(folder: str) -> bool:
    """True for a link to a folder that contains it: below it, every file would be found again and again."""
    return os.path.islink(folder) and any(os.path.samefile(folder, above) for above in Path(folder).parents)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def with_copy(location: str, use: Callable[[str], Made]) -> Made:
    """Calls use(path of a local copy), several times if need be: a moment of a busy store must not cost a video.

    Raises:
        OSError: it cannot be read; at once if it is not there.
        UserError: as `resolve`.
    """
    for attempt in range(ATTEMPTS):
        try:
            with local_copy(location) as path:
                return use(path)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or attempt == ATTEMPTS - 1:
                raise
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


@contextmanager
def local_copy(location: str) -> Iterator[str]:
    """The path of a local file with the content of `location`: itself if local, else a copy that is removed after.

    Streams to disk, so a long video does not cost memory. Raises OSError when it cannot be read.
    """
    filesystem, path = resolve(location)
    if isinstance(filesystem, fs.LocalFileSystem):
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="raydistal-", suffix=posixpath.splitext(path)[1]) as copy:
        with filesystem.open_input_stream(path) as stream:
            shutil.copyfileobj(stream, copy, 1 << 20)
        copy.flush()
        yield copy.name
