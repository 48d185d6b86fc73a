"""The one chart of the results pages: a row for each setting, a ring for each run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from llama_adapter_edu.course.figures import BLUE, GREY, use_style


@dataclass(frozen=True)
class Chart:
    """One measure of several settings, each with one or more runs.

    unit: "%" for shares from 0 to 1, else what the numbers are, as "GB".
    log: the numbers spread over several powers of ten.
    """

    name: str
    title: str
    measure: str
    rows: Mapping[str, Sequence[float]]
    unit: str = "%"
    log: bool = False

    def show(self, value: float) -> str:
        """A number with its unit, as text and table have it."""
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        digits = 0 if abs(value) >= 100 else 2
        return f"{value:,.{digits}f} {self.unit}".strip()

    def alt(self) -> str:
        """The chart in words: its numbers too, for those who cannot see it."""
        numbers = "; ".join(f"{label}: {self.show(fmean(x))}" for label, x in self.rows.items())
        kind = "Values" if self._single() else "Means"
        return f"Dot chart of {self.measure}, a row for each setting. {kind}: {numbers}."

    def table(self) -> str:
        """All numbers of the chart, in Markdown."""
        if self._single():
            rows = [f"| {label} | {self.show(x)} |" for label, (x,) in self.rows.items()]
            return "\n".join([f"| setting | {self.measure} |", "|---|--:|", *rows])
        lines = [f"| setting | mean {self.measure} | lowest | highest | runs |"]
        lines += ["|---|--:|--:|--:|--:|"]
        for label, values in self.rows.items():
            numbers = fmean(values), min(values), max(values)
            shown = " | ".join(self.show(number) for number in numbers)
            lines.append(f"| {label} | {shown} | {len(values)} |")
        return "\n".join(lines)

    def _single(self) -> bool:
        return all(len(values) == 1 for values in self.rows.values())

    def draw(self, path: Path) -> None:
        """Write the chart as SVG: grey rings are runs, a blue bar is their mean."""
        with plt.rc_context({"svg.hashsalt": self.name}):
            use_style()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._figure().savefig(path, metadata={"Date": None})

    def _figure(self) -> Figure:
        labels = list(self.rows)
        fig = Figure(figsize=(6.4, 1.0 + 0.32 * len(labels)))
        ax = fig.subplots()
        scale = 100 if self.unit == "%" else 1
        for row, values in enumerate(self.rows.values()):
            ax.plot([scale * x for x in values], [row] * len(values), "o", mfc="none", color=GREY)
            if not self._single():
                ax.plot(scale * fmean(values), row, "|", color=BLUE, ms=15, mew=3)
        ax.set_yticks(range(len(labels)), labels)
        label = f"{self.measure} ({self.unit})" if self.unit else self.measure
        ax.set(ylim=(len(labels) - 0.5, -0.5), xlabel=label)
        if self.log:
            ax.set_xscale("log")
        else:
            ax.set_xlim(-2 if self.unit == "%" else 0, 103 if self.unit == "%" else None)
        ax.grid(axis="x", color="#dddddd")
        ax.set_axisbelow(True)
        if not self._single():
            ax.plot([], [], "o", mfc="none", color=GREY, label="one run")
            ax.plot([], [], "|", color=BLUE, ms=12, mew=3, label="mean")
            fig.legend(loc="outside upper right", ncols=2, frameon=False)
        return fig
