"""The small language model as a command: transformers loads what it leaves, and its tokenizer has
the data's own words."""

import json

from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = "recipes/small_language_model.py"


def test_transformers_loads_it_and_words_of_the_data_are_tokens(runs, tmp_path):
    turns = [{"from": "human", "value": "zebra or quagga?"}, {"from": "gpt", "value": "a quagga"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"conversations": turns}) + "\n" for _ in range(20)))
    folder = tmp_path / "model"
    printed = runs.finish(runs.start(SCRIPT, "--conversations", f"llava:{rows}", "--output_dir", folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parameters = sum(each.numel() for each in model.parameters())
    assert f"saved {folder}: {parameters:,} parameters, {len(tokenizer)} tokens" in printed
    assert len(tokenizer(" quagga", add_special_tokens=False).input_ids) == 1
