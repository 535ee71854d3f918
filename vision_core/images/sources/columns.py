"""The columns of a table of images, chosen by the names that the user gives or by the usual ones.
Parquet files and data sets of the hub share these rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from vision_core.errors import UserError
from vision_core.images.annotations import ColumnReader, FileAnnotations, make_annotations
from vision_core.images.source import EncodedImageSource

USUAL_IMAGE = "image"
USUAL_CAPTIONS = ("captions", "caption")
IMAGE_ID = "image_id"
USUAL_COPY_OF = "target_image_id"


@dataclass(frozen=True)
class Columns:
    """The columns of a table.

    where: how messages name the table.
    types: the pyarrow type of every column.
    images: the columns that hold images.
    """

    where: str
    types: dict[str, Any]
    images: list[str]

    def require(self, column: str, option: str) -> None:
        """Raise UserError where there is no such column."""
        if column not in self.types:
            raise UserError(
                f"{self.where} has no column {column!r}; "
                f"name one of {', '.join(self.types)} by ?{option}=COLUMN"
            )

    def main_image(self, wanted: str | None) -> str:
        """The column of the images: the one that is wanted, else `image`, else the only one that
        holds images."""
        if wanted is not None:
            self.require(wanted, "image")
            return wanted
        if USUAL_IMAGE in self.images:
            return USUAL_IMAGE
        if len(self.images) == 1:
            return self.images[0]
        if self.images:
            found = f"columns {', '.join(self.images)} all hold images"
        else:
            found = f"no images in columns {', '.join(self.types)}"
        raise UserError(f"{self.where}: {found}; name one by ?image=COLUMN")

    def image_beside(self, main: str, wanted: str | None, kind: str) -> str | None:
        """A column of masks or depths besides the images: the one that is wanted, else the one
        named `kind`, else None."""
        if wanted is None:
            return kind if kind in self.images and kind != main else None
        self.require(wanted, kind)
        if wanted not in self.images:
            raise UserError(
                f"{self.where}: column {wanted!r} holds no images; name another by ?{kind}=COLUMN"
            )
        return wanted

    def texts(self, wanted: str | None, option: str, *usual: str) -> str | None:
        """A column of texts: the one that is wanted, else the first of the usual names, else
        None."""
        if wanted is None:
            there = (name for name in usual if name in self.types)
            return next((name for name in there if holds_texts(self.types[name])), None)
        self.require(wanted, option)
        if not holds_texts(self.types[wanted]):
            raise UserError(
                f"{self.where}: column {wanted!r} holds neither texts nor lists of texts; name another"
            )
        return wanted


def holds_texts(arrow_type: Any) -> bool:
    """Whether a column of this pyarrow type holds texts, whole numbers (such as ids) or lists of
    them."""
    from pyarrow import types

    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        arrow_type = arrow_type.value_type
    return types.is_string(arrow_type) or types.is_large_string(arrow_type) or types.is_integer(arrow_type)


def annotations_in_columns(
    source: EncodedImageSource,
    columns: Columns,
    main: str,
    wanted: dict[str, str | None],
    options: dict[str, str],
    open_images: Callable[[str], EncodedImageSource],
    read_column: Callable[[str], list],
) -> FileAnnotations | None:
    """Find the annotations in the columns beside the images; nothing is read before it is asked for.

    The usual columns are mask and depth (images), captions or caption (texts or lists of them) and
    target_image_id, which holds the `image_id` from which a picture was made.

    Args:
        main: the column of the images.
        wanted: the columns that the user names for mask, depth, captions and copy_of.
        options: see `make_annotations`.
        open_images: opens a column as images of one channel.
        read_column: reads all values of a column.

    Raises UserError for a column that is not there or holds something else.
    """
    mask = columns.image_beside(main, wanted["mask"], "mask")
    depth = columns.image_beside(main, wanted["depth"], "depth")
    captions = columns.texts(wanted["captions"], "captions", *USUAL_CAPTIONS)
    image_id = columns.texts(None, "image_id", IMAGE_ID)
    copy_of = None
    if image_id or wanted["copy_of"]:
        copy_of = columns.texts(wanted["copy_of"], "copy_of", USUAL_COPY_OF)
    if copy_of and not image_id:
        raise UserError(
            f"{columns.where}: copy_of={copy_of} needs a column image_id with the names that it holds; "
            "add one"
        )

    def reader_of(column: str | None) -> ColumnReader | None:
        return partial(read_column, column) if column else None

    return make_annotations(
        source,
        options,
        masks=open_images(mask) if mask else None,
        depths=open_images(depth) if depth else None,
        captions=reader_of(captions),
        image_ids=reader_of(image_id),
        copy_of=reader_of(copy_of),
    )
