"""The app as HTTP: an API, and the page that uses it. Knows nothing of Ray.

Nothing that an uploader chooses becomes a path, a header or markup: the files of a result have fixed names, and the
name of an upload is only a string in the JSON answers.
"""

import asyncio
import importlib.resources
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raydistal.report.page import visible
from raydistal.serving import answers
from raydistal.serving.jobs import BusyError, EmptyError, Job, Jobs, SlowError, TooLargeError

RETRY_AFTER_S = 15
MAX_NAME = 200  # characters
TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".json": "application/json", ".csv": "text/csv; charset=utf-8"}
PAGE = {
    "index.html": "text/html; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
PROBLEMS: dict[int, str] = {
    400: "The file is empty or incomplete.",
    403: "The request comes from a page of another site.",
    404: "Unknown, removed, or expired.",
    408: "The upload took too long.",
    413: "The file is larger than max_upload_mb.",
    422: "A parameter is not what it should be.",
    503: "The queue or the disk is full: come back after Retry-After seconds.",
}


def make(jobs: Jobs, about: answers.About, allowed_hosts: Sequence[str] = ()) -> ASGIApp:
    """The whole app.

    Args:
        jobs: what it serves.
        about: the answer of /api/about.
        allowed_hosts: as in `settings.App`; none: any.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(jobs.sweep())
        yield
        sweeping.cancel()
        await jobs.close()

    api = FastAPI(
        title="raydistal",
        version=metadata.version("raydistal"),
        summary="Is the face in this video a deepfake?",
        docs_url=None,  # they would fetch scripts from other hosts
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={RequestValidationError: _on_wrong_parameter, Exception: _on_bug},
    )
    api.add_middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts or ["*"], www_redirect=False)
    _add_upload(api, jobs)
    _add_results(api, jobs)
    _add_rest(api, about)
    return _with_headers(api)


def _problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    return {code: {"model": answers.Problem, "description": PROBLEMS[code]} for code in codes}


def _add_upload(api: FastAPI, jobs: Jobs) -> None:
    @api.post(
        "/api/videos",
        status_code=202,
        summary="Upload a video or picture",
        responses=_problems(400, 403, 408, 413, 422, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "The file itself, not a form.",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            }
        },
    )
    async def upload(request: Request, name: str = "video") -> answers.Accepted:
        if request.headers.get("sec-fetch-site") == "cross-site":  # other pages must not fill the queue
            raise HTTPException(403, "uploads come from this site's own page, or from no page")
        max_mb = jobs.limits.max_upload_mb
        try:
            if int(request.headers.get("content-length", 0)) > max_mb * 10**6:
                raise TooLargeError
            job = await jobs.receive(shown(name), request.stream())
        except TooLargeError:
            raise HTTPException(413, f"the file is larger than {max_mb} MB") from None
        except EmptyError:
            raise HTTPException(400, "the file is empty") from None
        except (ClientDisconnect, ValueError):
            raise HTTPException(400, "the upload is incomplete") from None
        except SlowError as error:
            raise HTTPException(408, str(error)) from None
        except BusyError as error:
            raise HTTPException(503, f"{error}: try again later", {"Retry-After": str(RETRY_AFTER_S)}) from None
        url = f"{request.scope.get('root_path', '')}/api/videos/{job.job_id}"
        return answers.Accepted(id=job.job_id, url=url, expires_at=_utc(job.expires_at))


def _add_results(api: FastAPI, jobs: Jobs) -> None:
    def find(job_id: str) -> Job:
        if job := jobs.find(job_id):
            return job
        raise HTTPException(404, "there is no such video, or no longer")

    @api.get("/api/videos/{video_id}", summary="State, and the result once it is done", responses=_problems(404, 422))
    async def status(video_id: str, response: Response) -> answers.Status:
        job = find(video_id)
        response.headers["Cache-Control"] = "no-store"
        return answers.Status(
            id=job.job_id,
            name=job.name,
            state=job.state,
            ahead=jobs.num_ahead(job),
            progress=job.progress,
            error=answers.Failed(**job.error._asdict()) if job.error else None,
            result=answers.Result.model_validate(job.result) if job.state == "done" else None,
            expires_at=_utc(job.expires_at),
        )

    @api.get(
        "/api/videos/{video_id}/files/{file}",
        summary="A file of the result",
        response_class=FileResponse,
        responses=_problems(404, 422)
        | {
            200: {"description": "The file.", "content": {kind.partition(";")[0]: {} for kind in TYPES.values()}},
            206: {"description": "The part of it that the header Range asks for."},
            416: {"description": "There is no such part."},
        },
    )
    async def read(video_id: str, file: str, download: bool = False) -> FileResponse:
        job = find(video_id)
        if job.state != "done" or file not in job.files:
            raise HTTPException(404, "its result has no such file")
        path = job.files[file]
        name = f"{plain(job.name)}-{file}" if download else None
        headers = {"Cache-Control": "no-store"}
        return FileResponse(path, headers=headers, media_type=TYPES[path.suffix], filename=name)

    @api.delete("/api/videos/{video_id}", status_code=204, summary="Cancel and delete", responses=_problems(404, 422))
    async def remove(video_id: str) -> None:
        await jobs.remove(find(video_id).job_id)


def _add_rest(api: FastAPI, about: answers.About) -> None:
    @api.get("/api/about", summary="Detector, protocol and limits of this server")
    async def tell() -> answers.About:
        return about

    @api.get("/healthz", summary="Health check")
    async def health() -> answers.Health:
        return answers.Health()

    folder = importlib.resources.files("raydistal.serving") / "page"

    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        return await static("index.html")

    @api.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in PAGE:
            raise HTTPException(404, "there is no such file")
        content = await asyncio.to_thread((folder / name).read_bytes)
        return Response(content, media_type=PAGE[name], headers={"Cache-Control": "no-cache"})


def shown(name: str) -> str:
    """The name of an upload, safe to show: short, on one line, with no characters that reverse its direction."""
    return visible(name[:MAX_NAME])[:MAX_NAME] or "video"


def plain(name: str) -> str:
    """The part of an upload's name that may go into the name of a download: letters, digits and dashes."""
    return re.sub(r"[^\w-]+", "-", name.rpartition(".")[0] or name).strip("-")[:80] or "video"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


async def _on_wrong_parameter(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    wrong = "; ".join(f"{one['loc'][-1]}: {one['msg']}" for one in error.errors())
    return JSONResponse({"detail": wrong}, 422)


async def _on_bug(_: Request, __: Exception) -> JSONResponse:
    return JSONResponse({"detail": "something went wrong here; the log of the server says what"}, 500)


def _with_headers(app: ASGIApp) -> ASGIApp:
    """Puts HEADERS on every answer, also on those to a bug."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        await app(scope, receive, send_with_headers)

    return guarded
