"""The command `python -m bench.training`."""

import sys

from bench.training import analysis, generalization, sensitivity

_COMMANDS = {"analyze": analysis.main, "sensitivity": sensitivity.main}

if __name__ == "__main__":
    command = _COMMANDS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    sys.exit(command(sys.argv[2:]) if command else generalization.main())
