"""The recipe of a training run: everything that decides its result, typed and checked before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, field_validator, model_validator

from ase_segnn.configuration import Configuration, checked
from ase_segnn.labels import LABELS, LabelKeys
from ase_segnn.model.config import NetworkConfig
from ase_segnn.physics.systems import System

from .yaml12 import load_yaml

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, strict=True)]  # 1.0 is no count
Fraction = Annotated[float, Field(gt=0, lt=1)]
Pair = tuple[PositiveFloat, PositiveFloat]

_Kind = TypeVar("_Kind", bound=Configuration)
_WEIGHT = "a number, or two, at the start and at the end of the run, such as [0.1, 10]"
_UNITS_OF_TIME = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(value: Any) -> Any:
    """Return the seconds of a text such as ``90s``, ``10m``, ``1h30m`` or ``2.5h``; other values stay as they are.

    >>> parse_duration("1h30m")
    5400.0

    Raises
    ------
    ValueError
        If it is a text of another form.
    """
    if not isinstance(value, str):
        return value
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        raise ValueError(f"{value!r} is no duration; write it as 90s, 10m, 1h30m or 2.5h")
    return sum(float(number) * _UNITS_OF_TIME[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)([smhd])", value))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Duration = Annotated[PositiveFloat, BeforeValidator(parse_duration)]
Files = Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1)]


class Section(Configuration):
    """Keys of a recipe that belong together."""


class DataSection(Section):
    """Which frames to learn from; `ase_segnn.training.data.sources.locate` finds the files.

    Parameters
    ----------
    train : files that ASE reads, one name or several; ``*`` and ``?`` stand for any letters
    validation : frames to watch the errors of the run with: how many, or which fraction, to take out of `train` at
        random; or files
    test : name -> files, evaluated once at the end
    held_out : how many frames, or which fraction, to take out of `train` at random as one more test, "held out"
    energy_key, forces_key, stress_key : names of the labels in the files, see `ase_segnn.labels.LabelKeys`
    stress_offset : eV/Å³, taken off the normal stresses of all frames, such as the Pulay stress of a small basis of
        plane waves; the audit finds it
    group_weights : group of frames -> factor of their squared errors, besides the frames' own weights
    reference_energies : eV per element; or a file with one frame per isolated atom; or "least-squares" from the
        training frames; or "auto" for the isolated atoms among the training frames if there are any, else least squares
    folder : where to look for the files first
    cache : folder for the graphs of the frames; by default the user's cache folder
    """

    train: Files
    validation: Count | Fraction | Files = Field(
        0.1, description="a number of frames, a fraction greater than 0 and less than 1, or files"
    )
    test: dict[str, Files] = {}
    held_out: Count | Fraction | None = Field(
        None, description="a number of frames, or a fraction greater than 0 and less than 1"
    )
    energy_key: str | None = None
    forces_key: str | None = None
    stress_key: str | None = None
    stress_offset: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    group_weights: dict[str, NonNegativeFloat] = {}
    reference_energies: dict[str, float] | str = Field(
        "auto", description="eV per element, a file of isolated atoms, 'least-squares' or 'auto'"
    )
    folder: Path | None = None
    cache: Path | None = None

    @field_validator("test")
    @classmethod
    def _check_names(cls, tests: dict[str, Any]) -> dict[str, Any]:
        taken = sorted({"training", "validation", "held out"} & set(tests))
        if taken:
            raise ValueError(f"a test cannot be called '{taken[0]}', other frames of the run are; choose another name")
        return tests

    @property
    def label_keys(self) -> LabelKeys:
        """Names of the labels in the files."""
        return LabelKeys(energy=self.energy_key, forces=self.forces_key, stress=self.stress_key)


class FitSection(Section):
    """How to fit, whatever the network.

    Parameters
    ----------
    epochs : passes over the training frames; by default as many as `max_time` allows, or without it 300 and for
        potentials about 30,000 steps: at least 20, at most 600
    max_time : such as ``30m`` or ``2h``. Fit and learning rates end in time; evaluation and report come after the fit
    optimizer : "muon" for the matrices of weights, with AdamW for the rest; or "adamw" for everything
    muon_learning_rate : highest learning rate of Muon, see `ase_segnn.training.fit.optimizers`. Runs of more than
        about 5,000 steps do better with less, such as 0.003
    learning_rate : highest learning rate of AdamW
    schedule : "cosine" lets the learning rates fall to zero at the end, "plateau" halves them after 10 validations
        without improvement, "constant" leaves them
    early_stopping : number of validations without improvement after which the run ends
    warmup_steps : steps in which the learning rates rise to the highest; at most a tenth of the run
    weight_decay : of both optimizers. At rates of 0.01 Muon lets the weights grow without decay, and molecular dynamics
        far from the data becomes unstable; at lower rates decay makes a potential worse, near the data and far from it
    ema_decay : of the exponential moving average of the weights; the averages are validated and kept. Early in a run
        the average is over a twentieth of the steps so far
    gradient_clip : largest norm of the gradient; null for no limit
    """

    removed: ClassVar[dict[str, str]] = {
        "patience": "schedule: plateau always waits for 10 validations without improvement",
    }

    epochs: PositiveInt | None = None
    max_time: Duration | None = None
    optimizer: Literal["muon", "adamw"] = "muon"
    muon_learning_rate: PositiveFloat = 0.005
    learning_rate: PositiveFloat = 1e-3
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    early_stopping: PositiveInt | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 200
    weight_decay: NonNegativeFloat = 0.005
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.995
    gradient_clip: PositiveFloat | None = 1.0


class OptimizationSection(FitSection):
    """How to fit a potential. These keys are added to those of `FitSection`.

    A weight is a number, or two: a geometric series then leads from the first at the start to the second at the end.

    Parameters
    ----------
    batch_edges : about the number of edges per step. Steps then cost alike, whatever the sizes of frames; 1 takes one
        frame per step. An atom has as many edges as neighbors within the cutoff. By default 1000, and fewer for small
        data, so that an epoch has at least 25 steps: small steps learn most from small data
    loss : "mse", "l1" or "huber", see `ase_segnn.training.fit.step.PotentialLoss`
    huber_delta : eV and eV/Å, where "huber" turns from squares to magnitudes
    energy_weight : of (ΔE)² / atoms, in Å⁻²; by default from 0.01 to 1, which means forces first
    forces_weight : of the mean square of the force components
    stress_weight : of the mean over components of (V Δσ)² / atoms, in Å⁻²; by default 0.01 if any training frame has
        a stress, else 0
    """

    removed: ClassVar[dict[str, str]] = {
        **FitSection.removed,
        "batch_size": "write batch_edges, about the number of edges per step; 1 takes one frame per step",
        **{
            f"{label}_weight_end": f"write start and end as two numbers, such as {label}_weight: [0.1, 10]"
            for label in LABELS
        },
    }

    batch_edges: PositiveInt | None = None
    loss: Literal["mse", "l1", "huber"] = "mse"
    huber_delta: PositiveFloat = 0.01
    energy_weight: Annotated[NonNegativeFloat | Pair, Field(description=_WEIGHT)] = (0.01, 1.0)
    forces_weight: Annotated[NonNegativeFloat | Pair, Field(description=_WEIGHT)] = 1.0
    stress_weight: Annotated[NonNegativeFloat | Pair | None, Field(description=_WEIGHT)] = None

    def weights(self, progress: float = 0.0) -> dict[str, float]:
        """Return the weight of each label after a share of the run, 0 to 1. A stress weight left open counts as 0."""
        weights = {}
        for label in LABELS:
            given = getattr(self, f"{label}_weight") or 0.0
            if isinstance(given, tuple):
                start, end = given
                given = start * (end / start) ** progress
            weights[label] = float(given)
        return weights


class PretrainSection(Section):
    """Frames around the training frames, labeled by a cheap reference, to learn before the training frames themselves.

    The reference need not agree with the labels of the training frames: the energy of each element is fitted anew, and
    the rest is learned. See `ase_segnn.training.pretraining`.

    Parameters
    ----------
    reference : "gfn2" for GFN2-xTB, which needs the package tblite; or a function of a Python file that returns an ASE
        calculator, such as ``my_file.py:make_calculator``
    frames : the most frames to label. With `max_time` labels take at most half of the time of pretraining
    temperature : K, of the dynamics that lead from the training frames to the frames to label
    share : of the run, labels included, before the training frames are learned; by default 0.75 for up to 50 training
        frames, and 5.3 / √n for n
    rates_after : factor of the highest learning rates when the training frames are learned. With 1 the network forgets
        more than it gains, and overfits a few frames, see benchmarks/README.md
    charge : e, for gfn2; by default that in ``info`` of each frame, or else 0
    multiplicity : 2S + 1, for gfn2; by default that in ``info`` of each frame, or else the lowest
    """

    reference: str
    frames: Annotated[Count, Field(ge=10)] = 1500
    temperature: PositiveFloat = 600.0
    share: Fraction | None = None
    rates_after: PositiveFloat = 0.3
    charge: int | None = None
    multiplicity: PositiveInt | None = None


class CardSection(Section):
    """Facts for the model card that no program can know.

    Parameters
    ----------
    description : one sentence
    level_of_theory : of the labels
    data_source : where the data are from
    data_license : of the data
    license : of the potential
    limits : what the potential is not good for
    published : data set -> method -> published error, shown beside this potential's
    physics : systems whose physics is computed at the end, see `ase_segnn.physics.systems.System`. Structures and
        frames are found like data files, and labels have the names given in `data`
    """

    description: str = ""
    level_of_theory: str = ""
    data_source: str = ""
    data_license: str = ""
    license: str = "MIT"
    limits: list[str] = []
    published: dict[str, dict[str, str]] = {}
    physics: list[System] = []


class RunSection(Section):
    """Keys of every training run, whatever the network.

    Parameters
    ----------
    name : of what is trained; names its files
    optimization : see the class
    seed : of split, initial weights and order of frames
    device : "auto" takes a GPU if there is one
    processes : number of processes that share each step, one per GPU or all on a CPU; a step then has as many batches
    compile : on a CPU true takes compiled C++ for predictions and gradients, several times as fast as plain torch. A
        network without C++ has torch compile the step, which takes minutes. "auto": the same, but torch compiles in
        long runs only, and a missing compiler is a warning. false: plain torch
    validate_every : epochs between validations
    logger : "tensorboard" or "wandb" to see the run there as well; that package must be installed
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    optimization: FitSection = FitSection()
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: PositiveInt = 1
    compile: bool | Literal["auto"] = Field("auto", description="true, false or auto")
    validate_every: PositiveInt = 5
    logger: Literal["tensorboard", "wandb"] | None = None


