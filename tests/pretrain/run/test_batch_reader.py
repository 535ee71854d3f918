"""The micro-batches of each step, and a step that is given back."""

from pretrain.batches.order import BatchLayout
from pretrain.batches.stream_places import ReaderPlace, StreamPlaces
from pretrain.run.bad_images import BadImageWatch
from pretrain.run.batch_reader import BatchReader


def batch(number: int) -> dict:
    place = ReaderPlace(0, number, 0, None)
    return {"ids": [str(number)], "bad": [(f"{number}.png", "truncated")] * (number % 2), "place": place}


def reader(places: StreamPlaces) -> BatchReader:
    return BatchReader(
        [batch(number) for number in range(10)],
        2,
        places=places,
        bad_images=BadImageWatch(1.0, None),
        timeout=0,
        count_waiting=lambda seconds: None,
    )


def ids(batches: list[dict]) -> list[str]:
    return [name for each in batches for name in each["ids"]]


def test_a_step_given_back_leaves_no_trace():
    read = reader(StreamPlaces("a stream", BatchLayout(1, 2, 1, 0), 1, 0))
    read.start(needs_one=True)
    assert read.places.state_dict() is None  # the first batch is read, and not yet used
    assert ids(read.next_step()) == ["0", "1"]
    after_one_step = read.places.state_dict()
    assert ids(read.next_step()) == ["2", "3"]
    assert read.places.state_dict() != after_one_step
    read.go_back()
    assert read.places.state_dict() == after_one_step
    read.bad_images.report()
    assert read.bad_images.state_dict() == {"drawn": 3, "bad": 1}


def test_what_a_resumed_run_has_used_before_is_dropped():
    places = StreamPlaces("a stream", BatchLayout(1, 2, 1, 0), 1, 0)
    places.ahead = 3
    read = reader(places)
    read.start(needs_one=True)
    assert ids(read.next_step()) == ["3", "4"]
