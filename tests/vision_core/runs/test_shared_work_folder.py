from vision_core.runs.shared_work_folder import SharedWorkFolder


def test_results_are_published_in_the_folder(tmp_path):
    folder = SharedWorkFolder(
        output_dir=str(tmp_path / "result"),
        name="evaluation",
        config_yaml="seed: 0\n",
        resume=None,
        program="recipes/evaluate_encoder.py",
    )
    assert folder.path == tmp_path / "result" and folder.partial == folder.path / "partial"
    folder.publish(lambda aside: (aside / "table.md").write_text("| a |"))
    assert (folder.path / "table.md").read_text() == "| a |"
