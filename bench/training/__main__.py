"""The command `python -m bench.training`."""

import sys

from bench.training.generalization import main

if __name__ == "__main__":
    sys.exit(main())
