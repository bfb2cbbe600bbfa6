"""What a sweep file may contain, and the rules for it.

A file is validated as ``SweepFile``; config.py reads it and makes cases of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from dnnsep.backends import BACKENDS, PEERS, get_backend
from dnnsep.block import Block, is_block
from dnnsep.models.engines import ENGINES
from dnnsep.problem import Problem
from dnnsep.sweep.results import Cache

# The name that stands for all peers.
_PEERS = "peers"

Dtype = Literal["f32", "bf16", "u8s8", "s8s8", "u8s8s8", "u8s8f32", "s8s8u8", "s8s8f32", "int8"]
Count = Annotated[int, Field(ge=1, strict=True)]
# Pydantic would take bytes for text, and text for numbers.
Text = Annotated[str, Field(strict=True, max_length=1000)]
AxisValue = bool | Annotated[int, Field(strict=True)] | Text


# More than anybody can wait for.
MOST_CASES = 10_000


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShapeEntry(_Model):
    """An entry that is a problem's or a block's descriptor, maybe with a name."""

    shape: Text
    name: Text | None = None

    @field_validator("shape")
    @classmethod
    def _parses(cls, text: str) -> str:
        problem_or_block(text)
        return text


class AxesEntry(_Model):
    """An entry of descriptor keys with the values that each takes.

    It is expanded to all combinations (``product``) or to the lists' first values, second values
    and so on (``zip``). The key ``kind`` is for problems whose descriptors begin with a word; ``g``
    tells the kinds of convolutions apart.
    """

    axes: Annotated[
        dict[Text, AxisValue | Annotated[list[AxisValue], Field(min_length=1)]],
        Field(min_length=1),
    ]
    combine: Literal["product", "zip"] = "product"

    @model_validator(mode="after")
    def _expands(self) -> AxesEntry:
        list(self.problems())
        return self

    def problems(self) -> Iterator[Problem]:
        """Yields the problems. Raises ValueError for lists or values that break a rule."""
        lists = [v if isinstance(v, list) else [v] for v in self.axes.values()]
        if self.combine == "zip":
            longest = max(map(len, lists))
            lists = [v * longest if len(v) == 1 else v for v in lists]
            if any(len(v) != longest for v in lists):
                raise ValueError("zip: the lists must be of one length")
            combinations: Iterator[tuple[AxisValue, ...]] = zip(*lists, strict=True)
        else:
            count = math.prod(map(len, lists))
            if count > MOST_CASES:
                raise ValueError(f"makes {count} problems, at most {MOST_CASES} are allowed")
            combinations = itertools.product(*lists)
        for values in combinations:
            yield _problem_of_axes(dict(zip(self.axes, values, strict=True)))


class IncludeEntry(_Model):
    """An entry that takes the problems of another sweep file or of a benchdnn shape file."""

    include: Text


def _entry_kind(value: Any) -> str:
    if isinstance(value, dict):
        return next((kind for kind in ("axes", "include") if kind in value), "shape")
    return "shape"


def _entry(value: Any) -> Any:
    return {"shape": value} if isinstance(value, str) else value


_Entry = Annotated[
    Annotated[ShapeEntry, Tag("shape")]
    | Annotated[AxesEntry, Tag("axes")]
    | Annotated[IncludeEntry, Tag("include")],
    Discriminator(_entry_kind),
    BeforeValidator(_entry),
]


def backend_names(value: Any) -> list[str]:
    """Returns the full names of the backends that a value of a sweep file stands for.

    It may be ``ipex``, ``ipex:pointwise=conv1x1``, ``{ipex: {pointwise: conv1x1}}``, an engine that
    runs blocks, as ``dnnsep`` and ``dnnsep:cascades=no``, or ``peers``, which stays as it is: what
    it stands for depends on what is run. Raises ValueError naming the backend, the option and the
    rule.
    """
    if value == _PEERS:
        return [_PEERS]
    if isinstance(value, dict):
        if len(value) != 1:
            raise ValueError("a backend with options is a mapping of its name to its options")
        ((name, options),) = value.items()
        if not isinstance(options, dict) or not options:
            raise ValueError(f"{name}: its options must be a mapping of names to values")
        if not all(isinstance(option, str) for option in options):
            raise ValueError(f"{name}: an option's name must be text")
        if name == "dnnsep":  # YAML reads no as false
            given = ",".join(f"{k}={'no' if v is False else v}" for k, v in options.items())
            return [_backend_name(f"{name}:{given}")]
        return [get_backend(str(name), **options).name]
    if not isinstance(value, str):
        raise ValueError("must be a backend's name, or a mapping of it to its options")
    return [_backend_name(value)]


def _backend_name(text: str) -> str:
    if text in ENGINES:
        return text
    name = text.partition(":")[0]
    if name == "dnnsep":
        raise ValueError(f"backend {text!r}: its only option is cascades=no")
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise ValueError(f"backend {name!r}: must be one of {known}, or of blocks dnnsep")
    return get_backend(text).name


def expanded(names: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Returns the names, with those of the peers that are known in the place of ``peers``."""
    peers = [peer for peer in PEERS if peer in known]
    each = [peers if name == _PEERS else [name] for name in names]
    return tuple(dict.fromkeys(itertools.chain(*each)))


def problem_or_block(text: str) -> Problem | Block:
    """Returns what a descriptor describes. Raises ValueError naming what breaks a rule."""
    return Block.parse(text) if is_block(text) else Problem.parse(text)


class SweepFile(_Model):
    """A sweep file: what is measured, and the values that each of it is measured with."""

    title: Text
    problems: Annotated[list[_Entry], Field(min_length=1)]
    backends: list[Annotated[list[str], BeforeValidator(backend_names)]] = Field(
        default_factory=list
    )
    dtypes: list[Dtype] = Field(default_factory=list)
    threads: list[Annotated[Count, Field(le=1024)]] = Field(default_factory=list)
    batch: list[Count] = Field(default_factory=list)
    cache: list[Cache] = Field(default_factory=list)


def _problem_of_axes(values: dict[str, AxisValue]) -> Problem:
    """Returns the problem of descriptor keys. Raises ValueError naming a key and its rule.

    ``ph: same`` pads by half the dilated kernel on each side.
    """
    values = dict(values)
    kind, act, dtype, bias = (values.pop(k, None) for k in ("kind", "act", "dtype", "bias"))
    if bias not in (None, True, False):
        raise ValueError(f"bias: must be true or false (given: {bias!r})")
    if kind not in (None, "linear", "mean"):
        raise ValueError(f"kind: must be linear or mean, g tells the others (given: {kind!r})")
    for pad, size, spread in (("ph", "kh", "dh"), ("pw", "kw", "dw")):
        if values.get(pad) == "same":
            kernel, dilation = values.get(size, values.get("kh")), values.get(spread, 0)
            if not isinstance(kernel, int) or not isinstance(dilation, int):
                raise ValueError(f"{pad}: same needs {size} to be a number")
            values[pad] = (dilation + 1) * (kernel - 1) // 2
    for key, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{key}: must be a whole number (given: {value!r})")
    text = f"{kind}_" if kind is not None else ""
    text += "".join(f"{key}{value}" for key, value in values.items())
    text += f"_act:{act}" if act is not None else ""
    text += f"_{dtype}" if dtype is not None else ""
    text += "_nobias" if bias is False else ""
    return Problem.parse(text)
