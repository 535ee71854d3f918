"""Read the config.yaml of older runs, in which some options still have their former names.

`mixed_precision` (no, bf16, fp16) and `precision` (float32, bfloat16) have become `bf16` and
`fp16`, the option `stream` of a source of conversations has become `streaming`, and others have
the new names below. A person who writes an old name is told the new one (`spelling.py`).
"""

import re
from typing import Any

import yaml

PROGRAM_LINE = "# options of "  # begins the config.yaml that a program writes, and names it
NEW_NAMES = {
    "gradient_checkpointing": "activation_checkpointing",
    "limit": "max_samples",
    "max_test_images": "max_test_samples",
    "max_train_images": "max_train_samples",
    "num_workers": "dataloader_num_workers",
}
OLD_STREAM = re.compile(r"(?<=[?&])stream=")


def by_present_names(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, with those that have been renamed under their new names."""
    present: dict[str, Any] = {}
    for name, value in options.items():
        truths = _precision(name, value)
        if truths:
            present |= truths
        else:
            present[NEW_NAMES.get(name, name)] = _with_streaming(value)
    return present


def nodes_by_present_names(pairs: list[tuple[yaml.Node, yaml.Node]]) -> list[tuple[yaml.Node, yaml.Node]]:
    """The same for the keys and values of a YAML file, whose lines stay known."""
    present = []
    for key, value in pairs:
        truths = _precision(key.value, value.value)
        for name, is_true in truths.items():
            word = str(is_true).lower()
            present.append((_scalar(name, key), _scalar(word, value)))
        if not truths:
            name = NEW_NAMES.get(key.value, key.value) if isinstance(key.value, str) else key.value
            key.value = name
            _stream_nodes(value)
            present.append((key, value))
    return present


def _precision(name: Any, value: Any) -> dict[str, bool]:
    if name == "mixed_precision":
        return {"bf16": value == "bf16", "fp16": value == "fp16"}
    if name == "precision":
        return {"bf16": value == "bfloat16"}
    return {}


def _with_streaming(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_streaming(each) for each in value]
    return OLD_STREAM.sub("streaming=", value) if isinstance(value, str) else value


def _stream_nodes(node: yaml.Node) -> None:
    if isinstance(node, yaml.ScalarNode):
        node.value = _with_streaming(node.value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _stream_nodes(item)


def _scalar(text: str, like: yaml.Node) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, like.start_mark, like.end_mark)
