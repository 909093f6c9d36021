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
"""A training run that is killed in the middle of writing its second checkpoint. Run by `test_training.py`."""

import os
import signal
import sys

from test_training import make_trainer

from densemllm.training.trainer import DenseTrainer
from tiny import make_processor


class KilledTrainer(DenseTrainer):
    def kill(self, moment):
        if moment == sys.argv[2] and self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    def _save(self, output_dir=None, state_dict=None):
        self.model.save_pretrained(output_dir)  # weights are there, tokenizer and processor are not
        self.kill("weights")
        super()._save(output_dir, state_dict)

    def _save_rng_state(self, output_dir):
        self.kill("optimizer")
        super()._save_rng_state(output_dir)

    def _push_from_checkpoint(self, checkpoint_folder):  # after the last file, before the name
        self.kill("state")


if __name__ == "__main__":
    trainer = make_trainer(sys.argv[1], make_processor())
    trainer.__class__ = KilledTrainer
    trainer.args.push_to_hub = True
    trainer.train()
