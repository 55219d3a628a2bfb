"""Instructions of the main CUDA kernels, counted in the objects that are named, against the committed budget.

    python .ci/budget.py build/.../threshold.cu.o ...            the counts; 1 where one rose by more than 5 %
    python .ci/budget.py --write build/.../threshold.cu.o ...    makes them the budget

Needs the toolkit's cuobjdump and no GPU. `python -m bench.predict` tells what times follow from them.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.budget import budget


def main(arguments: list[str]) -> int:
    """Print the table, and what is worse than the budget."""
    objects = [Path(each) for each in arguments if not each.startswith("-")]
    now = budget.of_objects(objects)
    if not now.counts:
        print("error: no kernel of the budget in these objects")
        return 1
    print("\n".join(budget.table(now)))
    if "--write" in arguments:
        budget.save(now)
        return 0
    failures = list(budget.worse(now, budget.load()))
    for failure in failures:
        print(f"error: {failure}; if that is wanted, .ci/budget.py --write makes it the budget")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
