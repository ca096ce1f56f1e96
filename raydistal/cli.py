"""From a folder of real and fake videos to a small distilled dataset, on Ray.

The last line of stdout is one JSON object; all else goes to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped before the end.

RAY_ADDRESS names the cluster; without it one is started on this machine.
"""

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Annotated, Any, TypeVar

import tyro

from raydistal.errors import UserError
from raydistal.pipelines import (
    compact,
    compare,
    cost,
    demo,
    detect,
    difference,
    distill,
    evaluate,
    export,
    extract,
    generalise,
    heatmaps,
    index,
    materialize,
    plan,
    prune,
    report,
    search,
    select,
    share,
    status,
    submit,
    teach,
    train,
    verify,
)
from raydistal.pipelines.scaling import UNLIMITED, Stopped, within
from raydistal.serving import serve

# Full disks, read-only ones and folders of others: the user's to mend, and no traceback helps with it.
NO_BUGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
Asked = TypeVar("Asked")
Verb = (
    Annotated[index.Config, tyro.conf.subcommand("index")]
    | Annotated[plan.Config, tyro.conf.subcommand("plan")]
    | Annotated[extract.Config, tyro.conf.subcommand("extract")]
    | Annotated[select.Config, tyro.conf.subcommand("select")]
    | Annotated[distill.Config, tyro.conf.subcommand("distill")]
    | Annotated[teach.Config, tyro.conf.subcommand("teach")]
    | Annotated[train.Config, tyro.conf.subcommand("train")]
    | Annotated[prune.Config, tyro.conf.subcommand("prune")]
    | Annotated[export.Config, tyro.conf.subcommand("export")]
    | Annotated[search.Config, tyro.conf.subcommand("search")]
    | Annotated[evaluate.Config, tyro.conf.subcommand("evaluate")]
    | Annotated[tyro.conf.PositionalRequiredArgs[detect.Config], tyro.conf.subcommand("detect")]
    | Annotated[cost.Config, tyro.conf.subcommand("cost")]
    | Annotated[compare.Config, tyro.conf.subcommand("compare")]
    | Annotated[generalise.Config, tyro.conf.subcommand("generalise")]
    | Annotated[difference.Config, tyro.conf.subcommand("difference")]
    | Annotated[heatmaps.Config, tyro.conf.subcommand("heatmaps")]
    | Annotated[serve.Config, tyro.conf.subcommand("serve")]
    | Annotated[share.Config, tyro.conf.subcommand("share")]
    | Annotated[materialize.Config, tyro.conf.subcommand("materialize")]
    | Annotated[verify.Config, tyro.conf.subcommand("verify")]
    | Annotated[report.Config, tyro.conf.subcommand("report")]
    | Annotated[demo.Config, tyro.conf.subcommand("demo")]
    | Annotated[tyro.conf.PositionalRequiredArgs[status.Config], tyro.conf.subcommand("status")]
    | Annotated[tyro.conf.PositionalRequiredArgs[compact.Config], tyro.conf.subcommand("compact")]
    | Annotated[
        tyro.conf.PositionalRequiredArgs[tyro.conf.UseAppendAction[submit.Config]],  # else --env A --env B is only B
        tyro.conf.subcommand("submit"),
    ]
)
RUNS: dict[type, Callable[[Any], dict[str, Any]]] = {
    index.Config: index.run,
    plan.Config: plan.run,
    extract.Config: extract.run,
    select.Config: select.run,
    distill.Config: distill.run,
    teach.Config: teach.run,
    train.Config: train.run,
    prune.Config: prune.run,
    export.Config: export.run,
    search.Config: search.run,
    evaluate.Config: evaluate.run,
    detect.Config: detect.run,
    cost.Config: cost.run,
    compare.Config: compare.run,
    generalise.Config: generalise.run,
    difference.Config: difference.run,
    heatmaps.Config: heatmaps.run,
    serve.Config: serve.run,
    share.Config: share.run,
    materialize.Config: materialize.run,
    verify.Config: verify.run,
    report.Config: report.run,
    demo.Config: demo.run,
    status.Config: status.run,
    compact.Config: compact.run,
    submit.Config: lambda config: submit.run(config, parse),
}


