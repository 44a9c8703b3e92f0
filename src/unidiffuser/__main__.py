"""`python -m unidiffuser`: the same command line as the installed `unidiffuser`."""

import sys

from unidiffuser.cli import main

if __name__ == "__main__":
    sys.exit(main())
