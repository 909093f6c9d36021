"""The package's public functions are annotated. What their types say is for `typing_users.py` and a type checker."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import densemllm


FOLDER = Path(densemllm.__file__).parent
FILES = [
    path
    for folder in (".", "training", "formats", "evaluation", "commands")
    for path in (FOLDER / folder).glob("*.py")
]
MODULES = sorted(".".join(path.relative_to(FOLDER).with_suffix("").parts) for path in FILES if path.stem != "__init__")
CALLED = ("__init__", "__call__")
NEEDS = {"training.grpo": "trl", "train_grpo": "trl"}  # modules that need an extra


def functions_of(owner: object, module: str) -> Iterator[tuple[str, Callable]]:
    """The public functions that are written in `module`, those of its classes with them, by name."""
    for name, value in vars(owner).items():
        if name.startswith("_") and name not in CALLED:
            continue
        value = value.fget if isinstance(value, property) else value
        value = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        value = inspect.unwrap(value) if callable(value) else value
        if getattr(value, "__module__", None) != module:
            continue
        if inspect.isclass(value):
            yield from functions_of(value, module)
        elif inspect.isfunction(value) and value.__code__.co_filename != "<string>":  # a dataclass writes its own
            yield value.__qualname__, value


def missing_of(function: Callable) -> tuple[int, list[str]]:
    """How many parameters a function has, without `self` and `cls`, and what of it is not annotated."""
    parameters = inspect.signature(function).parameters.values()
    parameters = [parameter for parameter in parameters if parameter.name not in ("self", "cls")]
    missing = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
    if inspect.signature(function).return_annotation is inspect.Signature.empty and function.__name__ != "__init__":
        missing.append("return")
    return len(parameters), missing


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_are_annotated(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    module = importlib.import_module(f"densemllm.{name}")
    found = {own: missing_of(function) for own, function in functions_of(module, module.__name__)}
    count = sum(parameters for parameters, _ in found.values())
    missing = [f"{own}: {entry}" for own, (_, entries) in found.items() for entry in entries]
    print(f"{name}: {len(found)} functions with {count} parameters, not annotated: {missing}")
    assert not missing


def test_a_function_without_annotations_is_found():
    def plain(first, second: int = 0, *rest, **options: int): ...

    assert missing_of(plain) == (4, ["first", "rest", "return"])
