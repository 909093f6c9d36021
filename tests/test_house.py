"""The house in numbers: sizes of files and functions, imports that go down, tasks that only their classes name."""

import ast
from pathlib import Path

import pytest

from densemllm.evaluation.measured import MEASURED
from densemllm.tasks_densemllm import TASKS
from densemllm.text_tasks_densemllm import TEXT_TASKS
from densemllm.training.samples import COLUMNS
from repository import ROOT, require


require("modeling_densemllm.py")

MAX_LINES, MAX_FUNCTION_LINES = 700, 80
# All modules from the ground up: one imports only from those above it in this list. The files that travel with a
# checkpoint, without their ending:
TRAVELLING = """
compat whole_files checks records refinement answers numbers loss supervision attention image_loading exif released
drawing loading
polygons points generation tokens
chat targets decoding guided crops configuration image_processing image_processing_torchvision depth instances normals
task_base object_tasks code_tasks tasks text_tasks processing
tiles image_encoding questions streams saving prediction pipeline parts vision modeling auto_models
""".split()
# and those that don't.
OTHERS = """
files addresses environment arguments client registration
training.maps training.camera_effects training.samples training.datasets training.image_tokenizer training.collator
formats.base
formats.coco_index formats.coco formats.refcoco
formats.class_maps formats.ade20k formats.cityscapes formats.pascal
formats.ddad formats.ibims1 formats.kitti formats.mpii formats.nyuv2 formats.tallyqa
formats.labels formats.options formats.own_folders formats.registry formats.folders
training.check training.check_sheet training.check_command
evaluation.metrics evaluation.panoptic evaluation.text_metrics training.rewards
evaluation.language evaluation.measured_words evaluation.measured training.prompts
evaluation.protocols evaluation.arguments evaluation.predict evaluation.state
evaluation.panels evaluation.report
evaluation.run
training.optimizers training.checkpoints training.model_card training.arguments training.trainer
training.equal_images training.shared_prompts training.grpo
convert_youtu_vl_to_densemllm train_hf train_grpo evaluate_densemllm data_prediction
commands.tables commands.parsers commands.inputs commands.models commands.videos commands.predict
commands.data_sets commands.checkpoints
app.limits app.readings app.demo app.page app.main
serve export cli __main__ setup
""".split()
FLOORS = [f"{name}_densemllm" for name in TRAVELLING] + OTHERS
# Where the names of tasks may stand: with their classes.
TASK_FILES = {f"{name}_densemllm" for name in ("task_base", "tasks", "object_tasks", "code_tasks", "text_tasks")}
# What is spelled as a task is, and is none.
NO_TASKS = {
    "answers_densemllm": {"segmentation"},  # a key of what a parser gives
    "image_processing_densemllm": {"segmentation"},  # a key of transformers' result
    "instances_densemllm": {"segmentation"},  # the name of an argument, in messages
    "normals_densemllm": {"depth", "normals"},  # likewise
    "points_densemllm": {"normals"},  # likewise
    "saving_densemllm": {"segmentation"},  # COCO's key for run lengths and polygons
    "commands.parsers": {"depth"},  # a command
    "evaluation.panoptic": {"segmentation"},  # likewise
    "evaluation.report": {"segmentation"},  # likewise
    "evaluation.state": {"panoptic"},  # the name of a folder
    "pipeline_densemllm": {"depth", "panoptic"},  # a key, and a subtask, of transformers' pipelines
    **dict.fromkeys(("formats.ddad", "formats.ibims1", "formats.kitti", "formats.nyuv2"), {"depth"}),  # a column
    "evaluation.measured": {"class_list", "answered_labels", "named_labels"},  # `predict_dense` doesn't know them
}


def path_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


PACKAGES = ("training", "formats", "evaluation", "commands", "app")


def modules() -> list[str]:
    files = [
        *ROOT.glob("*.py"),
        *(
            file
            for name in ("training", "formats", "evaluation", "commands", "app")
            for file in ROOT.glob(f"{name}/*.py")
        ),
    ]
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return sorted(name for name in names if not name.endswith("__init__"))


def syntax_of(module: str) -> ast.Module:
    return ast.parse(path_of(module).read_text(encoding="utf-8"))


def imports_of(module: str) -> set[str]:
    """The package's modules that a module imports anywhere, but for type checkers alone."""
    tree = syntax_of(module)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    package = module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in for_types:
            continue
        if node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *(node.module or "").split(".")])
        elif (node.module or "").startswith("densemllm."):
            base = node.module.removeprefix("densemllm.")
        else:
            continue
        known = {f"{base}.{alias.name}" for alias in node.names if path_of(f"{base}.{alias.name}").is_file()}
        found |= known or {base.strip(".")}
    return found - {""}


def docstrings(tree: ast.Module) -> set[int]:
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }


def test_every_module_has_its_floor():
    assert sorted(FLOORS) == modules()


@pytest.mark.parametrize("module", FLOORS)
def test_imports_go_down(module):
    floor = FLOORS.index(module)
    imported = imports_of(module)
    unknown = imported - set(FLOORS)
    assert not unknown, f"{module} imports {unknown}"
    upwards = {name for name in imported if FLOORS.index(name) >= floor}
    assert not upwards, f"{module} imports from above: {upwards}"


@pytest.mark.parametrize("module", [f"{name}_densemllm" for name in TRAVELLING])
def test_what_travels_stands_alone(module):
    """A checkpoint has these files in one folder, and nothing else of the repository."""
    levels = [node.level for node in ast.walk(syntax_of(module)) if isinstance(node, ast.ImportFrom) and node.level]
    assert set(levels) <= {1}
    assert imports_of(module) <= {f"{name}_densemllm" for name in TRAVELLING}


@pytest.mark.parametrize("module", FLOORS)
def test_files_and_functions_are_short(module):
    assert len(path_of(module).read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    long = {}
    for node in ast.walk(syntax_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                text = node.body[0]
                lines -= text.end_lineno - text.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long[node.name] = lines
    assert not long


@pytest.mark.parametrize("module", [name for name in FLOORS if name not in TASK_FILES])
def test_only_its_class_names_a_task(module):
    tree = syntax_of(module)
    texts = docstrings(tree)
    names = {*TASKS, *TEXT_TASKS, *(name for name in MEASURED if name not in COLUMNS)} - NO_TASKS.get(module, set())
    names.discard("text")  # a task of an evaluation, and the type of a part of a message everywhere
    if module.startswith("formats."):  # which say what is in a column of a sample, and know of no task
        names -= set(COLUMNS)
    found = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in names
        and id(node) not in texts
    ]
    assert not found, f"{module} names tasks: {found}"
