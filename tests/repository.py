"""The repository's files that are not part of the installed package: without them, what needs them is skipped."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).resolve().parents[1]


def require(path: str) -> Path:
    """A file or folder of the repository; skips the test, or the module that asks for it, where it is not there."""
    if not (ROOT / path).exists():
        pytest.skip(f"needs the repository: {path}", allow_module_level=True)
    return ROOT / path


def load_script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, require(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
