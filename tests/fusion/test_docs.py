"""docs/fusion.md, run from top to bottom as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


@pytest.mark.skipif(not DATA.exists(), reason="the photographs of ../shared/data are not here")
def test_the_page_runs(tmp_path):
    blocks = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "docs" / "fusion.md").read_text(encoding="utf-8"), re.DOTALL)
    assert [kind for kind, _ in blocks].count("bash") == 3
    (tmp_path / "commands.sh").write_text("set -e\n" + "".join(code for kind, code in blocks if kind == "bash"))
    (tmp_path / "page.py").write_text("\n".join(code for kind, code in blocks if kind == "python"))
    environment = os.environ | {"DATA": str(DATA), "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for command in (["bash", "commands.sh"], [sys.executable, "page.py"]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count(" -> ") == 4
    assert "trainable params" in done.stdout
    assert Image.open(tmp_path / "shares.png").width > 300
