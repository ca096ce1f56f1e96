"""The program raydistal, also as `python -m raydistal` where its script is not on the path, as in a submitted job."""

import sys


def main() -> None:
    """Runs `cli.main`; Ctrl-C while that is loaded ends quietly too."""
    try:
        from raydistal import cli
    except KeyboardInterrupt:
        sys.exit(3)
    cli.main()


if __name__ == "__main__":
    main()
