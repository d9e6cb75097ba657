"""Errors against labels, and the figures made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from PIL import Image

from ase_segnn.evaluation import evaluate
from ase_segnn.labels import LabelKeys
from ase_segnn.plots import dynamics_plot, parity_plot, save_figure


class Constant(Calculator):
    """Energy 1 eV, forces 0.1 eV/Å, stress 0.01 eV/Å³, whatever the atoms."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012  # as ASE spells it

    def calculate(self, atoms: Atoms, properties: list[str], system_changes: object = None) -> None:  # noqa: ARG002  # ASE's signature
        """Note what was asked for."""
        self.asked = properties
        values = {"energy": 1.0, "forces": np.full((len(atoms), 3), 0.1), "stress": np.full(6, 0.01)}
        self.results = {name: values[name] for name in properties}


def frame(n_atoms: int = 2, **labels: object) -> Atoms:
    atoms = Atoms(f"H{n_atoms}", np.arange(3.0 * n_atoms).reshape(-1, 3), cell=[20, 20, 20], pbc=True)
    atoms.calc = SinglePointCalculator(atoms, **labels)
    return atoms


def test_errors_by_hand() -> None:
    frames = [
        frame(2, energy=1.3, forces=np.zeros((2, 3)), stress=np.full(6, 0.03)),
        frame(4, energy=0.9, forces=np.full((4, 3), 0.4)),
        frame(1),
    ]
    evaluation = evaluate(Constant(), frames)
    assert evaluation.n_frames == 3
    assert evaluation.n_labeled == {"energy": 2, "energy_per_atom": 2, "forces": 2, "stress": 1}
    expected = {
        "energy_MAE_meV": (300 + 100) / 2,
        "energy_RMSE_meV": np.sqrt((300**2 + 100**2) / 2),
        "energy_per_atom_MAE_meV": (150 + 25) / 2,
        "energy_per_atom_RMSE_meV": np.sqrt((150**2 + 25**2) / 2),
        "forces_MAE_meV_per_A": (6 * 100 + 12 * 300) / 18,
        "forces_RMSE_meV_per_A": np.sqrt((6 * 100**2 + 12 * 300**2) / 18),
        "stress_MAE_meV_per_A3": 20.0,
        "stress_RMSE_meV_per_A3": 20.0,
    }
    assert evaluation.errors() == pytest.approx(expected)


def test_only_labeled_properties_are_computed() -> None:
    calculator = Constant()
    seen = []
    evaluate(calculator, [frame(2, forces=np.zeros((2, 3)))], on_frame=lambda: seen.append(calculator.asked))
    assert seen == [["forces"]]


def test_frames_are_not_changed() -> None:
    labeled = frame(2, energy=1.0)
    calculator = labeled.calc
    evaluate(Constant(), [labeled])
    assert labeled.calc is calculator
    assert calculator.results == {"energy": 1.0}


def test_useless_labels_are_errors() -> None:
    with pytest.raises(ValueError, match="none of the 2 frames has an energy, forces or a stress"):
        evaluate(Constant(), [bulk("Cu"), frame(2)])
    with pytest.raises(ValueError, match="'energy' of frame 1 is not finite"):
        evaluate(Constant(), [frame(2, energy=0.0), frame(2, energy=np.nan)])


def test_what_means_nothing_is_left_out() -> None:
    """Stress of a slab, labels of weight zero; and what is not used is told."""
    frames = [frame(2, energy=1.3, forces=np.zeros((2, 3)), stress=np.full(6, 0.03)) for _ in range(4)]
    frames[1].pbc = [True, True, False]
    frames[2].info["config_stress_weight"] = 0.0
    frames[3].info["Config_Weight"] = 0.0
    for atoms in frames:
        atoms.info["mace_energy"] = 5.0
    evaluation = evaluate(Constant(), frames)
    assert evaluation.n_labeled == {"energy": 3, "energy_per_atom": 3, "forces": 3, "stress": 1}
    assert evaluation.errors()["stress_RMSE_meV_per_A3"] == pytest.approx(20.0)
    assert evaluation.report is not None
    assert evaluation.report.counts == {"energy": 3, "forces": 3, "stress": 1}
    assert {remark.title for remark in evaluation.report.remarks} == {
        "stress without a volume",
        "energy of weight zero",
        "forces of weight zero",
        "stress of weight zero",
        "not used, though names look like labels",
    }


def test_labels_by_their_keys(caplog: pytest.LogCaptureFixture) -> None:
    frames = [frame(2, energy=0.0) for _ in range(3)]
    for atoms in frames:
        atoms.info["xtb"] = 1.5
    assert evaluate(Constant(), frames).errors()["energy_MAE_meV"] == pytest.approx(1000)
    assert not caplog.records
    evaluation = evaluate(Constant(), frames, keys=LabelKeys(energy="xtb"))
    assert evaluation.errors()["energy_MAE_meV"] == pytest.approx(500)
    with pytest.raises(ValueError, match="no frame has 'xtc', which energy_key names; did you mean 'xtb'"):
        evaluate(Constant(), frames, keys=LabelKeys(energy="xtc"))
    for atoms in frames:
        atoms.info["REF_energy"] = 1.25
    assert evaluate(Constant(), frames).errors()["energy_MAE_meV"] == pytest.approx(250)
    assert "not used: 'energy' of the calculator results: 3 frames have it" in caplog.text


def test_the_frame_that_fails_is_named() -> None:
    class Picky(Constant):
        def calculate(self, atoms: Atoms, properties: list[str], system_changes: object = None) -> None:
            if "C" in atoms.symbols:
                raise RuntimeError("no carbon")
            super().calculate(atoms, properties, system_changes)

    frames = [frame(1), frame(2, energy=1.0), *[frame(2, energy=1.0, forces=np.zeros((2, 3))) for _ in range(4)]]
    frames[4].symbols = "CH"
    frames[4].calc.atoms.symbols = "CH"
    seen: list[int] = []
    with pytest.raises(RuntimeError, match=r"^frame 4: no carbon"):
        evaluate(Picky(), frames, on_frame=lambda: seen.append(1))
    assert len(seen) == 3


def test_figures_are_pictures(tmp_path: Path) -> None:
    frames = [frame(2, energy=1.0 + k, forces=np.full((2, 3), 0.1 * k), stress=np.full(6, 0.1 * k)) for k in range(3)]
    evaluation = evaluate(Constant(), frames)
    figure = parity_plot({"first": evaluation, "second": evaluation}, "title")
    assert len(figure.axes) == 6
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts[1] == f"RMSE {evaluation.errors()['forces_RMSE_meV_per_A']:.2f} meV/Å"
    log = {"time_fs": [0.0, 5.0], "temperature_K": [300.0, 310.0], "potential_eV": [-1.0, -1.1], "total_eV": [0.1, 0.1]}
    for number, picture in enumerate([figure, dynamics_plot(log, "title")]):
        path = tmp_path / f"{number}.png"
        save_figure(picture, path)
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert np.asarray(image.convert("L")).std() > 5  # something is drawn
