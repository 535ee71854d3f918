"""Write the model card (README.md) of a trained model: how it is loaded, how it was made, what was
measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vision_core.markdown import one_line, table, table_of_records
from vision_core.printable import printable_lines
from vision_core.runs.checkpoints import write_text_atomically

LOADING_SNIPPET = """\
```python
import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.image_utils import load_image  # upright and in colour, as in training

folder = "path/to/this/folder"
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()

inputs = processor(load_image("image.jpg"), return_tensors="pt")
with torch.no_grad():
    tokens = model(**inputs).last_hidden_state  # [1, tokens, width]: the CLS token first, the patches last
```"""


def write_model_card(
    path: Path,
    *,
    title: str,
    summary: str,
    training_command: str,
    data: str,
    results: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    note: str,
    results_command: str = "",
    tags: Sequence[str] = (),
    pipeline_tag: str = "image-feature-extraction",
    loading: str = LOADING_SNIPPET,
    pictures: Mapping[str, str] | None = None,
    library_name: str = "transformers",
) -> None:
    """Write a model card with Hugging Face's front matter to `path` (README.md), atomically; each
    of its lines is printable.

    title, summary, data, note: plain Markdown text; `note` says what was not done or not measured.
    training_command and
    results_command: what a reader types to make the model and the numbers. results: the rows of a
    table, its columns taken from the rows in order of appearance; without rows the card says that
    nothing was measured. settings: name -> value. loading: a Markdown code block. pictures: caption
    -> path relative to the card. library_name: what loads the model, as the Hub names it. Raises
    OSError when the file cannot be written.
    """
    measured = table_of_records(results) if results else "Nothing was measured."
    if results and results_command:
        measured += f"\n\nThese numbers come from\n\n{_code(results_command)}"
    images = [f"![{caption}]({place})" for caption, place in (pictures or {}).items()]
    sections = [
        _front_matter(library_name, pipeline_tag, tags) + f"\n# {one_line(title)}",
        summary.strip(),
        *images,
        f"## Use\n\n{loading.strip()}",
        f"## Results\n\n{measured}",
        f"## Training\n\n{_code(training_command)}",
        table(("setting", "value"), settings.items()) if settings else "",
        f"## Data\n\n{data.strip()}",
        f"## Limits\n\n{note.strip()}",
    ]
    text = printable_lines("\n\n".join(section for section in sections if section))
    write_text_atomically(path, text + "\n")


def _front_matter(library_name: str, pipeline_tag: str, tags: Sequence[str]) -> str:
    fields = {"library_name": library_name, "pipeline_tag": pipeline_tag, "tags": list(tags)}
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---\n"


def _code(command: str) -> str:
    within = command.strip().replace("```", "'''")  # a name in it must not end the block
    return f"```bash\n{within}\n```"
