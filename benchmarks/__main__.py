"""python -m benchmarks: ratios against bounds and peers, measured in one run on this machine.

Takes about an hour, and some minutes more the first time, to make the clips. Other load on the machine spoils the wall
times, and the CPU times a little.
"""

import importlib.util
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Literal, get_args

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.clips import FOLDER
from benchmarks.measure import Ratio
from raydistal import tables

Bench = Literal["decode", "detect", "verdicts", "extract", "naive", "select", "train", "compress", "plan", "serve"]
BENCHES: tuple[Bench, ...] = get_args(Bench)


def main(only: tuple[Bench, ...] = BENCHES, clips: int = 48) -> None:
    """Measures ratios against bounds and peers on this machine, and prints them.

    Args:
        only: which benchmarks to run.
        clips: videos that the extract benchmark works on.
    """
    prepare_environment()
    # They load what the environment is for.
    from benchmarks import compress, decode, detect, extract, naive, plan, select, serve, train, verdicts

    console = Console()
    print_conditions(console)
    ratios: list[Ratio] = []
    if "decode" in only:
        ratios += decode.run(console, sizes=("480p", "1080p"))
    if "detect" in only:
        ratios += detect.run(console, size="1080p", num_clips=3)
    if "verdicts" in only:
        ratios += verdicts.run(console, size="1080p", num_clips=3)
    if "extract" in only:
        ratios += extract.run(console, sizes=("480p", "1080p"), num_clips=8, num_videos=clips)
    if "naive" in only:
        ratios += naive.run(console, sizes=("480p", "1080p"), num_clips=3, num_videos=24)
    if "select" in only:
        ratios += select.run(console, num_faces=16_000)
    if "train" in only:
        ratios += train.run(console, size="480p", num_clips=8, num_faces=800)
    if "compress" in only:
        ratios += compress.run(console, identities=300)
    if "plan" in only:
        ratios += plan.run(console, size="480p", num_clips=8, num_videos=2 * clips, num_tried=32)
    if "serve" in only:
        ratios += serve.run(console, size="1080p")
    print_ratios(console, ratios)


def prepare_environment() -> None:
    """Sets the variables that are read when programs and libraries start; starts this one again for the first."""
    os.environ |= {"RAY_worker_niceness": "0", "DAFT_RUNNER": "native", "DAFT_PROGRESS_BAR": "0"}
    links = (FOLDER / "ffmpeg").absolute()
    library_path = os.environ.get("LD_LIBRARY_PATH", "")
    if importlib.util.find_spec("torchcodec") and str(links) not in library_path:
        # torchcodec brings no FFmpeg. It gets PyAV's: the same decoder for both, and nothing to install.
        import av

        links.mkdir(parents=True, exist_ok=True)
        for library in (Path(av.__file__).parents[1] / "av.libs").glob("lib[as][vw]*-*.so.*"):
            name, version = library.name.split(".so.")  # libavcodec-5e6b81c2, 62.28.102
            link = links / f"{name.split('-')[0]}.so.{version.split('.')[0]}"
            link.unlink(missing_ok=True)
            link.symlink_to(library)
        os.environ["LD_LIBRARY_PATH"] = f"{links}:{library_path}".rstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def print_conditions(console: Console) -> None:
    """What the ratios hold for."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    console.print(
        f"{cpu.split(':')[1].strip()}, {len(os.sched_getaffinity(0))} cores, {memory_gib:.0f} GiB; "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )
    peers = {name: metadata.version(name) for name in ("daft", "torchcodec") if importlib.util.find_spec(name)}
    console.print(", ".join(f"{name} {version}" for name, version in (tables.versions() | peers).items()))


def print_ratios(console: Console, ratios: list[Ratio]) -> None:
    """The table that README quotes."""
    table = Table("benchmark", "", "ratio", "target", "", title="Ratios on SYNTHETIC clips")
    for ratio in ratios:
        target = f"at {'most' if ratio.at_most else 'least'} {ratio.target:g}"
        table.add_row(ratio.bench, ratio.what, f"{ratio.value:.3f}", target, "met" if ratio.met else "MISSED")
    console.print(table)
    console.print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
