"""The stub of a fused model's folder tells a process that imports only transformers which package is
missing.

Without it `AutoProcessor` silently falls back to the folder's tokenizer, and `AutoModel` advises
another version of transformers. With it transformers asks for `trust_remote_code=True`. Then the
stub, which does nothing but import this package, loads the model or names the package.
"""

from __future__ import annotations

import json
from pathlib import Path

from vision_core.runs.checkpoints import write_text_atomically

STUB_FILE = "fusion_stub.py"
STUB = '''\
"""Takes the classes of this checkpoint from the package that has them; there is no other code here.

A program that begins with `import fusion` needs no trust_remote_code, and never reads this file.
"""

try:
    from fusion import (  # noqa: F401
        FusedVisionConfig,
        FusedVisionModel,
        FusionImageProcessor,
        FusionProcessor,
        FusionVlmConfig,
        FusionVlmForConditionalGeneration,
    )
except ImportError as error:
    raise ImportError(
        "this checkpoint needs the package vision-encoder-fusion: "
        "pip install vision-encoder-fusion, then add the line `import fusion`"
    ) from error
'''
# For each model type: the file of its folder -> the Auto class -> the class in the stub.
AUTO_MAPS = {
    "fusion_vlm": {
        "config.json": {
            "AutoConfig": "FusionVlmConfig",
            "AutoModelForImageTextToText": "FusionVlmForConditionalGeneration",
        },
        "processor_config.json": {"AutoProcessor": "FusionProcessor"},
    },
    "fused_vision": {
        "config.json": {"AutoConfig": "FusedVisionConfig", "AutoModel": "FusedVisionModel"},
        "preprocessor_config.json": {"AutoImageProcessor": "FusionImageProcessor"},
    },
}


class ClassesOfAPackage:
    """Base of a class whose code stays in this package.

    transformers would copy the file of the class into every folder that is saved after a stub was
    used. That copy could not be loaded: it imports its neighbours by the names of packages that
    others have on PyPI.
    """

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "") -> None:
        """Do nothing, see the class."""


def write_stub(folder: Path) -> None:
    """Add the stub to a fused model's folder, and the entries by which transformers finds it.

    The folder must be complete. Raises OSError.
    """
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    for name, classes in AUTO_MAPS[model_type].items():
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8"))
        values["auto_map"] = {auto: f"{Path(STUB_FILE).stem}.{each}" for auto, each in classes.items()}
        write_text_atomically(path, json.dumps(values, indent=2) + "\n")
    write_text_atomically(folder / STUB_FILE, STUB)
