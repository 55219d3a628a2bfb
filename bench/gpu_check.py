"""The command `python -m bench.gpu_check`."""

import sys

from bench.speed.gpu_check import main

if __name__ == "__main__":
    sys.exit(main())
