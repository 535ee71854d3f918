"""Show the two collapses of DINO: without centering few prototypes take all images, without
sharpening all images get the same targets.

    python benchmarks/collapse.py --output_dir outputs/collapse

trains short runs on the embedded scenes with the DINO loss alone (no KoLeo, no iBOT): with centering
and sharpening, with one of them, with neither (Caron et al. 2021, sec. 5.3 and figure 7), and two
with other mistakes. It prints a table of the last health figures with the step of each alarm, and
writes collapse.png. A run that has finished in its folder is not trained again.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

from PIL import Image

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from encoders.pictures.curves import curve_picture
from encoders.pictures.sheets import contact_sheet
from vision_core import markdown

ROOT = Path(__file__).resolve().parents[1]
NUM_PROTOTYPES = 1024
COMMON = {
    "eval_dataset": "none",
    "koleo_loss_weight": 0,
    "ibot_loss_weight": 0,
    "centering": "softmax",
    "num_prototypes": NUM_PROTOTYPES,
    "per_device_train_batch_size": 32,
    "learning_rate": 4e-4,
    "ema_momentum": 0.99,
    "center_momentum": 0.5,
    "grayscale_probability": 0.2,
    "warmup_steps": 20,
    "logging_steps": 10,
    "health_steps": 10,
    "save_steps": 1000,
    "save_total_limit": 1,
}
NO_CENTERING = {"center_momentum": 1.0}  # the center stays 0
NO_SHARPENING = {"teacher_temp": 0.1, "warmup_teacher_temp": 0.1}  # the student's own temperature
RUNS = {
    "both": {},
    "sharpening only": NO_CENTERING,
    "centering only": NO_SHARPENING,
    "none": NO_CENTERING | NO_SHARPENING,
    "learning rate x 40": {"learning_rate": 1.6e-2},
    "teacher frozen": {"ema_momentum": 1.0},
}
COLUMNS = (
    "dino_loss",
    "teacher_entropy",
    "information",
    "prototypes_in_use",
    "feature_spread",
    "feature_cosine",
    "rankme",
)

Checks = dict[str, list[dict]]  # name of a run: its lines with health figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/collapse"))
    parser.add_argument("--max_steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    checks = {}
    for name, options in RUNS.items():
        folder = args.output_dir / f"{name.replace(' ', '_')}_{args.max_steps}_steps_seed_{args.seed}"
        if not (folder / "figures").is_dir():  # written last
            train(folder, options | {"max_steps": args.max_steps, "seed": args.seed})
        checks[name] = read_checks(folder)
    print(table(checks))
    picture = args.output_dir / "collapse.png"
    draw_curves(checks).save(picture)
    print(f"picture: {picture}")


def train(folder: Path, options: dict) -> None:
    """Train one run of the script, as a user starts it."""
    command = [sys.executable, str(ROOT / "pretrain" / "dinov2.py"), "--output_dir", str(folder)]
    for name, value in (COMMON | options).items():
        command += [f"--{name}", str(value)]
    subprocess.run(command, check=True)


def read_checks(folder: Path) -> list[dict]:
    """Read the lines of metrics.jsonl that hold health figures."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "health_rankme" in line]


def draw_curves(checks: Checks) -> Image.Image:
    loss = curve_picture(curves(checks, "dino_loss"), "DINO loss", "nats", {"ln K": math.log(NUM_PROTOTYPES)})
    in_use = curve_picture(
        curves(checks, "prototypes_in_use"), "Prototypes in use", "share of the greatest value"
    )
    information = curve_picture(
        curves(checks, "information"), "Information of the targets about the image", "nats"
    )
    cosine = curve_picture(curves(checks, "feature_cosine"), "Cosine of two images' features", "mean")
    return contact_sheet([[loss, in_use], [information, cosine]])


def curves(checks: Checks, name: str) -> dict[str, tuple[list[int], list[float]]]:
    """One figure of every run, as run -> (steps, values)."""
    of_runs = {}
    for run, lines in checks.items():
        steps = [line["step"] for line in lines]
        of_runs[run] = (steps, [line[f"health_{name}"] for line in lines])
    return of_runs


def table(checks: Checks) -> str:
    """Markdown: the last figures of every run, and what was flagged when."""
    rows = []
    for name, lines in checks.items():
        values = [f"{lines[-1][f'health_{column}']:.3f}" for column in COLUMNS]
        rows.append([name, *values, alarms_in_words(lines) or "none"])
    return markdown.table(("run", *COLUMNS, "alarms (step)"), rows)


def alarms_in_words(lines: list[dict]) -> str:
    """The alarms of a run's health figures, each with its step."""
    alarms = []
    for line in lines:
        for alarm in line.get("alarms", []):
            alarms.append(f"{alarm} ({line['step']})")
    return ", ".join(alarms)


if __name__ == "__main__":
    main()
