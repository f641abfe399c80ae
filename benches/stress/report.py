"""Figures: a line on the screen beside the goal, a line of JSON in a file. A goal that is missed is said, and is no failure of the run."""

from __future__ import annotations

import json
import time
from pathlib import Path


class Report:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        print("| scenario | figure | measured | goal | |\n|---|---|---|---|---|", flush=True)

    def figure(
        self,
        scenario: str,
        name: str,
        value: float,
        unit: str = "",
        *,
        below: float | None = None,
        above: float | None = None,
    ) -> None:
        """One number. With `below` or `above`, that is the goal."""
        goal, met = "", ""
        if below is not None:
            goal, met = f"<= {self._text(below)} {unit}", "met" if value <= below else "MISSED"
        if above is not None:
            goal, met = f">= {self._text(above)} {unit}", "met" if value >= above else "MISSED"
        print(f"| {scenario} | {name} | {self._text(value)} {unit} | {goal.strip()} | {met} |", flush=True)
        self._write(
            {"scenario": scenario, "figure": name, "value": value, "unit": unit, "below": below, "above": above}
        )

    def series(self, scenario: str, name: str, points: object) -> None:
        """Numbers that belong together, for the file only."""
        self._write({"scenario": scenario, "series": name, "points": points})

    def _write(self, line: dict[str, object]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"at": round(time.time()), **line}) + "\n")

    @staticmethod
    def _text(value: float) -> str:
        if abs(value) >= 100:
            return f"{value:,.0f}"
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
