"""The app on Ray Serve: one Web, and as many Examiners and Scorers as there is work.

    Web       HTTP, the queue, uploads and results on its own disk; only one, as it holds the state of the app
    Examiner  one video at a time, in child processes that can be killed; on any node
    Scorer    the detector; concurrent requests of several Examiners are batched

`serve run cluster/serve.yaml` calls `build`, `raydistal serve` calls `bind`.
"""

import asyncio
import dataclasses
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from raydistal.errors import CrashedError, TimeLimitError, UserError, VideoError
from raydistal.pipelines.scaling import tell_wait
from raydistal.pipelines.streaming import num_cpus, start_torch, use_gpu
from raydistal.report.page import base_name
from raydistal.serving import answers, api, settings
from raydistal.serving.folders import PrivateFolder
from raydistal.serving.jobs import Failure, Jobs, LostError, Message, Piece
from raydistal.serving.settings import App
from raydistal.verdict import examine
from raydistal.verdict.examine import Crops, Judge

PIECE_BYTES = 4 << 20
ASK_S = 120.0  # that the Scorer may take for some faces, the start of a new replica included
ATTEMPTS = 3  # of asking it
# By default Ray Serve averages over 30 s and waits as long, while people wait. Down slowly, as a start costs seconds.
AUTOSCALING = {"metrics_interval_s": 1, "look_back_period_s": 2, "upscale_delay_s": 1, "downscale_delay_s": 60}
LOOK_EVERY_S = 2.0  # health checks: people wait until a lost replica is replaced
LITTLE_CPU = 0.05  # more than 0, to stay off a head without CPUs; a Web and a Scorer fit beside an Examiner on one CPU
QUIET = {"enable_access_log": False}  # it would record the ids, which are the keys to the results


def build(arguments: dict[str, Any]) -> serve.Application:
    """For `import_path` of a Ray Serve config file; `arguments` are its `args`. Raises UserError as `bind`."""
    return bind(settings.parse(arguments))


def bind(app: App) -> serve.Application:
    """The app, ready to be deployed to the connected cluster.

    Raises:
        UserError: no such detector, or one whose detector.json lacks what a verdict needs.
    """
    from raydistal.detector import runtime

    _, about = runtime.load(app.detector)
    examine.check(about, app.detector)
    app.settings()  # refused here, not in a replica
    name, heat = base_name(app.detector), app.heatmaps and _has_heatmaps(app.detector)
    num_examiners = app.examiners or num_cpus()
    num_gpus = int(use_gpu(app.device))
    tell_wait("serve", {"CPU": 1, "GPU": num_gpus})
    scorer = _deploy(
        Scorer,
        app.detector,
        heat,
        max_ongoing_requests=32,
        autoscaling_config={"min_replicas": 1, "max_replicas": app.scorers, "target_ongoing_requests": 4} | AUTOSCALING,
        ray_actor_options={"num_cpus": LITTLE_CPU, "num_gpus": num_gpus},
    )
    examiner = _deploy(
        Examiner,
        app,
        name,
        about,
        heat,
        scorer,
        max_ongoing_requests=1,
        autoscaling_config={"min_replicas": 1, "max_replicas": num_examiners, "target_ongoing_requests": 1}
        | AUTOSCALING,
        graceful_shutdown_timeout_s=2 * app.limits.timeout_s + ASK_S,  # so that a stopping replica can finish its video
        ray_actor_options={"num_cpus": 1 - 2 * LITTLE_CPU},  # as many as CPUs, with room for a Web and a Scorer
    )
    return _deploy(
        Web,
        app,
        name,
        about,
        num_examiners,
        examiner,
        num_replicas=1,
        max_ongoing_requests=200,  # uploads, and pages that poll: they need little CPU
        ray_actor_options={"num_cpus": LITTLE_CPU},
    )


def _deploy(target: type, *arguments: Any, **options: Any) -> serve.Application:
    options |= {"logging_config": QUIET, "health_check_period_s": LOOK_EVERY_S, "graceful_shutdown_wait_loop_s": 0.5}
    return serve.deployment(**options)(target).bind(*arguments)


def _has_heatmaps(location: str) -> bool:
    from raydistal.detector import heatmaps

    try:
        heatmaps.of(location)
    except UserError as error:
        print(f"serve: without heatmaps: {error}", file=sys.stderr)
        return False
    return True


