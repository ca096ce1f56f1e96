"""From a folder of real and fake videos to a small distilled dataset, on Ray.

The last line of stdout is one JSON object; all else goes to stderr.

Exit codes: 0 done, 1 failed, 2 wrong use, 3 stopped before the end.

RAY_ADDRESS names the cluster; without it one is started on this machine.

raydistal --version tells what is installed.
"""

import errno
import functools
import json
import operator
import os
import signal
import sys
from collections.abc import Callable, Sequence
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
from raydistal.pipelines.scaling import UNLIMITED, within
from raydistal.serving import serve

# Full or read-only disks and folders of other users: for the user to fix, without a traceback.
NO_BUGS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG}
Asked = TypeVar("Asked")
VERBS = (
    index,
    plan,
    extract,
    select,
    distill,
    teach,
    train,
    prune,
    export,
    search,
    evaluate,
    detect,
    cost,
    compare,
    generalise,
    difference,
    heatmaps,
    serve,
    share,
    materialize,
    verify,
    report,
    demo,
    status,
    compact,
    submit,
)
POSITIONAL: Any = tyro.conf.PositionalRequiredArgs
MARKERS = {status: [POSITIONAL], compact: [POSITIONAL]}
MARKERS[submit] = [POSITIONAL, tyro.conf.UseAppendAction]  # else --env A --env B would be only B
RUNS: dict[type, Callable[[Any], dict[str, Any]]] = {verb.Config: verb.run for verb in VERBS if verb is not submit}
RUNS[submit.Config] = lambda config: submit.run(config, parse)


def _subcommand(verb: Any) -> Any:
    annotated: Any = Annotated  # mypy cannot follow types made at run time
    return annotated[verb.Config, tyro.conf.subcommand(verb.__name__.rpartition(".")[2]), *MARKERS.get(verb, [])]


def parse(arguments: Sequence[str] | None) -> Any:
    """The Config for a command line, or exit code 2. None: the command line of this process."""
    verbs = functools.reduce(operator.or_, map(_subcommand, VERBS))
    how = (tyro.conf.OmitArgPrefixes, tyro.conf.PositionalMetavarFromFieldName)
    return tyro.cli(verbs, prog="raydistal", description=__doc__, args=arguments, config=how)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits with its code; `--version` tells what is installed."""
    if (sys.argv[1:] if arguments is None else list(arguments)) == ["--version"]:
        print(f"raydistal {metadata.version('raydistal')}, ray {metadata.version('ray')}")
        return
    _run(lambda: parse(arguments), lambda config: RUNS[type(config)](config))


def run_script(config: type[Asked], run: Callable[[Asked], dict[str, Any]], description: str) -> None:
    """Runs a script of jobs/papers as `main` runs a verb: parses options, prints the summary."""
    _run(lambda: tyro.cli(config, description=description), run)


def _run(parse: Callable[[], Asked], work: Callable[[Asked], dict[str, Any]]) -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's waiting threads would spin where others compute
    try:
        config = _parse_quietly(parse)
        out, sys.stdout = sys.stdout, sys.stderr  # Ray prints there why workers died, up to the end of the process
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what follows is the way out, on which Ray takes seconds
        why = f", as {stop}" if str(stop) else ""
        print(
            f"raydistal: stopped{why}. Finished work is kept; the same command goes on with the rest.", file=sys.stderr
        )
        sys.exit(3)
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray wraps the exceptions of workers
        if getattr(cause, "errno", None) not in NO_BUGS:
            raise
        print(f"raydistal: {cause}. Finished work is kept; once this is fixed, run it again.", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(summary), file=out)
    if summary.get("exact") is False:  # of verify
        sys.exit(1)


def _parse_quietly(parse: Callable[[], Asked]) -> Asked:
    """What `parse` returns; exits quietly if the reader of the help stops early, as `head` does."""
    try:
        try:
            return parse()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
