"""Processes of torch.distributed that run functions of the tests together, each with its own arguments."""

import contextlib
import datetime
import io
import multiprocessing
import tempfile
import traceback
from pathlib import Path

import torch
from torch import distributed

TIMEOUT = datetime.timedelta(seconds=30)  # of a collective
PATIENCE = 120  # seconds that a function may take


def _packed(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _unpacked(data):
    return torch.load(io.BytesIO(data), weights_only=False)


def start(rank, size, store, timeout=TIMEOUT):
    """Join a group of processes, connected by gloo."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", rank=rank, world_size=size, timeout=timeout, store=distributed.FileStore(store, size)
    )


def _serve(rank, size, store, pipe):
    start(rank, size, store)
    groups = {}
    while True:
        try:
            ranks, function, arguments = pipe.recv()
        except EOFError:
            break
        if ranks not in groups:  # every process makes every group
            groups[ranks] = distributed.new_group(list(ranks), timeout=TIMEOUT)
        if function is None:
            continue
        try:
            answer = True, function(groups[ranks], *_unpacked(arguments))
        except Exception as error:  # for the caller to see
            answer = False, (type(error).__name__, str(error), traceback.format_exc())
        pipe.send_bytes(_packed(answer))
    distributed.destroy_process_group()


class RemoteError(Exception):
    """What a function raised in one of the processes."""

    def __init__(self, rank, kind, message, trace):
        super().__init__(f"on rank {rank}: {kind}: {message}\n{trace}")
        self.kind, self.message = kind, message


class Processes:
    """`size` processes that wait for functions."""

    def __init__(self, size):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._running = [], []
        for rank in range(size):
            here, there = context.Pipe()
            store = str(Path(self._folder.name) / "store")
            process = context.Process(target=_serve, args=(rank, size, store, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._running.append(process)

    def run(self, function, arguments, ranks=None, errors=False):
        """function(group, *arguments[i]) in the i-th of these ranks, all at once; the results, or errors."""
        ranks = tuple(range(len(arguments))) if ranks is None else tuple(ranks)
        for rank, pipe in enumerate(self._pipes):
            mine = rank in ranks
            pipe.send((ranks, function if mine else None, _packed(arguments[ranks.index(rank)]) if mine else None))
        results = []
        for rank in ranks:
            if not self._pipes[rank].poll(PATIENCE):
                raise TimeoutError(f"rank {rank} does not answer")
            fine, value = _unpacked(self._pipes[rank].recv_bytes())
            results.append(value if fine else RemoteError(rank, *value))
        failed = [r for r in results if isinstance(r, RemoteError)]
        if failed and not errors:
            raise failed[0]
        return results

    def close(self):
        for pipe in self._pipes:
            pipe.close()
        for process in self._running:
            process.join(20)
            process.kill()
        with contextlib.suppress(OSError):
            self._folder.cleanup()
