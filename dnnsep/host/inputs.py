"""Reads files that a user names. Whatever such a file holds, reading it ends soon and in little
memory, and where it is refused one line of text says why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# The largest files that are read: of text that people write, and of results.
TEXT_BYTES = 1 << 20
RESULT_BYTES = 1 << 27

# What YAML can describe grows with its aliases by far more than its text does, and each level of
# nesting is one of Python's stack.
_MOST_DEPTH = 40
_MOST_NODES = 100_000

_PREFIX = "tag:yaml.org,2002:"
_TAGS = {_PREFIX + name for name in ("str", "int", "float", "bool", "null", "seq", "map", "merge")}


@dataclass(frozen=True)
class Yaml:
    """What a YAML file says: its value, and the nodes, which know their lines."""

    value: Any
    root: yaml.Node | None


def exists(path: Path) -> bool:
    """Returns whether there is something of that name; False for what cannot be a name."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; a zero in it
        return False


def is_folder(path: Path) -> bool:
    """Returns whether there is a folder of that name; False for what cannot be a name."""
    return exists(path) and path.is_dir()


def read_bytes(path: Path, most: int) -> bytes:
    """Returns the content of a regular file of so many bytes at most.

    Raises ValueError, which names the file and the rule.
    """
    try:
        # Opening a pipe without a writer would wait for one.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ValueError(f"{path}: {reason}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise ValueError(f"{path}: is {kind}, not a file")
    with os.fdopen(descriptor, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{path}: is larger than {most >> 20} MiB, the most that is read")
    return content


def read_text(path: Path) -> str:
    """Returns the text of a file in UTF-8. Raises ValueError, which names the file and the rule."""
    try:
        return read_bytes(path, TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8: {error.reason} at byte {error.start}") from None


def read_yaml(path: Path) -> Yaml:
    """Reads a YAML file of text, numbers, true and false, nothing, lists and mappings by text.

    Raises ValueError, which names the file, the line and the rule.
    """
    text = read_text(path)
    try:
        _check_depth(path, text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _check(path, root)
        return Yaml(yaml.safe_load(text), root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise ValueError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {str(error).splitlines()[0]}") from None


def _check_depth(path: Path, text: str) -> None:
    """Raises ValueError where a file is nested too deep. This comes first: composing nodes takes a
    level of Python's stack for each."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MOST_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise ValueError(f"{path}:{line}: is nested deeper than {_MOST_DEPTH} levels")


def _check(path: Path, root: yaml.Node) -> None:
    """Raises ValueError for a node of another kind than those that files here are made of, and
    where aliases make a file endless or too large."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        where = f"{path}:{node.start_mark.line + 1}"
        if id(node) in above:
            raise ValueError(f"{where}: contains itself, by an alias")
        if id(node) in sizes:
            return sizes[id(node)]
        if node.tag not in _TAGS:
            tag = node.tag.replace(_PREFIX, "!!")
            raise ValueError(
                f"{where}: {tag:.60}: a value must be text, a number, true, false, a list or a "
                "mapping"
            )
        _check_number(where, node)
        above.add(id(node))
        count = 1 + sum(map(size, _below(path, node)))
        above.remove(id(node))
        if count > _MOST_NODES:
            raise ValueError(f"{where}: has more than {_MOST_NODES} values, aliases counted")
        sizes[id(node)] = count
        return count

    size(root)


def _below(path: Path, node: yaml.Node) -> Iterator[yaml.Node]:
    """Yields the values in a list or a mapping. Raises ValueError for a key that is no text."""
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            where = f"{path}:{key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{where}: a key must be text")
            if key.value in seen and key.value != "<<":
                raise ValueError(f"{where}: {key.value:.60}: given twice")
            seen.add(key.value)
            yield value


def _check_number(where: str, node: yaml.Node) -> None:
    if node.tag == f"{_PREFIX}int" and len(node.value) > 20:
        raise ValueError(f"{where}: a number of {len(node.value)} digits is too large")
