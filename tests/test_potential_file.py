from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from ase import Atoms
from random_potentials import SHAPES, random_potential

from ase_segnn import Committee, SEGNNCalculator
from ase_segnn.model.config import NetworkConfig, PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.potential_file import (
    PotentialFileError,
    Provenance,
    load_potential,
    read_header,
    save_potential,
)
from ase_segnn.potentials import path_of, shipped_potentials

PROVENANCE = Provenance(
    recipe={"seed": 3, "model": {"cutoff": 4.0}},
    data={"train.xyz": "0" * 64},
    commit="abc",
    seed=3,
    versions={"torch": torch.__version__},
    created="2025-01-01T00:00:00+00:00",
    errors={"water at 300 K": {"energy_RMSE_meV": 1.5, "forces_RMSE_meV_per_A": 10.25}},
)


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    # energies that neither float32 nor a short decimal holds
    config = PotentialConfig(
        elements=("H", "O"),
        reference_energies={"H": -13.587222780835477, "O": -29943.1 / 3},
        network=NetworkConfig(
            cutoff=4.0, irreps_hidden="4x0e+2x1o", l_max_attributes=1, n_layers=1, n_radial=3, correlation=1
        ),
    )
    return Potential(config)


@pytest.fixture
def committee(potential: Potential) -> Committee:
    return Committee([potential, *(Potential(potential.config) for _ in range(2))])


@pytest.fixture
def path(potential: Potential, tmp_path: Path) -> Path:
    path = tmp_path / "water.safetensors"
    save_potential(potential, path, provenance=PROVENANCE)
    return path


