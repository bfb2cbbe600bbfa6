"""Reads sweep files: YAML, validated and expanded to cases, with errors that name the line."""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    ValidationError,
)

from dnnsep.backends import BACKENDS
from dnnsep.block import BLOCK_DTYPES, Block
from dnnsep.dtypes import PRECISIONS
from dnnsep.host.inputs import exists, read_yaml
from dnnsep.host.shipped import shipped, shipped_sweeps
from dnnsep.models.engines import ENGINES
from dnnsep.problem import Problem
from dnnsep.sweep.benchdnn import LeftOut, NamedProblem, read_shape_file
from dnnsep.sweep.case import BlockCase, Case
from dnnsep.sweep.entries import (
    MOST_CASES,
    AxesEntry,
    ShapeEntry,
    SweepFile,
    expanded,
    problem_or_block,
)
from dnnsep.sweep.results import Cache

DEFAULT_BACKENDS = ("ipex", "onednn", "eager", "fused")
DEFAULT_BLOCK_BACKENDS = ("eager", "dnnsep:cascades=no", "dnnsep")
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
        of_layers = expanded(given or DEFAULT_BACKENDS, BACKENDS)
        of_blocks = expanded(given or DEFAULT_BLOCK_BACKENDS, ENGINES)
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


def _read_source(source: str) -> tuple[SweepFile, _Found]:
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
        problem = problem_or_block(source)
    except ValueError as error:
        raise ConfigError(f"{nothing}; as a descriptor: {error}") from None
    file = SweepFile(title=source, problems=[source])  # type: ignore[list-item]
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

    def read(self, path: Path, including: tuple[Path, ...]) -> tuple[SweepFile, _Found]:
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
            if isinstance(entry, ShapeEntry):
                problems.append(_named(problem_or_block(entry.shape), entry.name))
            elif isinstance(entry, AxesEntry):
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


def _read_benchdnn(path: Path) -> tuple[SweepFile, _Found]:
    try:
        shapes = read_shape_file(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    # It is not validated, since other files may have the problems where this one has none.
    found = _Found([*shapes.problems], shapes.left_out)
    return SweepFile.model_construct(title=path.name), found


Location = tuple[str | int, ...]


def _parse_yaml(path: Path) -> tuple[SweepFile, dict[Location, int]]:
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
        return SweepFile.model_validate(value), lines
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
