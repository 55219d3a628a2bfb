"""Operators on tensors: the projection onto the hypersimplex and the loss built on it.

C. Gomez, P. Wang, L. Tang, "Differentiable Zero-One Loss via Hypersimplex Projections", PAKDD 2026, arXiv 2602.23336.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, fx
from torch.overrides import handle_torch_function

from . import _checks, _distributed, _dtensors, _loss, _weighted
from ._arguments import NONE, Statistics, loss_arguments, per_vector
from ._autograd import project, project_directly
from ._backends import check_memory
from ._calls import recall, remember, vector_call
from ._eager import autocast, plain

__all__ = ["binary_argmax", "hypersimplex_loss", "soft_binary_argmax"]

SOLVERS = {"threshold": 0, "pav": 1}
Proxy: Any = fx.Proxy  # what torch.fx traces with; no Tensor to the type checker, but given as one


@overload
def soft_binary_argmax(
    input: Tensor,
    k: float | Tensor,
    tau: float | Tensor = 1.0,
    dim: int = -1,
    *,
    mask: Tensor | None = None,
    return_threshold: Literal[False] = False,
    solver: str = "threshold",
    group: Any = None,
) -> Tensor: ...
@overload
def soft_binary_argmax(
    input: Tensor,
    k: float | Tensor,
    tau: float | Tensor = 1.0,
    dim: int = -1,
    *,
    mask: Tensor | None = None,
    return_threshold: Literal[True],
    solver: str = "threshold",
    group: Any = None,
) -> tuple[Tensor, Tensor]: ...
def soft_binary_argmax(
    input: Tensor,
    k: float | Tensor,
    tau: float | Tensor = 1.0,
    dim: int = -1,
    *,
    mask: Tensor | None = None,
    return_threshold: bool = False,
    solver: str = "threshold",
    group: Any = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Differentiable top-k: project `input / tau` onto the (n, k)-hypersimplex along a dimension.

    For each vector x of n logits along `dim`, with z = x / tau,

    .. math:: y = \arg\min \lVert y - z \rVert^2 \;\text{ over }\; \{ y \in [0, 1]^n : \textstyle\sum_i y_i = k \},
              \qquad y_i = \operatorname{clip}((x_i - t) / \tau, 0, 1)

    where the threshold t makes the entries sum to k (Eq. 4.3 of the paper). As tau goes to 0, y goes to the indicator
    of the k largest entries; as tau grows, to k / n everywhere. k = 1 is sparsemax. Gradients flow to `input`, `tau`
    and `k`; they are zero on entries that are exactly 0 or 1.

    Args:
        input: Logits of any shape with at least one dimension and any strides; float16, bfloat16, float32 or float64.
            Half types are computed in float32. Under autocast, half logits are taken as float32.
        k: Mass, the sum of y: a number in [0, n], fractions allowed, or a tensor that broadcasts to the shape of
            `input` without dimension `dim`.
        tau: Temperature in the units of `input`: a number in [2^-1022, inf), the normal ones, or a tensor like `k`.
        dim: The dimension to project along.
        mask: Bool tensor that broadcasts to the shape of `input`; True entries take part, the others are as -inf.
        return_threshold: Also return t.
        solver: "threshold", which searches for t without a sort, or "pav", which sorts and pools adjacent violators as
            the paper does (Eq. 4.4): slower, the same result and gradients up to rounding.
        group: Of vectors that are spread over processes, these: a process group of torch.distributed, or a DeviceMesh
            of one dimension. Each process gives some entries of every vector, any number of them, and gets their y;
            k and n are of all of them. What they do with y together is what is differentiated, `k` and `tau` but for
            this process's share, which is to be added up. With one `k` and `tau` on all processes.

    Returns:
        y with the shape and dtype of `input`. With `return_threshold`, (y, t): t has the shape of `input` without
        `dim`, is in the units of `input`, float64 for float64 input and float32 otherwise, and carries no gradient.
        Where no entry lies strictly between 0 and 1, t is the middle of the thresholds that give y. It is +inf where
        k = 0 or at least k entries are +inf, and -inf where at most k entries take part.

    A nan makes its vector nan. Entries of +inf share k equally if there are at least k of them, else are 1; entries of
    -inf are 0, and if at most k others remain, those are all 1 (and the sum falls short of k). Neither has a gradient.

    Raises:
        TypeError: `input` is not of a floating-point dtype above, `k` or `tau` is a bool or no number, `mask` is not
            bool, or a tensor is sparse or nested.
        ValueError: `k` or `tau` is out of range, a shape does not broadcast, or `solver` is none of the two. A tensor
            `k` or `tau` on another device than the CPU is not looked into: vectors with a value out of range become
            nan.
        IndexError: `dim` is out of range.

    Equivalent to (one vector, up to rounding)::

        z = input / tau
        low, high = z.min() - 1, z.max()
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if (z - middle).clamp(0, 1).sum() >= k else (low, middle)
        y = (z - low).clamp(0, 1)

    Example:
        >>> x = torch.tensor([0.1, 1.6, 1.0])
        >>> soft_binary_argmax(x, k=1)
        tensor([0.0000, 0.8000, 0.2000])
        >>> soft_binary_argmax(x, k=1, tau=10.0)
        tensor([0.2533, 0.4033, 0.3433])
    """
    if isinstance(input, Proxy):
        return handle_torch_function(soft_binary_argmax, (input,), **locals())  # type: ignore[arg-type]
    y, state = projection_and_state(input, k, tau, dim, mask, solver, group, return_threshold)
    if not return_threshold:
        return y
    assert state is not None
    return y, (state[0] + state[1]).to(torch.promote_types(y.dtype, torch.float32))


