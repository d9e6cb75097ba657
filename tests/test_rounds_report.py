"""The report of active learning: what its tables and sentences say, its picture, and runs that lack something."""

from __future__ import annotations

import base64
import re
from html import unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from PIL import Image

from ase_segnn.training.active_learning.rounds import FreshErrors, Round, Rung
from ase_segnn.training.data.frames import Frame
from ase_segnn.training.report import evaluate_sets, write_report
from ase_segnn.training.report.page import section
from ase_segnn.training.report.rounds import rounds_sections
from ase_segnn.training.report.rounds_figures import active_learning

COLD, HOT = 300.0, 650.0


def rung(temperature: float, **changes: Any) -> Rung:
    facts = {"picoseconds": 12.5, "n_walks": 8, "n_broken": 3, "n_seen": 1400, "n_new": 57, "n_selected": 21}
    return Rung(**{"temperature": temperature, "median_deviation": 0.0789, **facts, **changes})


def one_round(number: int, **changes: Any) -> Round:
    facts = {
        "number": number,
        "n_labels": 40 * 3**number,
        "errors": {"energy_per_atom_RMSE_meV": 4.56 / number, "forces_RMSE_meV_per_A": 123.4 / number},
        "lower": 0.04 * number,
        "upper": 0.61,
        "fit_seconds": 150.0,
        "explore_seconds": 66.0,
        "rungs": (rung(COLD), rung(HOT, median_deviation=0.234)),
    }
    return Round(**{**facts, **changes})


def three_rounds() -> list[Round]:
    return [one_round(1), one_round(2), one_round(3, rungs=(), explore_seconds=0.0)]


def fresh(temperature: float, error: float = 30.0, expected: float | None = 0.02, **changes: Any) -> FreshErrors:
    errors = {
        "energy_RMSE_meV": 77.7,
        "energy_per_atom_RMSE_meV": 1.25,
        "energy_per_atom_MAE_meV": 0.875,
        "forces_RMSE_meV_per_A": error,
        "forces_MAE_meV_per_A": 21.5,
    }
    facts = {"temperature": temperature, "n_frames": 50, "n_failed": 2, "errors": errors, "expected": expected}
    return FreshErrors(**{**facts, **changes})


def label(seed: int, **info: Any) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    atoms.info.update(info)
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
    return atoms


def labels() -> list[Atoms]:
    start = [label(seed, stage=f"start {1 + seed % 2}") for seed in range(6)]
    later = [label(10 + k, stage=f"round {1 + k // 4}", temperature=[COLD, HOT][k % 2]) for k in range(8)]
    return [*start, *later]


def tables(html: str) -> list[list[list[str]]]:
    """All tables of a page, row by row, the header first."""
    return [
        [
            re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)
            for row in re.findall(r"<tr>(.*?)</tr>", unescape(table), re.DOTALL)
        ]
        for table in re.findall(r"<table>(.*?)</table>", html, re.DOTALL)
    ]


def column(table: list[list[str]], name: str) -> list[str]:
    index = table[0].index(name)
    return [row[index] for row in table[1:]]


def pictures(html: str) -> list[tuple[str, Image.Image]]:
    """Caption and image of each picture."""
    found = re.findall(r'base64,([^"]+)"><figcaption>(.*?)</figcaption>', html)
    return [(unescape(caption), Image.open(BytesIO(base64.b64decode(data)))) for data, caption in found]


def titles(rounds: list[Round], frames: list[Atoms]) -> list[str]:
    figure = active_learning(rounds, frames)
    return [] if figure is None else [axis.get_title() for axis in figure.axes if axis.axison]


ALL_PANELS = [
    "validation, force components",
    "exploration, median deviation",
    "origin of the labels",
    "distances, logarithm of their number",
    "forces",
]


# ---- numbers


def test_fresh_errors_stand_beside_what_the_committee_expected() -> None:
    [text, _] = rounds_sections(three_rounds(), [fresh(COLD), fresh(HOT, 36.0, 0.03, n_frames=1450)], labels())
    [table] = tables(text)
    assert table == [
        [
            "temperature, K",
            "frames",
            "failed",
            "energy RMSE, meV/atom",
            "energy MAE, meV/atom",
            "deviation of the committee, meV/Å",
            "force components RMSE, meV/Å",
            "force components MAE, meV/Å",
        ],
        ["300", "50", "2", "1.25", "0.875", "20", "30", "21.5"],
        ["650", "1,450", "2", "1.25", "0.875", "30", "36", "21.5"],
    ]
    assert "gave 1,500 frames" in text
    assert "never learned any of these frames" in text


