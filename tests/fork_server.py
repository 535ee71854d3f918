"""Runs scripts in processes forked from this one, which has imported everything: a start costs a tenth of a second instead of ten.

Reads one JSON object a line: {"script", "arguments", "environment", "log"} starts a run and answers its process id, {"poll": id} answers its exit
status, negative for the signal that ended it, or null while it lives. Answers go to the file descriptor that is its argument, for libraries print
while they are imported.
"""

import importlib
import json
import os
import sys

import deepspeed  # noqa: F401  accelerate imports it, and the optimizer torch._dynamo: once here instead of once in every run
import torch
import torch._dynamo  # noqa: F401

from vision_core.errors import run_script

SCRIPTS = (
    "pretrain/dinov2.py", "pretrain/mae.py", "pretrain/siglip.py", "recipes/check_conversations.py", "recipes/convert_flickr8k_vl.py",
    "recipes/evaluate_encoder.py", "recipes/evaluate_vlm.py", "recipes/scenes_report.py", "recipes/sva_align.py", "recipes/sva_sft.py",
)  # fmt: skip


def be_the_script(script: str, arguments: list[str], environment: dict[str, str], log: str) -> None:
    status = 1
    try:
        os.setsid()
        os.environ.update(environment)
        with open(log, "wb") as file, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0), os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        module = imported(script)
        sys.argv = [module.__file__, *arguments]
        run_script(module.main)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def imported(script: str):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def exit_status(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve(orders, answers) -> None:
    torch.set_num_threads(1)  # a process that has run OpenMP threads cannot be forked and run them again
    for line in orders:
        order = json.loads(line)
        answer = exit_status(order["poll"]) if "poll" in order else os.fork() or be_the_script(**order)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    for script in SCRIPTS:
        imported(script)
    serve(sys.stdin, os.fdopen(int(sys.argv[1]), "w"))
