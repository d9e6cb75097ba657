"""The recipe of a network that learns to predict simulated particles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..recipe import FitSection, PositiveInt, RunSection, Section
from .datasets import FRAMES_AHEAD, INPUT_FRAME
from .simulators import N_FRAMES, PUBLISHED_SIZES

Frame = Annotated[int, Field(ge=0, lt=N_FRAMES - FRAMES_AHEAD)]


class SystemSection(Section):
    """What is simulated and what is learned from it.

    Parameters
    ----------
    kind : "charged" for `ChargedSystem`, where each particle sees all others; "gravity" for `GravitySystem`, where it
        sees its nearest neighbors
    target : "positions" in `TARGET_FRAME`; or, of gravity only, "forces" in `INPUT_FRAME`, or "later_forces", those in
        `TARGET_FRAME`, which the published loader takes
    train, validation, test : numbers of trajectories
    draw : "own" starts for each seed, or "published" for those of the published benchmark, of charged particles only
    seed : of the trajectories; 0 with "published"
    train_frames : frames of training trajectories from which 10 frames ahead are learned; the published benchmark
        learns from one alone, the `INPUT_FRAME` from which validation and test start
    both_ways : learn training trajectories backwards in time as well; the published benchmark does not
    neighbors : of each particle, for gravity
    cache : folder for the trajectories; by default the user's cache folder
    """

    kind: Literal["charged", "gravity"]
    target: Literal["positions", "forces", "later_forces"] = "positions"
    train: PositiveInt = 3000
    validation: PositiveInt = 2000
    test: PositiveInt = 2000
    draw: Literal["own", "published"] = "own"
    seed: Annotated[int, Field(ge=0)] = 0
    train_frames: Annotated[tuple[Frame, ...], Field(min_length=1)] = (INPUT_FRAME,)
    both_ways: bool = False
    neighbors: PositiveInt = 6
    cache: Path | None = None

    @model_validator(mode="after")
    def _check(self) -> SystemSection:
        if self.kind == "charged" and self.target != "positions":
            raise ValueError("forces are a target of gravity only, charged particles are stored without theirs")
        if self.draw == "published" and self.kind != "charged":
            raise ValueError("only the starts of charged particles are drawn as published; set draw to 'own'")
        if self.draw == "published" and self.seed != 0:
            raise ValueError(f"the published trajectories are one draw; set seed to 0 instead of {self.seed}")
        sizes = (self.train, self.validation, self.test)
        if self.draw == "published" and any(n > most for n, most in zip(sizes, PUBLISHED_SIZES, strict=True)):
            raise ValueError(f"{sizes} trajectories are more than the {PUBLISHED_SIZES} that were published")
        if len(set(self.train_frames)) < len(self.train_frames):
            raise ValueError(f"train_frames {list(self.train_frames)} name a frame twice")
        return self


class NetworkSection(Section):
    """The network; by default that of the SEGNN paper.

    Parameters
    ----------
    width : the features have as many copies of each degree as give their products with the attributes no fewer weights
        than a layer of this width has without steering, see `ase_segnn.training.particles.network.balanced_irreps`
    l_max : highest degree of the features
    l_max_attributes : highest degree of the attributes
    n_layers : rounds of messages
    physics : velocities are part of the nodes' attributes, not only of the features at input
    messages : "steerable"; "linear", without gates; or "invariant", of scalars only
    message_weights_hidden : widths of the hidden layers of the network that makes weights of the messages' products
        from distance and charges; none in the paper
    """

    width: PositiveInt = 64
    l_max: Annotated[int, Field(ge=0, le=6)] = 1
    l_max_attributes: Annotated[int, Field(ge=0, le=6)] = 1
    n_layers: PositiveInt = 4
    physics: bool = True
    messages: Literal["steerable", "linear", "invariant"] = "steerable"
    message_weights_hidden: tuple[PositiveInt, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> NetworkSection:
        if self.l_max == self.l_max_attributes == 0:
            raise ValueError("features and attributes of degree 0 make no vectors; set l_max or l_max_attributes to 1")
        return self


class ParticleFitSection(FitSection):
    """How to fit. These keys are added to those of `FitSection`.

    Parameters
    ----------
    batch_size : trajectories per step; by default as in the paper
    """

    batch_size: PositiveInt = 100


class ParticleRecipe(RunSection):
    """A whole training run on simulated particles. These keys are added to those of `RunSection`.

    Parameters
    ----------
    system, network, optimization : see the classes
    """

    system: SystemSection
    network: NetworkSection = NetworkSection()
    optimization: ParticleFitSection = ParticleFitSection()
