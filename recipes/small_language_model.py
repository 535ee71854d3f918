"""A small Qwen3 with a tokenizer of the data's own words, untrained: what fused models are made with where no language model can be downloaded.

python recipes/small_language_model.py --conversations "scenes?count=16000&turns=all" --output_dir outputs/language_model
"""

import sys
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from dataclasses import dataclass

from vision_core.arguments import option, parse_arguments
from vision_core.run_folder import RunFolder, check_folder
from vision_core.start import look_first


@dataclass
class LanguageModelArguments:
    """Whose words the tokenizer learns."""

    conversations: list[str] = option(["scenes?count=16000&turns=all"], "sources of texts; docs/fine_tuning.md", "data")
    output_dir: str | None = option(None, "a new folder; default outputs/language-model-<n>", "run")
    seed: int = option(0, "of the weights", "run")


def check_arguments(args: LanguageModelArguments) -> None:
    """Raises UserError for an output folder that cannot be used."""
    check_folder(args.output_dir, "language-model", can_resume=False)


if __name__ == "__main__":
    look_first(LanguageModelArguments, __doc__, check_arguments)


from recipes.small_default import corpus, small_language_model
from vision_core.arguments import arguments_to_yaml
from vision_core.errors import run_script
from vision_core.printable import say
from vision_core.publishing import published


def main() -> None:
    """Read texts, make both, save."""
    args = parse_arguments(LanguageModelArguments, description=__doc__)
    check_arguments(args)
    model, tokenizer = small_language_model(corpus(args.conversations), args.seed)
    run = RunFolder.open(args.output_dir, "language-model", arguments_to_yaml(args), can_resume=False)
    with published(run.path) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
    say(f"saved {run.path}: {sum(each.numel() for each in model.parameters()):,} parameters, {len(tokenizer)} tokens")


if __name__ == "__main__":
    run_script(main)
