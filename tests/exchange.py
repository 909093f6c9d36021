"""A checkpoint and what it predicts, written by one version of anything and read by another.

    python tests/exchange.py write FOLDER           a tiny checkpoint, an image, and the maps of this environment
    python tests/exchange.py read FOLDER            the maps again, here: they must be the same
    python tests/exchange.py read FOLDER --remote   the same by the code beside the checkpoint, without the package

`data/written_by_0.1.0` was written by the release of that number. `.ci/run` writes with the newest transformers and
reads with the oldest, and the other way round.
"""

import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


LABELS = ["wall", "floor", "red ball"]


class Hidden:
    """Finder of modules that has no `densemllm`, wherever pip has put it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "densemllm":
            raise ModuleNotFoundError(name)


def predict(folder: Path, trust_remote_code: bool = False) -> dict[str, torch.Tensor]:
    """What must not change: both maps with their logits, and an answer in words."""
    from transformers import AutoModel

    if not trust_remote_code:
        import densemllm  # noqa: F401 - its classes become known to AutoModel
    model = AutoModel.from_pretrained(folder, trust_remote_code=trust_remote_code).eval()
    found = model.predict_dense(
        str(folder / "image.png"), ("segmentation", "depth"), labels=LABELS, return_logits=True
    )
    answer = model.query(str(folder / "image.png"), "what is it?", max_new_tokens=8)
    maps = {"segmentation": found.segmentation, "predicted_depth": found.predicted_depth}
    logits = {f"logits.{task}": logits.float() for task, logits in found.logits.items()}
    return {**maps, **logits, "answer": torch.tensor(list(answer.encode()), dtype=torch.uint8)}


def write(folder: Path) -> None:
    from tiny import make_image, make_model, make_processor

    processor = make_processor()
    make_model(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    make_image(30, 50).save(folder / "image.png")
    save_file({name: x.contiguous() for name, x in predict(folder).items()}, folder / "expected.safetensors")


def read(folder: Path, trust_remote_code: bool = False) -> None:
    """Raises an `AssertionError` that names what differs."""
    found, expected = predict(folder, trust_remote_code), load_file(folder / "expected.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = {"rtol": 1e-4, "atol": 1e-4} if value.is_floating_point() else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(found[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--remote", action="store_true", help="read by the code beside the checkpoint")
    args = parser.parse_args()
    if args.remote:
        sys.meta_path.insert(0, Hidden())
    if args.what == "write":
        args.folder.mkdir(parents=True)
        write(args.folder)
    else:
        read(args.folder, trust_remote_code=args.remote)
