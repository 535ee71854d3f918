"""The source texts of published encoders, and those nearest to a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatch

ENOUGH_LIKENESS = 0.7  # of two texts, from 0 to 1

# {size} is replaced by each of the sizes beside it
HUB_FAMILIES = (
    ("facebook/dinov2-{size}", "small base large giant"),
    ("facebook/dinov2-with-registers-{size}", "small base large giant"),
    ("facebook/dinov3-vit{size}-pretrain-lvd1689m", "s16 s16plus b16 l16 h16plus 7b16"),
    ("facebook/dinov3-vit{size}-pretrain-sat493m", "l16"),
    ("facebook/dinov3-convnext-{size}-pretrain-lvd1689m", "tiny small base large"),
    ("google/siglip-base-patch16-{size}", "224 256 384 512 256-multilingual"),
    ("google/siglip-large-patch16-{size}", "256 384"),
    ("google/siglip-so400m-patch14-{size}", "224 384"),
    ("google/siglip2-base-{size}", "patch32-256 patch16-224 patch16-256 patch16-384 patch16-512"),
    ("google/siglip2-large-patch16-{size}", "256 384 512"),
    ("google/siglip2-so400m-{size}", "patch14-224 patch14-384 patch16-256 patch16-384 patch16-512"),
    ("google/siglip2-giant-opt-patch16-{size}", "256 384"),
    ("google/siglip2-{size}-patch16-naflex", "base so400m"),
    ("openai/clip-vit-{size}", "base-patch32 base-patch16 large-patch14 large-patch14-336"),
    (
        "facebook/metaclip-2-worldwide-{size}",
        "s16 m16 b32 b16 l14 huge-quickgelu huge-378 giant giant-378",
    ),
    ("facebook/vit-mae-{size}", "base large huge"),
    ("facebook/ijepa_{size}", "vith14_1k vith14_22k vith16_1k vitg16_22k"),
    ("apple/aimv2-large-patch14-{size}", "224 336 448 native"),
    ("apple/aimv2-{size}-patch14-224", "huge 1B 3B"),
    ("OpenGVLab/InternVL3-{size}-hf", "1B 2B 8B 14B 38B 78B"),
    ("facebook/convnext-{size}", "base-224"),
    ("facebook/convnextv2-{size}", "base-22k-224"),
)


def list_encoders(pattern: str = "*") -> list[str]:
    """Source texts of published encoders that match `pattern` (`*siglip*`), for `load_encoder`.

    The names on the Hub come first, from a list in this file (other models of the same families
    load too), then what the installed timm and open_clip list.
    """
    return [name for name in _known() if fnmatch(name.lower(), pattern.lower())]


def nearest_encoders(text: str, count: int = 3) -> list[str]:
    """The known source texts most like `text`."""
    known = _known()
    near = difflib.get_close_matches(text, known, count, cutoff=ENOUGH_LIKENESS)
    by_last_part = {name.rpartition("/")[2].lower(): name for name in reversed(known)}
    last_part = text.rpartition("/")[2].rpartition(":")[2].lower()
    for name in difflib.get_close_matches(last_part, by_last_part, count, cutoff=ENOUGH_LIKENESS):
        near.append(by_last_part[name])
    return list(dict.fromkeys(near))[:count]


def nearest_encoders_clause(source: str) -> str:
    """`; nearest: x, y` for the end of an error about `source`, or nothing where no known text is
    near or `source` is one of them."""
    text = source.rpartition("untrained:")[2]
    near = nearest_encoders(text)
    if not near or text in near:
        return ""
    return f"; nearest: {', '.join(near)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean x, y?` for the end of an error about `word`, or nothing."""
    near = difflib.get_close_matches(word, list(known), 3)
    return f"; did you mean {', '.join(near)}?" if near else ""


def _known() -> list[str]:
    return hub_names() + _timm_names() + _open_clip_names()


def hub_names() -> list[str]:
    """The source texts of the models on the Hub that this file lists."""
    names = []
    for pattern, sizes in HUB_FAMILIES:
        names += ["hf:" + pattern.format(size=size) for size in sizes.split()]
    return names


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
