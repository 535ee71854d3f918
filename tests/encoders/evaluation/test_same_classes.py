import pytest

from encoders.evaluation.same_classes import classes_problem, numbers_in_bank


@pytest.fixture
def labelled(memory_source):
    def make(labels, names, description):
        source = memory_source([None] * len(labels), labels)
        source.class_names, source.description = names, description
        return source

    return make


def test_classes_are_compared_by_name(labelled):
    queries = labelled([0, 1, 1], ["cat", "dog"], "lab")
    bank = labelled([0, 1, 2, 3], ["bird", "cat", "cow", "dog"], "zoo")
    assert classes_problem(bank, queries) is None and numbers_in_bank(bank, queries) == {0: 1, 1: 3}
    assert (
        classes_problem(queries, bank) == "the queries' classes bird, cow (zoo) are not among cat, dog (lab)"
    )


def test_the_same_numbers_with_other_names_are_other_classes(labelled):
    problem = classes_problem(
        labelled([0, 1], ["2021", "2022"], "raw"), labelled([0, 1], ["cat", "dog"], "lab")
    )
    assert problem == "the queries' classes cat, dog (lab) are not among 2021, 2022 (raw)"


def test_a_name_without_images_is_no_class(labelled):
    names = ["cat", "dog"]
    assert "dog (lab)" in classes_problem(labelled([0, 0], names, "cats"), labelled([0, 1], names, "lab"))
    assert classes_problem(labelled([0, 0], names, "cats"), labelled([0], names, "lab")) is None


def test_numbers_alone_are_compared_as_numbers_and_with_names_not_at_all(labelled):
    assert classes_problem(labelled([0, 1, 2], None, "a"), labelled([2, 0], None, "b")) is None
    assert numbers_in_bank(labelled([0, 1, 2], None, "a"), labelled([2, 0], None, "b")) == {0: 0, 2: 2}
    assert (
        classes_problem(labelled([0, 1], None, "a"), labelled([7], None, "b"))
        == "the queries' classes 7 (b) are not among 0, 1 (a)"
    )
    for pair in (
        (labelled([0], ["cat"], "named"), labelled([0], None, "bare")),
        (labelled([0], None, "bare"), labelled([0], ["cat"], "named")),
    ):
        assert (
            classes_problem(*pair)
            == "named names its classes and bare has numbers alone, which may mean others"
        )
