"""One of two processes that train a model whose every forward is random: FOLDER, and the batch with
which the second is told to stop, or -1."""

import os
import signal
import sys

import torch
from torch import nn

from vision_core.errors import run_script
from vision_core.processes.stopping import StopRequest
from vision_core.trainer.options import TrainerOptions
from vision_core.trainer.run_trainer import RunTrainer, open_run, training_arguments

MICRO_BATCHES = 3


class NoisyLine(nn.Module):
    """y = w (x + noise)"""

    def __init__(self, told: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 1))
        self.told, self.batches = told, 0

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.batches == self.told and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        self.batches += 1
        return {"loss": ((x + torch.randn_like(x)) @ self.weight).square().mean()}


def main() -> None:
    folder, told = sys.argv[1], int(sys.argv[2])
    options = TrainerOptions(
        per_device_train_batch_size=1,
        gradient_accumulation_steps=MICRO_BATCHES,
        max_steps=4,
        learning_rate=0.1,
        logging_steps=1,
        output_dir=folder,
        resume_from_checkpoint="auto",
    )
    settings = training_arguments(options, has_eval=False)
    run, settings.output_dir, checkpoint = open_run(options, "line", program="line.py")
    data = [{"x": torch.tensor([float(number)])} for number in range(2 * MICRO_BATCHES * 4)]
    trainer = RunTrainer(NoisyLine(told), settings, train_dataset=data, sampler=range(len(data)), run=run)
    with StopRequest([], grace_seconds=0.0) as stop:
        trainer.train_until_told(stop, checkpoint)


if __name__ == "__main__":
    run_script(main)
