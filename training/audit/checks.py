"""Checks of the audit on the numbers of all frames; each check yields its findings."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from ase import units
from numpy.typing import NDArray

from ase_segnn.labels import LABELS, LabelReport
from ase_segnn.quantities import QUANTITIES

from .findings import TRAINING, VALIDATION, Collected, Finding
from .work import Slope

_Floats = NDArray[np.float64]
_Integers = NDArray[np.int64]
_Bools = NDArray[np.bool_]
_CLOSE = 0.6  # of the sum of covalent radii
_ON_TOP = 0.01  # Å; no computation of electrons ends there
_NET_FORCE = 0.05  # error of a force that the sum of forces tells of, over the root mean square of forces
_FEWEST = 20  # frames of a group from which outliers are told
_FAR = 10  # standard deviations, estimated by the median deviation
_GAP = 3  # times farther than 95 of 100 frames of the group; many far frames are another kind of frame
_REPEATS = 3  # structures with exactly the same forces or stress
_EXPECTED = "{}, {}, and {}".format(*(QUANTITIES[label].unit for label in LABELS))
_STIFFEST = 6.3  # eV/Å³, about 1000 GPa, twice that of diamond


def sources(reports: Mapping[str, LabelReport]) -> Iterator[Finding]:
    """Pass on remarks on labels, and find labels from other sources than those of training."""
    for name, report in reports.items():
        for remark in report.remarks:
            text = f"{_sentence(remark.text)}."
            yield Finding(remark.severity, f"{name}: {remark.title}", text, remark.frames, total=remark.n_frames)
    training = reports.get(TRAINING)
    for name, report in reports.items():
        for label, source in report.sources.items():
            expected = source if training is None else training.sources.get(label, source)
            if source != expected and report.counts[label]:
                text = (
                    f"The {label} of {name} is from {source}, that of training from {expected}. Make sure that both "
                    "are of one method; otherwise the errors tell nothing."
                )
                yield Finding("warning", f"{name} has the {label} from elsewhere", text)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def labels(data: Collected) -> Iterator[Finding]:
    """Find labels that are missing though they have a weight, and labels without a weight in the objective."""
    training, validation = data.of(TRAINING), data.of(VALIDATION)
    if not training.any():
        yield Finding("error", "no training frames", "There is nothing to learn from.")
        return
    for label in LABELS:
        has, wanted, counts = data.present(label), data.weights.get(label, 0.0), data.counts_for(label)
        there = training & has
        if not wanted > 0:
            if there.any():
                text = (
                    f"{there.sum()} training frames have it, but its weight in the objective is 0: it is not learned."
                )
                yield Finding("note", f"not learned: {label}", text)
            continue
        if not there.any():
            text = (
                f"The objective gives the {label} a weight of {wanted:g}, but no training frame has it. Set its weight "
                "to 0, or say under which key the file holds it."
            )
            yield Finding("error", f"no training frame has {label}", text)
            continue
        if not counts[there].any():
            text = f"All {there.sum()} training frames with {label} have a weight of zero of their own for it."
            yield Finding("error", f"no weight in any training frame: {label}", text)
            continue
        missing = training & ~has & ~data.rows["isolated"]
        if missing.any():
            text = f"{missing.sum()} of {training.sum()} training frames lack it and do not count in its error."
            yield Finding("note", f"some frames lack {label}", text, data.names(missing))
        for index, group in enumerate(data.groups):
            members = np.flatnonzero(there & (data.rows["group"] == index))
            if len(members) and not counts[members].any():
                text = (
                    f"All {len(members)} training frames of the group have a weight of zero for it, and do not count."
                )
                yield Finding("note", f"not learned in group '{group}': {label}", text)
        if validation.any() and not (validation & has).any():
            text = "Its error cannot be watched during training, nor can the best epoch be chosen by it."
            yield Finding("warning", f"no validation frame has {label}", text)


def elements(data: Collected, known_elements: Collection[str]) -> Iterator[Finding]:
    """Find elements that are neither in training frames nor known to the base."""
    known = data.atoms(data.of(TRAINING)).sum(axis=0) > 0
    known |= np.isin(data.elements, list(known_elements))
    foreign = data.compositions[:, ~known].sum(axis=1)[data.rows["composition"]] > 0
    if known.any() and foreign.any():
        symbols = ", ".join(symbol for symbol, is_known in zip(data.elements, known, strict=True) if not is_known)
        text = "A potential knows only the elements of its training frames. Add such frames there or leave these out."
        yield Finding("error", f"elements missing in the training frames: {symbols}", text, data.names(foreign))


def duplicates(data: Collected) -> Iterator[Finding]:
    """Find structures that occur more than once."""
    rows, training = data.rows, data.of(TRAINING)
    order = np.argsort(~training, kind="stable")  # so that the first of equals is a training frame if any of them is
    first = np.full(len(rows), len(rows))
    for grid in (0, 1):
        _, positions, inverse = np.unique(rows["structure"][order, grid], return_index=True, return_inverse=True)
        np.minimum.at(first, order, positions[inverse])
    originals = order[first]
    again = (originals != np.arange(len(rows))) & training[originals]
    energy = rows["energy"] / rows["n_atoms"]
    force = rows["largest_force"]
    differ = np.abs(energy - energy[originals]) > 1e-3
    differ |= np.abs(force - force[originals]) > 0.02 + 0.02 * np.fmax(force, force[originals])

    def remarks(frames: _Bools) -> list[str]:
        return [f"same as {data.sources[originals[i]]}" for i in np.flatnonzero(frames)]

    found = again & training & ~differ
    if found.any():
        text = (
            f"{found.sum()} training frames repeat another one. They count twice; leave them out unless that is meant."
        )
        yield Finding("warning", "repeated structures", text, data.names(found), tuple(remarks(found)))
    found = again & training & differ
    if found.any():
        text = (
            f"{found.sum()} training frames have the structure of another one, but other energies (by more than 1 "
            "meV/atom) or forces. They may come from other settings or not be converged. No potential can fit both."
        )
        title = "same structure, different labels"
        yield Finding("warning", title, text, data.names(found), tuple(remarks(found)))
    for name in data.data_sets:
        found = again & data.of(name) & ~rows["isolated"]
        if name != TRAINING and found.any():
            text = (
                f"{found.sum()} of its {data.of(name).sum()} frames are training frames, too: its errors look too good."
            )
            title = f"{name} overlaps training"
            yield Finding("warning", title, text, data.names(found), tuple(remarks(found)))


def forces(data: Collected) -> Iterator[Finding]:
    """Find forces that were not computed, and forces that do not sum to zero."""
    rows = data.rows
    untold = rows["untold_forces"] > 0
    if untold.any():
        text = (
            f"In {untold.sum()} of {data.has('forces').sum()} frames with forces, some are exactly zero although "
            "symmetry does not ask for it. They were not computed, or set to zero since the atoms were held fixed. "
            "Write forces without constraints (ASE: get_forces(apply_constraint=False)), or leave them out."
        )
        remarks = [f"{rows['untold_forces'][i]} of {rows['n_atoms'][i]} atoms" for i in np.flatnonzero(untold)]
        yield data.finding("forces", "forces that are exactly zero", text, untold, remarks)
    error = rows["net_force"] / np.sqrt(3.0 * rows["n_atoms"])
    unbalanced = (rows["n_atoms"] > 1) & (error > np.maximum(_NET_FORCE * rows["force_rms"], 1e-3))
    if unbalanced.any():
        text = (
            "Without an external field the forces of a frame sum to zero, and those of the potential always do. A sum "
            f"that tells of errors above {_NET_FORCE:.0%} of the forces means loose convergence, a coarse grid, a "
            "field, or forces of only some of the atoms."
        )
        remarks = [f"sum {rows['net_force'][i]:.3g} {QUANTITIES['forces'].unit}" for i in np.flatnonzero(unbalanced)]
        yield data.finding("forces", "forces do not sum to zero", text, unbalanced, remarks)


def stress(data: Collected) -> Iterator[Finding]:
    """Find stresses that were not computed."""
    zero = (data.rows["largest_stress"] == 0) & (data.rows["n_atoms"] > 1)
    if zero.any():
        text = (
            f"{zero.sum()} of {data.has('stress').sum()} stresses are exactly zero. Some programs write zeros for what "
            "they did not compute. Remove these stresses, or leave stress out of the objective."
        )
        yield data.finding("stress", "stresses that are exactly zero", text, zero)


def placeholders(data: Collected) -> Iterator[Finding]:
    """Find labels that stand for nothing computed: one number for all components, or the same in many frames."""
    rows = data.rows
    zero = (rows["energy"] == 0) & ~rows["isolated"]
    if zero.any():
        text = (
            f"{zero.sum()} of {data.has('energy').sum()} energies are exactly zero, which some programs write for what "
            "they did not compute. Leave these labels out, or give them a config_energy_weight of zero."
        )
        yield data.finding("energy", "energies that are exactly zero", text, zero)
    for column, (label, largest) in enumerate((("forces", "largest_force"), ("stress", "largest_stress"))):
        has = data.has(label) & (rows["n_atoms"] > 1) & (rows[largest] > 0)
        found = has & rows["constant"][:, column]
        indices = np.flatnonzero(has)
        _, inverse = np.unique(rows[f"{label}_hash"][indices], return_inverse=True)
        for number in np.flatnonzero(np.bincount(inverse) >= _REPEATS):
            members = indices[inverse == number]
            if min(len(np.unique(rows["structure"][members, grid])) for grid in (0, 1)) >= _REPEATS:
                found[members] = True
        if found.any():
            text = (
                f"In {found.sum()} of {data.has(label).sum()} frames, all components of the {label} are one number, or "
                "exactly those of other structures. Such numbers stand for what was not computed: leave them out, or "
                f"give these frames a config_{label}_weight of zero."
            )
            yield data.finding(label, f"placeholders instead of {label}", text, found)


def work(data: Collected, force_slope: Slope, stress_slope: Slope) -> Iterator[Finding]:
    """Check signs, units and order of components by the work between similar frames."""
    none = np.zeros(0, dtype=np.int64)
    for label, slope in (("forces", force_slope), ("stress", stress_slope)):
        if slope.is_wrong:
            text = (
                f"Between {slope.n_pairs} pairs of similar frames, energies change by {slope.slope:.3g} times the work "
                f"of the {label} (correlation {slope.correlation:.2f}); it should be about once. It seems that "
                f"{slope.diagnosis}. Expected are {_EXPECTED} positive in tension."
            )
            yield data.finding(label, f"energy and {label} do not belong together", text, none)
    if stress_slope.is_permuted:
        text = (
            f"Where yz, xz, xy are expected there seem to be {', '.join(stress_slope.shears)}: so ordered, the work of "
            f"the stresses fits the energies of {stress_slope.n_pairs} pairs of strained frames better. ASE's order is "
            "xx, yy, zz, yz, xz, xy; VASP's is xx, yy, zz, xy, yz, zx."
        )
        yield data.finding("stress", "shear stresses in another order", text, none)
    if stress_slope.offset and not stress_slope.is_wrong:
        size, direction = abs(stress_slope.offset), "high" if stress_slope.offset > 0 else "low"
        text = (
            f"Between {stress_slope.n_pairs} pairs of strained frames, energies change as if all normal stresses were "
            f"{size:.2g} {QUANTITIES['stress'].unit} ({size / units.GPa:.2g} GPa) too {direction}. A basis of plane "
            "waves that is not large enough makes them too high (Pulay stress), or an external pressure was added. No "
            f"potential can fit both labels: raise data.stress_offset by {stress_slope.offset:.2g}, or set the weight "
            "of the stress to 0."
        )
        yield data.finding("stress", "stresses are off by a constant pressure", text, none)
    if not stress_slope.is_clear:
        yield from _stress_by_volume(data)


def unrelated(data: Collected, slopes: Mapping[str, Slope], both: Slope) -> Iterator[Finding]:
    """Find energies that belong to another computation than forces or stresses, by the work between near frames.

    Parameters
    ----------
    data : all frames
    slopes : label -> energy differences against its work
    both : the same for forces and stresses together, where the cell changes and atoms move
    """
    if both.is_clear and both.diagnosis and not any(slope.is_clear for slope in slopes.values()):
        text = (
            f"Between {both.n_pairs} pairs of frames, energies change by {both.slope:.3g} times the work of forces and "
            f"stresses (correlation {both.correlation:.2f}); it should be about once. It seems that {both.diagnosis}."
        )
        title = "energies do not belong to forces and stresses"
        yield data.finding("energy", title, text, np.zeros(0, dtype=np.int64))
    for label, slope in slopes.items():
        if slope.is_absent:
            text = (
                f"Between {slope.n_pairs} pairs of similar frames, energies change without relation to the work of "
                f"the {label} (correlation {slope.correlation:.2f}, it should be near 1). One of both is of another "
                "computation, of another structure, or was not computed."
            )
            yield data.finding(label, f"energies do not follow the {label}", text, np.zeros(0, dtype=np.int64))


def _stress_by_volume(data: Collected) -> Iterator[Finding]:
    """Check sign and size of stresses by the bulk modulus: in tension the volume is larger."""
    rows = data.rows
    usable = data.has("stress") & (rows["n_atoms"] > 1)
    for name, members in _kinds(data, usable, by=("group", "composition")):
        volume, tension = rows["volume"][members], rows["mean_stress"][members]
        spread = volume.std() / volume.mean()
        if len(members) < _FEWEST or not 0.005 < spread < 0.3 or tension.std() == 0:
            continue
        correlation = float(np.corrcoef(volume, tension)[0, 1])
        modulus = correlation * float(tension.std() / spread)
        if abs(correlation) > 0.8 and (modulus < 0 or modulus > _STIFFEST):
            text = (
                f"In the {len(members)} frames of {name} the mean stress changes with the volume like a bulk modulus "
                f"of {modulus:.3g} eV/Å³ (correlation {correlation:.2f}). It should be positive and below {_STIFFEST} "
                "eV/Å³ (1000 GPa): check sign and unit; expected is eV/Å³, positive in tension. VASP writes kbar, with "
                "the other sign."
            )
            yield data.finding("stress", "stress has a wrong sign or unit", text, np.zeros(0, dtype=np.int64))


def geometry(data: Collected) -> Iterator[Finding]:
    """Find atoms that are too close, or alone."""
    rows = data.rows
    on_top = rows["shortest"] < _ON_TOP
    if on_top.any():
        text = f"{on_top.sum()} frames have atoms closer than {_ON_TOP:g} Å. Leave them out, or mend the positions."
        yield Finding("error", "atoms on top of each other", text, data.names(on_top))
    close = (rows["closeness"] < _CLOSE) & ~on_top
    if close.any():
        text = (
            f"{close.sum()} frames have atoms closer than {_CLOSE:g} of the sum of their covalent radii. Unless these "
            "are collisions on purpose, check the unit of positions and the cell."
        )
        remarks = [f"{rows['shortest'][i]:.2f} Å" for i in np.flatnonzero(close)]
        yield Finding("warning", "atoms very close to each other", text, data.names(close), tuple(remarks))
    isolated = data.of(TRAINING) & rows["isolated"]
    if isolated.any():
        text = f"{isolated.sum()} training frames are single atoms; these fix the energies of isolated atoms."
        yield Finding("note", "isolated atoms", text, data.names(isolated))
    alone = (rows["lone_atoms"] > 0) & ~rows["isolated"]
    if alone.any():
        text = (
            f"{alone.sum()} frames have atoms without a neighbor within the cutoff; nothing can be learned about these."
        )
        remarks = [f"{rows['lone_atoms'][i]} of {rows['n_atoms'][i]} atoms" for i in np.flatnonzero(alone)]
        yield Finding("note", "atoms without neighbors", text, data.names(alone), tuple(remarks))


def outliers(data: Collected, residuals: _Floats) -> Iterator[Finding]:
    """Find frames unlike the others of their group and data set.

    Parameters
    ----------
    data : all n frames
    residuals : (n,) eV/atom, energies less those of a fit to the composition; nan without energy
    """
    rows = data.rows
    of_fit = f"{QUANTITIES['energy_per_atom'].unit} from the fit to compositions"
    for label, title, values, unit, floor in (
        ("energy", "unusual energies", residuals, of_fit, 2e-3),
        ("forces", "unusually large forces", rows["largest_force"], QUANTITIES["forces"].unit, 0.05),
        ("stress", "unusually large stresses", rows["largest_stress"], QUANTITIES["stress"].unit, 1e-3),
    ):
        found = np.zeros(len(rows), dtype=bool)
        for _, members in _kinds(data, ~np.isnan(values) & ~rows["isolated"], by=("data_set", "group")):
            if len(members) < _FEWEST:
                continue
            deviations = values[members] - np.median(values[members])
            distances = np.abs(deviations)
            scale = max(1.4826 * float(np.median(distances)), floor)
            far = distances > max(_FAR * scale, _GAP * float(np.quantile(distances, 0.95)))
            # small forces and stresses are fine
            found[members[far & ((deviations > 0) | (label == "energy"))]] = True
        if found.any():
            text = (
                f"{found.sum()} frames lie more than {_FAR} robust standard deviations from the median of their group. "
                "Look at them: strained or colliding atoms are fine if meant; calculations that did not converge, "
                "other settings and broken labels are not. They dominate a squared error."
            )
            remarks = [f"{values[i]:.4g} {unit}" for i in np.flatnonzero(found)]
            yield data.finding(label, title, text, found, remarks)


def _kinds(data: Collected, frames: _Bools, by: tuple[str, str]) -> Iterator[tuple[str, _Integers]]:
    """Yield the name of each kind of frames and the indices of its masked frames."""
    indices = np.flatnonzero(frames)
    keys = np.stack([data.rows[column][indices] for column in by], axis=1)
    kinds, inverse = np.unique(keys, axis=0, return_inverse=True)
    for number in range(len(kinds)):
        members = indices[inverse.reshape(-1) == number]
        yield f"group '{data.groups[int(data.rows['group'][members[0]])]}'", members
