"""docs/fusion.md, run from top to bottom as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="the photographs of ../shared/data are not here")
def test_the_page_runs(runs, tmp_path):
    blocks = re.findall(
        r"```(bash|python)\n(.*?)```", (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8"), re.DOTALL
    )
    commands = [shlex.split(code.replace("\\\n", " ")) for kind, code in blocks if kind == "bash"]
    for python, option, what, *arguments in commands:
        assert python == "python" and (option == "-c" or what == "fusion.fuse"), (
            "another command; start it here too"
        )
        run = (
            runs.start_plain(what, project=True, folder=tmp_path)
            if option == "-c"
            else runs.start("fusion/fuse.py", *arguments, folder=tmp_path)
        )
        runs.finish(run)
    assert len(commands) == 3
    page = "\n".join(code for kind, code in blocks if kind == "python")
    printed = runs.finish(
        runs.start_plain(page, project=True, environment={"DATA": str(DATA)}, folder=tmp_path)
    )
    assert printed.count(" -> ") == 4
    assert "trainable params" in printed
    assert Image.open(tmp_path / "shares.png").width > 300
