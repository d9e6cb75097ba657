"""Potential files: one potential or committee as safetensors with a JSON header, checked at loading, never a pickle."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import safetensors.torch
import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn
from torch.overrides import TorchFunctionMode

from ase_segnn.configuration import Configuration
from ase_segnn.model.committee import Committee
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential
from ase_segnn.potential_formats import NEWEST, check_fits, format_for, from_format, has_an_old_bound, to_format

FORMAT = "ase-segnn-potential"
SUFFIX = ".safetensors"
UNITS = {"energy": "eV", "length": "Å"}

_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little-endian
_LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format
_DTYPES = {"float32": torch.float32, "float64": torch.float64}
_STORED_DTYPES = {"float32": "F32", "float64": "F64"}  # as safetensors spells them
_INITIALIZERS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.zero_}  # called by `torch.nn.init`


class PotentialFileError(ValueError):
    """A file holds no potential, or a damaged one; or a potential cannot be written."""


class Provenance(Configuration):
    """Origin of the weights of a potential. Each key may be left out; other keys are refused.

    Parameters
    ----------
    recipe : training recipe as plain data, without folders of the machine
    data : name of a data file, as in the recipe, -> SHA-256 of the file
    commit : of the code at training
    seed : of the training
    versions : package -> version
    created : date and time, ISO 8601
    errors : data set -> error measure -> value; the unit is part of the measure's name
    """

    recipe: dict[str, Any] = {}
    data: dict[str, str] = {}
    commit: str | None = None
    seed: int | None = None
    versions: dict[str, str] = {}
    created: str | None = None
    errors: dict[str, dict[str, float]] = {}


class PotentialHeader(Configuration):
    """Header of a potential file: everything but the weights, as `read_header` returns it.

    Parameters
    ----------
    format_version : of the file; without products at nodes 3 for a committee, 1 or 2 for a single potential
    n_members : number of potentials in the file, all with this config; 1 for a single potential
    units : of energies and lengths in the file
    dtype : of the weights
    config : elements, reference energies, cutoff and shape of the network
    provenance : origin of the weights
    tensors_sha256 : SHA-256 of the bytes of all weights, in the order of the file
    """

    format_version: int
    units: dict[str, str]
    dtype: Literal["float32", "float64"]
    config: PotentialConfig
    provenance: Provenance
    tensors_sha256: str
    n_members: Annotated[int, Field(ge=1, le=1000)] = 1  # more mean a damaged file, which must not take memory

    @model_validator(mode="after")
    def _check_format(self) -> PotentialHeader:
        check_fits(self.format_version, self.config, self.n_members)
        return self


def save_potential(
    potential: Potential | Committee, path: str | Path, *, provenance: Provenance, overwrite: bool = False
) -> None:
    """Write a potential or a committee to one file, whole or not at all.

    The same potential and provenance give the same bytes.

    Parameters
    ----------
    potential : with weights of one dtype, float32 or float64; not changed
    path : ends in ``.safetensors``, in a folder that exists
    provenance : origin of the weights, for the header
    overwrite : replace an existing file

    Raises
    ------
    PotentialFileError
        If the file exists and `overwrite` is False, if `path` has another suffix or cannot be written, or if weights
        are not finite or of several dtypes.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise PotentialFileError(f"potential files end in '{SUFFIX}', got '{path}'; choose a name such as 'my{SUFFIX}'")
    _refuse_existing(path, overwrite)
    content = _to_bytes(potential, provenance)
    _check_tensors(*_read_header(io.BytesIO(content), path), path)  # never write what cannot be read
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _refuse_existing(path, overwrite)
        temporary.replace(path)
    except OSError as error:
        raise PotentialFileError(
            f"cannot write the potential file '{path}': {error.strerror or error}; "
            "choose a folder that exists and is writable"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def load_potential(path: str | Path) -> Potential | Committee:
    """Load a potential or a committee from a file, without executing any code of the file.

    Parameters
    ----------
    path : of a file written by `save_potential`, in this or an older version of ase-segnn

    Returns
    -------
    potential or committee on the CPU, in the dtype of the file (float32 or float64), frozen and in evaluation mode

    Raises
    ------
    PotentialFileError
        If the file is missing, truncated, corrupted, of another program or of a newer version, or if its tensors do not
        fit its config. Weights are read after all checks but that of their checksum.
    """
    path = Path(path)
    with _open(path) as file:
        header, table, n_weights_bytes = _read_header(file, path)
        _check_tensors(header, table, n_weights_bytes, path)
        file.seek(0)
        content = file.read()
    if hashlib.sha256(content[len(content) - n_weights_bytes :]).hexdigest() != header.tensors_sha256:
        raise _corrupted(path, "the checksum of its weights is wrong")
    with torch.device("cpu"):  # or weights without numbers would be on torch's default device
        tensors = safetensors.torch.load(content)
    members = [_unfilled(header.config).to(_DTYPES[header.dtype]) for _ in range(header.n_members)]
    for member, prefix in zip(members, _prefixes(header), strict=True):
        member.load_state_dict({name: tensors[prefix + name] for name in member.state_dict()})
    try:
        potential: Potential | Committee = members[0] if header.n_members == 1 else Committee(members)
    except ValueError as error:
        raise PotentialFileError(f"'{path}' does not hold a committee: {error}") from error
    return potential.requires_grad_(False).eval()


def read_header(path: str | Path) -> PotentialHeader:
    """Read the header of a potential file, without the weights.

    Raises
    ------
    PotentialFileError
        As of `load_potential`, for errors that show in the header.
    """
    path = Path(path)
    with _open(path) as file:
        return _read_header(file, path)[0]


def _prefixes(header: PotentialHeader) -> list[str]:
    """Return the prefix of each member's weights, as in the ``state_dict`` of `Committee`."""
    return [f"members.{index}." for index in range(header.n_members)] if header.n_members > 1 else [""]


def _to_bytes(potential: Potential | Committee, provenance: Provenance) -> bytes:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in potential.state_dict().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise PotentialFileError(f"the potential has weights that are not finite in '{name}'; it is not saved")
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= set(_DTYPES):
        raise PotentialFileError(
            f"a potential is saved with weights of one dtype, float32 or float64, got {', '.join(sorted(dtypes))}; "
            "convert it with .float() or .double()"
        )
    # safetensors writes its metadata in random order: write the header here, so that equal potentials give equal bytes
    plain = safetensors.torch.save(tensors)
    n_table = int.from_bytes(plain[:_LENGTH_BYTES], "little")
    table = json.loads(plain[_LENGTH_BYTES : _LENGTH_BYTES + n_table])
    weights = plain[_LENGTH_BYTES + n_table :]
    n_members = len(potential.members) if isinstance(potential, Committee) else 1
    header = PotentialHeader(
        format_version=format_for(potential.config, n_members),
        units=UNITS,
        dtype="float64" if dtypes == {"float64"} else "float32",
        config=potential.config,
        provenance=provenance,
        tensors_sha256=hashlib.sha256(weights).hexdigest(),
        n_members=n_members,
    )
    try:
        header_json = json.dumps(to_format(header.model_dump(mode="json"), header.format_version), allow_nan=False)
    except ValueError as error:
        raise PotentialFileError(
            f"config and provenance must be plain data with finite numbers: {error}; the potential is not saved"
        ) from error
    metadata = {"format": FORMAT, "header": header_json, "sha256": hashlib.sha256(header_json.encode()).hexdigest()}
    start = json.dumps({"__metadata__": metadata, **table}, separators=(",", ":")).encode()
    start += b" " * (-len(start) % _LENGTH_BYTES)  # the weights start aligned
    return len(start).to_bytes(_LENGTH_BYTES, "little") + start + weights


def _refuse_existing(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise PotentialFileError(f"'{path}' exists already; choose another name, or replace it with overwrite=True")


def _open(path: Path) -> BinaryIO:
    if not path.exists():
        raise PotentialFileError(f"there is no file '{path}'; 'ase-segnn info' lists the shipped potentials")
    if not path.is_file():
        raise PotentialFileError(f"'{path}' is no file; a potential is one '{SUFFIX}' file")
    try:
        return path.open("rb")
    except OSError as error:
        raise PotentialFileError(f"cannot read the potential file '{path}': {error.strerror or error}") from error


def _read_header(file: BinaryIO, path: Path) -> tuple[PotentialHeader, dict[str, Any], int]:
    """Return the checked header, the unchecked table of the weights, and the number of bytes of the weights."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(_LENGTH_BYTES)
    n_header = int.from_bytes(start, "little")
    if n_bytes <= _LENGTH_BYTES:
        raise _corrupted(path, f"it has {n_bytes} bytes only")
    if start.startswith(b"PK\x03\x04"):
        raise PotentialFileError(
            f"'{path}' is a zip archive, such as a PyTorch checkpoint, and no potential file; "
            f"a potential is one '{SUFFIX}' file, 'ase-segnn train' writes it beside its checkpoints"
        )
    first = file.read(1)
    file.seek(_LENGTH_BYTES)
    if first != b"{" or n_header > _LONGEST_HEADER:
        raise PotentialFileError(
            f"'{path}' is no safetensors file, or its first bytes are damaged; "
            f"a potential is one '{SUFFIX}' file written by ase-segnn"
        )
    if n_header > n_bytes - _LENGTH_BYTES:
        raise _corrupted(path, f"its header should have {n_header} bytes, {n_bytes - _LENGTH_BYTES} are left")
    table = _parse_json(file.read(n_header), path)
    metadata = table.pop("__metadata__", None)
    found = metadata.get("format") if isinstance(metadata, dict) else None
    if found != FORMAT:
        raise PotentialFileError(
            f"'{path}' is a safetensors file of another program: its metadata has format {found!r}, a potential of "
            f"ase-segnn has {FORMAT!r}; 'ase-segnn info' lists the shipped potentials"
        )
    header_json = metadata.get("header")
    if not isinstance(header_json, str):
        raise _corrupted(path, "its metadata has no header")
    header = _parse_json(header_json.encode(errors="replace"), path)
    version = header.get("format_version")
    if type(version) is not int or version < 1:
        raise _corrupted(path, f"its format version is {version!r}")
    if version > NEWEST:
        raise PotentialFileError(
            f"'{path}' was written by a newer ase-segnn (format {version}, this one reads up to {NEWEST}); "
            "upgrade with pip install -U ase-segnn"
        )
    if hashlib.sha256(header_json.encode(errors="replace")).hexdigest() != metadata.get("sha256"):
        raise _corrupted(path, "the checksum of its header is wrong")
    checked = _parse_header(header, version, path)
    if has_an_old_bound(version, checked.config):
        raise PotentialFileError(
            f"'{path}' was trained by a development version with another bound of products (format {version}); "
            "train it again, by its recipe.yaml"
        )
    if checked.units != UNITS:
        raise PotentialFileError(f"'{path}' has units {checked.units}, ase-segnn reads and writes {UNITS}")
    return checked, table, n_bytes - _LENGTH_BYTES - n_header


def _parse_header(header: dict[str, Any], version: int, path: Path) -> PotentialHeader:
    try:
        return PotentialHeader.model_validate(from_format(header, version))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'header'}: {e['msg']}" for e in error.errors())
        raise PotentialFileError(
            f"the header of '{path}' does not describe a potential of format {version}: {problems}; "
            "it was not written by ase-segnn"
        ) from error


def _parse_json(text: bytes, path: Path) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also stands for bytes that are not UTF-8
        raise _corrupted(path, "its header is no JSON") from error
    if not isinstance(parsed, dict):
        raise _corrupted(path, "its header is no JSON object")
    return parsed


def _check_tensors(header: PotentialHeader, table: dict[str, Any], n_weights_bytes: int, path: Path) -> None:
    """Compare the table of the weights with the potential that the config describes."""
    try:
        weights = _unfilled(header.config).state_dict()
    except Exception as error:  # a config of another origin may break anything
        raise PotentialFileError(f"the config in '{path}' does not build a potential: {error}") from error
    expected = {prefix + name: weight for prefix in _prefixes(header) for name, weight in weights.items()}
    missing, unexpected = sorted(expected.keys() - table.keys()), sorted(table.keys() - expected.keys())
    if missing or unexpected:
        raise PotentialFileError(
            f"the weights in '{path}' do not fit its config: missing {_few(missing)}, unexpected {_few(unexpected)}; "
            "it was not written by this version of ase-segnn, or it is damaged: copy or download it again"
        )
    itemsize = _DTYPES[header.dtype].itemsize
    end = 0
    for name, entry in sorted(table.items(), key=lambda item: _offsets(item[0], item[1], path)):
        shape = list(expected[name].shape)
        if entry.get("dtype") != _STORED_DTYPES[header.dtype] or entry.get("shape") != shape:
            raise PotentialFileError(
                f"the weights '{name}' in '{path}' are {entry.get('dtype')} {entry.get('shape')}, its config needs "
                f"{_STORED_DTYPES[header.dtype]} {shape}; the file is damaged: copy or download it again"
            )
        start, end = end, end + math.prod(shape) * itemsize
        if _offsets(name, entry, path) != (start, end):
            raise _corrupted(path, f"the bytes of the weights '{name}' are not where they should be")
    if end != n_weights_bytes:
        raise _corrupted(path, f"its weights should have {end} bytes, {n_weights_bytes} are left")


def _unfilled(config: PotentialConfig) -> Potential:
    """Build a potential on the CPU with weights that are allocated but not set.

    Such weights take no memory until they are read or written. The "meta" device would do as well, but torch then
    imports its compiler and sympy, which takes seconds.
    """
    with torch.device("cpu"), _NoInitialization():
        return Potential(config)


class _NoInitialization(TorchFunctionMode):
    """Make the initializers of `torch.nn.init` do nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALIZERS or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def _offsets(name: str, entry: Any, path: Path) -> tuple[int, int]:
    match entry:
        case {"data_offsets": [int(start), int(stop)]}:
            return start, stop
    raise _corrupted(path, f"it does not say where the weights '{name}' are")


def _corrupted(path: Path, what: str) -> PotentialFileError:
    return PotentialFileError(f"the potential file '{path}' is truncated or damaged: {what}; copy or download it again")


def _few(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
