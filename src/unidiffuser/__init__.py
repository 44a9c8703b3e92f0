"""One diffusion model for every marginal, conditional and joint distribution of a set of modalities.

    from unidiffuser import UniDiffuser

    model = UniDiffuser.from_pretrained("scenes")
    model.sample("image", text="a red circle above a blue square")     # p(image | text)

`UniDiffuser` and its companions are imported when first asked for: `unidiffuser --help` does not wait for torch.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiffuser.answers import Sample as Sample
    from unidiffuser.checkpoints import ModelError as ModelError
    from unidiffuser.checkpoints import Settings as Settings
    from unidiffuser.guidance import Guidance as Guidance
    from unidiffuser.pipeline import UniDiffuser as UniDiffuser

# MKL adds up a product of few rows in another order than one of many, and a sample would depend on the batch that it is
# drawn in. In this mode it does not, at no cost (docs/LOG.md). MKL reads the variable at its first product.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__version__ = "0.1.0"
__all__ = ["Guidance", "ModelError", "Sample", "Settings", "UniDiffuser", "__version__"]

_HOMES = {
    "UniDiffuser": "pipeline",
    "Sample": "answers",
    "Guidance": "guidance",
    "Settings": "checkpoints",
    "ModelError": "checkpoints",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
