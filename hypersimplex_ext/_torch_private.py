"""The only room that touches private names of torch, which a release may rename without a word.

They are looked up once, at import. What rests on one that is missing takes a public way: slower, or more cautious, but
right. One warning lists what was missing. `.ci/private_names.py` keeps these names out of all other files.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.lazy import LazyModuleMixin

looked_up: dict[str, bool] = {}  # the names, as "module.name" or "module:class.name", and whether each was there


def _find(home: str, *names: str) -> tuple[Any, ...] | None:
    """These members of a module of torch, or of a class in one; None where one of them is missing."""
    module, _, kind = home.partition(":")
    try:
        place = importlib.import_module(module)
    except ImportError:
        place = None
    place = getattr(place, kind, None) if kind else place
    found = {f"{home}.{name}": hasattr(place, name) for name in names}
    looked_up.update(found)
    return tuple(getattr(place, name) for name in names) if all(found.values()) else None


# ---- whether anything but autograd comes before the kernels ----


def _key_sets() -> tuple[set[int], set[int]] | None:
    """The dispatch keys of plain memory, and those in place without any mode or transform, as `raw_repr` has them.

    Both list what is known to be harmless. A key that PyTorch may add tomorrow is in neither.
    """
    names = "BackendSelect", "ADInplaceOrView", *(k + d for k in ("", "Autograd", "Autocast") for d in ("CPU", "CUDA"))
    sets, keys = _find("torch._C:DispatchKeySet", "raw_repr", "add"), _find("torch._C:DispatchKey", *names)
    if sets is None or keys is None:
        return None
    by_name = dict(zip(names, keys, strict=True))

    def raw(*chosen: str) -> int:
        found: Any = torch._C.DispatchKeySet(by_name[chosen[0]])
        for name in chosen[1:]:
            found = found.add(by_name[name])
        return int(found.raw_repr())

    plain = {
        raw(device, *others)
        for device in ("CPU", "CUDA")
        for number in range(4)
        for others in itertools.combinations(("ADInplaceOrView", f"Autograd{device}", f"Autocast{device}"), number)
    }
    return plain, {raw("BackendSelect"), raw("BackendSelect", "ADInplaceOrView")}  # the latter in inference mode


_dispatch = _find("torch._C", "_dispatch_keys", "_dispatch_tls_local_include_set")
_harmless = _key_sets()

if _dispatch is not None and _harmless is not None:
    _keys_of, _keys_in_place = _dispatch
    _PLAIN, _IDLE = _harmless

    def is_plain(t: Tensor) -> bool:
        """Whether a tensor is plain memory: of no mode, transform, subclass or lazy negation."""
        return _keys_of(t).raw_repr() in _PLAIN

    def direct(*tensors: Tensor) -> bool:
        """Whether nothing but autograd comes before the kernels: no tracing and no mode, and all tensors are plain."""
        if is_dynamo_compiling() or _keys_in_place().raw_repr() not in _IDLE:
            return False
        for t in tensors:  # noqa: SIM110  # is_plain of each, faster
            if _keys_of(t).raw_repr() not in _PLAIN:
                return False
        return True

else:

    def is_plain(t: Tensor) -> bool:
        """Whether a tensor is of no type of its own, and tells where its memory lies."""
        if type(t) not in (Tensor, torch.nn.Parameter) or t.layout is not torch.strided or t.is_neg() or t.is_conj():
            return False
        try:
            t.untyped_storage()
        except RuntimeError:  # of a transform
            return False
        return True

    def direct(*tensors: Tensor) -> bool:
        """False, as nobody can tell: the dispatcher of PyTorch finds out."""
        return False


# ---- function transforms and forward mode ----

_active = _find("torch._C", "_are_functorch_transforms_active")
_transform_type = _find("torch._C._functorch", "TransformType")
_interpreters = _find("torch._functorch.pyfunctorch", "retrieve_all_functorch_interpreters")
_LEVEL_IS_TOLD = _find("torch.autograd.forward_ad", "_current_level") is not None
_single_level = _find("torch.autograd.function", "_SingleLevelFunction")

transforms_active: Callable[[], bool] = _active[0] if _active is not None else lambda: True


if _LEVEL_IS_TOLD:

    def in_forward_mode() -> bool:
        """Whether forward-mode differentiation is at work."""
        return forward_ad._current_level >= 0

else:

    def in_forward_mode() -> bool:
        """True, as nobody can tell."""
        return True


def inside_derivative() -> bool:
    """Whether one of the transforms at work is a derivative, or might be."""
    if _transform_type is None or _interpreters is None:
        return transforms_active()
    kinds = _transform_type[0]
    return any(interpreter.key() in (kinds.Grad, kinds.Jvp) for interpreter in _interpreters[0]())


def untransformed(function: type[Function]) -> Callable[..., Any]:
    """Its `apply` without the look at transforms that it takes first, for where there are none."""
    if _single_level is None or _active is None or Function.__base__ is not _single_level[0]:
        return function.apply
    apply: Callable[..., Any] = super(Function, function).apply  # type: ignore[misc]
    return apply


# ---- torch.compile ----

# PyTorch 2.6 knows no floats that are symbols without being tensors.
_BEFORE_SYMBOLS = torch.__version__.startswith("2.6.")
_static_value = None if _BEFORE_SYMBOLS else _find("torch.fx.experimental.symbolic_shapes", "has_static_value")


def may_change(value: float) -> bool:
    """Whether this float may be another one in the next call of what torch.compile is tracing."""
    if _static_value is None:
        return not _BEFORE_SYMBOLS
    return not _static_value[0](value)


# ---- modules ----

_CONVERSION_IS_TOLD = _find("torch.nn:Module", "_apply", "_save_to_state_dict", "_load_from_state_dict") is not None
_inference = _find("torch.nn.modules.lazy:LazyModuleMixin", "_infer_parameters", "_replicate_for_data_parallel")


def makers_of(module: torch.nn.Module, name: str) -> list[Any]:
    """The hooks that compute a parameter before each call, for a message: those of PyTorch's norms and of pruning."""
    hooks = getattr(module, "_forward_pre_hooks", {}).values()
    return [hook for hook in hooks if name in (getattr(hook, "name", ""), getattr(hook, "_tensor_name", ""))]


