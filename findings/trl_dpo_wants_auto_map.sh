#!/usr/bin/env bash
# TRL 1.16.0: DPOTrainer refuses a registered model class that is not one of transformers' own.
#
# One would guess: a model that AutoConfig.register and AutoModelForCausalLM.register make known, and that AutoModelForCausalLM
#   loads, trains under DPOTrainer as it does under SFTTrainer.
# What happens: DPOTrainer makes its reference model by itself. For a class that is no attribute of the package transformers it
#   reads `config.auto_map`, which only configs of remote code have, and ends with an AttributeError before the first step.
#   GRPOTrainer does the same where beta is above 0.
# Whom it hurts: projects that keep their model classes in a package of their own instead of in checkpoints as remote code.
# Way round: a class attribute `auto_map = {}` on the config, beside the registration with AutoModelForCausalLM.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q uv
"$work/venv/bin/uv" pip install -q --python "$work/venv/bin/python" trl==1.16.0 transformers==5.24.0 torch==2.15.0
"$work/venv/bin/python" - "$work/model" 2>"$work/bars" <<'PY'
import sys

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig


AutoConfig.register("own", OwnConfig)
AutoModelForCausalLM.register(OwnConfig, OwnForCausalLM)
alphabet = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
bytes_alone = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_alone, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
OwnForCausalLM(OwnConfig(vocab_size=len(alphabet), **sizes)).save_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("loaded by AutoModelForCausalLM:", type(model).__name__)
pairs = Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]})
options = DPOConfig(output_dir=sys.argv[1] + "_dpo", use_cpu=True, bf16=False, max_steps=1, report_to="none")
try:
    DPOTrainer(model=model, args=options, train_dataset=pairs, processing_class=tokenizer)
except AttributeError as error:
    print("DPOTrainer: AttributeError:", error)
    sys.exit(0)
sys.exit("DPOTrainer takes the model: this finding is over")
PY
# Seen (2026-11-28):
# loaded by AutoModelForCausalLM: OwnForCausalLM
# DPOTrainer: AttributeError: 'OwnConfig' object has no attribute 'auto_map'
