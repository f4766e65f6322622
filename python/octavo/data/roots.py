"""Where real data sets are looked for."""

from __future__ import annotations

import os
from pathlib import Path

from octavo.data.errors import DataError

_GET = (
    "set OCTAVO_DATA to a directory that holds the set's own (movielens/: MovieLens-100K from GroupLens, or RecBole's "
    "repository under dataset/ml-100k; the others: docs/examples.md)"
)


def data_root() -> Path:
    """The directory of the data sets: ``OCTAVO_DATA`` if set, else ``shared/data`` beside the checkout.

    The checkout is the one that holds this file, or the current directory.

    Raises :class:`DataError` where there is none, saying where a stranger gets the data.
    """
    named = os.environ.get("OCTAVO_DATA")
    if named:
        if not Path(named).is_dir():
            raise DataError(f"OCTAVO_DATA: {named} is not a directory; {_GET}")
        return Path(named)
    checkouts = [Path(__file__).resolve().parents[3], Path.cwd()]
    roots = [checkout.parent / "shared" / "data" for checkout in checkouts]
    root = next((root for root in roots if root.is_dir()), None)
    if root is None:
        raise DataError(f"{roots[-1]}: no data here; {_GET}")
    return root
