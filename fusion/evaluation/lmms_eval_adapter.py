"""Fused models for lmms-eval, whose tasks are asked of them by chat messages; lmms-eval alone
imports this, by `fusion/evaluation/lmms_eval_manifest.py`.

lmms-eval --model fusion_vlm --model_args pretrained=outputs/sft --tasks mmvp,pope --batch_size 16
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from fusion.evaluation.answers import replies
from fusion.evaluation.lmms_eval_requests import (
    Messages,
    Talk,
    batches,
    generation_options,
    read_messages,
    up_to_a_stop,
)
from fusion.training.models import load_model
from vision_core.errors import UserError


class FusionVlm(lmms):
    """A fused vision-language model that answers the chat messages of lmms-eval's tasks.

    Args:
        pretrained: folder of the model.
        batch_size: questions that are answered at once, a number.
        device: of a single process; several take one each.
        max_batch_size: ignored, as there is no automatic batch size to bound.
        max_new_tokens: of an answer, where the task does not say.
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
            raise UserError(
                f"batch_size={batch_size} is no number of questions; give one, e.g. --batch_size 16"
            )
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        self.accelerator = Accelerator()
        self._rank, self._world_size = (self.accelerator.process_index, self.accelerator.num_processes)
        self.device = torch.device(device) if device and self._world_size == 1 else self.accelerator.device
        model, self.processor = load_model(pretrained)
        self.model = model.to(self.device).eval()

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """An answer to each request, in their order."""
        return self._in_batches(
            requests,
            lambda batch: self._replies(
                [each.args[1](self._document(each)) for each in batch], batch[0].args[2]
            ),
        )

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """The answers to the rounds of each request, in the order of the requests."""
        return self._in_batches(requests, self._rounds)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raises UserError: lmms-eval 0.7.3 makes no chat messages for such tasks, and turns the
        numbers that simple models return into text."""
        raise UserError(
            "a task compares given answers by how likely they are, which cannot be asked of a chat model; leave it out"
        )

    def _document(self, request: Instance) -> Any:
        document, task, split = request.args[-3:]
        return self.task_dict[task][split][document]

    def _rounds(self, requests: list[Instance]) -> list[list[str]]:
        """Several requests side by side, each for as many rounds as its task wants."""
        talks = [Talk(request.args[1], self._document(request)) for request in requests]
        while asked := [talk for talk in talks if talk.messages is not None]:
            for talk, answer in zip(
                asked, self._replies([talk.messages for talk in asked], requests[0].args[2]), strict=True
            ):
                talk.go_on(answer)
        return [talk.answers for talk in talks]

    def _replies(self, asked: Sequence[Messages], options: Mapping[str, Any]) -> list[str]:
        """What the model says to each task's messages, up to the first stop."""
        until, generation = generation_options(options, self.max_new_tokens)
        turns, images = zip(*map(read_messages, asked), strict=True)
        if until:
            generation |= {"stop_strings": until, "tokenizer": self.processor.tokenizer}
        flat = [image for each in images for image in each]
        return [
            up_to_a_stop(text, until)
            for text in replies(self.model, self.processor, turns, flat, **generation)
        ]

    def _in_batches(
        self, requests: list[Instance], answer: Callable[[list[Instance]], list[Any]]
    ) -> list[Any]:
        """The answers in the order of the requests; images are opened batch by batch."""
        given: list[Any] = [None] * len(requests)
        bar = tqdm(total=len(requests), desc="answers", disable=self.rank != 0)
        for numbers in batches([request.args[2] for request in requests], self.batch_size):
            for number, said in zip(numbers, answer([requests[each] for each in numbers]), strict=True):
                given[number] = said
            bar.update(len(numbers))
        bar.close()
        return given
