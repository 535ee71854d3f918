import json

from encoders.evaluation.bad_samples import write_bad_samples


def test_each_image_is_named_once_for_all_encoders(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    write_bad_samples(tmp_path, "data", {"train": {}, "test": {}})
    assert not path.exists()
    write_bad_samples(tmp_path, "data", {"train": {"a.png": "truncated"}, "test": {}})
    for _ in range(2):
        write_bad_samples(tmp_path, "data", {"train": {"a.png": "truncated"}, "test": {"a.png": "corrupt"}})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [
        {"id": "a.png", "reason": "truncated", "dataset": "data", "part": "train"},
        {"id": "a.png", "reason": "corrupt", "dataset": "data", "part": "test"},
    ]
