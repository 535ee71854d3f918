"""How long a start takes to look up the names, sizes and times of the files of its data: `python
benchmarks/data_facts.py [FILES]`, 100,000 by default.

The files are empty, in folders of 1,000, on the disk of the temporary folder; their directory
entries are in memory, for they have just been made.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_core.files.regular_files import state_of_files

A_FOLDER, TIMES = 1000, 5


def main() -> None:
    """Make the files, look them up five times, print each time."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as root:
        names = [f"{number // A_FOLDER:05}/{number:08}.png" for number in range(count)]
        for folder in sorted({os.path.dirname(name) for name in names}):
            os.mkdir(os.path.join(root, folder))
        for name in names:
            Path(root, name).touch()
        for _ in range(TIMES):
            began = time.perf_counter()
            state_of_files((name, os.path.join(root, name)) for name in names)
            print(f"{count:,} files: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
