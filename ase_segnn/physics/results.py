"""Results of a study as a table in Markdown, or as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ase_segnn.physics.verdicts import Verdict


@dataclass(frozen=True)
class Finding:
    """A quantity computed with a potential, beside the reference's own value.

    Parameters
    ----------
    quantity : name
    unit : such as "GPa"
    value : None if the reference names a quantity that was not computed
    reference : None if not known
    """

    quantity: str
    unit: str
    value: float | None
    reference: float | None = None


@dataclass
class Results:
    """Findings and verdicts of one system.

    Parameters
    ----------
    system : name for a heading
    findings, verdicts : in the order in which they were found
    """

    system: str
    findings: list[Finding] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def add(self, quantity: str, unit: str, value: float, reference: float | None = None) -> None:
        """Add a finding."""
        self.findings.append(Finding(quantity, unit, float(value), None if reference is None else float(reference)))

    def with_references(self, values: dict[str, float]) -> Results:
        """Return the results with values of the reference; those of quantities that were not computed come last."""
        known = {finding.quantity for finding in self.findings}
        findings = [
            Finding(each.quantity, each.unit, each.value, values.get(each.quantity, each.reference))
            for each in self.findings
        ]
        missing = [Finding(name, "", None, value) for name, value in values.items() if name not in known]
        return Results(self.system, [*findings, *missing], list(self.verdicts))

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return quantity, unit, value and reference of each finding as texts."""
        return [
            (
                each.quantity,
                each.unit,
                "not computed" if each.value is None else number(each.value),
                "" if each.reference is None else number(each.reference),
            )
            for each in self.findings
        ]

    def to_markdown(self, name: str) -> str:
        """Return a section with a table and the verdicts; `name` is the potential's."""
        lines = [f"### {self.system}"]
        if self.findings:
            rows = [("quantity", "unit", name, "reference"), ("---",) * 4, *self.rows()]
            lines += ["", *(f"| {' | '.join(row)} |" for row in rows)]
        if self.verdicts:
            lines += ["", *(f"- {each.name}: {each.outcome}. {each.statement}" for each in self.verdicts)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def number(value: float) -> str:
    """Return a number with four significant digits.

    >>> number(5.46763), number(154.69), number(0.00012)
    ('5.468', '154.7', '0.00012')
    """
    return f"{value:.4g}"


def to_markdown(results: Sequence[Results], name: str) -> str:
    """Return the sections of several systems; `name` is the potential's."""
    return "\n\n".join(each.to_markdown(name) for each in results)