@pytest.mark.parametrize(
    ("expected", "factor", "meaning"),
    [
        (0.02, "1.5 times as large at 300 K", "about as large as the committee says"),
        (0.01, "3 times as large at 300 K", "larger than the committee says: take its deviations times 3."),
        (0.1, "0.3 times as large at 300 K", "smaller than the committee says"),
        (0.0, None, "What the committee expected is not known"),
        (np.nan, None, "What the committee expected is not known"),
        (None, None, "What the committee expected is not known"),
    ],
)
def test_a_sentence_compares_errors_with_deviations(expected: float | None, factor: str | None, meaning: str) -> None:
    [text, _] = rounds_sections([], [fresh(COLD, 30.0, expected)], [])
    assert meaning in text
    assert (factor is None) == ("as large at" not in text)
    assert factor is None or factor in text


def test_the_warning_goes_by_the_worst_temperature() -> None:
    [text, _] = rounds_sections([], [fresh(COLD, 30.0, 0.1), fresh(HOT, 90.0, 0.03)], [])
    assert "0.3 times as large at 300 K, 3 times as large at 650 K" in text
    assert "larger than the committee says" in text


def test_stress_has_columns_where_it_was_labeled() -> None:
    errors = {"forces_RMSE_meV_per_A": 30.0, "stress_RMSE_meV_per_A3": 0.625, "stress_MAE_meV_per_A3": np.nan}
    [text, _] = rounds_sections([], [fresh(COLD, errors=errors), fresh(HOT)], [])
    [table] = tables(text)
    assert column(table, "stress RMSE, meV/Å³") == ["0.625", "–"]
    assert column(table, "stress MAE, meV/Å³") == ["–", "–"]
    assert column(table, "energy RMSE, meV/atom") == ["–", "1.25"]


def test_rounds_and_rungs_are_told() -> None:
    [_, text] = rounds_sections(three_rounds(), [], [])
    by_round, by_rung = tables(text)
    assert column(by_round, "round") == ["1", "2", "3"]
    assert column(by_round, "labels") == ["120", "360", "1,080"]
    assert column(by_round, "fit, min") == ["2.5"] * 3
    assert column(by_round, "exploration, min") == ["1.1", "1.1", "–"]
    assert column(by_round, "lower bound, eV/Å") == ["0.04", "0.08", "0.12"]
    assert column(by_round, "upper bound, eV/Å") == ["0.61"] * 3
    assert column(by_round, "validation, energy RMSE, meV/atom") == ["4.56", "2.28", "1.52"]
    assert column(by_round, "validation, force components RMSE, meV/Å") == ["123", "61.7", "41.1"]
    assert by_rung[1:] == [
        [number, temperature, "12.5", "3 of 8", "57 of 1,400", deviation, "21"]
        for number in ("1", "2")
        for temperature, deviation in (("300", "0.0789"), ("650", "0.234"))
    ]


# ---- the picture


def test_the_picture_has_all_panels_and_a_caption() -> None:
    [_, text] = rounds_sections(three_rounds(), [fresh(COLD)], labels())
    [(caption, image)] = pictures(text)
    assert "colors are temperatures" in caption
    assert min(image.size) > 300
    assert np.asarray(image.convert("L")).std() > 5  # something is drawn
    assert titles(three_rounds(), labels()) == ALL_PANELS


def test_panels_show_what_was_given() -> None:
    figure = active_learning(three_rounds(), labels())
    assert figure is not None
    errors, deviations, origins, distances, forces = (axis for axis in figure.axes if axis.axison)
    assert errors.lines[0].get_xydata().tolist() == [[120, 123.4], [360, 61.7], [1080, pytest.approx(41.13, abs=0.01)]]
    cold, hot, upper, lower = (line.get_ydata() for line in deviations.lines)
    assert (list(cold), list(hot)) == ([0.0789] * 2, [0.234] * 2)
    assert set(upper) == {0.61}
    assert list(lower) == [0.04, 0.08, 0.12]
    assert [text.get_text() for text in origins.get_yticklabels()] == ["start 1", "start 2", "round 1", "round 2"]
    widths = [[bar.get_width() for bar in bars] for bars in origins.containers]
    assert widths == [[3, 3, 0, 0], [0, 0, 2, 2], [0, 0, 2, 2]]  # no temperature, cold, hot
    assert {text.get_text() for text in distances.get_yticklabels()} == {"H-C", "H-H", "C-O", "C-C", "H-O"}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["no temperature", "300 K", "650 K"]
    assert [line.get_label() for line in forces.lines] == legend
    largest = max(np.linalg.norm(each.get_forces(), axis=1).max() for each in labels()[:6])
    assert forces.lines[0].get_xdata().max() == pytest.approx(largest)
    colors = [line.get_color() for line in deviations.lines[:2]]
    assert colors == [line.get_color() for line in forces.lines[1:]]
    assert len(set(colors)) == 2


