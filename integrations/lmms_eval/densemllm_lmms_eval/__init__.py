# Copyright 2026 The densemllm authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""DenseMLLM in lmms-eval: the model `densemllm`, and tasks that score masks."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """What lmms-eval's registry needs to know of the model; the entry point `lmms_eval.models` names this function."""
    # Not above: lmms-eval reads its entry points while `lmms_eval.models` is being imported.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("densemllm", simple_class_path=f"{__name__}.model.DenseMLLM")


__all__ = ["manifest"]
