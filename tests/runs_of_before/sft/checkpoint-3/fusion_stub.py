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
        "this checkpoint needs the package vision-encoder-fusion: pip install vision-encoder-fusion, then add the line `import fusion`"
    ) from error
