"""Settings shared by the whole suite."""

import os

import pytest
from examples import examples
from hypothesis import settings

# Deterministic, and without a time limit per example: the first call of a torch op is slow.
settings.register_profile(
    "suite", max_examples=examples(100), deadline=None, derandomize=True, print_blob=False
)
settings.register_profile("interpreted", settings.get_profile("suite"), max_examples=16)
settings.register_profile("other seeds", settings.get_profile("suite"), derandomize=False)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips, and so counts, the tests that need a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _has_gpu() -> bool:
    import torch

    return os.environ.get("CUDA_VISIBLE_DEVICES") != "" and torch.cuda.is_available()
