"""Runs scripts or code in processes forked from this one, which has imported everything: a start
costs a tenth of a second instead of ten.

Its first argument is what it imports: "scripts" and all that they need, or "libraries" and nothing
of this project, for code that users copy. Reads one JSON object a line: {"kind", "what",
"arguments", "path", "environment", "folder", "log"} starts a run (`run` says of which kinds) and
answers its process id, {"poll": id} answers its exit status, negative for the signal that ended it,
or null while it lives. Answers go to the file descriptor that is its second argument, for libraries
print while they are imported.
"""

import importlib
import json
import os
import runpy
import sys

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SCRIPTS = (
    "fusion/convert_cambrian.py",
    "fusion/fuse.py",
    "pretrain/data_stats.py",
    "pretrain/dinov2.py",
    "pretrain/mae.py",
    "pretrain/siglip.py",
    "recipes/check_conversations.py",
    "recipes/compare_encoders.py",
    "recipes/convert_flickr8k_vl.py",
    "recipes/evaluate_encoder.py",
    "recipes/evaluate_vlm.py",
    "recipes/scenes_report.py",
    "recipes/small_language_model.py",
    "recipes/sva_align.py",
    "recipes/sva_sft.py",
)


def be_the_run(
    kind: str, what: str, arguments: list[str], path: str, environment: dict[str, str], folder: str, log: str
) -> None:
    status = 1
    try:
        os.setsid()
        with open(log, "wb") as file, open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0), os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.chdir(folder)
        os.environ.update(environment)
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        run(kind, what, arguments, path)
        status = 0
    except (
        SystemExit
    ) as end:  # as Python ends: a number is the status, nothing is 0, anything else is printed
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def run(kind: str, what: str, arguments: list[str], path: str) -> None:
    """A `script`, one of SCRIPTS; a `file`, as `python file`; or `code`, as `python -c code`. path:
    what comes first on sys.path for the latter two."""
    if kind == "script":
        from vision_core.errors import run_script

        assert what in SCRIPTS, f"{what} is not among the SCRIPTS of {__file__}"
        module = imported(what)
        sys.argv = [module.__file__, *arguments]
        run_script(module.main)
        return
    sys.path[0] = path
    if kind == "file":
        sys.argv = [what, *arguments]
        runpy.run_path(what, run_name="__main__")
    else:
        sys.argv = ["-c", *arguments]
        exec(what, {"__name__": "__main__"})


def imported(script: str):
    return importlib.import_module(script.removesuffix(".py").replace("/", "."))


def import_first(which: str) -> None:
    if which == "scripts":
        import deepspeed  # noqa: F401  accelerate imports it, and the optimizer torch._dynamo: once here instead of once in every run
        import torch._dynamo  # noqa: F401

        for script in SCRIPTS:
            imported(script)
    else:
        for library in (
            "accelerate",
            "datasets",
            "matplotlib.pyplot",
            "open_clip",
            "sklearn",
            "timm",
            "transformers",
        ):
            importlib.import_module(library)
        from transformers import (  # noqa: F401
            AutoImageProcessor,
            AutoModel,
            AutoModelForImageTextToText,
            AutoProcessor,
            Trainer,
        )


def exit_status(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def serve(orders, answers) -> None:
    torch.set_num_threads(1)  # a process that has run OpenMP threads cannot be forked and run them again
    for line in orders:
        order = json.loads(line)
        answer = exit_status(order["poll"]) if "poll" in order else os.fork() or be_the_run(**order)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    import_first(sys.argv[1])
    serve(sys.stdin, os.fdopen(int(sys.argv[2]), "w"))
