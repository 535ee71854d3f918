#!/usr/bin/env bash
# transformers 5.24.0: a Trainer that resumes takes learning rate and weight decay from the checkpoint, not from its arguments.
#
# One would guess: trainer.train(resume_from_checkpoint=...) goes on with the TrainingArguments that it was given, so a
#   smaller learning_rate, which is what one tries after a run that got worse, or another weight_decay holds from there on.
# What happens: optimizer.pt brings the param groups with their weight_decay, and scheduler.pt its base_lrs. The given
#   values are in trainer.args, are logged nowhere as unused, and no warning is printed.
# Whom it hurts: everybody who stops a run that diverges and resumes it more carefully: it diverges again, at the old rate.
# Way round: after the states are loaded, put the rates back into scheduler.base_lrs and the options into the param groups.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q uv
"$work/venv/bin/uv" pip install -q --python "$work/venv/bin/python" transformers==5.24.0 torch==2.15.0 accelerate==1.15.0
"$work/venv/bin/python" - "$work/run" 2>"$work/warnings" <<'PY'
import sys

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return {"loss": (x @ self.weight).square().mean()}


class Look(TrainerCallback):
    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        if state.global_step == 2:
            group = optimizer.param_groups[0]
            self.seen = group["lr"], group["weight_decay"]


def train(rate, decay, checkpoint=None):
    options = {"lr_scheduler_type": "constant", "max_steps": 4, "save_steps": 2, "use_cpu": True, "report_to": "none"}
    args = TrainingArguments(sys.argv[1], learning_rate=rate, weight_decay=decay, disable_tqdm=True, **options)
    look = Look()
    trainer = Trainer(Line(), args, train_dataset=[{"x": torch.ones(4)}] * 32, callbacks=[look])
    trainer.train(resume_from_checkpoint=checkpoint)
    return look.seen


train(1e-3, 0.1)
seen = train(1e-5, 0.0, f"{sys.argv[1]}/checkpoint-2")
print("given:  learning_rate 1e-05, weight_decay 0.0")
print(f"used:   learning_rate {seen[0]:g}, weight_decay {seen[1]}")
sys.exit(0 if seen == (1e-3, 0.1) else "the arguments hold for a resumed run: this finding is over")
PY
echo "lines of warning that name either: $(grep -ciE 'learning.?rate|weight.?decay' "$work/warnings" || true)"
# Seen (2026-11-29):
# given:  learning_rate 1e-05, weight_decay 0.0
# used:   learning_rate 0.001, weight_decay 0.1
# lines of warning that name either: 0
