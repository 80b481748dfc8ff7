"""Why an engine cannot start, in words for whoever starts it."""


class ModelUnsupported(Exception):
    """The base model cannot be served as configured; the message says why and what to change."""


class ModelTooLarge(ModelUnsupported):
    """The machine has not the memory for the base model's weights."""
