"""Paths and helpers that several test files use."""

import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
GOLDEN = TESTS / "golden"
WEIGHTS = ROOT / "weights"
SHARED = ROOT.parent / "shared"  # recorded outputs and data next to the checkout, not in it


def run_python(*argv: object, timeout: float = 300, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python in a child process and capture what it prints."""
    command = [sys.executable, *(str(arg) for arg in argv)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


def run_minicore(*argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a child process. The fixture ``run_cli`` runs it in this one: faster."""
    return run_python("-m", "minicore", *argv, **options)
