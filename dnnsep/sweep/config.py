"""Reads sweep files: YAML, validated and expanded to cases, with errors that name the line."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from dnnsep.backends import BACKENDS, PEERS, get_backend
from dnnsep.block import BLOCK_DTYPES, Block, is_block
from dnnsep.dtypes import PRECISIONS
from dnnsep.host.inputs import exists, read_yaml
from dnnsep.host.shipped import shipped, shipped_sweeps
from dnnsep.models.engines import ENGINES
from dnnsep.problem import Problem
from dnnsep.sweep.benchdnn import LeftOut, NamedProblem, read_shape_file
from dnnsep.sweep.case import BlockCase, Case
from dnnsep.sweep.results import Cache

DEFAULT_BACKENDS = ("ipex", "onednn", "eager", "fused")
DEFAULT_BLOCK_BACKENDS = ("eager", "dnnsep:cascades=no", "dnnsep")
# The name that stands for all peers.
_PEERS = "peers"

Dtype = Literal["f32", "bf16", "u8s8", "s8s8", "u8s8s8", "u8s8f32", "s8s8u8", "s8s8f32", "int8"]
Count = Annotated[int, Field(ge=1, strict=True)]
# Pydantic would take bytes for text, and text for numbers.
Text = Annotated[str, Field(strict=True, max_length=1000)]
AxisValue = bool | Annotated[int, Field(strict=True)] | Text


# More than anybody can wait for.
MOST_CASES = 10_000
_MOST_FILES = 1000
_MOST_INCLUDES = 20  # one in the other


class ConfigError(ValueError):
    """A sweep file, or a descriptor in its place, breaks a rule; one line of text says where."""


@dataclass(frozen=True)
class Overrides:
    """Lists of the command line that replace a sweep file's own; an empty one replaces nothing."""

    backends: Sequence[str] = ()
    threads: Sequence[int] = ()
    dtypes: Sequence[str] = ()
    batch: Sequence[int] = ()
    caches: Sequence[Cache] = ()


@dataclass(frozen=True)
class NamedBlock:
    """A block and what its file calls it."""

    problem: Block
    name: str | None


@dataclass(frozen=True)
class Sweep:
    """The cases of one or more sweep files, single layers and blocks, and the lines of shape files
    that are left out."""

    title: str
    cases: list[Case]
    left_out: list[LeftOut]
    blocks: list[BlockCase] = field(default_factory=list)

    @property
    def all_cases(self) -> list[Case | BlockCase]:
        """Returns the cases of layers, then those of blocks."""
        return [*self.cases, *self.blocks]

    @property
    def backends(self) -> list[str]:
        """Returns the names of all backends of the cases, sorted."""
        return sorted({backend for case in self.all_cases for backend in case.backends})

    @property
    def threads(self) -> list[int]:
        """Returns all numbers of threads of the cases, sorted."""
        return sorted({case.threads for case in self.all_cases})

    @property
    def caches(self) -> list[str]:
        """Returns all cache states of the cases, sorted."""
        return sorted({case.cache for case in self.all_cases})


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Shape(_Model):
    """An entry that is a problem's or a block's descriptor, maybe with a name."""

    shape: Text
    name: Text | None = None

    @field_validator("shape")
    @classmethod
    def _parses(cls, text: str) -> str:
        _problem_or_block(text)
        return text


class _Axes(_Model):
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
    def _expands(self) -> _Axes:
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


class _Include(_Model):
    """An entry that takes the problems of another sweep file or of a benchdnn shape file."""

    include: Text


def _entry_kind(value: Any) -> str:
    if isinstance(value, dict):
        return next((kind for kind in ("axes", "include") if kind in value), "shape")
    return "shape"


def _entry(value: Any) -> Any:
    return {"shape": value} if isinstance(value, str) else value


