"""Opens tables by `datasets`: parquet files, data sets of the Hub, and folders."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vision_core.conversation_kinds import parse_conversations
from vision_core.errors import UserError, first_line
from vision_core.files.regular_files import refuse_special_files, short_names, state_of_files
from vision_core.files.text_files import check_openable
from vision_core.hub import hub_or_cache
from vision_core.images.sources.parquet_footer import check_footers


def open_table(kind: str, where: str, options: Mapping[str, str], streaming: bool = False) -> Any:
    """The `datasets.Dataset`, or `IterableDataset`, of a parquet or hf source. Raises UserError."""
    asks_the_hub = kind == "hf" and not Path(where.partition(":")[0]).is_dir()
    with hub_or_cache(f"hf:{where}") if asks_the_hub else nullcontext():
        return _open_table(kind, where, options, streaming)


def _open_table(kind: str, where: str, options: Mapping[str, str], streaming: bool) -> Any:
    import datasets

    name, _, config = where.partition(":")
    if kind == "parquet":
        for path in glob.glob(where, recursive=True):
            check_openable(path, f"{kind}:{where}: {path}", "name regular files of parquet")
    else:
        refuse_special_files(name, at_any_depth=True)
    try:
        check_footers(where)
        if kind == "parquet":
            return datasets.load_dataset("parquet", data_files=where, split="train", streaming=streaming)
        return datasets.load_dataset(
            name,
            config or None,
            split=options.get("split", "train"),
            revision=options.get("revision"),
            streaming=streaming,
        )
    except UserError:
        raise
    except Exception as error:  # a missing file, name or split raises whatever its reader does
        # `datasets` says that something failed, and its cause says what
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{kind}:{where} cannot be opened ({reason})") from None


def state_of_parquet_files(text: str) -> tuple[str, str] | None:
    """The state of the files on this machine that a parquet source names; None for other sources."""
    kind, where, _ = parse_conversations(text)
    files = sorted(glob.glob(where, recursive=True)) if kind == "parquet" else []
    if not files:
        return None
    return state_of_files(zip(short_names(files), files, strict=True))
