"""lmms-eval asks a fused model: what its tasks say is understood, and its own command gets the
answers that this project gives.

The tests that run lmms-eval are skipped where it is missing; `pip install -e ".[lmms]"` brings it,
with some 80 packages.
"""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fusion import assemble_vlm, fuse_encoders
from fusion.evaluation.answers import replies
from fusion.evaluation.lmms_eval_requests import pixels
from fusion.tiny import tiny_language_model
from fusion.training.models import load_model
from fusion.training.small_default import CHAT_TEMPLATE, LANGUAGE_MODEL, ROLES, small_encoders
from tests.fusion.evaluation.pictures import picture
from vision_core.corpus_tokenizer import corpus_tokenizer
from vision_core.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
needs_lmms_eval = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason='lmms-eval is missing: pip install -e ".[lmms]"'
)
QUESTIONS = ["which colour?", "what is in both?", "how many?", "is it red or blue?", "what else?"]
ROUNDS = [2, 1, 3, 2, 1]

UTILS = """
def to_visual(doc):
    return [image.convert("RGB") for image in doc["images"]]

def to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]

def process(doc, results):
    return {"length": len(results[0])}

def to_round(doc, lmms_eval_specific_kwargs=None, previous_output=None, round_idx=None, previous_round_info=None):
    if round_idx is None:
        return doc["question"]
    if round_idx == doc["rounds"]:
        return None, None, True, previous_output, None
    question = f"{previous_output[-1]} what else? {previous_round_info}"
    return to_visual(doc)[:1], question, False, previous_output, round_idx

def mean(items):
    return sum(items) / len(items)
"""
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: {output_type}
doc_to_visual: !function utils.to_visual
doc_to_text: !function utils.{to_text}
doc_to_target: answer
process_results: !function utils.process
generation_kwargs: {{max_new_tokens: 6, temperature: 0, top_p: 1.0, num_beams: 1, do_sample: false{more}}}
lmms_eval_specific_kwargs: {{default: {{}}}}
metric_list:
  - metric: length
    aggregation: !function utils.mean
    higher_is_better: true
