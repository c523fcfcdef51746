"""A run of the suite: pytest-benchmark's JSON, joined over the instruction sets, and the rows in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lolrt.bench.row import Row
from lolrt.errors import Error


@dataclass(frozen=True)
class Results:
    data: dict[str, Any]

    @classmethod
    def joined(cls, runs: list[dict[str, Any]], command: str, codegen: list[list[str]]) -> Results:
        """The runs of all instruction sets, the best one first. command: what was run; codegen: `bench.codegen.table`."""
        data = dict(runs[0])
        data["benchmarks"] = [benchmark for run in runs for benchmark in run["benchmarks"]]
        data["lolrt"] = {"command": command, "codegen": codegen, "kernels": [run["machine_info"]["lolrt"]["kernels"] for run in runs]}
        return cls(data)

    @classmethod
    def read(cls, *paths: Path) -> Results:
        """Joins runs of one machine, each of other instruction sets. Raises `lolrt.Error` for runs of several machines."""
        runs = [json.loads(path.read_text()) for path in paths]
        machines = {", ".join(v for k, v in run["machine_info"]["lolrt"].items() if k != "kernels") for run in runs}
        if len(machines) > 1:
            raise Error(f"the runs are of {len(machines)} machines or versions: {'; '.join(sorted(machines))}; expected runs of one")
        of_run = [run["lolrt"] for run in runs]
        kernels = [kernels for run in of_run for kernels in run["kernels"]]
        command = "` and `".join(run["command"] for run in of_run)
        benchmarks = [benchmark for run in runs for benchmark in run["benchmarks"]]
        return cls({**runs[0], "benchmarks": benchmarks, "lolrt": {**of_run[0], "command": command, "kernels": kernels}})

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for benchmark in self.data["benchmarks"]:
            benchmark["stats"].pop("data", None)
        path.write_text(json.dumps(self.data, indent=1))

    @property
    def command(self) -> str:
        """As Markdown has it between its backquotes."""
        return self.data["lolrt"]["command"]

    @property
    def date(self) -> str:
        return self.data["datetime"][:10]

    @property
    def codegen(self) -> list[list[str]]:
        return self.data["lolrt"]["codegen"]

    @property
    def machine(self) -> dict[str, str]:
        return {**self.data["machine_info"]["lolrt"], "kernels": " | ".join(self.data["lolrt"]["kernels"])}

    @property
    def rows(self) -> list[Row]:
        return [Row(**benchmark["extra_info"]["row"]) for benchmark in self.data["benchmarks"] if "row" in benchmark["extra_info"]]

    def figures(self, key: str) -> list[dict[str, Any]]:
        """`extra_info` of the benchmarks that have the key, with the median of their seconds."""
        return [
            {"median": benchmark["stats"]["median"], **benchmark["extra_info"]}
            for benchmark in self.data["benchmarks"]
            if key in benchmark["extra_info"]
        ]