def projection_and_state(
    input: Tensor,
    k: float | Tensor,
    tau: float | Tensor,
    dim: int,
    mask: Tensor | None,
    solver: str,
    group: Any,
    with_state: bool,
) -> tuple[Tensor, Tensor | None]:
    """The projection and, where it is wanted, its state."""
    if type(input) is not Tensor and _dtensors.is_distributed(input):
        return _dtensors.project(input, k, tau, dim, mask, solver, group)
    if group is not None:
        y, state = _distributed.project_over(input, k, tau, dim, mask, solver, group)
        return y, state
    signature = None
    if mask is None and plain(input):
        signature = (
            input.dtype, input.device, input.shape, input.stride(), type(k), type(tau), type(dim), k, tau, dim, solver,
        )  # fmt: skip
        call = recall(signature)
        if call is not None:
            return project_directly(input, k, tau, call, with_state)  # type: ignore[arg-type]  # no tensor is remembered
    _checks.logits(input)
    dim = _checks.dimension(dim, input.ndim)
    input = autocast(input)
    k_values, k = per_vector("k", k, input, dim, input.shape[dim])
    tau_values, tau = per_vector("tau", tau, input, dim)
    if mask is not None:
        mask = _checks.mask(mask, input)
    pav = bool(_checks.choice("solver", solver, SOLVERS))
    if signature is not None and k_values is tau_values is None and not pav:
        call = vector_call(input, dim)
        if call is not None:
            remember(signature, call)
            return project_directly(input, k, tau, call, with_state)
    return project(input, mask, k_values, k, tau_values, tau, dim, pav)


def binary_argmax(input: Tensor, k: int, dim: int = -1) -> Tensor:
    """Ones on the k largest entries, zeros elsewhere: the limit of `soft_binary_argmax` as tau goes to 0.

    Among equal entries those with the lower index go first, so there are exactly k ones, except that an entry of -inf
    is never one. A nan makes its vector nan. There is no gradient.

    Args:
        input: Logits of any shape with at least one dimension; float16, bfloat16, float32 or float64.
        k: How many ones, an integer in [0, n].
        dim: The dimension to choose along.

    Returns:
        A tensor with the shape and dtype of `input`.

    Raises:
        TypeError: `input` is not of a floating-point dtype above, or `k` is not an integer.
        ValueError: `k` is out of range.
        IndexError: `dim` is out of range.

    Example:
        >>> binary_argmax(torch.tensor([0.1, 1.6, 1.0]), k=2)
        tensor([0., 1., 1.])
    """
    if isinstance(input, Proxy):
        return handle_torch_function(binary_argmax, (input,), **locals())
    _checks.logits(input)
    dim = _checks.dimension(dim, input.ndim)
    k = _checks.integer("k", k)
    _checks.mass(k, input.shape[dim])
    with torch.no_grad():
        if k == 0:
            chosen = torch.zeros_like(input, dtype=torch.bool)
        else:
            last = input.topk(k, dim).values.narrow(dim, k - 1, 1)
            above, tied = input > last, input == last
            chosen = above | (tied & (tied.cumsum(dim) <= k - above.sum(dim, keepdim=True)))
            chosen &= input != -torch.inf
        return chosen.to(input.dtype).masked_fill(input.isnan().any(dim, keepdim=True), torch.nan)


