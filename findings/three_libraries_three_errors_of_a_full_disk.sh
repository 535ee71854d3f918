#!/usr/bin/env bash
# tokenizers 0.23.3, safetensors 0.8.0, torch 2.15.0: one save_pretrained can fail on a full disk by three unrelated exceptions, one of them bare.
#
# One would guess: a disk without room is an OSError, as from Python's own files, so that `except OSError` around a save
#   catches it.
# What happens: safetensors raises SafetensorError and torch.save a RuntimeError, neither of which is an OSError, and
#   tokenizers raises `Exception` itself, which nothing but `except Exception` catches. None has an errno.
# Whom it hurts: trainers that mean to survive a full disk and try the next save: the handler is passed over, and which of
#   them ends the run depends on which file was being written when the disk was full.
# Way round: catch all of them around the save, and for tokenizers write its to_str() by Python's own file.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q uv 2>"$work/pip"
"$work/venv/bin/uv" pip install -q --python "$work/venv/bin/python" tokenizers==0.23.3 safetensors==0.8.0 torch==2.15.0 numpy
"$work/venv/bin/python" - "$work" <<'PY'
import resource
import sys

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

folder = sys.argv[1]
tokenizer = Tokenizer(models.BPE(vocab={f"token{number}": number for number in range(20_000)}, merges=[]))
tensors = {"weight": torch.zeros(100_000)}
# a file may have 10,000 bytes, and the write behind them fails, as it does where there is no room
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
saves = {
    "python": lambda: open(f"{folder}/a", "wb").write(bytes(400_000)),
    "safetensors": lambda: save_file(tensors, f"{folder}/b"),
    "torch": lambda: torch.save(tensors, f"{folder}/c"),
    "tokenizers": lambda: tokenizer.save(f"{folder}/d"),
}
found = {}
for name, save in saves.items():
    try:
        save()
    except Exception as error:
        found[name] = type(error)
        print(f"{name:<12} {type(error).__name__:<16} an OSError: {isinstance(error, OSError)}")
bare = found.get("tokenizers") is Exception
others = not any(issubclass(found.get(name, OSError), OSError) for name in ("safetensors", "torch"))
sys.exit(0 if bare and others else "a full disk is one kind of error: this finding is over")
PY
# Seen (2026-11-29):
# python       OSError          an OSError: True
# safetensors  SafetensorError  an OSError: False
# torch        RuntimeError     an OSError: False
# tokenizers   Exception        an OSError: False
