"""The audit in words: a page in Markdown to keep, and a few lines for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ase_segnn.labels import LABELS

from .findings import Finding
from .work import Slope

if TYPE_CHECKING:
    from .auditor import Audit

_SHOWN = 12  # names of frames of a finding


def one_line(finding: Finding) -> str:
    """Title of a finding and its first frames."""
    if not finding.frames:
        return finding.title
    more = f" and {finding.n_frames - 3} more" if finding.n_frames > 3 else ""
    return f"{finding.title} ({', '.join(finding.frames[:3])}{more})"


def summary(audit: Audit) -> str:
    """Write counts of each data set, and a line for each finding."""
    lines = []
    for name in dict.fromkeys(data_set for data_set, _ in audit.frames):
        total = {key: _total(audit, name, key) for key in ("frames", *LABELS)}
        sizes = audit.spreads[name, "atoms per frame"]
        atoms = f"{sizes.least:g}" if sizes.least == sizes.largest else f"{sizes.least:g} to {sizes.largest:g}"
        labels = ", ".join(f"{label} {total[label]}" for label in LABELS)
        lines.append(f"{name}: {total['frames']} frame{'s'[: total['frames'] != 1]} of {atoms} atoms; {labels}")
    lines += [f"{finding.severity}: {one_line(finding)}" for finding in audit.findings]
    return "\n".join(lines or ["no frames"])


def page(audit: Audit) -> str:
    """Write all findings and tables in Markdown."""
    sections = [
        "# Audit of the data",
        "## Findings",
        "\n\n".join(_finding(finding) for finding in audit.findings) or "Nothing to report.",
        "## Frames and labels",
        _table(
            ["data set", "group", "frames", *LABELS],
            ([*key, *(counts.get(name, 0) for name in ("frames", *LABELS))] for key, counts in audit.frames.items()),
        ),
        "## Where labels are from",
        "As read from files. Validation and test frames that are drawn from the training files stand with these.",
        _table(
            ["data set", "label", "frames", "source"],
            (
                [name, label, report.counts[label], report.sources.get(label, "none")]
                for name, report in audit.labels.items()
                for label in LABELS
            ),
        ),
        "## Elements",
        f"Of all data sets. Reference energies used: {audit.origin}. Those of the frames fit compositions alone.",
        _table(
            ["element", "atoms", "frames", "reference energy, eV", "of the frames, eV"],
            (
                [symbol, *counts, *(_number(energy, ".6f") for energy in audit.reference_energies[symbol])]
                for symbol, counts in audit.elements.items()
            ),
        ),
        "## Periodic directions",
        _table(["data set", "directions", "frames"], ([*key, count] for key, count in audit.periodicity.items())),
        "## Values",
        _table(
            ["data set", "quantity", "number", "least", "mean", "largest", "root mean square"],
            (
                [*key, spread.count, *(_number(x) for x in (spread.least, spread.mean, spread.largest, spread.rms))]
                for key, spread in sorted(audit.spreads.items(), key=lambda item: item[0][1])
            ),
        ),
        "## Energies against forces and stresses",
        "Energy differences of similar frames over work; 1 if signs and units agree, if ten pairs correlate by 0.9.",
        _table(
            ["label", "pairs", "slope", "correlation", "it tells"],
            (
                [label, slope.n_pairs, _number(slope.slope, ".3f"), _number(slope.correlation, ".3f"), _verdict(slope)]
                for label, slope in audit.slopes.items()
            ),
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _finding(finding: Finding) -> str:
    text = f"**{finding.severity}: {finding.title}.** {finding.explanation}"
    names = [f"`{name}`" for name in finding.frames[:_SHOWN]]
    if finding.remarks:
        names = [f"{name} ({remark})" for name, remark in zip(names, finding.remarks[:_SHOWN], strict=True)]
    if finding.n_frames > _SHOWN:
        names.append(f"and {finding.n_frames - _SHOWN} more")
    return text + "".join(f"\n- {name}" if index else f"\n\n- {name}" for index, name in enumerate(names))


def _verdict(slope: Slope) -> str:
    if not slope.is_clear:
        return "nothing"
    return "something is wrong" if slope.is_wrong or slope.is_permuted else "they agree"


def _total(audit: Audit, data_set: str, key: str) -> int:
    return sum(counts.get(key, 0) for (name, _), counts in audit.frames.items() if name == data_set)


def _number(value: float, form: str = ".5g") -> str:
    return "" if math.isnan(value) else f"{value:{form}}"


def _table(header: list[str], rows: Iterable[list[object]]) -> str:
    lines = [header, ["---"] * len(header), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