def hypersimplex_loss(
    input: Tensor,
    target: Tensor,
    k: float | Tensor | Literal["targets"] = "targets",
    tau: float | Tensor = 1.0,
    *,
    kind: str = "squared",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    weighted_mass: bool = False,
    group: Any = None,
    gradient_divisor: float | None = None,
) -> Tensor:
    r"""The HyperSimplex loss: a differentiable zero-one loss with one projection per class over the batch.

    With logits x [n, C], targets t [n, C] and z = x / tau, column c of p is `soft_binary_argmax(x[:, c], k_c, tau_c)`,
    and

    .. math::
        \text{squared (the paper's):}\quad l_{ic} &= (p_{ic} - t_{ic})^2 \\
        \text{Fenchel-Young:}\quad l_{ic} &= \tfrac12 (z_{ic} - t_{ic})^2 - \tfrac12 (z_{ic} - p_{ic})^2

    The squared loss has no gradient on saturated entries (p exactly 0 or 1), also not on those saturated to the wrong
    side. The Fenchel-Young loss is convex with gradient (p - t) / tau; with k = "targets" its sum over a class is not
    negative, and zero only where p = t. It needs a k that agrees with the targets: with any other, and with sample
    weights that `weighted_mass` does not count in k, a shift of a class's logits lowers it without bound, and training
    may drift there.

    With k = "targets" either loss is blind to a shift of a class's logits (the squared one always is), so prediction
    needs a threshold per class: see :class:`hypersimplex_ext.nn.HyperSimplexLoss`, which keeps them.

    With reduction "mean" or "sum" and a gradient in `input` alone, forward and backward are fused: nothing is expanded
    to one-hot, copied or kept per element. Gradients in everything else that requires grad are served too.

    Args:
        input: Logits [n, C], [n] or [n, 1] (binary), [N, C, d1, ...] (samples n = N * d1 * ...), or [C] (a single
            sample, with a target without dimensions); float16, bfloat16, float32 or float64. Half types are computed in
            float32. Under autocast, half logits are taken as float32.
        target: Class indices in [0, C), int64 or uint8, [n] or [N, d1, ...]; or dense targets in [0, 1] of any real
            dtype with the shape of `input`, such as probabilities or multi-hot rows; for binary logits labels 0 and 1
            of any real dtype, [n] or with the shape of `input`. A nan makes its class nan.
        k: Mass of each class. "targets": the sum of its targets, so their exact number for class indices. A float in
            [0, 1]: that fraction of the samples, rounded down (.29 of 100 is 29). An int in [0, n]: this number (1 is
            one sample, 1.0 the whole batch). A tensor [C], or of one element for all classes: these numbers, fractions
            allowed.
        tau: Temperature in the units of `input`: a number in [2^-1022, inf), the normal ones, or a tensor [C].
        kind: "squared" or "fenchel_young". The squared loss is bounded, and does not move entries that are saturated on
            the wrong side, nor any of a class whose k-th largest logit is tau or more above the next: its tau has to
            fit the scale of the logits (:func:`hypersimplex_ext.suggest_tau`). Fenchel-Young, the safer choice where
            logits may be large beside tau, adds a hinge on those entries.
        weight: Weight of each class, [C].
        sample_weight: Weight of each sample, [n] or [N, d1, ...]. It has no part in the projection or in k, unless
            `weighted_mass` says so.
        ignore_index: Samples with this class index, or entries with this dense or binary target, are left out of
            projection, counts and mean, whatever their logits and weights are.
        label_smoothing: eps in [0, 1]; targets become (1 - eps) t + eps / max(C, 2).
        reduction: "mean", with w and s the class and sample weights: sum of w_c s_i l_ic over the sum of w_c s_i, over
            all entries that take part; "sum": sum of w_c s_i l_ic; "none": w_c s_i l_ic in the shape of
            `input`.
        group: Of a batch that is spread over processes, these: a process group of torch.distributed, or a DeviceMesh of
            one dimension. Each process gives its samples, any number of them; the loss is that of all samples, and the
            same in every process. One class index, `k`, `tau` and so on means the same on all processes.
        gradient_divisor: With a group, over how many processes gradients are averaged afterwards: they are multiplied
            by this number. None: the size of the group, as DistributedDataParallel averages over it; 1 where gradients
            are added up. With reduction "none" nothing is multiplied.
        weighted_mass: Count a sample as often as its weight says, in the projection and in k too; so weights move the
            thresholds. Finite logits; for small batches, as it is composed of PyTorch's operations.

    Returns:
        The loss in the dtype of `input`. Without any sample, the mean is nan and the sum 0.

    Raises:
        TypeError: A dtype or type is not as above; `k` or `tau` is a bool; a tensor is sparse or nested.
        ValueError: A shape does not fit, or a number or word is not among those allowed. A dense or binary target lies
            outside [0, 1] (on the CPU; on CUDA it is taken as it is).
        IndexError: A class index is out of range (on the CPU; on CUDA a device-side assertion fails, as in PyTorch's
            losses).

    Equivalent to (class indices, kind "squared", up to rounding)::

        t = torch.nn.functional.one_hot(target, input.shape[1]).to(input.dtype)
        p = soft_binary_argmax(input, k=t.sum(0), tau=tau, dim=0)
        loss = torch.nn.functional.mse_loss(p, t)

    Example:
        >>> x = torch.tensor([[2.0, 0.0], [0.5, 0.0], [0.0, 0.3]])
        >>> hypersimplex_loss(x, torch.tensor([0, 1, 1]))
        tensor(0.0878)
    """
    if isinstance(input, Proxy):
        return handle_torch_function(hypersimplex_loss, (input,), **locals())
    return loss_and_statistics(
        input, target, k, tau, kind, weight, sample_weight, ignore_index, label_smoothing, reduction,
        weighted_mass, group, gradient_divisor,
    )[0]  # fmt: skip


