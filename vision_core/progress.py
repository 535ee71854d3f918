"""Show the progress bar of a training loop in 80 columns: steps, time left, learning rate and
loss."""

from __future__ import annotations

import sys

from tqdm import tqdm

from vision_core.printable import printable

FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def step_bar(total: int, first: int, name: str, hidden: bool = False) -> tqdm:
    """From step `first` to `total`. A line is as wide as the terminal, and no wider; what stands
    last is cut first."""
    return tqdm(
        total=total,
        initial=first,
        desc=name,
        unit="step",
        bar_format=FORMAT,
        dynamic_ncols=True,
        disable=hidden,
    )


def say_above(text: str) -> None:
    """A line above the bar, at once: whoever follows a log file wants to see a warning when it is
    said."""
    tqdm.write(printable(text))
    sys.stdout.flush()


def show_loss(bar: tqdm, loss: float, images_per_second: float | None = None) -> None:
    """With the bar's next drawing."""
    rate = "" if images_per_second is None else f", {images_per_second:.0f} img/s"
    bar.set_postfix_str(f"loss {loss:.3f}{rate}", refresh=False)