_Entry = Annotated[
    Annotated[_Shape, Tag("shape")]
    | Annotated[_Axes, Tag("axes")]
    | Annotated[_Include, Tag("include")],
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


def _expanded(names: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """Returns the names, with those of the peers that are known in the place of ``peers``."""
    peers = [peer for peer in PEERS if peer in known]
    each = [peers if name == _PEERS else [name] for name in names]
    return tuple(dict.fromkeys(itertools.chain(*each)))


def _problem_or_block(text: str) -> Problem | Block:
    return Block.parse(text) if is_block(text) else Problem.parse(text)


class _File(_Model):
    title: Text
    problems: Annotated[list[_Entry], Field(min_length=1)]
    backends: list[Annotated[list[str], BeforeValidator(backend_names)]] = Field(
        default_factory=list
    )
    dtypes: list[Dtype] = Field(default_factory=list)
    threads: list[Annotated[Count, Field(le=1024)]] = Field(default_factory=list)
    batch: list[Count] = Field(default_factory=list)
    cache: list[Cache] = Field(default_factory=list)


def load_sweep(sources: Sequence[str], overrides: Overrides, default_threads: int) -> Sweep:
    """Expands sweep files, benchdnn shape files and descriptors to cases, each only once.

    A case that several sources have gets the backends of all of them. Raises ConfigError.
    """
    titles, left_out = [], list[LeftOut]()
    cases, blocks = dict[tuple[Any, ...], Case](), dict[tuple[Any, ...], BlockCase]()
    for source in sources:
        file, found = _read_source(source)
        left_out += found.left_out
        titles.append(file.title)
        given = overrides.backends or [name for names in file.backends for name in names]
        of_layers = _expanded(given or DEFAULT_BACKENDS, BACKENDS)
        of_blocks = _expanded(given or DEFAULT_BLOCK_BACKENDS, ENGINES)
        threads = overrides.threads or file.threads or [default_threads]
        caches = overrides.caches or file.cache or ["hot"]
        dtypes, batches = overrides.dtypes or file.dtypes, overrides.batch or file.batch
        try:
            varied = list(_vary(found.problems, dtypes, batches))
        except ValueError as error:
            raise ConfigError(f"{source}: {error}") from None
        for named, count, cache in itertools.product(varied, threads, caches):
            place = (named.problem, count, cache)
            if isinstance(named, NamedBlock):
                block = BlockCase(named.problem, named.name, count, of_blocks, cache)
                _add(blocks, place, block, of_blocks)
            else:
                case = Case(named.problem, named.name, count, of_layers, cache)
                _add(cases, place, case, of_layers)
    if not cases and not blocks and not left_out:
        raise ConfigError(f"{', '.join(sources)}: no problem in it")
    return Sweep(" + ".join(titles), list(cases.values()), left_out, list(blocks.values()))


_AnyCase = TypeVar("_AnyCase", Case, BlockCase)


def _add(
    cases: dict[tuple[Any, ...], _AnyCase],
    place: tuple[Any, ...],
    case: _AnyCase,
    backends: tuple[str, ...],
) -> None:
    """Adds a case, or its backends to the one that is in its place."""
    known = cases.setdefault(place, case)
    merged = tuple(dict.fromkeys(known.backends + backends))
    cases[place] = replace(known, backends=merged)


def _vary(
    problems: list[_Named], dtypes: Sequence[str], batches: Sequence[int]
) -> Iterator[_Named]:
    """Yields each problem and block in each dtype and batch; an empty list keeps its own. Raises
    ValueError for a dtype that is only of the other ones."""
    for dtype, batch, named in itertools.product(dtypes or [""], batches or [0], problems):
        own = named.problem
        if isinstance(named, NamedBlock):
            if dtype and dtype not in BLOCK_DTYPES:
                known = ", ".join(BLOCK_DTYPES)
                raise ValueError(f"dtype {dtype}: {own} is a block, which runs in {known}")
            block = replace(named.problem, dtype=dtype or own.dtype, batch=batch or own.batch)
            yield NamedBlock(block, named.name)
        else:
            if dtype and dtype not in PRECISIONS:
                known = ", ".join(PRECISIONS)
                raise ValueError(f"dtype {dtype}: {own} is a single layer, which runs in {known}")
            problem = replace(named.problem, dtype=dtype or own.dtype, batch=batch or own.batch)
            yield NamedProblem(problem, named.name)


def _read_source(source: str) -> tuple[_File, _Found]:
    """Reads a CONFIG of the command line: a file, the name of a shipped configuration, or else a
    descriptor. Raises ConfigError."""
    path = Path(source)
    if exists(path):
        return _Reader().read(path, ())
    if (known := shipped(source)) is not None:
        return _Reader().read(known, ())
    nothing = f"{source}: no such file, nor one of {', '.join(shipped_sweeps())}"
    if path.suffix or "/" in source:
        raise ConfigError(nothing)
    try:
        problem = _problem_or_block(source)
    except ValueError as error:
        raise ConfigError(f"{nothing}; as a descriptor: {error}") from None
    file = _File(title=source, problems=[source])  # type: ignore[list-item]
    return file, _Found([_named(problem, None)], [])


_Named = NamedProblem | NamedBlock


@dataclass(frozen=True)
class _Found:
    """The problems and blocks of a source, and the lines of shape files that were left out."""

    problems: list[_Named]
    left_out: list[LeftOut]


def _named(problem: Problem | Block, name: str | None) -> _Named:
    if isinstance(problem, Block):
        return NamedBlock(problem, name)
    return NamedProblem(problem, name)


class _Reader:
    """Reads a file and all that it includes."""

    def __init__(self) -> None:
        self._files = 0

    def read(self, path: Path, including: tuple[Path, ...]) -> tuple[_File, _Found]:
        """``including`` are the files that include this one, the outermost first."""
        self._files += 1
        if self._files > _MOST_FILES:
            raise ConfigError(f"{path}: more than {_MOST_FILES} files are included")
        if path.suffix not in (".yaml", ".yml"):
            return _read_benchdnn(path)
        file, lines = _parse_yaml(path)
        problems: list[_Named] = []
        left_out: list[LeftOut] = []
        for index, entry in enumerate(file.problems):
            if isinstance(entry, _Shape):
                problems.append(_named(_problem_or_block(entry.shape), entry.name))
            elif isinstance(entry, _Axes):
                problems += [NamedProblem(problem, None) for problem in entry.problems()]
            else:
                where = f"{path}:{lines[('problems', index)]}: include"
                included = self._included(where, path, entry.include, including)
                problems += included.problems
                left_out += included.left_out
            if len(problems) > MOST_CASES:
                raise ConfigError(f"{path}: has more than {MOST_CASES} problems")
        return file, _Found(problems, left_out)

    def _included(self, where: str, path: Path, name: str, including: tuple[Path, ...]) -> _Found:
        target = path.parent / name
        if not exists(target):
            raise ConfigError(f"{where}: no such file: {target}")
        if target.resolve() in (path.resolve(), *including):
            raise ConfigError(f"{where}: {name} includes itself")
        if len(including) >= _MOST_INCLUDES:
            raise ConfigError(f"{where}: is more than {_MOST_INCLUDES} includes deep")
        return self.read(target, (*including, path.resolve()))[1]


def _read_benchdnn(path: Path) -> tuple[_File, _Found]:
    try:
        shapes = read_shape_file(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # It is not validated, since other files may have the problems where this one has none.
    found = _Found([*shapes.problems], shapes.left_out)
    return _File.model_construct(title=path.name), found


Location = tuple[str | int, ...]


def _parse_yaml(path: Path) -> tuple[_File, dict[Location, int]]:
    """Returns the validated file and the line number of every place in it."""
    try:
        found = read_yaml(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    value, root = found.value, found.root
    if not isinstance(value, dict):
        raise ConfigError(f"{path}:1: must be a mapping with title and problems")
    lines: dict[Location, int] = {}
    _collect_lines(root, (), lines)
    try:
        return _File.model_validate(value), lines
    except ValidationError as error:
        first = error.errors()[0]
        line, field = _locate(first["loc"], lines)
        given = first.get("input")
        shown = (
            f" (given: {reprlib.repr(given)})" if isinstance(given, (str, int, float, bool)) else ""
        )
        rule = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}:{line}: {field}: {rule}{shown}") from None


def _collect_lines(node: Any, at: Location, lines: dict[Location, int]) -> None:
    """Adds the line numbers of a node, which is at ``at``, and of all below it."""
    lines[at] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, key.value)
            _collect_lines(value, place, lines)
            lines[place] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _collect_lines(value, (*at, index), lines)


def _locate(location: Location, lines: dict[Location, int]) -> tuple[int, str]:
    """Returns the line of the innermost known place, and the field's path as a user writes it.

    Under a problem pydantic's location first names the kind of entry, which the file does not.
    """
    if len(location) > 2 and location[0] == "problems":
        location = (*location[:2], *location[3:])
    at: Location = ()
    while len(at) < len(location) and (*at, location[len(at)]) in lines:
        at = (*at, location[len(at)])
    field = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in location)
    return lines[at], field.lstrip(".") or "file"


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
