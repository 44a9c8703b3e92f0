"""The models in the box: those that come with the library, each a folder in the native format, known by its name."""

from pathlib import Path

from unidiffuser.checkpoints import ModelError, hub
from unidiffuser.checkpoints.native import CONFIG

BOX = Path(__file__).parents[1] / "models"


def names() -> list[str]:
    """The models in the box, in alphabetical order."""
    return sorted(folder.name for folder in BOX.iterdir() if (folder / CONFIG).is_file()) if BOX.is_dir() else []


def find(model: str | Path, *, download: bool = False) -> Path:
    """The folder of a model in the box, the folder given, or that of a repository of the hub (`hub.locate`).

    Raises:
        ModelError: what looks like a name is not in the box, or a repository is not in the local cache.
    """
    if str(model) in names():
        return BOX / str(model)
    folder = hub.locate(model, download=download)
    if not folder.exists() and folder.name == str(model) and not folder.suffix:
        raise ModelError(
            f"there is no model {str(model)!r}; in the box: {', '.join(names()) or 'none'}; or give a model's folder"
        )
    return folder