class Recipe(RunSection):
    """A whole training run of a potential. These keys are added to those of `RunSection`.

    Parameters
    ----------
    data, network, card : see the classes
    pretrain : what to learn first, see the class; null for nothing
    base : shipped potential or potential file to start from; its network takes the place of `network` and `zbl`
    frozen : parts of the base that stay as they are, such as ``embedding`` or ``layers.0``
    zbl : add the repulsion of nuclei at short range, `ase_segnn.model.zbl`. For each pair of elements the repulsion
        ends at 0.8 of the shortest distance in the training frames, or at the sum of covalent radii if smaller
    committee : number of potentials to train one after another, with different seeds, for one file
    bootstrap : draw the training frames of each member at random, with repetition
    """

    data: DataSection
    network: NetworkConfig = NetworkConfig()
    pretrain: PretrainSection | None = None
    base: str | None = None
    frozen: list[str] = []
    zbl: bool = True
    optimization: OptimizationSection = OptimizationSection()
    card: CardSection = CardSection()
    committee: PositiveInt = 1
    bootstrap: bool = False

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.base is None and self.frozen:
            raise ValueError("frozen names parts of a base, and there is no base")
        if self.base is not None and self.network != NetworkConfig():
            raise ValueError("a base brings its own network; leave out either of them")
        if self.base is not None and self.pretrain is not None:
            raise ValueError("a base has learned already; leave out base or pretrain")
        if self.base is not None and self.committee > 1 and not self.bootstrap:
            raise ValueError(
                "members that start from one base and see the same frames hardly differ; set bootstrap: true"
            )
        if self.bootstrap and self.committee == 1:
            raise ValueError("bootstrap is for the members of a committee; set committee to their number")
        return self


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises
    ------
    ValueError
        If the file is no YAML mapping, or a key is unknown (the nearest known one is named), missing or has a value
        that is not allowed.
    """
    return make_recipe(read_recipe_file(path), f"recipe '{path}'", Recipe)


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """Read a YAML file as plain data, not checked any further.

    Raises
    ------
    ValueError
        If the file is no YAML mapping.
    """
    path = Path(path)
    try:
        raw = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe '{path}' is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        known = ", ".join(Recipe.model_fields)
        raise ValueError(f"recipe '{path}' must be a YAML mapping with the keys {known}")  # noqa: TRY004  # of a file
    return raw


def key_and_value(change: str) -> tuple[str, Any]:
    """Split a change of a recipe, such as ``optimization.epochs=500``, into key and value; the value is YAML.

    Raises
    ------
    ValueError
        If there is no ``=``.
    """
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"--set takes KEY=VALUE, such as optimization.epochs=500, got '{change}'")
    try:
        return key, load_yaml(value)
    except yaml.YAMLError:
        return key, value  # such as *.xyz


def set_key(raw: dict[str, Any], key: str, value: Any) -> None:
    """Change a recipe, as plain data, in place; dots in the key lead into its sections.

    Raises
    ------
    ValueError
        If a part of the key before a dot is no section.
    """
    *sections, last = key.split(".")
    for section in sections:
        if raw.get(section) is None:
            raw[section] = {}
        raw = raw[section]
        if not isinstance(raw, dict):
            raise ValueError(f"'{key}' is no key of a recipe: '{section}' has no keys in it")  # noqa: TRY004  # of users
    raw[last] = value


def make_recipe(raw: dict[str, Any], source: str, kind: type[_Kind]) -> _Kind:
    """Make a recipe of a kind from plain data; `source` starts the message of an error.

    Raises
    ------
    ValueError
        As `load_recipe`.
    """
    return checked(kind, raw, source)
