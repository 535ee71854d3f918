"""Read a ZeRO config as DeepSpeed's own reader does, and refuse its unknown keys before the run.

A key that it would leave unread, and a value that it refuses, are one line. DeepSpeed (0.19.8) asks
its file for the keys that it knows and passes over all others, and in a section over unknown ones
whose value is "auto". Which keys it knows its own reader is asked, so that no list of ours gets
old. The reader takes seconds to import: a program comes here behind its first look.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from vision_core.errors import UserError, first_line
from vision_core.spelling import nearest_name
from vision_core.trainer.zero_config import FIXED, OURS, Config, read_config

ZERO = "zero_optimization"
SIZES = (
    "train_batch_size",
    "gradient_accumulation_steps",
)  # which depend on processes that have not joined yet
SMALLEST = {"train_micro_batch_size_per_gpu": 1, ZERO: {"stage": 0}}
READ_ELSEWHERE = ("data_parallel_size",)  # by deepspeed.initialize


def check_names(file: Path, config: Config) -> None:
    """Raises UserError for a key of `file` that DeepSpeed does not know, and for a value that it
    refuses.

    Keys are looked at at the top and in `zero_optimization`. config: that of the file, filled in by
    `zero_config`.
    """
    try:
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    except ImportError as error:
        raise UserError(
            f"--deepspeed needs deepspeed ({first_line(error)}); pip install -e '.[recipes]'"
        ) from None
    written = read_config(file)
    refuse_unknown(file, written, names_deepspeed_asks_for(), "")
    refuse_unknown_in_section(file, written[ZERO], DeepSpeedZeroConfig, ZERO)
    refuse_values(file, config)


def names_deepspeed_asks_for() -> set[str]:
    """The keys that DeepSpeed looks for at the top of a config, and those that `zero_config` has
    something to say about."""
    from deepspeed.runtime.config import DeepSpeedConfig

    asked = AskedConfig(SMALLEST)
    DeepSpeedConfig(asked)
    return asked.names | OURS.keys() | {name.partition(".")[0] for name in FIXED} | set(READ_ELSEWHERE)


def refuse_unknown(file: Path, written: Mapping[str, Any], known: Collection[str], section: str) -> None:
    """Raises UserError for the first key of a section, "" for the top, that is not known."""
    for key in written:
        if key not in known:
            meant = nearest_name(key, known)
            cure = f"did you mean {meant}?" if meant else "take it out of the file"
            where = f" in {section}" if section else ""
            raise UserError(
                f"--deepspeed {file} has a key {key!r}{where}, which DeepSpeed does not know and would not "
                f"read; {cure}"
            )


def refuse_unknown_in_section(file: Path, written: Mapping[str, Any], model: Any, section: str) -> None:
    """The same for a section of which DeepSpeed has a pydantic model, and for the sections in
    it."""
    fields = model.model_fields
    by_name = fields | {field.alias: field for field in fields.values() if field.alias}
    refuse_unknown(file, written, by_name, section)
    for key, value in written.items():
        annotation = by_name[key].annotation
        inner = [kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "model_fields")]
        if inner and isinstance(value, Mapping):
            refuse_unknown_in_section(file, value, inner[0], f"{section}.{key}")


def refuse_values(file: Path, config: Config) -> None:
    """Raises UserError where DeepSpeed's own reader raises, which it does with a traceback behind
    the start of the run."""
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(copy.deepcopy({name: value for name, value in config.items() if name not in SIZES}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or error.title
        raise UserError(
            f"--deepspeed {file} says {where} = {first['input']!r}, which DeepSpeed refuses: {first['msg']}"
        ) from None
    except (DeepSpeedConfigError, AssertionError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"--deepspeed {file} is refused by DeepSpeed: {first_line(error)}") from None


class AskedConfig(dict):
    """A config that keeps the names it is asked for."""

    def __init__(self, values: Mapping[str, Any], names: set[str] | None = None) -> None:
        super().__init__(copy.deepcopy(dict(values)))
        self.names: set[str] = set() if names is None else names

    def __copy__(self) -> AskedConfig:
        return AskedConfig(self, self.names)

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def __getitem__(self, name: str) -> Any:
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def keys(self) -> AskedConfig:
        """Of which DeepSpeed asks whether a name is among them."""
        return self
