"""What a verb needs beyond the required packages, and how it is got."""

from importlib.util import find_spec

NEEDED = {"serve": ("fastapi", "uvicorn", "python_multipart", "prometheus_client"), "ray": ("ray",)}
"""Extra -> the modules that it brings."""


def need(extra: str, *also: str) -> None:
    """ValueError unless what an extra brings is installed; also: modules of it that this verb alone needs."""
    missing = [module for module in (*NEEDED[extra], *also) if find_spec(module) is None]
    if missing:
        raise ValueError(
            f"this needs the extra [{extra}]: pip install 'unidiffuser[{extra}]' ({', '.join(missing)} is missing)"
        )
