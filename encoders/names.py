"""Which published encoders there are, and the nearest ones to a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch

HUB = (
    *(f"facebook/dinov2-{size}" for size in ("small", "base", "large", "giant")),
    *(f"facebook/dinov2-with-registers-{size}" for size in ("small", "base", "large", "giant")),
    *(
        f"facebook/dinov3-vit{size}-pretrain-lvd1689m"
        for size in ("s16", "s16plus", "b16", "l16", "h16plus", "7b16")
    ),
    "facebook/dinov3-vitl16-pretrain-sat493m",
    *(f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m" for size in ("tiny", "small", "base", "large")),
    *(f"google/siglip-base-patch16-{size}" for size in (224, 256, 384, 512)),
    "google/siglip-base-patch16-256-multilingual",
    "google/siglip-large-patch16-256",
    "google/siglip-large-patch16-384",
    "google/siglip-so400m-patch14-224",
    "google/siglip-so400m-patch14-384",
    "google/siglip2-base-patch32-256",
    *(f"google/siglip2-base-patch16-{size}" for size in (224, 256, 384, 512)),
    *(f"google/siglip2-large-patch16-{size}" for size in (256, 384, 512)),
    "google/siglip2-so400m-patch14-224",
    "google/siglip2-so400m-patch14-384",
    *(f"google/siglip2-so400m-patch16-{size}" for size in (256, 384, 512)),
    "google/siglip2-giant-opt-patch16-256",
    "google/siglip2-giant-opt-patch16-384",
    "google/siglip2-base-patch16-naflex",
    "google/siglip2-so400m-patch16-naflex",
    "openai/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336",
    *(f"facebook/metaclip-2-worldwide-{size}" for size in ("s16", "m16", "b32", "b16", "l14")),
    *(
        f"facebook/metaclip-2-worldwide-{size}"
        for size in ("huge-quickgelu", "huge-378", "giant", "giant-378")
    ),
    "facebook/vit-mae-base",
    "facebook/vit-mae-large",
    "facebook/vit-mae-huge",
    "facebook/ijepa_vith14_1k",
    "facebook/ijepa_vith14_22k",
    "facebook/ijepa_vith16_1k",
    "facebook/ijepa_vitg16_22k",
    "apple/aimv2-large-patch14-224",
    "apple/aimv2-large-patch14-336",
    "apple/aimv2-large-patch14-448",
    "apple/aimv2-large-patch14-native",
    "apple/aimv2-huge-patch14-224",
    "apple/aimv2-1B-patch14-224",
    "apple/aimv2-3B-patch14-224",
    *(f"OpenGVLab/InternVL3-{size}-hf" for size in ("1B", "2B", "8B", "14B", "38B", "78B")),
    "facebook/convnext-base-224",
    "facebook/convnextv2-base-22k-224",
)


def list_encoders(pattern: str = "*") -> list[str]:
    """Source texts of published encoders that match `pattern` (`*siglip*`), for `load_encoder`.

    Hub names that this project knows by heart (any other of the same families loads too), then what
    the installed timm and open_clip list.
    """
    return [name for name in _known() if fnmatch(name.lower(), pattern.lower())]


def nearest_encoders(text: str, count: int = 3) -> list[str]:
    """The known source texts most like `text`."""
    known = _known()
    by_last_part = {name.rpartition("/")[2].lower(): name for name in reversed(known)}
    near = difflib.get_close_matches(text, known, count, cutoff=0.7)
    near += [
        by_last_part[name]
        for name in difflib.get_close_matches(
            text.rpartition("/")[2].rpartition(":")[2].lower(), by_last_part, count, cutoff=0.7
        )
    ]
    return list(dict.fromkeys(near))[:count]


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean x, y?` or nothing."""
    near = difflib.get_close_matches(word, list(known), 3)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _known() -> list[str]:
    return [f"hf:{name}" for name in HUB] + _timm_names() + _open_clip_names()


def _timm_names() -> list[str]:
    try:
        import timm
    except ImportError:
        return []
    return [f"timm:{name}" for name in timm.list_pretrained()]


def _open_clip_names() -> list[str]:
    try:
        import open_clip
    except ImportError:
        return []
    return [f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained()]
