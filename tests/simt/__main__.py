import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import simt

print(simt.build(sanitize="--sanitize" in sys.argv[1:]))
