"""`python -m raydistal`: the command line where its script is not on the path, as in a submitted job."""

from raydistal.cli import main

if __name__ == "__main__":
    main()
