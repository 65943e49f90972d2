"""Train one detector by several processes, each of which reads its own part of the data.

    python examples/deployment/torchrun_fit.py                            # one process
    torchrun --nproc-per-node 2 examples/deployment/torchrun_fit.py       # two of one machine

For several machines see torchrun's further options; the script stays as it is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.callback import ProgressBar
from sklearn.datasets import load_digits
from torch import distributed

from sklearn_g2d import G2DOutlierDetector
from sklearn_g2d.metrics import outlier_roc_auc_score


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="file to keep the detector in")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if distributed.is_torchelastic_launched():
        distributed.init_process_group()  # gloo for tensors on the CPU, nccl for those on GPUs
        rank, n_processes = distributed.get_rank(), distributed.get_world_size()
    else:
        rank, n_processes = 0, 1

    # What is not 9 is normal. Of its first half each process takes every n-th row: a mapped file,
    # or a file for each, would do as well.
    X, digit = load_digits(return_X_y=True)
    normal = X[digit != 9]
    shard = normal[: len(normal) // 2][rank::n_processes]
    detector = G2DOutlierDetector(random_state=args.seed)
    detector.set_callbacks(ProgressBar()).fit(shard)  # the first process alone shows progress

    if rank == 0:
        X_test = np.concatenate([normal[len(normal) // 2 :], X[digit == 9]])
        y_test = np.repeat([1, -1], [len(X_test) - sum(digit == 9), sum(digit == 9)])
        auc = outlier_roc_auc_score(y_test, detector.score_samples(X_test))
        print(f"{n_processes} process(es), {len(shard)} rows in the first: AUC {auc:.4f}")
        if args.output:
            detector.save(args.output)
    if n_processes > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