@serve.ingress()
class Web:
    """HTTP. Its state is lost with it: after a restart, earlier ids are unknown."""

    def __init__(
        self, app: App, name: str, about: dict[str, Any], num_examiners: int, examiner: DeploymentHandle[Any]
    ) -> None:
        description = examine.describe(name, about, app.settings())
        self.allowed_hosts, limits = app.allowed_hosts, dataclasses.asdict(app.limits)
        self.about = answers.About(
            detector=description["detector"],
            protocol=description["protocol"],
            limits=answers.LimitsTold(**{name: limits[name] for name in answers.LimitsTold.model_fields}),
        )
        self.examiner = examiner.options(stream=True)
        self.folder = PrivateFolder()
        # At most one per Examiner at once: so Ray Serve sees how many are needed, and files wait on disk.
        self.jobs = Jobs(self.folder.path, app.limits, self._examine, num_examiners)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray Serve calls this to get the ASGI app."""
        return api.make(self.jobs, self.about, self.allowed_hosts)

    async def _examine(self, path: Path, name: str) -> AsyncGenerator[Message, None]:
        """The messages of an Examiner. Raises LostError if it is gone."""
        upload = await asyncio.to_thread(_to_object_store, path)
        messages: Any = self.examiner.examine.remote(upload, name)
        try:
            async for message in messages:
                yield message
        except RayTaskError:  # a bug there
            raise
        except RayError as error:
            raise LostError from error
        finally:
            messages.cancel()

    def __del__(self) -> None:
        if hasattr(self, "folder"):  # it came so far
            self.folder.remove()


def _to_object_store(path: Path) -> "ray.ObjectRef[npt.NDArray[np.uint8]]":
    return ray.put(np.fromfile(path, np.uint8))


class Examiner:
    """Examines one video at a time."""

    def __init__(
        self, app: App, name: str, about: dict[str, Any], with_heat: bool, scorer: DeploymentHandle[Any]
    ) -> None:
        self.folder = PrivateFolder()
        self.settings = app.settings()
        heat = partial(_ask, scorer.heat) if with_heat else None
        self.judge = Judge(name, about, partial(_ask, scorer.score), heat)
        self.thread = ThreadPoolExecutor(1)  # child processes belong to the thread that started them

    async def examine(self, upload: npt.NDArray[np.uint8], name: str) -> AsyncGenerator[Message, None]:
        """Yields files and the result, or why there is none. Closing or cancelling it also stops the work."""
        loop = asyncio.get_running_loop()
        messages = self._messages(upload, name)
        try:
            while (message := await loop.run_in_executor(self.thread, next, messages, None)) is not None:
                yield message
        finally:
            await loop.run_in_executor(self.thread, messages.close)  # after its current step

    def _messages(self, upload: npt.NDArray[np.uint8], name: str) -> Generator[Message, None, None]:
        with tempfile.TemporaryDirectory(dir=self.folder.path) as folder:
            path, out = Path(folder, "upload"), Path(folder, "result")
            upload.tofile(path)
            try:
                result = yield from examine.examine(str(path), name, str(out), self.judge, self.settings)
            except VideoError as error:
                yield Failure(error.status, str(error))
                return
            for path in sorted(out.iterdir()):
                with path.open("rb") as file:
                    while content := file.read(PIECE_BYTES):
                        yield Piece(path.name, content)
            yield result

    def __del__(self) -> None:
        if hasattr(self, "folder"):  # it came so far
            self.folder.remove()


def _ask(method: Any, crops_NHWC: Crops) -> npt.NDArray[np.float32]:
    """A Scorer's answer for the crops. If it is gone, another one is asked.

    Raises:
        VideoError: no Scorer answers.
    """
    for _ in range(ATTEMPTS):
        try:
            return np.asarray(method.remote(crops_NHWC).result(timeout_s=ASK_S))
        except RayTaskError:  # a bug there
            raise
        except TimeoutError:
            raise TimeLimitError(f"the detector did not answer within {ASK_S:g} s") from None
        except RayError:
            continue
    raise CrashedError(f"the process with the detector was lost {ATTEMPTS} times")


class Scorer:
    """Runs the detector."""

    def __init__(self, location: str, with_heat: bool) -> None:
        device = start_torch()
        from raydistal.detector import heatmaps, runtime, scoring

        self._score = scoring.Scorer(runtime.load(location)[0], device)
        self._heat = heatmaps.of(location, device) if with_heat else None

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def score(self, requests: list[Crops]) -> list[npt.NDArray[np.float32]]:
        """(N, S, S, 3) crops of each request to (N,) probabilities of fake."""
        return await asyncio.to_thread(_together, self._score, requests)

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.005)
    async def heat(self, requests: list[Crops]) -> list[npt.NDArray[np.float32]]:
        """(N, S, S, 3) crops of each request to (N, h, w) heat from 0 to 1."""
        assert self._heat
        return await asyncio.to_thread(_together, self._heat, requests)


def _together(model: Callable[[Crops], npt.NDArray[np.float32]], requests: Sequence[Crops]) -> list[Any]:
    """Calls the model once for all requests, and splits what it returns."""
    ends = np.cumsum([len(crops_NHWC) for crops_NHWC in requests])
    return np.split(model(np.concatenate(requests)), ends[:-1])
