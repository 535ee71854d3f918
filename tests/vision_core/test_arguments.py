import random
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

import pytest

from vision_core.arguments import arguments_to_yaml, explicit_keys, field_types, option, parse_arguments
from vision_core.errors import UserError


@dataclass
class Sample:
    dataset: str = option("scenes", "Where the images come from: one string names a source.", "data")
    image_size: int = option(32, "Side of a global crop in pixels.", "data")
    crop_scale: list[float] = option([0.32, 1.0], "Area of a global crop.", "data")
    names: list[str] = option([], "Names.", "data")
    learning_rate: float = option(1e-3, "Peak of the schedule.", "optimization")
    warmup_steps: int = option(10, "", "optimization")
    weight_decay: float = option(0.04, "", "optimization")
    weight_decay_end: float = option(0.4, "", "optimization")
    max_steps: int | None = option(None, "Stop here.", "optimization")
    center_method: Literal["softmax", "sinkhorn"] = option("softmax", "How targets are centered.", "method")
    num_registers: Literal[0, 4] = option(0, "Registers.", "method")
    gather_koleo: bool = option(False, "Over all processes.", "method")
    report_to: list[Literal["tensorboard", "wandb"]] | None = option(None, "Trackers.", "run")
    resume_from_checkpoint: str | None = option(None, "true or a folder.", "run")
    plain_field: int = 3


def yaml_file(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(argv: list[str]) -> str:
    with pytest.raises(UserError) as caught:
        parse_arguments(Sample, argv)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_command_line_wins_over_yaml_wins_over_defaults(tmp_path):
    path = yaml_file(tmp_path, "learning_rate: 5e-4\nwarmup_steps: 20\n")
    for argv in (
        ["--config", path, "--warmup_steps", "30"],
        [path, "--warmup_steps=30"],
        ["--warmup_steps", "30", f"--config={path}"],
    ):
        assert parse_arguments(Sample, argv) == Sample(learning_rate=5e-4, warmup_steps=30)
    assert parse_arguments(Sample, []) == Sample()


def test_sys_argv_is_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["script.py", "--image_size", "64"])
    assert parse_arguments(Sample).image_size == 64


