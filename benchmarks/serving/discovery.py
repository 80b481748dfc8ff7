"""What a running server says of itself: the base's name, and the adapters that it has."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.request import Request, urlopen

import orjson

from serving.target import ByLoraField, ByModel, Dialect, PlainOpenAI

DIALECTS = ("weft", "vllm", "llama.cpp", "openai")


def discover(
    base_url: str, dialect: str, headers: Mapping[str, str]
) -> tuple[Dialect, Sequence[str]]:
    """How to speak to a server, and its adapters' names.

    dialect: one of DIALECTS   Raises OSError where the server does not answer as such a one does.
    """
    if dialect == "llama.cpp":
        listed = _get(f"{base_url}/lora-adapters", headers)
        places = {str(adapter["id"]): adapter["id"] for adapter in listed}
        return ByLoraField(places), sorted(places)
    models = _get(f"{base_url}/v1/models", headers)["data"]
    bases = [model["id"] for model in models if not model.get("parent")]
    adapters = [model["id"] for model in models if model.get("parent")]
    if not bases:
        raise OSError(f"{base_url}/v1/models names no model without a parent")
    return (PlainOpenAI if dialect == "openai" else ByModel)(bases[0]), adapters


def _get(url: str, headers: Mapping[str, str]) -> Any:
    with urlopen(Request(url, headers=dict(headers)), timeout=60) as answer:
        return orjson.loads(answer.read())
