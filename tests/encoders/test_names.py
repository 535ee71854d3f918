import sys

import open_clip
import pytest
import timm

from encoders.names import hub_names, list_encoders, nearest, nearest_encoders


def test_every_kind_is_listed_once():
    names = list_encoders()
    assert len(names) == len(set(names))
    assert {name.partition(":")[0] for name in names} == {"hf", "timm", "open_clip"}
    assert {f"timm:{name}" for name in timm.list_pretrained()} <= set(names)
    assert {f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained()} <= set(names)


def test_hub_names_have_an_owner():
    assert all(name.count("/") == 1 and " " not in name for name in hub_names())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("hf:facebook/dinov2-*", "hf:facebook/dinov2-with-registers-large"),
        ("*SIGLIP2*naflex", "hf:google/siglip2-so400m-patch16-naflex"),
        ("timm:*mae", "timm:vit_base_patch16_224.mae"),
        ("open_clip:vit-b-32/*", "open_clip:ViT-B-32/openai"),
        ("*metaclip-2*", "hf:facebook/metaclip-2-worldwide-giant"),
        ("*ijepa*", "hf:facebook/ijepa_vith14_1k"),
        ("*aimv2*native", "hf:apple/aimv2-large-patch14-native"),
        ("*internvl3-1b*", "hf:OpenGVLab/InternVL3-1B-hf"),
    ],
)
def test_patterns(pattern, expected):
    names = list_encoders(pattern)
    assert expected in names and len(names) < len(list_encoders())


def test_a_pattern_that_nothing_matches():
    assert list_encoders("no such thing") == []


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("hf:facebook/dinov2-larg", "hf:facebook/dinov2-large"),
        ("dinov2-large", "hf:facebook/dinov2-large"),
        ("timm:vit_base_patch16_224.maee", "timm:vit_base_patch16_224.mae"),
        ("open_clip:ViT-B-32/openia", "open_clip:ViT-B-32/openai"),
    ],
)
def test_the_nearest_name(text, first):
    assert nearest_encoders(text)[0] == first and len(nearest_encoders(text, 2)) <= 2


def test_nothing_is_near():
    assert nearest_encoders("zzzzzzzzzz") == [] and nearest("zzzz", ["vit"]) == ""
    assert nearest("vitt", ["vit", "convnext"]) == "; did you mean vit?"


@pytest.mark.parametrize("absent", ["timm", "open_clip"])
def test_what_is_not_installed_is_not_listed(absent, monkeypatch):
    monkeypatch.setitem(sys.modules, absent, None)
    kinds = {name.partition(":")[0] for name in list_encoders()}
    assert kinds == {"hf", "timm", "open_clip"} - {absent}
