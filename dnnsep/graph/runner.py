"""What takes the place of a module's ``forward``: it runs the module as a network of kernels where
that is possible, and else as it is.

Imports torch: import it from inside functions.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dnnsep.graph.account import add_to_report
from dnnsep.graph.asking import SizesError, sizes_of
from dnnsep.graph.difference import BOUNDS, difference
from dnnsep.graph.faults import faulty_layers
from dnnsep.graph.kept import Kept
from dnnsep.graph.opened import Opened, Sized
from dnnsep.graph.prepare import Options, Prepared, Shelf, prepare
from dnnsep.graph.report import Report
from dnnsep.graph.rewrite import CaptureError
from dnnsep.graph.state import State

# So many kinds of input stay prepared; of others the longest unused is forgotten.
_MOST = 32
# For so many layouts of the input, or other answers of the model's code, sizes stay open.
_MOST_OPENED = 4


class _Plain:
    """Stands for a kind of input that the module cannot be prepared for."""

    used = 0


class Runner:
    """Calls a module: prepared for each kind of input when that first comes, in eval mode without
    gradients, on a CPU; and again when its parameters change. Otherwise it is plain PyTorch.

    ``dtype`` is what the module runs in where that is another one than its inputs' and outputs'.
    Without ``whole`` it is never prepared itself, only its parts are.
    """

    def __init__(
        self,
        module: nn.Module,
        options: Options,
        dtype: torch.dtype | None = None,
        whole: bool = True,
    ) -> None:
        self._module, self._plain = module, module.forward
        self.why_fixed = ""
        self.options, self.dtype, self._whole = options, dtype, whole
        self.forget()

    def forget(self) -> None:
        """Forgets what was prepared."""
        self._lock = threading.Lock()
        self._prepared: Kept[Prepared | Sized | _Plain] = Kept(_MOST)
        self._opened: list[tuple[Any, Opened]] = []
        self._example: list[Tensor] = []
        self._shelf = Shelf()
        self._state: State | None = None

    def undo(self) -> None:
        """Gives the module its own ``forward`` back."""
        self._module.__dict__.pop("forward", None)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_module", "_plain", "options", "dtype", "_whole")
        return {name: self.__dict__[name] for name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.why_fixed = ""
        self.forget()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._as_it_is(arguments, named)
        single = len(arguments) == 1 and not named and type(arguments[0]) is Tensor
        leaves, spec = ([arguments[0]], None) if single else pytree.tree_flatten((arguments, named))
        if not self._whole or torch.is_grad_enabled() or not _all_data(leaves):
            return self._as_it_is(arguments, named)
        given = _dtype_of(leaves)
        leaves = self._cast(leaves)
        key = (spec, *map(_kind, leaves))
        if not self._is_current():
            return self._as_it_is(arguments, named)
        try:
            found = self._prepared[key]
        except KeyError:
            found = self._prepare_again(key, arguments, named)
        if isinstance(found, _Plain):
            return self._as_it_is(arguments, named)
        return self._cast_back(found.run(leaves), given)

    @property
    def __code__(self) -> CodeType:
        """The code that torch.export and torch.compile look for."""
        found: CodeType = self._plain.__code__
        return found

    @property
    def __globals__(self) -> NoReturn:
        """Raises AttributeError: torch.jit.script looks for this."""
        raise AttributeError(
            "torch.jit.script cannot compile what dnnsep.optimize returns: script the model that "
            "it was made of, or use torch.jit.trace or dnnsep.save"
        )

    def prepare_for(
        self, arguments: tuple[Any, ...], named: Mapping[str, Any] | None = None
    ) -> Prepared:
        """Prepares the module for arguments. Raises CaptureError where that cannot be done."""
        children = [child for child in self._module.modules() if child is not self._module]
        if any(child._forward_hooks or child._forward_pre_hooks for child in children):
            raise CaptureError("parts of it have hooks")
        leaves, spec = pytree.tree_flatten((arguments, dict(named or {})))
        if not _all_data(leaves):
            raise CaptureError("its arguments are not tensors with data in a CPU's memory")
        leaves = self._cast(leaves)
        arguments, keywords = pytree.tree_unflatten(leaves, spec)
        self._is_current()
        opens = not self.options.part
        with self._as_it_was():
            made = prepare(self._module, arguments, keywords, self.options, self._shelf, opens)
        single = len(arguments) == 1 and not named and type(arguments[0]) is Tensor
        key = (None if single else spec, *map(_kind, leaves))
        self._prepared.keep(key, made)
        self._example = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.why_fixed = self._open(made, key[0]) if opens else ""
        return made

    def _open(self, made: Prepared, spec: Any) -> str:
        """Prepares the module for other sizes of what it was prepared for; returns why it cannot
        be, or nothing."""
        template, x = made.lowered.opened, self._example[0]
        if isinstance(template, str):
            return template
        with self._as_it_was(), torch.no_grad():
            try:
                sizes = sizes_of(self._module, x).which(self.options.sizes)
            except SizesError as reason:
                return str(reason)
            tried = Opened(template, sizes, made.captured.unflatten).tried(x)
            if tried is None:
                return "its code asks for the very size of the example"
            opened, other = tried
            sized = opened.at(other)
            if sized is None:
                return "its kernels take no other size"
            bound = BOUNDS[x.dtype]
            try:
                error = difference(sized.run([other]), self._plain(other), bound)
            except Exception as failure:  # the model's own code may raise anything
                return f"it fails at another size: {type(failure).__name__}: {failure}"
        if not error <= bound:
            return f"outputs differed by {error:.1e} at another size"
        made.sizes = opened.sizes
        self._opened = [*self._opened[1 - _MOST_OPENED :], (spec, opened)]
        return ""

    def warm_up(self, arguments: tuple[Any, ...], tune: bool) -> None:
        """Prepares the module for positional arguments, with specialised kernels."""
        self(*arguments)
        leaves = self._cast(pytree.tree_leaves(arguments))
        kinds = [_kind(leaf) for leaf in leaves]
        for key, made in self._prepared.items():
            if isinstance(made, Sized) and list(key[1:]) == kinds:  # type: ignore[index]
                made.warm_up(tune and self.options.tune)

    def faulty_layers(self, bound: float) -> dict[str, str]:
        """Returns the layers whose kernels differ from torch's operators on what the module was
        prepared for last, and how, by their names in the model."""
        return {
            name: why
            for made in self.prepared[-1:]
            for name, why in faulty_layers(made, self._example, bound, self.options.part).items()
        }

    def add_to_report(self, report: Report) -> None:
        """Adds what the module was prepared as last to a report."""
        for made in self.prepared[-1:]:
            add_to_report(report, made, self.options.part, self._example)
        report.packed_bytes += sum(packed.nbytes for packed in self._shelf.packings.values())

    @contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Gives the module its own ``forward`` back for a while: torch.export looks at its code."""
        attributes = self._module.__dict__
        replaced = attributes.pop("forward", None)
        try:
            yield
        finally:
            attributes.pop("forward", None)
            if replaced is not None:
                attributes["forward"] = replaced

    def _prepare_again(
        self, key: tuple[Any, ...], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Prepared | Sized | _Plain:
        with self._lock:
            if key not in self._prepared:
                if (sized := self._sized(key, arguments, named)) is not None:
                    self._prepared.keep(key, sized)
                    return sized
                try:
                    return self.prepare_for(arguments, named)
                except CaptureError:
                    self._prepared.keep(key, _Plain())
        return self._prepared[key]

    def _sized(
        self, key: tuple[Any, ...], arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Sized | None:
        """Returns the module for a size of its images that it is open for."""
        (x, *others) = self._cast(pytree.tree_leaves((arguments, named)))
        for spec, opened in self._opened:
            if spec == key[0] and not others and (sized := opened.at(x)) is not None:
                return sized
        return None

    def _is_current(self) -> bool:
        """Forgets what was prepared of parameters that have changed since. Returns whether the
        module is in eval mode as a whole."""
        state = self._state
        if state is None or not state.holds():
            with self._lock:
                self._prepared, self._opened, self._shelf = Kept(_MOST), [], Shelf()
                state = self._state = State.of(self._module)
        return not state.any_training()

    def _as_it_is(self, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        if self.dtype is None:
            return self._plain(*arguments, **named)
        leaves, spec = pytree.tree_flatten((arguments, named))
        cast_arguments, keywords = pytree.tree_unflatten(self._cast(leaves), spec)
        return self._cast_back(self._plain(*cast_arguments, **keywords), _dtype_of(leaves))

    def _cast(self, leaves: list[Any]) -> list[Any]:
        """Returns arguments in the dtype that the module runs in."""
        return leaves if self.dtype is None else [_cast(leaf, self.dtype) for leaf in leaves]

    def _cast_back(self, results: Any, given: torch.dtype | None) -> Any:
        """Returns results in the dtype that arguments were given in."""
        if self.dtype is None or given is None:
            return results
        return pytree.tree_map(lambda value: _cast(value, given), results)

    @property
    def prepared(self) -> list[Prepared]:
        """Returns what the module was prepared as, for each kind of input so far."""
        return [made for _, made in self._prepared.items() if isinstance(made, Prepared)]

    @property
    def sized(self) -> list[Sized]:
        """Returns what runs other sizes of what the module was prepared for."""
        return [made for _, made in self._prepared.items() if isinstance(made, Sized)]


def _kind(leaf: Any) -> Hashable:
    """Returns what of an input decides how a module is prepared for it."""
    if isinstance(leaf, Tensor):
        return (leaf.shape, leaf.stride(), leaf.dtype)
    # 1, 1.0 and True are equal, but a model may tell them apart.
    return (type(leaf), leaf if isinstance(leaf, Hashable) else repr(leaf))


def _all_data(leaves: list[Any]) -> bool:
    """Returns whether the inputs are numbers in a CPU's memory, rather than standing for some."""
    if torch._C._get_tracing_state() is not None or torch.is_autocast_enabled("cpu"):
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    return bool(tensors) and all(
        type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided and x.numel()
        for x in tensors
    )


def _dtype_of(leaves: list[Any]) -> torch.dtype | None:
    """Returns the dtype of the first floating-point tensor."""
    floating = (x for x in leaves if isinstance(x, Tensor) and x.is_floating_point())
    return next((x.dtype for x in floating), None)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Returns a floating-point tensor in a dtype, and other values as they are."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value
