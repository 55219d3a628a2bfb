"""The command `python -m bench.tabular`."""

import sys

from bench.tabular import cost, experiment

_COMMANDS = {"cost": cost.main}

if __name__ == "__main__":
    command = _COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    sys.exit(command(sys.argv[2:]) if command else experiment.main())
