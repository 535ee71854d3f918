"""When a part of a run is due."""

from pretrain.run.due import Every


def test_the_last_step_is_due_however_the_run_is_divided():
    every = Every(4, last_step=10)
    assert [step for step in range(1, 11) if every.is_due(step)] == [4, 8, 10]
    assert [step for step in range(1, 4) if Every(100, last_step=3).is_due(step)] == [3]
