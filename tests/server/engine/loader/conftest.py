"""What the tests of the loader share."""

import pytest
from loading_place import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def good(place: Place) -> str:
    return place.lora("good")


@pytest.fixture(scope="module")
def asking(place: Place) -> str:
    """A version whose load needs values of the base."""
    return place.lora("dora", use_dora=True)
