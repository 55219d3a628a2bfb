import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests import simt

sanitize = "--sanitize" in sys.argv[1:2]
command = sys.argv[2 if sanitize else 1 :]
print(simt.build(sanitize), flush=True)
if command:
    environment = simt.sanitizer_environment() if sanitize else {}
    sys.exit(subprocess.run(command, env={**os.environ, **environment}, check=False).returncode)
