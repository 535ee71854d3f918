"""Makes a small untrained Qwen3 with a tokenizer of the data's own words, for fused models where no
language model can be downloaded.

    python recipes/small_language_model.py --conversations llava:mine.jsonl --output_dir outputs/language_model
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from vision_core.arguments import option, parse_arguments
from vision_core.runs.work_folder import WorkFolder, check_work, config_of, resume_option
from vision_core.start import look_first

PROGRAM = "recipes/small_language_model.py"
NAME = "language-model"  # of the default folder


@dataclass
class LanguageModelArguments:
    """The options of this program: whose words the tokenizer learns."""

    conversations: list[str] = option(
        ["scenes?count=16000&turns=all"], "sources of texts; docs/fine_tuning.md", "data"
    )
    output_dir: str | None = option(None, "a new folder; default outputs/language-model-<n>", "run")
    resume_from_checkpoint: str | None = resume_option()
    seed: int = option(0, "of the weights", "run")


def check_arguments(args: LanguageModelArguments) -> None:
    """Raises UserError for an output folder that cannot be used."""
    check_work(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)


if __name__ == "__main__":
    look_first(LanguageModelArguments, __doc__, check_arguments)

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fusion.training.small_default import corpus, small_language_model
from vision_core.errors import run_script
from vision_core.printable import say


def main() -> None:
    """Read the conversations, make model and tokenizer, save them."""
    args = parse_arguments(LanguageModelArguments, description=__doc__)
    check_arguments(args)
    model, tokenizer = small_language_model(corpus(args.conversations), args.seed)
    work = WorkFolder.open(args.output_dir, NAME, config_of(args), args.resume_from_checkpoint, PROGRAM)
    work.publish(lambda folder: save(folder, model, tokenizer))
    parameters = sum(each.numel() for each in model.parameters())
    say(f"saved {work.path}: {parameters:,} parameters, {len(tokenizer)} tokens")


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write what transformers loads by the folder's name."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    run_script(main)