def test_each_distance_is_counted_once_and_first_labels_are_filled() -> None:
    pairs = [
        Atoms("HO", [[0, 0, 0], [0, 0, d]], info={"stage": stage}) for d, stage in ((1.01, "start"), (2.01, "round 1"))
    ]
    figure = active_learning([], pairs)
    assert figure is not None
    start, everything = (patch.get_data() for patch in figure.axes[1].patches)
    height = 0.85  # of the one distance, which is the most frequent
    for d, filled in ((1.01, height), (2.01, 0.0)):
        index = round((d - 0.01) / 0.02)
        assert start.values[index] == pytest.approx(filled)
        assert everything.values[index] == pytest.approx(height)
    assert np.count_nonzero(everything.values) == 2


def test_crystals_with_long_bonds_have_distances_too() -> None:
    argon = bulk("Ar", "fcc", a=5.26)
    argon.info["stage"] = "start"
    assert titles([], [argon]) == ["origin of the labels", "distances, logarithm of their number"]


# ---- what may be missing


def test_nothing_to_tell_is_no_section() -> None:
    assert rounds_sections([], [], []) == []


def test_without_fresh_frames_a_sentence_says_so() -> None:
    [text, _] = rounds_sections(three_rounds(), [], labels())
    assert "own dynamics were labeled. Its errors there are not known." in text
    [text, _] = rounds_sections([], [fresh(COLD, n_frames=0, n_failed=7, errors={}, expected=None)], [])
    assert "the reference failed for all 7 of them" in text
    assert not tables(text)


def test_without_rounds_a_sentence_says_so() -> None:
    [_, text] = rounds_sections([], [fresh(COLD)], [])
    assert "The course of the rounds is not known." in text
    assert not pictures(text)


def test_one_round_that_only_fits() -> None:
    [_, text] = rounds_sections([one_round(1, rungs=())], [], [])
    assert "Nothing was explored." in text
    assert len(pictures(text)) == 1
    assert titles([one_round(1, rungs=())], []) == ALL_PANELS[:1]


def test_one_round_that_explored() -> None:
    assert titles([one_round(1)], labels()[:1]) == ALL_PANELS


def test_numbers_that_are_not_finite_are_dashes_and_no_points() -> None:
    rounds = [one_round(1, errors={"forces_RMSE_meV_per_A": np.nan}, rungs=(rung(COLD, median_deviation=np.nan),))]
    [_, text] = rounds_sections(rounds, [], [])
    by_round, by_rung = tables(text)
    assert by_round[1][-2:] == ["–", "–"]
    assert column(by_rung, "median deviation, eV/Å") == ["–"]
    assert not pictures(text)


@pytest.mark.parametrize("temperature", [None, np.nan, "hot"])
def test_labels_that_tell_little(temperature: Any) -> None:
    frames = [label(0, temperature=temperature), Atoms("H", info={"stage": "atoms", "temperature": temperature})]
    figure = active_learning([one_round(1, n_labels=0)], frames)
    assert figure is not None
    assert [axis.get_title() for axis in figure.axes if axis.axison] == ALL_PANELS[2:]
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["not known", "atoms"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no temperature", "300 K", "650 K"]


def test_lone_atoms_have_neither_distances_nor_forces() -> None:
    atoms = Atoms("H", info={"stage": "atoms"})
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)))
    assert titles([], [atoms]) == ["origin of the labels"]


# ---- the page


def test_sections_of_the_caller_follow_the_summary(tmp_path: Path) -> None:
    atoms = bulk("Ar", "fcc", a=5.26, cubic=True)
    calculator = LennardJones(sigma=3.4, epsilon=0.0104, rc=6.0)
    evaluated = evaluate_sets(calculator, {"validation": [Frame(atoms, "argon", energy=0.0)]})
    own = [*rounds_sections(three_rounds(), [fresh(COLD)], labels()), section("One more")]
    write_report(tmp_path / "report.html", calculator, evaluated, [], title="argon", sections=own, steps=2)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    heads = ["Summary", "Fresh frames", "Rounds", "One more", "Learning curves"]
    assert re.findall("<h2>(.*?)</h2>", text)[:5] == heads
    assert all(each in text for each in own)