"""


def pictures(number):
    """Of question `number`: one, two, or none."""
    return [picture(10 * number + each, (48 + 8 * each, 40)) for each in range((number + 1) % 3)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    vision_model, _ = fuse_encoders(
        small_encoders(2),
        hidden_size=128,
        connector_options={"width": 96, "num_heads": 4, "depth": 2},
        seed=2,
    )
    tokenizer = corpus_tokenizer([*QUESTIONS, "a red dot", "blue", "two", "one"], ROLES, CHAT_TEMPLATE)
    language_model, _ = tiny_language_model("qwen3", 2, tokenizer, **LANGUAGE_MODEL)
    for part in assemble_vlm(vision_model, language_model, tokenizer, num_sva_layers=2, sva_stride=2, seed=2):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fused(model_folder):
    model, processor = load_model(str(model_folder))
    return model.eval(), processor


@pytest.fixture(scope="module")
def tasks(fused, tmp_path_factory):
    """A folder with tasks as lmms-eval reads them, over a table of five questions."""
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageFeature

    folder = tmp_path_factory.mktemp("tasks")
    rows = [
        {"images": pictures(number), "question": question, "answer": 0, "rounds": rounds}
        for number, (question, rounds) in enumerate(zip(QUESTIONS, ROUNDS, strict=True))
    ]
    columns = {"question": Value("string"), "answer": Value("int64"), "rounds": Value("int64")}
    Dataset.from_list(rows, Features(columns | {"images": List(ImageFeature())})).to_parquet(
        folder / "data.parquet"
    )
    (folder / "utils.py").write_text(UTILS)
    stops = f", until: ['{a_stop(own_answers(fused))}', 'never said']"
    for name, output_type, to_text, more in (
        ("small_answers", "generate_until", "to_text", ""),
        ("small_stops", "generate_until", "to_text", stops),
        ("small_rounds", "generate_until_multi_round", "to_round", ""),
    ):
        text = TASK.format(
            name=name, data=folder / "data.parquet", output_type=output_type, to_text=to_text, more=more
        )
        (folder / f"{name}.yaml").write_text(text)
    return folder


def run_lmms_eval(tasks, model_folder, output, names, processes):
    """lmms-eval's command; the samples that it writes, by task, in the order of the documents."""
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "-m",
        "lmms_eval",
    ]
    command = torchrun if processes > 1 else [Path(sys.executable).parent / "lmms-eval"]
    command = [
        *command,
        "--model",
        "fusion_vlm",
        "--model_args",
        f"pretrained={model_folder}",
        "--tasks",
        names,
    ]
    command += ["--include_path", tasks, "--batch_size", "2", "--log_samples", "--output_path", output]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(output.parent / "cache"),
        "ACCELERATE_USE_CPU": "true",
    }
    done = subprocess.run(
        [*map(str, command)], env=environment, cwd=output.parent, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0 and "Error during evaluation" not in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
    samples = {}
    for name in names.split(","):
        (file,) = output.rglob(f"*_samples_{name}.jsonl")
        samples[name] = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
    return samples


def said(samples):
    return [row["filtered_resps"] for row in samples]


def a_stop(texts):
    """A letter in the middle of the answer with the most of them."""
    return next(letter for letter in max(texts, key=lambda text: len(set(text)))[1:] if letter.isalnum())


def answers(model, processor, texts, images, max_new_tokens):
    """Greedy answers to questions behind their images."""
    asked = [
        [{"role": "user", "content": "<image>\n" * len(shown) + text}]
        for text, shown in zip(texts, images, strict=True)
    ]
    flat = [image for shown in images for image in shown]
    return replies(model, processor, asked, flat, max_new_tokens=max_new_tokens, do_sample=False)


def own_answers(fused):
    return answers(
        *fused, QUESTIONS, [[pixels(image) for image in pictures(number)] for number in range(5)], 6
    )


@needs_lmms_eval
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_gets_our_answers(fused, tasks, model_folder, tmp_path, processes):
    samples = run_lmms_eval(
        tasks, model_folder, tmp_path / "out", "small_answers,small_stops,small_rounds", processes=processes
    )
    ours = own_answers(fused)
    assert len(set(ours)) > 1 and said(samples["small_answers"]) == ours
    assert said(samples["small_stops"]) == [text.partition(a_stop(ours))[0].strip() for text in ours] != ours
    assert said(samples["small_rounds"]) == own_rounds(fused)


def own_rounds(fused):
    """The same loop, one question after the other."""
    everything = []
    for number, (question, rounds) in enumerate(zip(QUESTIONS, ROUNDS, strict=True)):
        shown = [pixels(image) for image in pictures(number)]
        given = answers(*fused, [question], [shown], 6)
        for index in range(1, rounds):
            told = None if index == 1 else index - 1
            given += answers(*fused, [f"{given[-1]} what else? {told}"], [shown[:1]], 6)
        everything.append(given)
    return everything


@needs_lmms_eval
def test_the_real_classes(model_folder):
    registry = importlib.import_module("lmms_eval.models.registry_v2").ModelRegistryV2()
    manifest = importlib.import_module("fusion.evaluation.lmms_eval_manifest").manifest()
    registry.register_manifest(manifest)
    chat = registry.get_model_class("fusion_vlm")
    assert (chat.__name__, chat.is_simple) == ("FusionVlm", False)
    with pytest.raises(UserError, match="batch_size=auto"):
        chat.create_from_arg_string(f"pretrained={model_folder}", {"batch_size": "auto"})
    with pytest.raises(UserError, match="holds no model"):
        chat.create_from_arg_string("pretrained=nothing", {"batch_size": "2"})
    lm = chat.create_from_arg_string(
        f"pretrained={model_folder},max_new_tokens=5", {"batch_size": "2", "device": "cpu"}
    )
    assert (lm.batch_size, lm.max_new_tokens, lm.rank, lm.world_size) == (2, 5, 0, 1)
    with pytest.raises(UserError, match="leave it out"):
        lm.loglikelihood([])
    lm.clean()
    assert not hasattr(lm, "model")


@needs_lmms_eval
def test_requests_with_different_options_come_back_in_order(fused, model_folder):
    """Options of one request are not those of another, and a greedy and a drawn answer share no
    batch."""
    adapter = importlib.import_module("fusion.evaluation.lmms_eval_adapter")
    instance = importlib.import_module("lmms_eval.api.instance").Instance
    lm = adapter.FusionVlm(str(model_folder), batch_size=3, device="cpu", max_new_tokens=6)
    lm.task_dict = {"t": {"test": QUESTIONS}}
    options = [{}, {"max_new_tokens": 1}, {}, {"do_sample": True, "temperature": 0.7}, {"max_new_tokens": 1}]
    requests = [
        instance(
            "generate_until",
            ("", asked_of, chosen, number, "t", "test"),
            0,
            {"task": "t", "doc_id": number, "repeats": 1},
        )
        for number, chosen in enumerate(options)
    ]
    given = lm.generate_until(requests)
    long, short = (answers(*fused, QUESTIONS, [[]] * 5, length) for length in (6, 1))
    assert [given[number] for number in (0, 1, 2, 4)] == [long[0], short[1], long[2], short[4]]
    with pytest.raises(ValueError, match="skip_special"):
        lm.generate_until(
            [
                instance(
                    "generate_until",
                    ("", asked_of, {"skip_special": 1}, 0, "t", "test"),
                    0,
                    requests[0].metadata,
                )
            ]
        )


def asked_of(document):
    return [{"role": "user", "content": [{"type": "text", "text": document}]}]


def test_entry_point_names_a_function_that_needs_no_lmms_eval_to_import():
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"][
        "lmms_eval.models"
    ]
    module, name = entry["fusion_vlm"].split(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_replies_to_turns_are_those_of_one_by_one(fused):
    def turns(first, second):
        return [
            {"role": "user", "content": first},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": second},
        ]

    asked = [
        [{"role": "user", "content": "<image>\nwhich <image>\n colour?"}],
        turns("how many?", "what else?"),
        turns("<image>\nhow many?", "<image>\nwhat else?"),
    ]
    images = [pixels(picture(number, (40 + 8 * number, 48))) for number in range(4)]
    together = replies(*fused, asked, images, max_new_tokens=6, do_sample=False)
    alone = [
        replies(*fused, [each], shown, max_new_tokens=6, do_sample=False)[0]
        for each, shown in zip(asked, (images[:2], [], images[2:]), strict=True)
    ]
    assert together == alone and len(set(together)) == 3
