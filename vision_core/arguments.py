"""Read the options of a script, strictly: defaults, then a YAML file, then the command line.

Options are the fields of a flat dataclass. Both surfaces are read as text and converted by one
function, so that `5e-4`, a number to people and a string to YAML 1.1, means the same in a file and
on the command line.
"""

import dataclasses
import math
import re
import sys
import textwrap
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from vision_core.errors import UserError
from vision_core.files.text_files import MAX_YAML_BYTES, read_text, yaml_node
from vision_core.printable import shortened
from vision_core.renamed_options import PROGRAM_LINE, nodes_by_present_names
from vision_core.spelling import cure_for

T = TypeVar("T")
TRUTH_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
INFINITY_WORDS = {".inf": "inf", "+.inf": "inf", "-.inf": "-inf"}  # as YAML writes them
SCALAR_NAMES = {int: "an integer", float: "a number", str: "text", bool: "true or false"}
SHOWN_OF_A_VALUE = 100  # characters, in a message
NULL_TAG = "tag:yaml.org,2002:null"


def option(default: Any, help: str, group: str = "") -> Any:
    """A dataclass field with its help text and its group in `--help`. A list default is copied for
    each object."""
    metadata = {"help": help, "group": group}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_arguments(
    arguments_type: type[T], argv: list[str] | None = None, description: str = "", program: str = ""
) -> T:
    """Build `arguments_type`, a flat dataclass, from its defaults, a YAML file and the command
    line; later ones win.

    Fields are int, float, str, bool, Literal, a list of those, or one of these `| None`. The file
    is named by `--config x.yaml` or by a first argument that ends in .yaml or .yml. On the command
    line: `--key value`, `--key=value`, `--key a b c` for lists (`--key []` is the empty one),
    `--flag` or `--flag false`, `none` for None. `--help` prints the options and exits with status
    0; program: how it names the program, by default by its file.

    Raises UserError for an unknown or repeated key, a value of another type, a missing value, or a
    file that cannot be read.
    """
    argv = _without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    hints = field_types(arguments_type)
    if "--help" in argv or "-h" in argv:
        print(_help_text(arguments_type, hints, description, program or Path(sys.argv[0]).name))
        raise SystemExit(0)
    values = _given_values(argv, hints)
    missing = [
        field.name
        for field in dataclasses.fields(arguments_type)
        if _is_required(field) and field.name not in values
    ]
    if missing:
        raise UserError(
            f"missing option: --{missing[0]} has no default, it must be given ({describe_type(hints[missing[0]])})"
        )
    return arguments_type(**values)


def explicit_keys(arguments_type: type, argv: list[str] | None = None) -> set[str]:
    """The names of the options that the file or the command line sets, whatever their value."""
    argv = _without_launcher_arguments(sys.argv[1:] if argv is None else argv)
    return set(_given_values(argv, field_types(arguments_type)))


def arguments_to_yaml(arguments: Any) -> str:
    """Every option as YAML, by group; `parse_arguments` reads it back to an equal object."""
    blocks = []
    for group, fields in _fields_by_group(type(arguments)).items():
        lines = {field.name: getattr(arguments, field.name) for field in fields}
        comment = f"# {group}\n" if group else ""
        text = yaml.dump(
            lines,
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=math.inf,
        )
        blocks.append(comment + text)
    return "\n".join(blocks)


def field_types(arguments_type: type) -> dict[str, Any]:
    """Field name -> type. Raises TypeError for a type that the reader does not know, such as a
    tuple or a dict."""
    hints = get_type_hints(arguments_type)
    types_by_name = {field.name: hints[field.name] for field in dataclasses.fields(arguments_type)}
    for name, hint in types_by_name.items():
        kind, _ = _split_optional(hint)
        element = get_args(kind)[0] if get_origin(kind) is list and get_args(kind) else kind
        if element not in SCALAR_NAMES and get_origin(element) is not Literal:
            raise TypeError(
                f"{arguments_type.__name__}.{name}: {hint} is no int, float, str, bool, Literal, list, or one | None"
            )
    return types_by_name


