"""Samples that are spread over the processes of a group: the thresholds, loss and projection of all of them together.

The threshold of a class is the root of a sum over its samples. So each process sums over its own shard, the sums are
combined, and every process takes the same step of the same search from the same totals (csrc/shard_search.h): no
logit leaves its process, and all end with the same bits. The gradient of the loss in a shard needs nothing more from
the others: what it takes from them lies in the state that the forward leaves.

Collectives of a call: one that tells every process whether all came with the same arguments (on the CPU in every call;
on a device, where reading it would wait, in the first call with these settings), one or two for the moments, one per
evaluation of the search, one for the loss, and one where a class has no active entry. An evaluation is for all classes
together; there are 3 to 5 for most batches, and at most 256 whatever the logits are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd import Function

from . import _loss_ops, _ops, reference
from ._backends import Backend, backend_of, contiguous
from ._calls import DTYPES, prepared, recall, remember
from ._enumerations import codes
from ._loss_ops import STATE_ROWS

MOMENTS, COUNTS, EDGES, LOSS = codes("ShardStage", "MOMENTS", "COUNTS", "EDGES", "LOSS")
(NO_TARGETS,) = codes("TargetKind", "NONE")
_FEW = 2.0**22  # logits per process up to which an evaluation takes several thresholds of a class at a time
_GATHERED = 2**20  # bytes of all processes up to which their numbers are gathered
_UNSEEN = 4  # evaluations on a device before the host waits to see whether they were enough

# What all processes have to come with, beside tensors that agree in shape as these do.
_FACTS = ("the number of classes", "dtype", "k", "tau", "weight", "settings")


def group_of(group: Any) -> Any:
    """The process group that a user gave, or None."""
    if group is None:
        return None
    if distributed.is_available():
        from torch.distributed.device_mesh import DeviceMesh  # which takes long to import

        if isinstance(group, DeviceMesh):
            if group.ndim != 1:
                raise ValueError(f"group must be a DeviceMesh of one dimension, such as mesh['data'], got {group.ndim}")
            group = group.get_group()
        if group is distributed.GroupMember.NON_GROUP_MEMBER:
            raise ValueError("group must be one that this process belongs to")
        if isinstance(group, distributed.ProcessGroup):
            return group
    raise TypeError(
        f"group must be a process group or a DeviceMesh of torch.distributed, or None, got {type(group).__name__}"
    )


class HeldGroup:
    """The group of a module, or None: copies of the module share it."""

    def __init__(self, group: Any) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> HeldGroup:
        return self

    def __reduce__(self) -> Any:
        if self.group is not None:
            raise TypeError(
                "a module with a group cannot be pickled, as its processes are those of this run: save its state_dict()"
            )
        return HeldGroup, (None,)


class Shards:
    """The processes of a group, and by what they multiply their gradients, for an average over `divisor` processes."""

    def __init__(self, group: Any, divisor: float | None = None) -> None:
        self.group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.divisor = self.size if divisor is None else divisor
        self.samples = 0  # on all processes; known on the CPU, once they agree

    def add(self, t: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        distributed.all_reduce(t, group=self.group)
        return t

    def total(self, t: Tensor) -> Tensor:
        """The same, differentiable: of what all processes do with the sum, in the same way."""
        total: Tensor = _Total.apply(t, self)  # type: ignore[no-untyped-call]
        return total

    @contextlib.contextmanager
    def told(self, input: Any) -> Iterator[None]:
        """Whatever is raised inside is told to the other processes, which then raise as well.

        With logits on CPUs, that is: with others they may not listen, see `agree`.
        """
        try:
            yield
        except Exception:
            if isinstance(input, Tensor) and input.device.type == "cpu":
                self._exchange(torch.zeros(2 + len(_FACTS), dtype=torch.int64), failed=True)
            raise

    def agree(self, x: Tensor, samples: int, *facts: Any) -> None:
        """Raise, on every process, unless all have come here, with the same facts; `samples` are added up."""
        on_cpu = x.device.type == "cpu"
        if not on_cpu:
            facts = tuple(0 if isinstance(f, Tensor) else f for f in facts)
            signature = ("agreed", self.group.group_name, x.device, *facts)
            if recall(signature):
                return
        mine = torch.tensor([0, samples, *map(_number, facts)], dtype=torch.int64)
        everybody = self._exchange(mine.to(x.device))
        failed = [rank for rank, numbers in enumerate(everybody) if numbers[0]]
        if failed:
            raise RuntimeError(f"group: the call has failed on rank {', '.join(map(str, failed))}, see the error there")
        self.samples = sum(numbers[1] for numbers in everybody)
        for i, name in enumerate(_FACTS):
            for rank, numbers in enumerate(everybody):
                if numbers[2 + i] != everybody[0][2 + i]:
                    values = f": {everybody[0][2]} on rank 0, {numbers[2]} on rank {rank}" if i == 0 else ""
                    raise ValueError(f"group: rank 0 and rank {rank} differ in {name}{values}")
        if not on_cpu:
            remember(signature, True)

    def check_mass(self, x: Tensor, k: float | Tensor) -> None:
        """Raise for masses that all samples together do not reach; on the CPU, where it is known how many there are."""
        if x.device.type != "cpu":
            return
        if isinstance(k, Tensor):
            _ops.check_values("k", k, self.samples)
        elif k > self.samples:
            raise ValueError(f"k must lie in [0, {self.samples}], the number of entries on all processes, got {k}")

    def _exchange(self, mine: Tensor, failed: bool = False) -> list[list[int]]:
        """The numbers of all processes."""
        mine[0] = failed
        everybody: list[list[int]] = torch.stack(self._gathered(mine)).tolist()
        return everybody

    def _gathered(self, t: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(t) for _ in range(self.size)]
        distributed.all_gather(parts, t, group=self.group)
        return parts

    def combine(self, sums: Tensor, added: int) -> Tensor:
        """The totals of rows of numbers: the first `added` rows are added up, of the others the greatest is taken.

        All processes get the same bits. Few numbers are gathered and combined by each, which takes less time than an
        all-reduce; more are all-reduced, so that their bytes do not grow with the number of processes.
        """
        if self.size * sums.nbytes <= _GATHERED:
            totals, *others = self._gathered(sums)
            for other in others:  # one by one: in the same order on every processor
                totals[:added] += other[:added]
                torch.maximum(totals[added:], other[added:], out=totals[added:])
            return totals
        ways = (sums[:added], distributed.ReduceOp.SUM), (sums[added:], distributed.ReduceOp.MAX)
        under_way = [
            distributed.all_reduce(part, way, group=self.group, async_op=True) for part, way in ways if len(part)
        ]
        for work in under_way:
            work.wait()
        return sums


def _number(fact: Any) -> int:
    """A number that stands for a fact, the same in every process."""
    if isinstance(fact, Tensor):
        return hash(tuple(fact.flatten().tolist()))
    return 0 if fact is None else hash(fact)


class _Once(Function):
    """A gradient that depends on `x`, and is not differentiated again."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise NotImplementedError("with a group there are no second derivatives")


