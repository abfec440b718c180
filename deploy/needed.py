"""In the image's build: the part of requirements.lock that the product needs, without what is for tests and `make up`.

needed.py wanted: the dependencies that pyproject.toml names.
needed.py pins: the lock file without hashes, to resolve them by.
needed.py locked REPORT: of the lock file what pip's report says is to be installed, with the hashes.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

blocks = re.split(r"\n(?=\S)", Path("requirements.lock").read_text(encoding="utf-8"))
pins = [block for block in blocks if not block.startswith("#")]
match sys.argv[1:]:
    case ["wanted"]:
        chosen = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    case ["pins"]:
        chosen = [pin.partition(" \\")[0] for pin in pins]
    case ["locked", report]:
        found = json.loads(Path(report).read_text(encoding="utf-8"))["install"]
        names = {re.sub(r"[-_.]+", "-", each["metadata"]["name"]).lower() for each in found}
        chosen = [pin for pin in pins if pin.partition("==")[0] in names]
    case _:
        sys.exit(__doc__)
print(*chosen, sep="\n")
