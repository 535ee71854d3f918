"""The options of both programs fit what `encoders/evaluation` takes."""

from dataclasses import fields
from typing import get_args

from encoders.evaluation.suite import EvaluationSuite
from encoders.evaluation.tasks import TASKS
from recipes.judging_args import (
    ONE_TASK_OF_EACH_KIND,
    CompareArguments,
    EvaluateArguments,
    TaskName,
    compared_tasks,
    suite_options,
)


def test_every_task_can_be_named_and_finds_its_settings():
    assert set(get_args(TaskName)) == set(TASKS)
    settings = suite_options(EvaluateArguments())["task_settings"]
    assert set().union(*(task.settings for task in TASKS.values())) == set(settings)


def test_the_suite_takes_the_options_of_both_programs():
    taken = {field.name for field in fields(EvaluationSuite)} - {"device"}
    for arguments_type in (EvaluateArguments, CompareArguments):
        assert set(suite_options(arguments_type())) == taken


def test_a_comparison_runs_one_task_of_each_kind_by_default():
    assert compared_tasks(CompareArguments()) == ONE_TASK_OF_EACH_KIND
    assert compared_tasks(CompareArguments(tasks=["knn"])) == ["knn"]
