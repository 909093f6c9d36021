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

"""What of training is importable from the package itself, and when it is loaded."""

import subprocess
import sys

import pytest

import densemllm


@pytest.mark.parametrize("name", sorted(densemllm.LAZY_NAMES))
def test_lazy_names_are_there(name):
    value = getattr(densemllm, name)
    assert value.__module__ == f"densemllm{densemllm.LAZY_NAMES[name]}" and value.__name__ == name
    assert name in dir(densemllm) and getattr(densemllm, name) is value


def test_other_names_are_not():
    assert not hasattr(densemllm, "DenseNothing")
    with pytest.raises(ImportError, match="DenseNothing"):
        from densemllm import DenseNothing  # noqa: F401


@pytest.mark.slow
def test_predictions_load_nothing_of_it():
    code = (
        "import sys, densemllm; loaded = {'datasets', 'densemllm.training', 'densemllm.formats'} & set(sys.modules); "
        "assert not loaded, loaded; assert 'DenseTrainer' in dir(densemllm); "
        "from densemllm import DenseCollator; assert 'datasets' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-2000:]