@pytest.mark.parametrize(
    "tokens, name, expected",
    [
        (["--crop_scale", "0.1", "5e-1"], "crop_scale", [0.1, 0.5]),
        (["--crop_scale=0.3"], "crop_scale", [0.3]),
        (["--names", "[]"], "names", []),
        (["--names", "none", "a=b"], "names", ["none", "a=b"]),
        (["--gather_koleo"], "gather_koleo", True),
        (["--gather_koleo", "false"], "gather_koleo", False),
        (["--gather_koleo=True"], "gather_koleo", True),
        (["--max_steps", "none"], "max_steps", None),
        (["--max_steps", "-1"], "max_steps", -1),
        (["--learning_rate", "-1e-3"], "learning_rate", -1e-3),
        (["--num_registers", "4"], "num_registers", 4),
        (["--report_to", "wandb", "tensorboard"], "report_to", ["wandb", "tensorboard"]),
        (["--report_to", "none"], "report_to", None),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint", "true"),
        (["--dataset=hf:x?split=train&image=img"], "dataset", "hf:x?split=train&image=img"),
        (["--dataset", "none"], "dataset", "none"),
    ],
)
def test_command_line_values(tokens, name, expected):
    value = getattr(parse_arguments(Sample, tokens), name)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "line, name, expected",
    [
        ("learning_rate: 5e-4", "learning_rate", 5e-4),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: .inf", "learning_rate", float("inf")),
        ("crop_scale: [1e-1, 1]", "crop_scale", [0.1, 1.0]),
        ("crop_scale:\n- 0.2\n- 0.3", "crop_scale", [0.2, 0.3]),
        ("gather_koleo: yes", "gather_koleo", True),
        ("max_steps: none", "max_steps", None),
        ("max_steps:", "max_steps", None),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", "true"),
        ("resume_from_checkpoint: 'none'", "resume_from_checkpoint", "none"),
        ("resume_from_checkpoint: null", "resume_from_checkpoint", None),
        ("dataset: 2024-01-01", "dataset", "2024-01-01"),
        ("num_registers: 4", "num_registers", 4),
        ("# nothing but a comment", "image_size", 32),
    ],
)
def test_yaml_values(tmp_path, line, name, expected):
    value = getattr(parse_arguments(Sample, [yaml_file(tmp_path, line)]), name)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    "line, parts",
    [
        ("center_method: softmx", ["center_method", "one of softmax, sinkhorn", "'softmx'"]),
        ("image_size: [1, 2]", ["image_size", "an integer", "the list [1, 2]"]),
        ("image_size: true", ["image_size", "an integer", "'true'"]),
        ("image_size: 32.0", ["image_size", "an integer", "'32.0'"]),
        ("image_size:", ["image_size", "an integer", "an empty value"]),
        ("gather_koleo: 1", ["gather_koleo", "true or false", "'1'"]),
        ("learning_rate: fast", ["learning_rate", "a number", "'fast'"]),
        ("learning_rate: .nan", ["learning_rate", "a number"]),
        ("learning_rate: nan", ["learning_rate", "a number"]),
        ("crop_scale: 0.3", ["crop_scale", "a list (each a number)", "'0.3'"]),
        ("crop_scale: [0.1, x]", ["crop_scale", "[0.1, x]"]),
        ("crop_scale: [[0.1]]", ["crop_scale", "a list of lists"]),
        ("dataset: {a: 1}", ["dataset", "text", "a mapping"]),
        ("dataset: ~", ["dataset", "text"]),
        ("max_steps: many", ["max_steps", "an integer or none"]),
        ("image_size: 1\nwarmup_steps: 2\nimage_size: 3", ["line 3", "image_size", "twice"]),
        ("learning_rat: 1", ["line 1", "'learning_rat'", "did you mean learning_rate?"]),
        ("optimizer:\n  learning_rate: 1", ["'optimizer'"]),
        ("? [a]\n: 1", ["key"]),
        ("- image_size", ["key: value"]),
        ("a: [", ["not valid YAML"]),
        ("<<: {image_size: 3}", ["'<<'"]),
    ],
)
def test_yaml_refusals_name_file_key_value_and_type(tmp_path, line, parts):
    message = refusal([yaml_file(tmp_path, line)])
    assert "run.yaml" in message
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    "tokens, parts",
    [
        (["--learning_rat", "0.5"], ["'learning_rat'", "did you mean learning_rate?"]),
        (["--learning-rate", "0.5"], ["did you mean learning_rate?"]),
        (["--zzzz"], ["'zzzz'", "--help"]),
        (["--image_size", "x"], ["--image_size", "an integer", "'x'"]),
        (["--image_size"], ["--image_size", "no value"]),
        (["--image_size", "--gather_koleo"], ["--image_size", "no value"]),
        (["--image_size", "1", "2"], ["unexpected argument '2'"]),
        (["--image_size", "1", "--image_size=2"], ["image_size", "twice"]),
        (["--gather_koleo", "maybe"], ["--gather_koleo", "true or false", "'maybe'"]),
        (["--gather_koleo="], ["--gather_koleo", "true or false"]),
        (["--center_method", "soft"], ["one of softmax, sinkhorn"]),
        (["--crop_scale"], ["a list (each a number)"]),
        (["--image_size", "none"], ["an integer", "'none'"]),
        (["-x", "1"], ["unexpected argument '-x'"]),
        (["data", "--image_size", "1"], ["unexpected argument 'data'"]),
        (["--config"], ["--config"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml", "No such file"]),
        (["a.yaml", "--config", "b.yaml"], ["a.yaml", "b.yaml"]),
    ],
)
def test_command_line_refusals(tokens, parts):
    message = refusal(tokens)
    assert all(part in message for part in parts), message


def test_yaml_that_is_not_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00image")
    assert "UTF-8" in refusal([str(path)])
    assert "cannot be read" in refusal(["--config", str(tmp_path)])


def test_yaml_tags_are_never_followed(tmp_path):
    marker = tmp_path / "made"
    assert "dataset" in refusal(
        [yaml_file(tmp_path, f"dataset: !!python/object/apply:os.system ['touch {marker}']")]
    )
    assert not marker.exists()


@pytest.mark.parametrize("token", ["--local_rank=3", "--local-rank=3"])
def test_launcher_argument_before_the_config(tmp_path, token):
    path = yaml_file(tmp_path, "image_size: 48")
    assert parse_arguments(Sample, [token, path]).image_size == 48


def one_edit(key: str, generator: random.Random) -> str:
    place = generator.randrange(len(key) - 1)
    edits = [
        key[:place] + key[place + 1 :],
        key[:place] + key[place] + key[place:],
        key[:place] + key[place + 1] + key[place] + key[place + 2 :],
    ]
    return generator.choice(edits)


def test_every_misspelt_key_is_refused_on_both_surfaces_with_the_right_suggestion(tmp_path):
    generator, names = random.Random(0), [item.name for item in fields(Sample)]
    trials, right = 0, 0
    for key in names * 4:
        typo = one_edit(key, generator)
        if typo in names:
            continue
        for argv in ([f"--{typo}", "1"], [yaml_file(tmp_path, f"{typo}: 1")]):
            trials += 1
            right += refusal(argv).endswith(f"did you mean {key}?")
    assert trials > 6 * len(names)
    assert right >= 0.9 * trials, f"{right} of {trials}"


@pytest.mark.parametrize(
    "arguments",
    [
        Sample(),
        Sample(
            learning_rate=1e-6, weight_decay=float("inf"), crop_scale=[1e-6, 1e22, -0.0], max_steps=10**12
        ),
        Sample(
            learning_rate=0.1 + 0.2,
            max_steps=None,
            report_to=[],
            names=["none", "true", "5e-4", "", "a, b", "[x]", "~", "1_0"],
        ),
        Sample(
            resume_from_checkpoint="none",
            dataset="None",
            report_to=["wandb"],
            gather_koleo=True,
            num_registers=4,
        ),
        Sample(
            resume_from_checkpoint="",
            dataset="null",
            names=["# no comment", " spaces ", "line\nbreak", "tab\t", "é\u2028", "'\"\\"],
        ),
        Sample(
            dataset="x" * 300 + " y" * 100,
            names=["- a", "k: v", "!!int 3", "&a", "*a", "%", "@", "2024-01-01", "0x10", "1:30"],
        ),
    ],
)
def test_yaml_round_trip(tmp_path, arguments):
    again = parse_arguments(Sample, [yaml_file(tmp_path, arguments_to_yaml(arguments))])
    assert again == arguments
    assert [type(getattr(again, item.name)) for item in fields(Sample)] == [
        type(getattr(arguments, item.name)) for item in fields(Sample)
    ]


def test_random_round_trips(tmp_path):
    generator = random.Random(1)
    alphabet = "none ~-:#'\"[]{}0123.e\\\n,&*!|>%@`é"
    for _ in range(100):
        text = ["".join(generator.choices(alphabet, k=generator.randrange(8))) for _ in range(4)]
        number = generator.uniform(-1, 1) * 10.0 ** generator.randrange(-300, 300)
        arguments = Sample(
            dataset=text[0], names=text[1:3], resume_from_checkpoint=text[3], learning_rate=number
        )
        assert parse_arguments(Sample, [yaml_file(tmp_path, arguments_to_yaml(arguments))]) == arguments


def test_help_shows_groups_types_and_defaults_and_exits_0(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(Sample, ["--image_size", "x", "--help"], "Pretrain an encoder.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    positions = [
        text.index(f"\n{group}:\n") for group in ("data", "optimization", "method", "run", "options")
    ]
    assert positions == sorted(positions)
    assert "Pretrain an encoder." in text
    assert "--learning_rate  a number  (default 0.001)\n      Peak of the schedule." in text
    assert "--crop_scale  a list (each a number)  (default 0.32 1.0)" in text
    assert "--max_steps  an integer or none  (default none)" in text
    assert "--center_method  one of softmax, sinkhorn  (default softmax)" in text
    assert all(f"--{item.name}  " in text for item in fields(Sample))


def test_help_keeps_example_commands_as_code(capsys):
    description = (
        "Fuses encoders.\n\n    python -m fusion.fuse --encoders a b\n"
        "    python -m fusion.fuse --encoders a --grid 24\n\nA longer text\nis one paragraph.\n"
    )
    with pytest.raises(SystemExit):
        parse_arguments(Sample, ["--help"], description)
    text = capsys.readouterr().out
    commands = "    python -m fusion.fuse --encoders a b\n    python -m fusion.fuse --encoders a --grid 24"
    assert f"Fuses encoders.\n\n{commands}\n\nA longer text is one paragraph.\n" in text


def test_list_defaults_are_not_shared():
    first, second = parse_arguments(Sample, []), parse_arguments(Sample, [])
    first.crop_scale.append(2.0)
    assert second.crop_scale == [0.32, 1.0]


def test_explicit_keys(tmp_path):
    path = yaml_file(tmp_path, "image_size: 32")
    assert explicit_keys(Sample, [path, "--gather_koleo"]) == {"image_size", "gather_koleo"}


def test_option_without_a_default_is_required():
    @dataclass
    class Required:
        folder: str = field(metadata={"help": "Where.", "group": ""})

    assert parse_arguments(Required, ["--folder", "x"]).folder == "x"
    with pytest.raises(UserError, match="missing option: --folder"):
        parse_arguments(Required, [])


@pytest.mark.parametrize(
    "kind", [tuple[float, float], dict, Sample, list, int | str, list[list[int]], list[int | None]]
)
def test_types_that_cannot_be_read_are_a_programming_error(kind):
    Wrong = dataclass(type("Wrong", (), {"__annotations__": {"value": kind}}))
    with pytest.raises(TypeError, match="Wrong.value"):
        field_types(Wrong)
