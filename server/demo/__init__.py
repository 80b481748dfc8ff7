"""The embedded model: where its files lie in the package. Imports no torch, no transformers."""

from pathlib import Path

MODEL_NAME = "weft-demo"
_FOLDER = Path(__file__).parent
BASE = _FOLDER / "base"
ADAPTERS = _FOLDER / "adapters"
EXAMPLES = _FOLDER / "examples.json"
REPORT = _FOLDER / "report.json"


def adapter_folders() -> dict[str, Path]:
    """Adapter name to the folder with its `adapter_config.json` and `adapter_model.safetensors`."""
    return {folder.name: folder for folder in sorted(ADAPTERS.iterdir()) if folder.is_dir()}
