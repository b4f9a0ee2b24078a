"""Where things are. `SAFEBOOK_ROOT` overrides the checkout that holds this file (tests build whole copies)."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("SAFEBOOK_ROOT") or Path(__file__).resolve().parents[2]).resolve()
NOTEBOOKS = ROOT / "notebooks"
BOOK = ROOT / "book"
DATA = ROOT / "data"
RECORDED = DATA / "results"  # committed records, with provenance
RESULTS = ROOT / "results"  # what runs on this machine wrote; never committed
ARTIFACTS = ROOT / "artifacts"  # trained models; never committed
BUILD = ROOT / "_build"