def describe_type(hint: Any) -> str:
    """The type in words: `a number`, `one of softmax, sinkhorn`, `a list (each an integer) or
    none`."""
    kind, is_optional = _split_optional(hint)
    if is_optional:
        return f"{describe_type(kind)} or none"
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is list:
        return f"a list (each {describe_type(get_args(kind)[0])})"
    return SCALAR_NAMES[kind]


def _given_values(argv: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    config_path, argv = _take_config_path(argv)
    values = _read_yaml(config_path, hints) if config_path is not None else {}
    return values | _read_command_line(argv, hints)


def _without_launcher_arguments(argv: list[str]) -> list[str]:
    """DeepSpeed's launcher puts `--local_rank=N` before the user's arguments; LOCAL_RANK says the
    same."""
    return [token for token in argv if not re.fullmatch(r"--local[_-]rank=\d+", token)]


def _take_config_path(argv: list[str]) -> tuple[str | None, list[str]]:
    """Split the YAML file's name from the other arguments."""
    rest = []
    paths = []
    if argv and not argv[0].startswith("-") and argv[0].endswith((".yaml", ".yml")):
        paths = [argv[0]]
        argv = argv[1:]
    position = 0
    while position < len(argv):
        token = argv[position]
        if token == "--config":
            if position + 1 == len(argv) or argv[position + 1].startswith("--"):
                raise UserError("--config: a YAML file must follow")
            position += 1
            paths.append(argv[position])
        elif token.startswith("--config="):
            paths.append(token.removeprefix("--config="))
        else:
            rest.append(token)
        position += 1
    if len(paths) > 1:
        raise UserError(f"two config files are named, {paths[0]} and {paths[1]}: give one")
    return (paths[0] if paths else None), rest


def _read_command_line(argv: list[str], hints: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    position = 0
    while position < len(argv):
        token = argv[position]
        position += 1
        if not token.startswith("--"):
            raise UserError(
                f"unexpected argument {token!r}: options are --key value; a config file comes first and ends in .yaml"
            )
        key, equals, text = token[2:].partition("=")
        _check_key(key, hints, values, where="command line")
        texts = [text]
        if not equals:
            count = _count_values(argv[position:], hints[key])
            texts = argv[position : position + count]
            position += count
        values[key] = _convert_command_line(key, texts, hints[key])
    return values


def _count_values(following: list[str], hint: Any) -> int:
    """How many tokens after `--key` are its values: for a list all up to the next option, for
    others at most one."""
    available = next((i for i, token in enumerate(following) if token.startswith("--")), len(following))
    return available if get_origin(_split_optional(hint)[0]) is list else min(available, 1)


def _convert_command_line(key: str, texts: list[str], hint: Any) -> Any:
    kind, is_optional = _split_optional(hint)
    if not texts and kind is bool:
        return True
    if not texts:
        raise UserError(f"command line: --{key} expects {describe_type(hint)}, but no value follows")
    if is_optional and len(texts) == 1 and texts[0].lower() == "none":
        return None
    try:
        if get_origin(kind) is list:
            return [] if texts == ["[]"] else [_parse_text(text, get_args(kind)[0]) for text in texts]
        return _parse_text(texts[0], kind)
    except (ValueError, KeyError):
        shown = shortened(repr(" ".join(texts)), SHOWN_OF_A_VALUE)
        raise UserError(f"command line: --{key} expects {describe_type(hint)}, not {shown}") from None


def _read_yaml(path: str, hints: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in _yaml_pairs(path):
        where = f"{path} line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise UserError(f"{where}: a key must be the name of an option")
        key = key_node.value
        _check_key(key, hints, values, where)
        try:
            values[key] = _convert_node(value_node, hints[key])
        except (ValueError, KeyError):
            raise UserError(
                f"{where}: {key} expects {describe_type(hints[key])}, not {_show_node(value_node)}"
            ) from None
    return values


def _yaml_pairs(path: str) -> list[tuple[yaml.Node, yaml.Node]]:
    """The key and value nodes of a YAML file. Nothing is constructed: no tag is followed, scalars
    stay as written."""
    name = f"config file {path}"
    cure = "name a YAML file of lines `key: value`"
    text = read_text(path, name, cure, "utf-8-sig", MAX_YAML_BYTES)
    node = yaml_node(text, name)
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"config file {path} must hold lines `key: value`")
    is_of_a_run = text.startswith(PROGRAM_LINE)
    return nodes_by_present_names(node.value) if is_of_a_run else node.value


def _convert_node(node: yaml.Node, hint: Any) -> Any:
    kind, is_optional = _split_optional(hint)
    is_none_word = isinstance(node, yaml.ScalarNode) and node.style is None and node.value.lower() == "none"
    if is_optional and (node.tag == NULL_TAG or is_none_word):
        return None
    if get_origin(kind) is list:
        if not isinstance(node, yaml.SequenceNode):
            raise ValueError
        return [_convert_node(item, get_args(kind)[0]) for item in node.value]
    if not isinstance(node, yaml.ScalarNode) or node.tag == NULL_TAG:
        raise ValueError
    return _parse_text(node.value, kind)


def _show_node(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return "an empty value" if node.tag == NULL_TAG else shortened(repr(node.value), SHOWN_OF_A_VALUE)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return shortened(f"the list [{', '.join(item.value for item in node.value)}]", SHOWN_OF_A_VALUE)
    return "a mapping" if isinstance(node, yaml.MappingNode) else "a list of lists or mappings"


def _parse_text(text: str, kind: Any) -> Any:
    """One scalar from its text. Raises ValueError or KeyError when it is no such thing."""
    if kind is str:
        if (
            "\0" in text
        ):  # no file, model or column has such a name, and what it is given to raises each its own error
            raise ValueError
        return text
    if kind is bool:
        return TRUTH_WORDS[text.lower()]
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[text]
    if kind is int:
        return int(text)
    number = float(INFINITY_WORDS.get(text.lower(), text))
    if math.isnan(number):  # it would pass every later check of a range
        raise ValueError
    return number


def _check_key(key: str, hints: dict[str, Any], values: dict[str, Any], where: str) -> None:
    if key in values:
        raise UserError(f"{where}: {key} is given twice, keep one")
    if key not in hints:
        raise UserError(f"{where}: unknown option {key!r}; {cure_for(key, hints)}")


def _split_optional(hint: Any) -> tuple[Any, bool]:
    """`X | None` -> (X, True); anything else -> (itself, False)."""
    members = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and len(members) == 2 and type(None) in members:
        return next(member for member in members if member is not type(None)), True
    return hint, False


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _fields_by_group(arguments_type: type) -> dict[str, list[dataclasses.Field]]:
    groups: dict[str, list[dataclasses.Field]] = {}
    for field in dataclasses.fields(arguments_type):
        groups.setdefault(field.metadata.get("group", ""), []).append(field)
    return groups


def _help_text(arguments_type: type, hints: dict[str, Any], description: str, program: str) -> str:
    lines = [f"usage: {program} [--config FILE.yaml] [--key value ...]", ""]
    if description:
        lines += [*_wrapped(description), ""]
    for group, fields in _fields_by_group(arguments_type).items():
        lines.append(f"{group or 'options'}:")
        for field in fields:
            lines.append(f"  --{field.name}  {describe_type(hints[field.name])}  {_describe_default(field)}")
            lines += textwrap.wrap(
                field.metadata.get("help", ""), width=110, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
        lines.append("")
    return "\n".join(lines)


def _wrapped(description: str) -> list[str]:
    """The paragraphs of a description in lines of 110 columns. Blocks that are indented, such as
    example commands, stay as they are."""
    lines: list[str] = []
    for paragraph in description.strip().split("\n\n"):
        if lines:
            lines.append("")
        is_code = all(line.startswith("    ") for line in paragraph.splitlines())
        lines += paragraph.splitlines() if is_code else textwrap.wrap(paragraph, width=110)
    return lines


def _describe_default(field: dataclasses.Field) -> str:
    if _is_required(field):
        return "(required)"
    default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
    if isinstance(default, list):
        return f"(default {' '.join(str(item) for item in default) or '[]'})"
    shown = str(default).lower() if isinstance(default, bool) or default is None else str(default)
    return f"(default {shown or repr(default)})"


class _Dumper(yaml.SafeDumper):
    """Lists on one line; the text `none` in quotes, because the reader takes a bare one for
    None."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)
_Dumper.add_implicit_resolver(NULL_TAG, re.compile("none", re.IGNORECASE), list("nN"))
