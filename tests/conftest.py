"""Settings shared by the whole suite."""

from hypothesis import settings

# Deterministic, and without a time limit per example: the first call of a torch op is slow.
settings.register_profile("suite", deadline=None, derandomize=True, print_blob=False)
settings.load_profile("suite")
