"""raydistal <verb>: one sub-command per pipeline, its options built from the pipeline's Config.

The last line of stdout is one JSON object; everything else goes to stderr. Exit codes: 0 done, 1 failed, 2 wrong use.
The cluster is the one that RAY_ADDRESS names (as in a submitted job), otherwise a private one on this machine.
"""

import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from raydistal.errors import UserError
from raydistal.pipelines import demo, distill, extract, index, report, select

Verb = (
    Annotated[index.Config, tyro.conf.subcommand("index")]
    | Annotated[extract.Config, tyro.conf.subcommand("extract")]
    | Annotated[select.Config, tyro.conf.subcommand("select")]
    | Annotated[distill.Config, tyro.conf.subcommand("distill")]
    | Annotated[report.Config, tyro.conf.subcommand("report")]
    | Annotated[demo.Config, tyro.conf.subcommand("demo")]
)
RUNS: dict[type, Any] = {module.Config: module for module in (index, extract, select, distill, report, demo)}
NEEDS_RAY = (extract.Config, select.Config, distill.Config, demo.Config)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb and exits with its code."""
    try:
        config = tyro.cli(
            Verb, prog="raydistal", description=__doc__, args=arguments, config=(tyro.conf.OmitArgPrefixes,)
        )
        if isinstance(config, NEEDS_RAY):
            connect()
        summary = RUNS[type(config)].run(config)
    except UserError as error:
        print(f"raydistal: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("raydistal: stopped. Finished work is kept; the same command goes on with the rest.", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(summary))


def connect() -> None:
    """Connects to the cluster, or starts one on this machine; quiet."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # said explicitly, Ray does not warn about its default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    # The progress and the summary are ours; a worker's trouble comes back as an exception or a row.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    else:
        ray.init(address="local", include_dashboard=False, **quiet)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