def _once(grad: Tensor, x: Tensor) -> Tensor:
    """A gradient in `x`; where a graph of it is made, one that raises when it is used."""
    once: Tensor = _Once.apply(grad.detach(), x) if torch.is_grad_enabled() else grad  # type: ignore[no-untyped-call]
    return once


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, t: Tensor, shards: Shards) -> Tensor:
        ctx.divisor = shards.divisor
        return shards.add(t.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.divisor, None


# ---- the search ----


class Search:
    """The search for the thresholds of one call; its state is filled.

    `kernels` is a LossCall of csrc/bindings.cpp, `tensors` are as in `_loss_ops.LossTensors`.
    """

    def __init__(self, shards: Shards, backend: Backend, kernels: Any, tensors: _loss_ops.LossTensors) -> None:
        self._shards, self._backend, self._kernels, self._tensors = shards, backend, kernels, tensors
        x, state, *_ = tensors
        assert x is not None
        assert state is not None
        self._x, self.state = x, state
        self._searches = torch.empty(kernels.search_bytes(), dtype=torch.uint8, device=x.device)
        self._after = torch.zeros(2, dtype=torch.int32, device=x.device)  # classes that still search; those in a gap
        self._first = self._sums(MOMENTS)  # looks at all targets of this process: before anything is exchanged

    def _sums(self, stage: int) -> Tensor:
        """Of this process, [rows, C]."""
        added, greatest = self._kernels.shard_rows(stage)
        classes = len(self.state) // STATE_ROWS
        sums = torch.zeros(added + greatest, classes, dtype=torch.float64, device=self._x.device)
        if self._x.numel() == 0:
            sums[added:] = -torch.inf
        else:
            function = self._kernels.shard_sums
            self._backend.call(function, self._x.device, self._tensors, stage, self._searches, sums)
        return sums

    def _take(self, stage: int, sums: Tensor, loss: Tensor | None = None) -> None:
        """Combine the sums of all processes, and take the step from them."""
        sums = self._shards.combine(sums, self._kernels.shard_rows(stage)[0])
        step, few = self._kernels.shard_step, _FEW * self._shards.size
        others = self._tensors, stage, self._searches, sums, self._after, loss, few
        self._backend.call(step, self._x.device, *others)

    def settle(self) -> None:
        """Find the thresholds."""
        self._take(MOMENTS, self._first)
        for _ in range(0 if self._backend.on_cpu else _UNSEEN):
            self._take(COUNTS, self._sums(COUNTS))
        searching, gaps = self._after.tolist()
        while searching:
            self._take(COUNTS, self._sums(COUNTS))
            searching, gaps = self._after.tolist()
        if gaps:
            self._take(EDGES, self._sums(EDGES))

    def finish(self, loss: Tensor, may_cancel: bool) -> Tensor:
        """Fill the rest of the state, and the loss of all samples; once more in double where digits cancelled."""
        self._take(LOSS, self._sums(LOSS), loss)
        if may_cancel and self._after[0].item():
            self._take(LOSS, self._sums(LOSS), loss)
        return loss


# ---- the fused loss ----


def begin_loss(shards: Shards, x: Tensor, target: Tensor, *arguments: Any) -> Search:
    """The search for the thresholds of a loss, of the arguments of `_loss_ops.loss_forward`."""
    _ops.check_temperatures(arguments[1])
    call, tensors = _loss_ops.placed(x, _loss_ops.new_state(x), target, *arguments)
    return Search(shards, call.backend, call.kernels, tensors)


def loss(search: Search, shards: Shards, may_cancel: bool, x: Tensor, *arguments: Any) -> Tensor:
    """The loss of the samples of all processes, in every one of them, differentiable in the shard `x` of the logits."""
    value: Tensor = _Loss.apply(x, search, shards, may_cancel, *arguments)  # type: ignore[no-untyped-call]
    return value


class _Loss(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, search: Search, shards: Shards, may_cancel: bool, target: Tensor, *arguments: Any
    ) -> Tensor:
        search.settle()
        ctx.divisor, ctx.settings = shards.divisor, arguments[4:]
        ctx.save_for_backward(x, search.state, target, *arguments[:4])
        return search.finish(x.new_empty(()), may_cancel)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, state, *tensors = ctx.saved_tensors
        with torch.no_grad():
            out = _loss_ops.loss_backward(grad * ctx.divisor, state, x, *tensors, *ctx.settings)
        return _once(out, x), *(None,) * (3 + len(tensors) + len(ctx.settings))


# ---- the projection ----


def begin_projection(
    shards: Shards, x: Tensor, k_values: Tensor | None, k: float, tau_values: Tensor | None, tau: float
) -> Search:
    """The search for the thresholds of the columns of `x` [n, C]."""
    _ops.check_temperatures(tau_values)
    x, k_values, tau_values = x.detach(), *(t if t is None else contiguous(t.detach()) for t in (k_values, tau_values))
    backend = backend_of(x.device)
    assert backend is not None
    kernels = prepared(_projection_call, backend, x.dtype, x.device, x.shape, type(k), k, type(tau), tau)
    return Search(shards, backend, kernels, (x, _loss_ops.new_state(x), None, k_values, tau_values, None, None))


def _projection_call(
    backend: Backend,
    dtype: torch.dtype,
    device: torch.device,
    shape: torch.Size,
    _: type,
    k: float,
    __: type,
    tau: float,
) -> Any:
    mass_kind, ignore_index, label_smoothing, kind, reduction = 0, 0, 0.0, 0, 0
    return backend.kernels.LossCall(
        DTYPES[dtype], device.type, device.index or 0, shape, NO_TARGETS,
        k, mass_kind, tau, ignore_index, label_smoothing, kind, reduction,
    )  # fmt: skip


def project(
    shards: Shards,
    x: Tensor,
    k_values: Tensor | None,
    k: float,
    tau_values: Tensor | None,
    tau: float,
    search: Search | None = None,
) -> tuple[Tensor, Tensor]:
    """The shard of the projection of the columns of `x` [n, C], and its state [2, C].

    Differentiable in all of them, of what the processes do with their shards together: the gradients in k and tau are
    those of this shard's entries, and have to be added up.
    """
    if search is None:
        search = begin_projection(shards, x, k_values, k, tau_values, tau)
    result: Any = _Projection.apply(x, search, shards, k_values, tau_values, tau)  # type: ignore[no-untyped-call]
    y, state = result
    return y, state


class _Projection(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        search: Search,
        shards: Shards,
        k_values: Tensor | None,
        tau_values: Tensor | None,
        tau: float,
    ) -> tuple[Tensor, Tensor]:
        search.settle()
        state = search.state[: 2 * x.shape[1]].view(2, -1)
        temperature = torch.full_like(state[0], tau) if tau_values is None else tau_values
        ctx.shards = shards
        ctx.save_for_backward(x, state, temperature)
        ctx.mark_non_differentiable(state)
        return reference.evaluate(x, state, temperature, 0), state

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        x, state, tau = ctx.saved_tensors
        with torch.no_grad():
            out, grad_k, grad_tau = _Projection.gradients(ctx, grad, x, state, tau)
        return _once(out, x), None, None, grad_k, grad_tau, None

    @staticmethod
    def gradients(ctx: Any, grad: Tensor, x: Tensor, state: Tensor, tau: Tensor) -> Any:
        """In `x`, k and tau; the latter two of this shard."""
        active = reference.active(x, state, tau, 0)
        g = torch.where(active, grad.to(state.dtype), 0.0)
        sums, among = ctx.shards.add(torch.stack((g.sum(0), active.sum(0).to(g.dtype))))
        among = among.clamp(min=1)
        out = torch.where(active, g - sums / among, 0.0) / tau
        out = torch.where(state[0].isnan(), torch.nan, out)
        _, _, _, needs_k, needs_tau, _ = ctx.needs_input_grad
        grad_k = g.sum(0) / among if needs_k else None
        grad_tau = -(out * reference.evaluate(x.to(out.dtype), state, tau, 0)).sum(0) if needs_tau else None
        return out.to(x.dtype), grad_k, grad_tau
