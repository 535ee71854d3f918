import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vision_core.errors import UserError
from vision_core.images.decode import UnreadableImage
from vision_core.images.open_source import open_source
from vision_core.images.sources import parquet as parquet_source


def png(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), value, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def structs(count: int) -> pa.Array:
    return pa.array([{"bytes": png(row), "path": f"{row}.png"} for row in range(count)])


def write(path: Path, row_group_size: int = 3, **columns) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return f"parquet:{path}"


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary()])
def test_plain_bytes(tmp_path: Path, type_) -> None:
    source = open_source(
        write(tmp_path / "x.parquet", picture=pa.array([png(row) for row in range(10)], type=type_))
    )
    assert [int(source[row].image.float().mean()) for row in range(10)] == list(range(10))
    assert source.labels is None and source[0].label is None


def test_files_in_sorted_order_with_names_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "b/part.parquet", image=structs(2))
    write(tmp_path / "a/part.parquet", image=structs(3))
    source = open_source(f"parquet:{tmp_path}/**/*.parquet")
    assert [source.id_of(row) for row in range(5)] == [f"a/part.parquet:{row}" for row in range(3)] + [
        f"b/part.parquet:{row}" for row in range(2)
    ]
    assert [int(source[row].image[0, 0, 0]) for row in range(5)] == [0, 1, 2, 0, 1]
    assert len(open_source(f"parquet:{tmp_path}/a")) == 3


def test_files_above_the_limit_are_read_by_row_group(tmp_path: Path, monkeypatch) -> None:
    text = write(tmp_path / "x.parquet", image=structs(40), row_group_size=2)
    monkeypatch.setattr(parquet_source, "MAX_BYTES_IN_MEMORY", 100)
    source = open_source(text)
    assert not source._row_groups
    order = np.random.default_rng(0).permutation(40)
    assert [int(source[row].image[0, 0, 0]) for row in order] == order.tolist()
    assert len(source._row_groups) == parquet_source.CACHED_ROW_GROUPS


def test_a_row_without_bytes_is_unreadable_and_its_path_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    rows = [{"bytes": None, "path": f"{tmp_path}/secret.png"}, None, {"bytes": png(1), "path": None}]
    source = open_source(write(tmp_path / "x.parquet", image=pa.array(rows)))
    for row in range(2):
        with pytest.raises(UnreadableImage, match="no_bytes"):
            source[row]
    assert int(source[2].image[0, 0, 0]) == 1


def test_columns_by_name(tmp_path: Path) -> None:
    text = write(
        tmp_path / "x.parquet",
        image=structs(4),
        mask=structs(4),
        fine=[3, 2, 1, 0],
        label=[None, 1, 1, 1],
        word=list("abcd"),
    )
    assert open_source(text).knows == {"mask"}
    with pytest.raises(UserError, match=r"columns left, right all hold images; name one by \?image=COLUMN"):
        open_source(write(tmp_path / "two.parquet", left=structs(2), right=structs(2)))
    assert open_source(f"{text}?image=mask").labels is None
    assert open_source(f"{text}?image=mask&label=fine").labels == [3, 2, 1, 0]
    with pytest.raises(UserError, match="'label': 1 of 4 labels are missing"):
        open_source(f"{text}?image=mask&label=label")
    with pytest.raises(UserError, match="'word' holds no whole numbers"):
        open_source(f"{text}?image=mask&label=word")
    with pytest.raises(
        UserError, match="has no column 'masc'; its columns are image, mask, fine, label, word"
    ):
        open_source(f"{text}?image=masc")


def test_labels_that_are_no_numbers_do_not_stop_a_training_without_labels(tmp_path: Path) -> None:
    assert open_source(write(tmp_path / "x.parquet", image=structs(2), label=["cat", "dog"])).labels is None
    assert open_source(write(tmp_path / "y.parquet", image=structs(2), label=[-1, -1])).labels is None
    assert open_source(write(tmp_path / "z.parquet", image=structs(2), label=[True, False])).labels == [1, 0]


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in columns word"):
        open_source(write(tmp_path / "words.parquet", word=["a"]))
    with pytest.raises(UserError, match="0 rows"):
        open_source(write(tmp_path / "empty.parquet", image=structs(1).slice(0, 0)))
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(UserError, match="text.parquet is not a readable parquet file") as caught:
        open_source(f"parquet:{tmp_path}/text.parquet")
    assert "\n" not in str(caught.value)
    write(tmp_path / "mixed/a.parquet", image=structs(1))
    write(tmp_path / "mixed/b.parquet", picture=structs(1))
    with pytest.raises(UserError, match="b.parquet has no column 'image'"):
        open_source(f"parquet:{tmp_path}/mixed/*.parquet")
