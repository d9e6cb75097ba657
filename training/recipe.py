"""The recipe of a training run: everything that decides its result, typed and checked before anything runs."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ase_segnn.model.config import NetworkConfig

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSection(_Section):
    """Which frames to learn from; file names are found by `ase_segnn.training.sources.locate`.

    Parameters
    ----------
    train : file that ASE reads, with energies and forces as calculator results
    validation : number of frames taken out of `train` at random, to watch the errors of the run
    test : name -> file, evaluated once at the end
    reference_energies : eV per element; or a file with one frame per isolated atom; or "least-squares" from `train`
    folder : where to look for the files first
    """

    train: str
    validation: PositiveInt = 50
    test: dict[str, str] = {}
    reference_energies: dict[str, float] | str = "least-squares"
    folder: Path | None = None


class OptimizationSection(_Section):
    """How to fit.

    Parameters
    ----------
    epochs : passes over the training frames; the learning rate ends at zero with the last
    batch_size : frames per step
    optimizer : "muon" for the matrices of weights, with AdamW for the rest; or "adamw" for everything
    muon_learning_rate : of Muon, see `ase_segnn.training.optimizers`; the highest, reached after `warmup_steps`, then
        falling along a cosine
    learning_rate : of AdamW, likewise
    warmup_steps : steps of linear increase
    weight_decay : of both; without it Muon lets the weights grow, and dynamics far from the data becomes unstable
    ema_decay : of the exponential moving average of the weights, which is what is validated and kept
    gradient_clip : largest norm of the gradient
    energy_weight : of the mean of (ΔE)² / atoms, in Å⁻²
    forces_weight : of the mean square of the force components
    stress_weight : of the mean of (V Δσ)² / atoms over components, in Å⁻²; with 0 stresses are not looked at, otherwise
        every frame to train or validate on needs one
    """

    epochs: PositiveInt = 100
    batch_size: PositiveInt = 5
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_learning_rate: PositiveFloat = 0.01
    learning_rate: PositiveFloat = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    weight_decay: NonNegativeFloat = 0.1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    gradient_clip: PositiveFloat = 1.0
    energy_weight: NonNegativeFloat = 10.0
    forces_weight: NonNegativeFloat = 1.0
    stress_weight: NonNegativeFloat = 0.0


class CardSection(_Section):
    """What the model card says that no program can know.

    Parameters
    ----------
    description : one sentence
    level_of_theory : of the labels
    data_source : where the data are from
    data_license : of the data
    license : of the potential
    limits : what the potential is not good for
    published : data set -> method -> published error, shown beside this potential's
    """

    description: str = ""
    level_of_theory: str = ""
    data_source: str = ""
    data_license: str = ""
    license: str = "MIT"
    limits: list[str] = []
    published: dict[str, dict[str, str]] = {}


class Recipe(_Section):
    """A whole training run.

    Parameters
    ----------
    name : of the potential; names its files
    data, network, optimization, card : see the classes
    zbl : add the repulsion of nuclei at short range, `ase_segnn.model.zbl`
    seed : of split, initial weights and order of frames
    device : "auto" takes a GPU if there is one
    compile : compile the training step; minutes at the start, then about twice as fast
    validate_every : epochs between validations
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    data: DataSection
    network: NetworkConfig = NetworkConfig()
    zbl: bool = False
    optimization: OptimizationSection = OptimizationSection()
    card: CardSection = CardSection()
    seed: Annotated[int, Field(ge=0)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False
    validate_every: PositiveInt = 5


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises
    ------
    ValueError
        If the file is no YAML mapping, or a key is unknown (the nearest known one is named), missing or has a value
        that is not allowed.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe '{path}' is not YAML: {error}") from error
    if not isinstance(raw, dict):
        known = ", ".join(Recipe.model_fields)
        raise ValueError(f"recipe '{path}' must be a YAML mapping with the keys {known}")  # noqa: TRY004  # of a file
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise ValueError(f"recipe '{path}':\n  " + "\n  ".join(lines)) from error


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        return f"{'.'.join(location)}: {problem['msg']}"
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        annotation = section.model_fields[part].annotation
        assert isinstance(annotation, type)
        section = annotation
    known = list(section.model_fields)
    close = get_close_matches(location[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(known)}"
    return f"{'.'.join(location)}: unknown key; {hint}"
