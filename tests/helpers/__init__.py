"""Paths and helpers that several test files use."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
WEIGHTS = ROOT / "weights"
SHARED = ROOT.parent / "shared"  # recorded outputs and data next to the checkout, not in it
