"""How long weighted k-NN takes: 40,000 x 384 features searched by 8,000 queries, all published
values of k at once, beside faiss where it is installed.

    python benchmarks/knn_speed.py
"""

import sys
import time
from pathlib import Path

# A script's own folder is first on sys.path; the packages lie beside it.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch.nn import functional as F

from encoders.evaluation.knn import PUBLISHED_KS, knn_accuracies

BANK = 40_000
QUERIES = 8_000
WIDTH = 384
CLASSES = 10


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(BANK, WIDTH, generator=generator)
    queries = torch.randn(QUERIES, WIDTH, generator=generator)
    labels = torch.arange(BANK) % CLASSES
    query_labels = torch.arange(QUERIES) % CLASSES
    start = time.perf_counter()
    knn_accuracies(bank, labels, queries, query_labels)
    seconds = time.perf_counter() - start
    print(
        f"encoders.evaluation.knn: {seconds:.1f} s for k = {', '.join(map(str, PUBLISHED_KS))}, "
        f"{torch.get_num_threads()} threads"
    )
    try:
        import faiss
    except ImportError:
        print("faiss is not installed")
        return
    start = time.perf_counter()
    index = faiss.IndexFlatIP(WIDTH)
    index.add(F.normalize(bank, dim=1).numpy())
    index.search(F.normalize(queries, dim=1).numpy(), max(PUBLISHED_KS))
    print(f"faiss IndexFlatIP, neighbours alone: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
