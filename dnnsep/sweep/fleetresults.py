"""What a sweep over several machines writes: a file with the results of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field

from dnnsep.host.files import replace_whole
from dnnsep.sweep.results import Record, Results, ResultsFile


class FleetResults(ResultsFile):
    """The results of each machine by its name, which is of its kind where each kind measures once.

    A record is one of a machine, a problem, a backend, a number of threads and a cache state.
    """

    format: Literal["dnnsep-fleet"] = "dnnsep-fleet"
    version: Literal[1] = 1
    title: str
    machines: dict[str, Results] = Field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Returns the records of all machines."""
        return [record for results in self.machines.values() for record in results.records]


class FleetFile:
    """The file of a sweep over several machines; only what changed is made into text again."""

    def __init__(self, path: Path, results: FleetResults) -> None:
        self._path, self._results = path, results
        self._texts: dict[str, str] = {}

    def changed(self, machine: str) -> None:
        """Says that a machine's results are not those that were saved last."""
        self._texts.pop(machine, None)

    def save(self) -> None:
        """Writes the file at once, so that a kill leaves the old or the new one, whole."""
        for name, results in self._results.machines.items():
            if name not in self._texts:
                self._texts[name] = f"{json.dumps(name)}:{results.to_json()}"
        head = self._results.model_dump_json(exclude={"machines"})
        machines = ",\n".join(self._texts[name] for name in self._results.machines)
        replace_whole(self._path, f'{head[:-1]},"machines":{{\n{machines}}}}}\n')
