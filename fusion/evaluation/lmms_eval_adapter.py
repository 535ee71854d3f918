"""Runs fused models in lmms-eval, whose tasks are asked of them by chat messages.

    lmms-eval --model fusion_vlm --model_args pretrained=outputs/sft --tasks mmvp,pope --batch_size 16

Only lmms-eval imports this module, by fusion/evaluation/lmms_eval_manifest.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from torch import Tensor
from tqdm import tqdm

from fusion.evaluation.answers import replies
from fusion.evaluation.lmms_eval_requests import (
    Messages,
    MultiRoundRequest,
    batches_of_requests,
    cut_at_first_stop,
    generation_options,
    read_messages,
)
from fusion.training.models import load_model
from vision_core.errors import UserError


class FusionVlm(lmms):
    """A fused vision-language model that answers the chat messages of lmms-eval's tasks.

    Args:
        pretrained: the folder of the model.
        batch_size: how many questions are answered at once.
        device: the device of a single process; several processes take one each.
        max_batch_size: ignored, as there is no automatic batch size to bound.
        max_new_tokens: the longest answer, where the task does not say.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_batch_size: int | None = None,
        max_new_tokens: int = 1024,
    ) -> None:
        super().__init__()
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            cure = "give one, e.g. --batch_size 16"
            raise UserError(f"batch_size={batch_size} is not a number of questions; {cure}")
        self.batch_size = int(batch_size)
        self.max_new_tokens = max_new_tokens
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self.device = self.accelerator.device
        if device and self._world_size == 1:
            self.device = torch.device(device)
        model, self.processor = load_model(pretrained)
        self.model = model.to(self.device).eval()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, in their order."""
        return self._answer_in_batches(requests, self._answer_one_round)

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers to the rounds of each request, in the order of the requests."""
        return self._answer_in_batches(requests, self._answer_all_rounds)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raises UserError: lmms-eval 0.7.3 makes no chat messages for such tasks, and turns the
        numbers that simple models return into text."""
        raise UserError(
            "a task compares given answers by how likely they are, "
            "which cannot be asked of a chat model; leave it out"
        )

    def _document(self, request: Instance) -> Any:
        document, task, split = request.args[-3:]
        return self.task_dict[task][split][document]

    def _answer_one_round(self, requests: list[Instance]) -> list[str]:
        """The answers to requests with the same options."""
        messages = []
        for request in requests:
            to_messages = request.args[1]
            messages.append(to_messages(self._document(request)))
        return self._reply_to(messages, requests[0].args[2])

    def _answer_all_rounds(self, requests: list[Instance]) -> list[list[str]]:
        """Several requests side by side, each for as many rounds as its task wants."""
        dialogues = [MultiRoundRequest(request.args[1], self._document(request)) for request in requests]
        unfinished = [dialogue for dialogue in dialogues if dialogue.messages is not None]
        while unfinished:
            messages = [dialogue.messages for dialogue in unfinished]
            answers = self._reply_to(messages, requests[0].args[2])
            for dialogue, answer in zip(unfinished, answers, strict=True):
                dialogue.add_answer(answer)
            unfinished = [dialogue for dialogue in unfinished if dialogue.messages is not None]
        return [dialogue.answers for dialogue in dialogues]

    def _reply_to(self, asked: Sequence[Messages], options: Mapping[str, Any]) -> list[str]:
        """What the model says to each task's messages, up to the first stop."""
        stops, generation = generation_options(options, self.max_new_tokens)
        if stops:
            generation |= {"stop_strings": stops, "tokenizer": self.processor.tokenizer}
        conversations = []
        images: list[Tensor] = []
        for messages in asked:
            turns, pictures = read_messages(messages)
            conversations.append(turns)
            images += pictures
        texts = replies(self.model, self.processor, conversations, images, **generation)
        return [cut_at_first_stop(text, stops) for text in texts]

    def _answer_in_batches(
        self, requests: list[Instance], answer: Callable[[list[Instance]], list[Any]]
    ) -> list[Any]:
        """The answers in the order of the requests; images are opened batch by batch."""
        answers: list[Any] = [None] * len(requests)
        options = [request.args[2] for request in requests]
        with tqdm(total=len(requests), desc="answers", disable=self.rank != 0) as bar:
            for numbers in batches_of_requests(options, self.batch_size):
                batch = [requests[number] for number in numbers]
                for number, given in zip(numbers, answer(batch), strict=True):
                    answers[number] = given
                bar.update(len(numbers))
        return answers
