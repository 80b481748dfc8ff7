"""Bases whose files hold 16 bits, read to be served in float32."""

from pathlib import Path

import torch
from transformers import PreTrainedModel

from weft.server.engine import weights


def load_stored(folder: Path, stored: torch.dtype | None) -> PreTrainedModel:
    """stored: the dtype of the files, where large weights are to be left in them"""
    return weights.load_weights(
        folder,
        weights.read_config(folder),
        dtype=torch.float32,
        device=torch.device("cpu"),
        progress=lambda stage, done, total: None,
        stored=stored,
    )
