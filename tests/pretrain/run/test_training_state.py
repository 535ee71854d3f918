"""What makes a resumed run another one than it was, in words."""

from pretrain.run.training_state import changed_course, course


def test_a_run_that_goes_on_unchanged_says_nothing():
    assert changed_course(course(0, 64, "scale=4095"), 0, 64, "scale=4095") == []
    older = course(0, 64, "")
    del older["pixel_options"]
    assert changed_course(older, 0, 64, "scale=4095") == []


def test_each_change_is_a_line_with_its_consequence():
    state = course(0, 64, "") | {"cpu_threads": -1, "torch": "1.0"}
    pixels, seed, batch, threads, version = changed_course(state, 1, 32, "scale=4095")
    assert "read with no options and are read with scale=4095: other pixels" in pixels
    assert "seed was 0 and is 1: other images and crops" in seed
    assert "global_batch was 64 and is 32: other images and crops" in batch
    assert "cpu_threads was -1" in threads and threads.endswith("not to the last bit")
    assert "torch was 1.0" in version and version.endswith("not to the last bit")
