"""Comparisons a person runs by hand; each keeps its raw numbers and a plot. None asserts a time."""

import sys
from pathlib import Path

# Members' programs import each other flat, as they lie on machines. At the end, to hide nothing.
sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts" / "node"))
