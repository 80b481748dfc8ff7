"""FourierFT (arXiv:2405.03003) and WaveFT: an update given by a few coefficients of a transform.

`y += scaling · T(coefficients) x`: T is the real part of a discrete Fourier transform, a Haar
wavelet transform, or none. Where the coefficients belong is never in the file, but drawn from a
seed by torch, whose CPU generator gives the same permutation on every machine.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from weft.adapters.base import BaseModules, TargetModule
from weft.adapters.checkpoint import Checkpoint
from weft.adapters.methods.fields import invalid, positive_integer
from weft.adapters.methods.linear_adapter import LinearAdapter, sparse
from weft.adapters.methods.patterns import AFTER_A_DOT, first_match
from weft.adapters.operations import Dense
from weft.adapters.plan import AdapterPlan


def lower_fourier(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules
) -> AdapterPlan:
    """One matrix for each selected module."""
    adapter = LinearAdapter("fourierft", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    scaling, seed = fields.number("scaling", 150.0), fields.count("random_loc_seed", 777)
    counts = fields.table("n_frequency_pattern", positive_integer)
    default = fields.integer("n_frequency", 1000)
    count_of = first_match(counts, default, "n_frequency_pattern", AFTER_A_DOT)
    for module in adapter.modules():
        count = count_of(module.name)
        positions = _positions(module, count, seed)
        values = adapter.take(f"{module.name}.fourierft_spectrum", count)
        spectrum = torch.zeros(module.elements).index_put((positions,), values)
        update = torch.fft.ifft2(spectrum.view(module.out_features, -1)).real
        adapter.add(module, Dense(update * scaling))
    return adapter.plan()


def lower_wavelet(
    checkpoint: Checkpoint, tensors: Mapping[str, Tensor], base: BaseModules
) -> AdapterPlan:
    """One matrix for each selected module, sparse where nothing is transformed."""
    adapter = LinearAdapter("waveft", checkpoint, tensors, base, conv1d=True)
    fields = adapter.fields
    scaling, seed = fields.number("scaling", 25.0), fields.count("random_loc_seed", 777)
    transformed = fields.get("use_idwt") is not False
    fields.flag("use_idwt")
    if transformed:
        fields.choice("wavelet_family", "db1")
    fields.ignore("wavelet_family")
    fields.refuse({"proportional_parameters": "counts by the modules' sizes are not served"})
    counts = fields.table("n_frequency_pattern", positive_integer)
    count_of = first_match(counts, fields.integer("n_frequency", 2592), "n_frequency_pattern")
    for module in adapter.modules():
        count = count_of(module.name)
        positions = _positions(module, count, seed)
        values = adapter.take(f"{module.name}.waveft_spectrum", count) * scaling
        if transformed:
            adapter.add(module, Dense(_haar(module, positions, values)))
        else:
            adapter.add(module, sparse(module, positions, values))
    return adapter.plan()


def _positions(module: TargetModule, count: int, seed: int) -> Tensor:
    """Where the coefficients belong in the flat matrix."""
    if count > module.elements:
        raise invalid("n_frequency", f"{count} is more than {module.name} has values")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(module.elements, generator=generator)[:count]


def _haar(module: TargetModule, positions: Tensor, values: Tensor) -> Tensor:
    """The matrix of which the coefficients are one level of the transform, by quadrants."""
    rows, columns = module.out_features, module.in_features
    half = (rows + 1) // 2, (columns + 1) // 2
    spectrum = torch.zeros(2 * half[0], 2 * half[1])
    spectrum[positions // columns, positions % columns] = values
    left, right = spectrum[:, : half[1]], spectrum[:, half[1] :]
    rows_done = torch.stack([left + right, left - right], dim=1)
    top, bottom = rows_done[: half[0]].flatten(0, 1), rows_done[half[0] :].flatten(0, 1)
    whole = torch.stack([top + bottom, top - bottom], dim=2).flatten(1) / 2
    return whole[:rows, :columns]
