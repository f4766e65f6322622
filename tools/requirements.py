"""Print the requirements of pyproject.toml's groups, one a line: ``requirements.py build train dev``.

``build`` is [build-system].requires together with what the package itself depends on; the rest are extras.
"""

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print the named groups."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    groups = {"build": project["build-system"]["requires"] + project["project"]["dependencies"], **extras}
    for name in sys.argv[1:]:
        if name not in groups:
            raise SystemExit(f"requirements: no group {name!r}; there are {', '.join(groups)}")
        print("\n".join(groups[name]))


if __name__ == "__main__":
    main()
