"""The audit of labeled data before training: contents of the data, and what seems wrong with them.

Frames come one after another and are not kept, so data may be larger than memory. The checks are in `checks`,
`energies` and `work`; `page` writes findings and numbers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from ase.data import chemical_symbols

from ase_segnn.labels import LABELS, LabelReport
from ase_segnn.quantities import QUANTITIES, VOIGT

from ..data.frames import Frame
from . import checks, energies, page
from .findings import Collected, Finding
from .numbers import Rows, Spread, measure, without_placeholders
from .work import Slope, Work

_SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Audit:
    """Findings of an audit, and numbers of the data.

    Parameters
    ----------
    findings : errors first, notes last
    frames : (data set, group) -> numbers of frames, and of those with each label and a weight for it
    elements : symbol -> atoms and frames that have it, in all data sets
    periodicity : (data set, directions that are periodic) -> frames
    spreads : (data set, quantity with its unit) -> its values
    reference_energies : symbol -> as used and by a fit to the frames, eV; nan where there is none
    origin : of the reference energies used
    slopes : label -> energy differences against its work
    labels : data set, as read from its files -> what was taken as labels
    """

    findings: tuple[Finding, ...]
    frames: Mapping[tuple[str, str], Mapping[str, int]]
    elements: Mapping[str, tuple[int, int]]
    periodicity: Mapping[tuple[str, str], int]
    spreads: Mapping[tuple[str, str], Spread]
    reference_energies: Mapping[str, tuple[float, float]]
    origin: str
    slopes: Mapping[str, Slope]
    labels: Mapping[str, LabelReport] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse data that cannot be learned from.

        Raises
        ------
        ValueError
            If there are findings that are errors; it lists them all.
        """
        errors = [finding for finding in self.findings if finding.severity == "error"]
        if errors:
            lines = [f"- {page.one_line(finding)}: {finding.explanation}" for finding in errors]
            raise ValueError("the data cannot be learned from:\n" + "\n".join(lines))

    def to_markdown(self) -> str:
        """Write the page with all findings and tables."""
        return page.page(self)

    def to_text(self) -> str:
        """Write counts and findings in few lines, for a terminal or log."""
        return page.summary(self)


