"""How long a start takes to look up the names, sizes and times of the files of its data.

    python benchmarks/data_facts.py [FILES]

FILES is their number, 100,000 by default. The files are empty and lie in folders of 1,000, on the
disk of the temporary folder. Their directory entries are in memory, because they have just been
made.
"""

import sys
import tempfile
import time
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from vision_core.files.regular_files import state_of_files

FILES_OF_A_FOLDER = 1000
TIMES = 5


def main() -> None:
    """Make the files, look them up several times, print the seconds of each time."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as root:
        files = []
        for number in range(count):
            name = f"{number // FILES_OF_A_FOLDER:05}/{number:08}.png"
            path = Path(root, name)
            path.parent.mkdir(exist_ok=True)
            path.touch()
            files.append((name, str(path)))
        for _ in range(TIMES):
            began = time.perf_counter()
            state_of_files(files)
            print(f"{count:,} files: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