def loss_and_statistics(
    input: Tensor,
    target: Tensor,
    k: float | Tensor | Literal["targets"],
    tau: float | Tensor,
    kind: str,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    weighted_mass: bool = False,
    group: Any = None,
    gradient_divisor: float | None = None,
) -> tuple[Tensor, Statistics]:
    """`hypersimplex_loss`, and a function that returns its state."""
    distributed = type(input) is not Tensor and _dtensors.is_distributed(input)
    if weighted_mass:
        if group is not None or distributed:
            raise ValueError("weighted_mass must be False with a group or a DTensor, got True")
        settings = weight, sample_weight, ignore_index, label_smoothing, kind, reduction
        return _weighted.loss(input, *loss_arguments(input, target, k, tau, *settings))
    if distributed:
        return _dtensors.loss(
            gradient_divisor, group,
            input, target, k, tau, kind, weight, sample_weight, ignore_index, label_smoothing, reduction,
        )  # fmt: skip
    if group is not None:
        value, statistics = _distributed.loss_over(
            group, gradient_divisor,
            input, target, k, tau, weight, sample_weight, ignore_index, label_smoothing, kind, reduction,
        )  # fmt: skip
        return value, statistics
    signature = None
    weights = [t for t in (weight, sample_weight) if t is not None]
    constant = all(type(t) is Tensor and not t.requires_grad for t in (target, *weights))
    if constant and plain(input, target, *weights):
        signature = (
            input.dtype, input.device, input.shape, input.stride(),
            target.dtype, target.device, target.shape, target.stride(),
            weight is None, *[(t.dtype, t.device, t.shape) for t in weights],
            type(k), type(tau), type(ignore_index), type(label_smoothing),
            k, tau, ignore_index, label_smoothing, kind, reduction,
        )  # fmt: skip
        call = recall(signature)
        if call is not None:
            for t in weights:
                check_memory("a weight", t)
            placed = [t if t is None else t.to(call.state.dtype).contiguous() for t in (weight, sample_weight)]
            if target.dtype != call.target_dtype:
                check_memory("target", target)
                target = target.to(call.target_dtype)
            return _loss.fused(input, call, target, None, None, *placed)
    logits, arguments = loss_arguments(
        input, target, k, tau, weight, sample_weight, ignore_index, label_smoothing, kind, reduction
    )
    converted = arguments.target.shape == target.shape  # if not by its dtype alone, the call is not to be remembered
    if signature is not None and converted and arguments.k_values is arguments.tau_values is None:
        call = _loss.fused_call(input, arguments)
        if call is not None:
            remember(signature, call)
    value, statistics = _loss.loss(logits, arguments)
    single = logits.ndim > input.ndim and arguments.reduction == NONE
    return value.squeeze(0) if single else value, statistics
