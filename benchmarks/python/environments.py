"""Virtual environments of peers that do not go into octavo's own: below ``build/peers``, made where they are absent."""

from __future__ import annotations

import subprocess
import venv
from dataclasses import dataclass
from pathlib import Path

PEERS = Path(__file__).resolve().parents[2] / "build" / "peers"


@dataclass(frozen=True)
class Environment:
    """``package`` (a pinned requirement, installed without what it asks for) and ``needs`` (what its training path
    imports, pinned where a later version breaks it)."""

    name: str
    package: str
    needs: tuple[str, ...]

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return PEERS / self.name / "bin" / "python"

    def missing(self, build: bool, script: str) -> str | None:
        """Why it cannot run here; None: it can. ``build``: make it where there is none; else ``script`` is named as
        what makes it."""
        if not self.python.exists():
            if not build:
                return f"{self.name}: no environment at {self.python.parents[1]}; {script} --quick makes it"
            venv.create(PEERS / self.name, with_pip=True)
            for options in (["--no-deps", self.package], list(self.needs)):
                subprocess.run([str(self.python), "-m", "pip", "install", "--quiet", *options], check=True)
        done = subprocess.run(
            [str(self.python), "-c", f"import {self.name}"], capture_output=True, text=True, check=False
        )
        return f"{self.name}: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


FUXICTR = Environment(
    "fuxictr",
    "fuxictr==2.3.10",
    ("torch==2.13.0", "numpy", "pandas", "ray[data]", "PyYAML", "scikit-learn", "h5py", "tqdm", "pyarrow", "polars"),
)
RECBOLE = Environment(
    "recbole",
    "recbole==1.2.1",
    ("torch==2.13.0", "numpy<2", "scipy", "pandas<3", "PyYAML", "scikit-learn", "tqdm", "colorlog", "colorama",
     "tensorboard", "thop", "tabulate", "plotly", "texttable", "psutil", "setuptools<81"),
)  # fmt: skip
