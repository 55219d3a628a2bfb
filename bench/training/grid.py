"""Train a grid of runs in parallel processes, with one progress bar, keeping each result as soon as it is there."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from bench.results import Record, ResultsFile
from bench.training.data import load
from bench.training.dataset import Dataset
from bench.training.training import Run, train

_POLL_SECONDS = 0.2


def train_missing(
    runs: Sequence[Run],
    results: ResultsFile,
    *,
    root: Path | None,
    device: torch.device,
    workers: int,
    threads: int,
    compiled: bool = False,
) -> None:
    """Train every run that `results` does not hold yet and append its record.

    Args:
        runs: the grid, in the order to be trained.
        results: records of earlier runs; the new ones are appended as they finish.
        root: folder of the data set's files.
        device: where to train.
        workers: number of processes that train side by side.
        threads: CPU threads for each of them.
        compiled: compile network and loss.

    Raises:
        KeyboardInterrupt: the user interrupted; finished runs are in `results`.
    """
    done = {Run.of(record) for record in results.records}
    missing = [run for run in runs if run not in done]
    if not missing:
        return
    context = multiprocessing.get_context("spawn")  # a forked child can neither use CUDA nor trust OpenMP's threads
    epochs = context.Value("q", 0)
    stop = context.Event()
    with (
        tqdm(
            total=sum(run.epochs for run in missing), desc="training", unit="epoch", smoothing=0.02, mininterval=0.5
        ) as bar,
        ProcessPoolExecutor(min(workers, len(missing)), context, _start_worker, (epochs, stop, threads)) as pool,
    ):
        pending: set[Future[Record]] = {pool.submit(_train, run, root, device, compiled) for run in missing}
        try:
            while pending:
                finished, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                bar.update(epochs.value - bar.n)
                for future in finished:
                    results.append(future.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


class _GivenUpError(Exception):
    """Ends a run in a worker because the grid is being given up."""


class _Worker:
    epochs: Synchronized[int]
    stop: Event


def _start_worker(epochs: Synchronized[int], stop: Event, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _Worker.epochs, _Worker.stop = epochs, stop


def _end_with_parent() -> None:
    """End a worker whose parent was killed, and so could not tell it to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _after_epoch() -> None:
    if _Worker.stop.is_set():
        raise _GivenUpError
    with _Worker.epochs.get_lock():
        _Worker.epochs.value += 1


@functools.lru_cache(maxsize=1)
def _load(name: str, root: Path | None, seed: int) -> Dataset:
    return load(name, root, seed)


def _train(run: Run, root: Path | None, device: torch.device, compiled: bool) -> Record:
    return train(run, _load(run.data, root, run.seed), device, _after_epoch, compiled=compiled)
