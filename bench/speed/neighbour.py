"""Keep a core busy while told to, and end when nobody is there to tell.

    python neighbour.py

A byte on standard input is answered by the same byte: "s" to spin until the next one comes, anything else to wait. The
end of the input, which is also what the death of whoever holds its other end brings about, ends the process.
"""

import os
import select

_TURNS = 20_000  # of a loop between looks at the input, a millisecond or so


def main() -> None:
    """Do as told until the end of the input."""
    while command := os.read(0, 1):
        os.write(1, command)
        while command == b"s" and not select.select([0], [], [], 0)[0]:
            for _ in range(_TURNS):
                pass


if __name__ == "__main__":
    main()