@pytest.fixture
def committee_path(committee: Committee, tmp_path: Path) -> Path:
    path = tmp_path / "committee.safetensors"
    save_potential(committee, path, provenance=PROVENANCE)
    return path


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a potential file into its JSON header and its weights."""
    n = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + n]), content[8 + n :]


def joined(start: dict[str, Any], weights: bytes) -> bytes:
    text = json.dumps(start).encode()
    return len(text).to_bytes(8, "little") + text + weights


def rewrite(path: Path, change: dict[str, Any], *, checksum: bool = True) -> None:
    """Change entries of the header as a program would that knows the format."""
    start, weights = parts(path.read_bytes())
    metadata = start["__metadata__"]
    metadata["header"] = json.dumps(json.loads(metadata["header"]) | change)
    if checksum:
        metadata["sha256"] = hashlib.sha256(metadata["header"].encode()).hexdigest()
    path.write_bytes(joined(start, weights))


def same(a: Potential | Committee, b: Potential | Committee) -> bool:
    weights_a, weights_b = a.state_dict(), b.state_dict()
    return (
        type(a) is type(b)
        and a.config == b.config
        and weights_a.keys() == weights_b.keys()
        and all(torch.equal(w, weights_b[name]) and w.dtype == weights_b[name].dtype for name, w in weights_a.items())
    )


def loaded_or_message(path: Path) -> tuple[Potential | Committee | None, str]:
    try:
        return load_potential(path), ""
    except PotentialFileError as error:
        return None, str(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_potential_comes_back_as_it_was(potential: Potential, tmp_path: Path, dtype: torch.dtype) -> None:
    potential.to(dtype)
    path = tmp_path / "p.safetensors"
    save_potential(potential, path, provenance=PROVENANCE)
    loaded = load_potential(path)
    assert same(loaded, potential)
    assert {w.dtype for w in loaded.state_dict().values()} == {dtype}
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(p.requires_grad for p in potential.parameters()), "the saved potential was changed"
    torch.testing.assert_close(loaded.reference_energies, potential.reference_energies, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_committee_comes_back_as_it_was(committee: Committee, tmp_path: Path, dtype: torch.dtype) -> None:
    committee.to(dtype)
    for name in ("one", "two"):
        save_potential(committee, tmp_path / f"{name}.safetensors", provenance=PROVENANCE)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    loaded = load_potential(tmp_path / "one.safetensors")
    assert same(loaded, committee)
    assert {w.dtype for w in loaded.state_dict().values()} == {dtype}
    assert not any(p.requires_grad for p in loaded.parameters())
    assert not any(module.training for module in loaded.modules())
    header = read_header(tmp_path / "one.safetensors")
    assert (header.format_version, header.n_members, header.config) == (3, 3, committee.config)


def test_a_single_potential_is_written_as_older_versions_read_it(path: Path) -> None:
    header = json.loads(parts(path.read_bytes())[0]["__metadata__"]["header"])
    assert header.keys() == {"format_version", "units", "dtype", "config", "provenance", "tensors_sha256"}
    assert header["format_version"] == 2


def test_files_from_before_products_were_bounded_keep_their_energies(tmp_path: Path) -> None:
    path = tmp_path / "format-4.safetensors"
    potential = random_potential(SHAPES["products without bounds"])
    save_potential(potential, path, provenance=PROVENANCE)
    assert read_header(path).format_version == 4
    assert (
        "bounded_products" not in json.loads(parts(path.read_bytes())[0]["__metadata__"]["header"])["config"]["network"]
    )
    assert not load_potential(path).config.network.bounded_products
    assert same(load_potential(path), potential)


def test_bounded_products_of_another_bound_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bounded.safetensors"
    save_potential(random_potential(SHAPES["products"]), path, provenance=PROVENANCE)
    assert read_header(path).format_version == 6
    for version, reason in (
        (5, r"another bound of products \(format 5\); train it"),
        (4, "there are none before format 6"),
    ):
        rewrite(path, {"format_version": version})
        with pytest.raises(PotentialFileError, match=reason):
            load_potential(path)


def test_shortest_distances_come_back(tmp_path: Path) -> None:
    path = tmp_path / "limited.safetensors"
    potential = random_potential(SHAPES["shortest distances"])
    save_potential(potential, path, provenance=PROVENANCE)
    assert read_header(path).format_version == 5
    assert load_potential(path).config == potential.config
    assert same(load_potential(path), potential)
    rewrite(path, {"format_version": 4})
    with pytest.raises(PotentialFileError, match="shortest_distances are given, and there are none before format 5"):
        load_potential(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"n_members": 1},
            "does not describe a potential of format 3: header: .*n_members is 1, formats 1 and 2 hold one",
        ),
        ({"n_members": 0}, "n_members: "),
        ({"n_members": 10**12}, "n_members: "),
        ({"format_version": 2}, "does not describe a potential of format 2: header: .*n_members is 3"),
        ({"n_members": 2}, "do not fit its config: missing none, unexpected 'members.2.network"),
        ({"n_members": 4}, "do not fit its config: missing 'members.3.network.* unexpected none"),
    ],
)
def test_wrong_numbers_of_members_are_refused(committee_path: Path, change: dict[str, Any], message: str) -> None:
    rewrite(committee_path, change)
    with pytest.raises(PotentialFileError, match=message):
        load_potential(committee_path)


def test_a_committee_of_equal_members_is_refused(committee: Committee, tmp_path: Path) -> None:
    path = tmp_path / "equal.safetensors"
    committee.members[1].load_state_dict(committee.members[0].state_dict())
    save_potential(committee, path, provenance=PROVENANCE)
    with pytest.raises(PotentialFileError, match=r"does not hold a committee: members 0 and 1 .* the same weights"):
        load_potential(path)


def test_files_of_format_1_still_load() -> None:
    """One that the first format wrote, with the numbers that its potential gave then."""
    path = Path(__file__).parent / "data" / "format-1.safetensors"
    assert read_header(path).format_version == 1
    assert load_potential(path).config.network.gated_messages
    water = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    water.calc = SEGNNCalculator(path, dtype="float64", device="cpu")
    assert water.get_potential_energy() == pytest.approx(-456.60784502370655, abs=1e-9)
    forces = [
        [0.06621554954348559, 0.08575559281902935, 0],
        [-0.0921201422080275, 0.0029249407512140606, 0],
        [0.025904592664541915, -0.08868053357024341, 0],
    ]
    np.testing.assert_allclose(water.get_forces(), forces, atol=1e-9)


def test_keys_that_came_later_may_be_missing(path: Path, potential: Potential) -> None:
    """Files from before products of messages and shortest distances have no keys for them."""
    config = read_header(path).config.model_dump(mode="json")
    del config["shortest_distances"]
    for key in ("correlation", "l_max_messages", "l_max_hidden"):
        del config["network"][key]
    rewrite(path, {"config": config})
    assert same(load_potential(path), potential)


def test_the_header_says_where_the_potential_comes_from(path: Path, potential: Potential) -> None:
    header = read_header(path)
    assert header.provenance == PROVENANCE
    assert header.config == potential.config
    assert header.format_version == 2
    assert header.dtype == "float32"
    assert header.units == {"energy": "eV", "length": "Å"}


def test_other_programs_can_read_the_file(path: Path, potential: Potential) -> None:
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "ase-segnn-potential"
        assert set(file.keys()) == set(potential.state_dict())


def test_the_same_potential_gives_the_same_bytes(path: Path, potential: Potential, tmp_path: Path) -> None:
    save_potential(potential, tmp_path / "again.safetensors", provenance=PROVENANCE)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_loading_is_the_first_thing_a_program_does(path: Path) -> None:
    """Nothing that was computed before, such as symbols that e3nn keeps, is needed."""
    program = f"from ase_segnn.potential_file import load_potential; load_potential({str(path)!r})"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_loading_touches_no_torch_global(path: Path) -> None:
    state = torch.get_rng_state()
    load_potential(path)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == torch.float32


def test_the_default_dtype_and_device_of_the_caller_do_not_matter(path: Path, potential: Potential) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert same(load_potential(path), potential)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["potential", "committee"])
def test_damaged_files_are_refused(
    kind: str, path: Path, committee_path: Path, potential: Potential, committee: Committee
) -> None:
    """Flip one bit, or cut, at many places of the header and the weights."""
    path, saved = (path, potential) if kind == "potential" else (committee_path, committee)
    content = path.read_bytes()
    n_start = len(content) - len(parts(content)[1])
    places = random.Random(0)
    positions = [*range(16), *places.sample(range(16, n_start), 250), *places.sample(range(n_start, len(content)), 50)]
    damaged = []
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << places.randrange(8)
        damaged.append(bytes(changed))
    cuts = [0, 1, 7, 8, 9, n_start // 2, n_start - 1, n_start, n_start + 1, len(content) - 4, len(content) - 1]
    damaged += [content[:cut] for cut in cuts]
    damaged += [content + b"\0", content[:n_start] + content[n_start + 4 :] + content[n_start : n_start + 4]]
    refused = 0
    for changed in damaged:
        path.write_bytes(changed)
        loaded, message = loaded_or_message(path)
        assert loaded is None or same(loaded, saved)
        assert loaded is not None or str(path) in message
        refused += loaded is None
    assert refused > 0.95 * len(damaged)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or damaged: it has 0 bytes only"),
        (b"PK\x03\x04" + b"\0" * 100, "is a zip archive, such as a PyTorch checkpoint"),
        (b"\xff" * 8 + b"{}", "is no safetensors file, or its first bytes are damaged"),
        (b"Lattice='1 0 0'\nH 0 0 0\n", "is no safetensors file"),
        ((1000).to_bytes(8, "little") + b"{}", "its header should have 1000 bytes, 2 are left"),
        ((2).to_bytes(8, "little") + b"{]", "its header is no JSON"),
        ((200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "its header is no JSON"),
        ((3).to_bytes(8, "little") + b'{"\xff', "its header is no JSON"),
        (
            safetensors.torch.save({"w": torch.ones(2)}),
            "safetensors file of another program: its metadata has format None",
        ),
        (
            safetensors.torch.save({"w": torch.ones(2)}, {"format": "pt"}),
            "another program: its metadata has format 'pt'",
        ),
        (
            safetensors.torch.save({"w": torch.ones(2)}, {"format": "ase-segnn-potential"}),
            "its metadata has no header",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    for read in (load_potential, read_header):
        with pytest.raises(PotentialFileError, match=re.escape(message)):
            read(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PotentialFileError, match=r"there is no file '.*missing"):
        load_potential(tmp_path / "missing.safetensors")
    with pytest.raises(PotentialFileError, match="is no file"):
        load_potential(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 7, "unheard_of": 1},
            r"newer ase-segnn \(format 7, this one reads up to 6\); upgrade with pip install -U ase-segnn",
        ),
        ({"format_version": "1"}, "its format version is '1'"),
        ({"format_version": 0}, "its format version is 0"),
        ({"unheard_of": 1}, "does not describe a potential of format 2: unheard_of: "),
        ({"dtype": "float16"}, "dtype: "),
        ({"units": {"energy": "Ha", "length": "Bohr"}}, "has units .*Bohr.*reads and writes .*Å"),
    ],
)
def test_headers_that_cannot_be_understood_are_refused(path: Path, change: dict[str, Any], message: str) -> None:
    rewrite(path, change)
    for read in (load_potential, read_header):
        with pytest.raises(PotentialFileError, match=message):
            read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutof": 3.0}, "config.network.cutof: "),
        ({"cutoff": -1.0}, "config.network.cutoff: "),
        ({"irreps_hidden": "many"}, "config.network.irreps_hidden: "),
        ({"irreps_hidden": "5x0e+2x1o"}, "its config needs F32"),
        ({"n_layers": 2}, "do not fit its config: missing 'network.layers.1.*, unexpected none"),
    ],
)
def test_configs_that_do_not_fit_are_refused(path: Path, change: dict[str, Any], message: str) -> None:
    config = read_header(path).config.model_dump(mode="json")
    rewrite(path, {"config": config | {"network": config["network"] | change}})
    with pytest.raises(PotentialFileError, match=message):
        load_potential(path)


def test_checksums_protect_what_still_looks_right(path: Path) -> None:
    content = path.read_bytes()
    config = read_header(path).config.model_dump(mode="json") | {"energy_scale": 1.5}
    rewrite(path, {"config": config}, checksum=False)
    with pytest.raises(PotentialFileError, match="the checksum of its header is wrong"):
        read_header(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    read_header(path)
    with pytest.raises(PotentialFileError, match="the checksum of its weights is wrong"):
        load_potential(path)


@pytest.mark.parametrize("correlation", [1, 3])
@pytest.mark.parametrize("channels", [20_000, 10**9])
def test_a_config_of_a_huge_network_takes_no_memory(path: Path, channels: int, correlation: int) -> None:
    config = read_header(path).config.model_dump(mode="json")
    config["network"] |= {"irreps_hidden": f"{channels}x0e", "correlation": correlation}
    rewrite(path, {"config": config, "format_version": 2 if correlation == 1 else 6})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PotentialFileError, match=r"its config needs F32|do not fit its config|does not build"):
        load_potential(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB, of 1.6 GB for each matrix


def test_tensors_that_do_not_fit_are_refused_before_weights_are_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(safetensors.torch, "load", forbidden)
    start, weights = parts(path.read_bytes())
    name = next(name for name, entry in start.items() if entry.get("shape") == [4])

    def refused(change: dict[str, Any], message: str, weights: bytes = weights) -> None:
        path.write_bytes(joined(start | change, weights))
        with pytest.raises(PotentialFileError, match=message):
            load_potential(path)

    refused({name: start[name] | {"shape": [2, 2]}}, rf"'{name}' in .* are F32 \[2, 2\], its config needs F32 \[4\]")
    refused({name: start[name] | {"dtype": "I32"}}, r"are I32 \[4\]")
    refused({name: start[name] | {"data_offsets": [0, 10**15]}}, "not where they should be")
    refused({name: {"dtype": "F32", "shape": [4]}}, f"does not say where the weights '{name}' are")
    refused({name: 3}, f"does not say where the weights '{name}' are")
    refused({"extra": start[name]}, "missing none, unexpected 'extra'")
    refused({}, "its weights should have", weights + b"\0" * 4)


def test_existing_files_are_replaced_only_if_asked(path: Path, potential: Potential) -> None:
    before = path.read_bytes()
    with torch.no_grad():
        next(potential.parameters()).add_(1.0)
    with pytest.raises(
        PotentialFileError, match="exists already; choose another name, or replace it with overwrite=True"
    ):
        save_potential(potential, path, provenance=PROVENANCE)
    assert path.read_bytes() == before
    save_potential(potential, path, provenance=PROVENANCE, overwrite=True)
    assert same(load_potential(path), potential)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_failed_write_leaves_the_old_file(path: Path, potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(PotentialFileError, match=r"cannot write the potential file '.*': No space left on device"):
        save_potential(potential, path, provenance=PROVENANCE, overwrite=True)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_potentials_that_cannot_be_saved_are_refused(potential: Potential, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    with pytest.raises(PotentialFileError, match=r"potential files end in '.safetensors', got '.*p.pt'"):
        save_potential(potential, tmp_path / "p.pt", provenance=PROVENANCE)
    with pytest.raises(PotentialFileError, match=r"cannot write the potential file '.*none"):
        save_potential(potential, tmp_path / "none" / "p.safetensors", provenance=PROVENANCE)
    unfinished = PROVENANCE.model_copy(update={"errors": {"test": {"energy_RMSE_meV": float("nan")}}})
    with pytest.raises(PotentialFileError, match="must be plain data with finite numbers"):
        save_potential(potential, path, provenance=unfinished)
    with torch.no_grad():
        next(potential.parameters()).view(-1)[0] = torch.nan
    with pytest.raises(PotentialFileError, match="weights that are not finite"):
        save_potential(potential, path, provenance=PROVENANCE)
    with pytest.raises(PotentialFileError, match="weights of one dtype, float32 or float64, got float16"):
        save_potential(Potential(potential.config).half(), path, provenance=PROVENANCE)
    assert not list(tmp_path.iterdir())


def test_loading_never_unpickles(path: Path, potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert same(load_potential(path), potential)


def test_shipped_potentials_are_whole() -> None:
    for name, path in shipped_potentials().items():
        load_potential(path)
        assert path.with_suffix(".md").is_file(), f"{name} has no model card"
        assert path.with_suffix(".yaml").is_file(), f"{name} has no recipe"
        assert path_of(name) == path


def test_names_and_paths_of_potentials(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert path_of(path) == path
    assert path_of(str(path)) == path
    monkeypatch.setattr(
        "ase_segnn.potentials.shipped_potentials", lambda: {"acac-pbe": tmp_path / "a", "water": tmp_path / "b"}
    )
    assert path_of("water") == tmp_path / "b"
    message = (
        "potential 'acac-pb' is neither a shipped potential nor a file (did you mean 'acac-pbe'?); "
        "shipped: acac-pbe, water; 'ase-segnn info' lists them"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        path_of("acac-pb")