def parse(arguments: Sequence[str] | None) -> Any:
    """The Config of the verb that a command line names, or exit code 2. None: that of this process."""
    return tyro.cli(Verb, prog="raydistal", description=__doc__, args=arguments, config=(tyro.conf.OmitArgPrefixes,))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits with its code; `--version` tells what is installed."""
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"raydistal {metadata.version('raydistal')}, ray {metadata.version('ray')}")
        return

    def work(config: Any) -> dict[str, Any]:
        if needs_cluster(config):
            connect()
        return RUNS[type(config)](config)

    _run(lambda: parse(arguments), work)


def run_script(config: type[Asked], run: Callable[[Asked], dict[str, Any]], description: str) -> None:
    """Does for a script of jobs/papers what `main` does for a verb: options in, a cluster, the summary out."""

    def work(config: Asked) -> dict[str, Any]:
        connect()
        return run(config)

    _run(lambda: tyro.cli(config, description=description), work)


def _run(parse: Callable[[], Asked], work: Callable[[Asked], dict[str, Any]]) -> None:
    try:
        config = parse()
        out, sys.stdout = sys.stdout, sys.stderr  # Ray prints there what a worker died of, up to the end of the process
        with within(getattr(config, "budget", UNLIMITED)):
            summary = work(config)
    except UserError as error:
        print(f"raydistal: {error}", file=sys.stderr)
        sys.exit(2)
    except submit.JobEndedError as error:
        print(f"raydistal: {error}", file=sys.stderr)
        if error.summary:
            print(json.dumps(error.summary), file=out)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as stop:
        why = f", as {stop}" if str(stop) else ""
        print(
            f"raydistal: stopped{why}. Finished work is kept; the same command goes on with the rest.", file=sys.stderr
        )
        sys.exit(3)
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray wraps what a worker raised
        if getattr(cause, "errno", None) not in NO_BUGS:
            raise
        print(f"raydistal: {cause}. Finished work is kept; once this is fixed, run it again.", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(summary), file=out)
    if summary.get("exact") is False:  # of verify
        sys.exit(1)


def needs_cluster(config: object) -> bool:
    """False for what one process does in a moment."""
    if isinstance(config, select.Config):
        return not select.is_ranked(config)
    if isinstance(config, teach.Config):
        return not teach.is_taught(config)
    if isinstance(config, train.Config | prune.Config):
        return config.compute.num_workers > 0
    if isinstance(config, evaluate.Config):
        return not evaluate.is_scored(config)
    if isinstance(config, serve.Config):
        serve.check(config)
        return True
    if isinstance(config, heatmaps.Config):
        return not heatmaps.is_looked(config)
    if isinstance(config, detect.Config):
        return not detect.is_small(config)
    here = export.Config | cost.Config | index.Config | difference.Config | report.Config
    return not isinstance(config, here | status.Config | submit.Config | compact.Config)


def connect() -> None:
    """Connects to the cluster, or starts one on this machine; quiet."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # said explicitly, Ray does not warn about its default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a note on every actor that may restart
    os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # that a cluster of our own takes to end
    import ray
    import ray.data

    # The progress and the summary are ours; a worker's trouble comes back as an exception or a row.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        quiet |= {"address": "local", "include_dashboard": False}
    with _muted_stderr():  # C++ code greets there; what goes wrong is raised
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**quiet)
        except SystemExit as error:  # Ray takes SIGTERM for itself
            raise Stopped("it got SIGTERM") from error
        signal.signal(signal.SIGTERM, on_sigterm)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


@contextmanager
def _muted_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
