"""Fine-tuning: a trained potential as the start for new frames, with more elements, other energies, or frozen parts."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

import numpy as np
import torch
from numpy.typing import NDArray

from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.model.zbl import ends_below, nearest

logger = logging.getLogger(__name__)

_LARGEST_BINDING_ENERGY = 10.0  # eV per atom; no element is bound as strongly


def start_from(
    base: Potential,
    elements: Sequence[str],
    reference_energies: Mapping[str, float],
    energy_shifts: Mapping[str, float] | None = None,
    shortest_distances: Mapping[str, float] | None = None,
) -> Potential:
    r"""Copy a potential, ready to be trained further, and teach the copy new elements.

    For structures of the base's elements the network's output stays the same, to rounding. Row Z of the embedding's
    weights meets the one-hot input :math:`\sqrt n`, where n is the number of elements, so with n' elements the rows
    become

    .. math:: W'_Z = \sqrt{n / n'}\, W_Z

    A new element starts from the mean of these rows: no random numbers, no choice of a similar element, and an input
    between those of the training. Several new elements start alike and part at the first step, since each row has the
    gradient of its own atoms.

    Parameters
    ----------
    base : not changed; it may be frozen
    elements : chemical symbols to add after those of `base`; known ones may be among them
    reference_energies : eV, of new elements, and of known ones where the base's are to be replaced
    energy_shifts : eV per atom, likewise; new elements that are not named get the mean of the base's. `adapt_energies`
        finds better ones
    shortest_distances : Å, per pair of elements, in the frames to be learned. If `base` has a repulsion of nuclei, it
        ends below them for pairs with a new element, and stays for others. If the base knows shortest distances, they
        become those of all frames; see `ase_segnn.model.config.PotentialConfig`

    Returns
    -------
    a new potential of the device and dtype of `base`, with gradients for all weights

    Raises
    ------
    ValueError
        If a new element has no reference energy, an energy is that of another element, or a symbol is no element.
    """
    config = base.config
    n_known = len(config.elements)
    shifts = {symbol: config.energy_shifts.get(symbol, 0.0) for symbol in config.elements}
    mean_shift = sum(shifts.values()) / n_known
    given = shortest_distances or {}
    ends = {
        pair: end
        for pair, end in ends_below(given).items()
        if config.zbl and not set(pair.split("-")) <= set(config.elements)
    }
    known = config.shortest_distances
    extended = PotentialConfig.model_validate(
        {
            **config.model_dump(),
            "elements": tuple(dict.fromkeys((*config.elements, *elements))),
            "reference_energies": {**config.reference_energies, **reference_energies},
            "zbl_ends": {**config.zbl_ends, **ends},
            "shortest_distances": None if known is None else nearest(known, given),
            "energy_shifts": {**dict.fromkeys(elements, mean_shift), **shifts, **(energy_shifts or {})},
        }
    )
    n_elements = len(extended.elements)
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        potential = Potential(extended)
    potential.to(device=base.one_hot.device, dtype=base.dtype)
    weights = base.state_dict()
    embedding = base.network.embedding
    for index, (paths, weight) in enumerate(zip(embedding.paths, embedding.weights, strict=True)):
        if paths:  # features that species do not reach have no rows
            new_rows = weight.detach().mean(0, keepdim=True).expand(n_elements - n_known, -1)
            rows = torch.cat([weight.detach(), new_rows]) * math.sqrt(n_known / n_elements)
            weights[f"network.embedding.weights.{index}"] = rows
    potential.load_state_dict(weights)
    return potential


def adapt_energies(
    potential: Potential,
    counts: NDArray[np.float64],
    energies: NDArray[np.float64],
    predictions: NDArray[np.float64],
    *,
    keep_reference_energies: bool,
) -> Potential:
    r"""Correct the energy of each element, so that the mean error on given frames is about zero before the first step.

    Energies of another code, pseudopotential or functional differ first of all by a constant :math:`c_Z` per element.
    The constants are fitted to the frames f with :math:`n_{fZ}` atoms of each element, weighed as in the training loss:

    .. math:: \min_c \sum_f \frac{1}{n_f} \Big(E_f - \hat E_f - \sum_Z n_{fZ} c_Z\Big)^2, \quad n_f = \sum_Z n_{fZ}

    If compositions do not tell elements apart, as in frames of a single molecule, the most nearly equal corrections are
    taken. Elements in no frame keep their energies.

    If `keep_reference_energies`, the shifts are corrected and lone atoms stay exact. The factor s of `Potential`
    multiplies the shifts and is not quite 1 in molecules of a few atoms, so a part of the error may be left there.
    Leave out frames of lone atoms.

    Otherwise the constants may be hundreds of eV, and s would turn them into forces. Then the reference energies are
    corrected, and the forces stay those of the base.

    Parameters
    ----------
    potential : not changed
    counts : (F, n) atoms of each element in each frame, in the order of ``potential.elements``
    energies : (F,) eV, labels of the frames
    predictions : (F,) eV, energies that `potential` predicts for them
    keep_reference_energies : whether those of `potential` are energies of lone atoms at the level of theory of the
        frames

    Returns
    -------
    a trainable copy with other shifts, or other reference energies, and the same weights

    Raises
    ------
    ValueError
        If there are no frames, the shapes do not fit, or an energy is not finite.
    """
    shape = (len(energies), len(potential.elements))
    if len(energies) == 0 or counts.shape != shape or not energies.shape == predictions.shape == shape[:1]:
        raise ValueError(
            f"energies and predictions need one number per frame, and counts one per frame and each of "
            f"{', '.join(potential.elements)}; got shapes {energies.shape}, {predictions.shape} and {counts.shape}"
        )
    residuals = energies - predictions
    if not np.isfinite(residuals).all():
        raise ValueError(
            f"energy or prediction of frame {int(np.argmin(np.isfinite(residuals)))} is not finite; look at that frame"
        )
    n_atoms = counts.sum(1)
    mean = residuals.sum() / n_atoms.sum()
    weights = 1 / np.sqrt(n_atoms)
    # of all solutions lstsq takes the shortest, with zeros for elements without atoms
    differences, *_ = np.linalg.lstsq(counts * weights[:, None], (residuals - mean * n_atoms) * weights, rcond=None)
    corrections = {
        symbol: float(mean + difference)
        for symbol, difference, n in zip(potential.elements, differences, counts.sum(0), strict=True)
        if n > 0
    }
    name = "energy_shifts" if keep_reference_energies else "reference_energies"
    described = ", ".join(f"{symbol} {value:+.3f}" for symbol, value in corrections.items())
    logger.info("corrected %s, eV per atom: %s", name.replace("_", " "), described)
    largest = float(np.abs(residuals / n_atoms).max())
    if keep_reference_energies and largest > _LARGEST_BINDING_ENERGY:
        logger.warning(
            "reference energies and frames differ by up to %.0f eV per atom, more than binds atoms; are both from the "
            "same code, functional and pseudopotentials? Otherwise leave the reference energies to a fit",
            largest,
        )
    old: dict[str, float] = getattr(potential.config, name)
    corrected = {symbol: old.get(symbol, 0.0) + value for symbol, value in corrections.items()}
    if keep_reference_energies:
        return start_from(potential, (), {}, corrected)
    return start_from(potential, (), corrected)


def freeze(potential: Potential, names: Sequence[str]) -> int:
    """Turn off the gradients of parts of the network.

    Do not freeze "embedding" when you add elements: new elements would keep the features they start with.

    Parameters
    ----------
    potential : changed, unless there is an error
    names : "embedding", "layers" for all rounds of messages, "layers.0", "layers.1" and so on for one of them,
        "readout"; or the dotted beginning of any parameter's name in ``potential.network``, such as "layers.0.message"

    Returns
    -------
    number of weights in these parts

    Raises
    ------
    ValueError
        If a name is that of nothing, or nothing would be left to train.
    """
    network = potential.network
    parameters = dict(network.named_parameters())
    known = sorted({full.rsplit(".", n)[0] for full in parameters for n in range(full.count(".") + 1)})
    for name in names:
        if name not in known:
            parts = ["embedding", *(f"layers.{index}" for index in range(len(network.rounds))), "readout"]
            close = get_close_matches(name, known, n=1)
            suggestion = f" (did you mean '{close[0]}'?)" if close else ""
            raise ValueError(f"no part of the network is called '{name}'{suggestion}; its parts are {', '.join(parts)}")
    chosen = {full for full in parameters for name in names if f"{full}.".startswith(f"{name}.")}
    left = [p for full, p in parameters.items() if full not in chosen and p.requires_grad and p.numel()]
    if not left:
        raise ValueError(f"freezing {', '.join(names)} leaves no weight to train; freeze fewer parts")
    for full in chosen:
        parameters[full].requires_grad_(False)
    return sum(parameters[full].numel() for full in chosen)
