"""A checkpoint's tensors under the base's names, each to be used exactly once."""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from weft.adapters.errors import AdapterInvalid
from weft.adapters.header import WEIGHTS_NAME

_PREFIX = re.compile(
    r"^(?:module\.|_orig_mod\.|_fsdp_wrapped_module\.|base_model\.model\.|base_model\.)*"
)
_ADAPTER_NAME = re.compile(r"\.default(?=\.|$)")


def normal_name(original: str) -> str:
    """A tensor's name without the prefixes of wrappers and the adapter's own name."""
    return _ADAPTER_NAME.sub("", _PREFIX.sub("", original))


class NamedTensors:
    """The tensors by normal names.

    Raises AdapterInvalid where two tensors have one normal name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._originals: dict[str, str] = {}
        for original, tensor in tensors.items():
            name = normal_name(original)
            if name in self._tensors:
                raise AdapterInvalid(original, "is the same tensor as " + self._originals[name])
            self._tensors[name] = tensor
            self._originals[name] = original

    def __iter__(self) -> Iterator[str]:
        """The normal names that have not been taken yet."""
        return iter(self._tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, shape: tuple[int, ...], *, integers: bool = False) -> Tensor:
        """Removes and returns a tensor.

        Raises AdapterInvalid where there is none, its shape is another, or its values are not of
        the kind that is wanted: integers, or else floating-point.
        """
        self.shape(name)
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise self.refusal(
                name, f"has shape {list(tensor.shape)}, this base and config need {list(shape)}"
            )
        if tensor.is_floating_point() == integers:
            wanted = "integers" if integers else "floating-point values"
            raise self.refusal(name, f"has values of {tensor.dtype}, needs {wanted}")
        del self._tensors[name]
        return tensor

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor that has not been taken yet; raises AdapterInvalid without one."""
        if name not in self._tensors:
            raise AdapterInvalid(WEIGHTS_NAME, f"holds no {name}")
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor that has not been taken yet; raises AdapterInvalid without one."""
        self.shape(name)
        return self._tensors[name].dtype

    def refusal(self, name: str, reason: str) -> AdapterInvalid:
        """The refusal of one tensor, by the name that the file gives it."""
        return AdapterInvalid(self._originals[name], reason)