class Module(torch.nn.Module):
    """A module that hears of each conversion."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = dict(self.named_buffers(recurse=False, remove_duplicate=False))
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._converted(before)
        return self

    def _converted(self, before: dict[str, Tensor]) -> None:
        """Called after `half()`, `to()` and the like, with the buffers as they were."""


class LazyModule(LazyModuleMixin, Module):
    """A module with an extra state that is sized by the first call, unless `settle` says that it has its sizes."""

    def settle(self) -> None:
        """Wait for no first call. Where the hooks that wait have other names, they do nothing when it comes."""
        for name in ("_initialize_hook", "_load_hook"):
            hook = self.__dict__.pop(name, None)
            if hook is not None:
                hook.remove()

    def _sees_sizes(self, *arguments: Any) -> bool:
        """Whether a call with these arguments can tell the sizes."""
        return True

    def _infer_parameters(self, module: Any, args: Any, kwargs: Any = None) -> None:
        kwargs = kwargs or {}
        if not self._sees_sizes(*args, *kwargs.values()):
            return
        if _inference is not None and hasattr(self, "_initialize_hook"):
            super()._infer_parameters(module, args, kwargs)
        elif self.has_uninitialized_params():
            self.initialize_parameters(*args, **kwargs)

    def _replicate_for_data_parallel(self) -> Any:
        if self.has_uninitialized_params():
            return super()._replicate_for_data_parallel()
        return torch.nn.Module._replicate_for_data_parallel(self)  # type: ignore[no-untyped-call]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # of the lazy modules, without the extra state
        destination[f"{prefix}_extra_state"] = self.get_extra_state()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        state_dict.setdefault(f"{prefix}_extra_state", self.get_extra_state())  # absent where it was not yet saved
        super()._load_from_state_dict(state_dict, prefix, *arguments)


_missing = [name.replace(":", ".") for name, found in looked_up.items() if not found]
if _missing:
    warnings.warn(
        f"hypersimplex_ext does not find all that it expects in PyTorch {torch.__version__}, "
        f"and goes slower, more cautious ways without {', '.join(_missing)}.",
        RuntimeWarning,
        stacklevel=2,
    )