class Auditor:
    """Collects a few numbers of each frame, and judges all frames at the end.

    Parameters
    ----------
    weights : label -> weight in the objective; 0 or absent if it is not learned
    cutoff : of the potential, Å
    known_elements : elements of the base, which the training frames may lack

    Examples
    --------
    >>> from ase import Atoms
    >>> auditor = Auditor(weights={"energy": 1.0, "forces": 1.0}, cutoff=5.0)
    >>> auditor.add(Frame(Atoms("H2", [[0, 0, 0], [0, 0, 0.74]]), "h2.xyz@0", energy=-31.7), "training")
    >>> print(auditor.finish({"H": -13.6}, "given").to_text())
    training: 1 frame of 2 atoms; energy 1, forces 0, stress 0
    error: no training frame has forces
    """

    def __init__(self, weights: Mapping[str, float], cutoff: float, known_elements: Collection[str] = ()) -> None:
        unknown = sorted(set(weights) - set(LABELS))
        if unknown:
            raise ValueError(f"there is no label {', '.join(map(repr, unknown))}; labels are {', '.join(LABELS)}")
        self._weights, self._cutoff, self._known_elements = dict(weights), cutoff, known_elements
        self._rows, self._work = Rows(), Work()
        self._sources: list[str] = []
        self._data_sets: dict[str, int] = {}
        self._groups: dict[str, int] = {}
        self._compositions: dict[tuple[tuple[int, int], ...], int] = {}
        self._frames: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self._periodicity: Counter[tuple[str, str]] = Counter()
        self._spreads: defaultdict[tuple[str, str], Spread] = defaultdict(Spread)
        self._labels: dict[str, LabelReport] = {}

    def add_labels(self, report: LabelReport, data_set: str) -> None:
        """Add the report on the labels of a data set."""
        self._labels[data_set] = report

    def add(self, frame: Frame, data_set: str) -> None:
        """Add a frame to a data set: "training", "validation" or the name of a test set.

        Raises
        ------
        ValueError
            If its periodic cell vectors span no volume.
        """
        numbers, counts = np.unique(frame.atoms.numbers, return_counts=True)
        kind = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
        self._rows.append(
            measure(
                frame,
                self._data_sets.setdefault(data_set, len(self._data_sets)),
                self._groups.setdefault(frame.group, len(self._groups)),
                self._compositions.setdefault(kind, len(self._compositions)),
                self._cutoff,
            )
        )
        self._sources.append(frame.source)
        frame = without_placeholders(frame)
        self._work.add(frame)
        self._frames[data_set, frame.group].update(["frames", *frame.labels])
        directions = ", ".join(axis for axis, there in zip("xyz", frame.atoms.pbc, strict=True) if there)
        self._periodicity[data_set, directions or "none"] += 1
        self._describe(frame, data_set)

    def _describe(self, frame: Frame, data_set: str) -> None:
        n_atoms = len(frame.atoms)
        values: dict[str, object] = {"atoms per frame": float(n_atoms)}
        if frame.energy is not None:
            values[QUANTITIES["energy_per_atom"].heading] = frame.energy / n_atoms
        if frame.forces is not None:
            values[f"force on an atom, {QUANTITIES['forces'].unit}"] = np.linalg.norm(frame.forces, axis=1)
        if frame.stress is not None:
            unit = QUANTITIES["stress"].unit
            values[f"mean stress, {unit}"] = np.trace(frame.stress) / 3
            values[f"shear stresses, {unit}"] = frame.stress[VOIGT][3:]
        if frame.atoms.pbc.all():
            values["volume, Å³/atom"] = frame.atoms.get_volume() / n_atoms
        for quantity, value in values.items():
            self._spreads[data_set, quantity].add(np.asarray(value, dtype=np.float64))

    def finish(self, reference_energies: Mapping[str, float], origin: str) -> Audit:
        """Judge all frames.

        Parameters
        ----------
        reference_energies : symbol -> eV, as used
        origin : where they are from: "given", "isolated atoms" or "least squares"
        """
        data = self._collected()
        fit = energies.fit_energies(data)
        slopes = {"forces": self._work.forces(), "stress": self._work.stress()}
        findings = [
            *checks.sources(self._labels),
            *checks.labels(data),
            *checks.elements(data, self._known_elements),
            *energies.references(data, fit, reference_energies, origin),
            *energies.energies(data, fit),
            *checks.work(data, slopes["forces"], slopes["stress"]),
            *checks.unrelated(
                data, {"forces": self._work.near_forces(), "stress": slopes["stress"]}, self._work.both()
            ),
            *checks.forces(data),
            *checks.stress(data),
            *checks.placeholders(data),
            *checks.duplicates(data),
            *checks.geometry(data),
            *checks.outliers(data, fit.residuals),
        ]
        bound = energies.cohesion(data, reference_energies)
        spreads = dict(self._spreads)
        if len(bound) and not np.isnan(bound).any():
            quantity = f"energy less reference energies, {QUANTITIES['energy_per_atom'].unit}"
            spreads["training", quantity] = Spread()
            spreads["training", quantity].add(-bound)
        counts = data.compositions[data.rows["composition"]]
        nan = float("nan")
        return Audit(
            findings=tuple(sorted(findings, key=lambda finding: _SEVERITIES.index(finding.severity))),
            frames=dict(self._frames),
            elements={
                symbol: (int(column.sum()), int((column > 0).sum()))
                for symbol, column in zip(data.elements, counts.T, strict=True)
            },
            periodicity=dict(self._periodicity),
            spreads=spreads,
            reference_energies={
                symbol: (reference_energies.get(symbol, nan), fit.per_element.get(symbol, nan))
                for symbol in data.elements
            },
            origin=origin,
            slopes=slopes,
            labels=dict(self._labels),
        )

    def _collected(self) -> Collected:
        numbers = sorted({number for kind in self._compositions for number, _ in kind})
        columns = {number: column for column, number in enumerate(numbers)}
        compositions = np.zeros((len(self._compositions), len(numbers)), dtype=np.int64)
        for row, kind in enumerate(self._compositions):
            for number, count in kind:
                compositions[row, columns[number]] = count
        return Collected(
            rows=self._rows.table(),
            sources=self._sources,
            data_sets=list(self._data_sets),
            groups=list(self._groups),
            elements=[chemical_symbols[number] for number in numbers],
            compositions=compositions,
            weights=self._weights,
        )
