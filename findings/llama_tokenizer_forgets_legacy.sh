#!/usr/bin/env bash
# transformers 5.24.0: a saved Llama tokenizer reads texts otherwise than the one in memory.
#
# One would guess: save_pretrained and from_pretrained give a tokenizer that makes the same ids.
# What happens: LlamaTokenizer takes `legacy` as an argument and keeps it as an attribute, but save_pretrained does not
#   write it. The loaded tokenizer has legacy False, which puts no word boundary in front of what follows a special token:
#   behind `<s>` and `</s>`, "a" is another token than before. No warning is printed.
# Whom it hurts: everybody who fine-tunes a model with such a tokenizer (Llama-2 and its descendants say legacy true in
#   their tokenizer_config.json) and saves it beside the model: the saved folder asks with ids that nobody trained.
# Way round: tokenizer.init_kwargs["legacy"] = tokenizer.legacy before saving.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q transformers==5.24.0
"$work/venv/bin/python" - "$work/saved" <<'PY'
import sys

from transformers import AutoTokenizer, LlamaTokenizer

space = "\u2581"
vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, space: 3, "a": 4, "b": 5, f"{space}a": 6}
made = LlamaTokenizer(vocab=vocabulary, merges=[(space, "a")], legacy=True)
made.save_pretrained(sys.argv[1])
loaded = AutoTokenizer.from_pretrained(sys.argv[1])
text = "<s>a b</s>a"
print("made:  ", made.legacy, made.tokenize(text))
print("loaded:", loaded.legacy, loaded.tokenize(text))
same = made.tokenize(text) == loaded.tokenize(text)
sys.exit("the loaded tokenizer reads as the saved one did: this finding is over" if same else 0)
PY
# Seen (2026-11-28):
# made:   True ['<s>', '▁a', '▁', 'b', '</s>', '▁a']
# loaded: False ['<s>', 'a', '▁', 'b', '</s>', 'a']
