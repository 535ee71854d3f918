"""Which answer of a conversation a task asks for."""

import json

from fusion.conversations.sources import open_conversations
from fusion.evaluation.tasks import questions_of


def test_an_answer_that_is_not_learnt_is_not_graded(tmp_path):
    turns = [("human", "a?"), ("gpt", "shown"), ("human", "b?"), ("gpt", "learnt")]
    row = {
        "conversations": [
            {"from": who, "value": text, **({"weight": 0} if text == "shown" else {})} for who, text in turns
        ]
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    (question,) = questions_of(open_conversations(f"llava:{tmp_path / 'rows.jsonl'}"))
    assert question.expected == ("learnt",) and len(question.turns) == 3
