"""The model card: contents, origin, errors and limits of a potential."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from ase_segnn.files import written_whole
from ase_segnn.model.committee import Committee
from ase_segnn.model.potential import Potential
from ase_segnn.physics.results import Results, to_markdown
from ase_segnn.potential_file import Provenance
from ase_segnn.potentials import COST
from ase_segnn.quantities import LABELS, QUANTITIES

from ..recipe import Recipe


def write_card(
    path: Path,
    recipe: Recipe,
    potential: Potential | Committee,
    provenance: Provenance,
    *,
    minutes: float,
    labels: str = "",
    cost: str = "",
    pretraining: str = "",
    notes: Sequence[str] = (),
    physics: Sequence[Results] = (),
) -> None:
    """Write the card as Markdown: measured and counted facts, and the texts of the recipe.

    Parameters
    ----------
    path : of the card, replaced if it exists
    recipe, potential, provenance : of the finished run
    minutes : duration of the fit
    labels : of the training files and where they are from
    cost : of a step of dynamics; `ase-segnn info` lists this line of the card
    pretraining : frames that were learned before the training frames; empty for none
    notes : sentences about the run, such as warnings of the audit
    physics : of the systems in the recipe
    """
    card, config = recipe.card, potential.config
    n_weights = sum(parameter.numel() for parameter in potential.parameters())
    facts = {
        "Elements": ", ".join(config.elements),
        "Cutoff": f"{potential.cutoff:g} Å",
        "Network": f"SEGNN, {config.network.shape}, {n_weights:,} weights{_members(potential)}",
        "Repulsion of nuclei": config.repulsion,
        "Level of theory": card.level_of_theory or "not stated",
        "Data": f"{card.data_source or 'not stated'} (license: {card.data_license or 'not stated'})",
        "License of the weights": card.license,
        "Trained on": _frames(recipe),
        "Labels": labels or "not stated",
        COST: cost or "not measured",
    }
    if pretraining:
        facts["Pretrained on"] = pretraining
    run = {
        "Command": f"`ase-segnn train {recipe.name}.yaml`, with what is kept as `recipe.yaml` in the folder of a run",
        "Seed": provenance.seed,
        "Commit": provenance.commit or "unknown",
        "Finished": provenance.created,
        "Duration": f"{minutes:.0f} minutes on {platform.machine()}",
        "Versions": ", ".join(f"{name} {number}" for name, number in provenance.versions.items()),
    }
    reference = {f"E0({symbol})": f"{energy:.6f} eV" for symbol, energy in config.reference_energies.items()}
    checksums = {f"`{name}`": f"SHA-256 `{checksum}`" for name, checksum in provenance.data.items()}
    sections = [
        f"# {recipe.name}\n\n{card.description}".rstrip(),
        _bullets(facts),
        "## Errors\n\n" + _error_table(provenance.errors, recipe),
        *(["## Physics\n\n" + to_markdown(physics, recipe.name)] if physics else []),
        "## Known limits\n\n" + "\n".join(f"- {limit}" for limit in card.limits or ["not stated"]),
        "## Training run\n\n" + _bullets(run) + "".join(f"\n- {note}" for note in notes),
        "## Reference energies\n\n" + _bullets(reference),
        "## Data files\n\n" + _bullets(checksums),
    ]
    with written_whole(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _members(potential: Potential | Committee) -> str:
    return f" in a committee of {len(potential.members)}" if isinstance(potential, Committee) else ""


def _frames(recipe: Recipe) -> str:
    data = recipe.data
    drawn = {"validation": data.validation, "a test": data.held_out}
    less = [f"{number} for {use}" for use, number in drawn.items() if isinstance(number, int | float)]
    files = ", ".join(f"`{name}`" for name in data.train)
    return files + (f", less what was drawn from it: {', '.join(less)}" if less else "")


def _bullets(items: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in items.items())


def _error_table(errors: dict[str, dict[str, float]], recipe: Recipe) -> str:
    """Root mean square errors of this potential, followed by published ones of other methods."""
    learned = [label for label in LABELS if label != "stress" or recipe.optimization.stress_weight]
    columns = {QUANTITIES[label].column("RMSE"): QUANTITIES[label].error_name("RMSE") for label in learned}
    rows = [_row("data", "method", *columns), "|" + "---|" * (2 + len(columns))]
    for data, measures in errors.items():
        own = [f"{measures[name]:.2f}" if name in measures else "" for name in columns.values()]
        rows.append(_row(data, f"**{recipe.name}**", *own))
        for method, values in recipe.card.published.get(data, {}).items():
            published = [value.strip() for value in values.split("/")]
            rows.append(_row(data, f"{method}, published", *published, *[""] * (len(columns) - len(published))))
    return "\n".join(rows)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
