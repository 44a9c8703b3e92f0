"""What of a result becomes files: everything that came as {"type", "data"}; in its place stands its address."""

import base64
from typing import Any

SUFFIX = {"image/png": "png", "audio/wav": "wav", "application/json": "json", "text/plain": "txt"}
TYPE = {suffix: kind for kind, suffix in SUFFIX.items()} | {"bin": "application/octet-stream"}


def stored_result(name: str, result: dict[str, Any]) -> tuple[dict[str, Any], list[tuple[str, bytes]]]:
    """A result with addresses for files, and the files: (name, bytes)."""
    files: list[tuple[str, bytes]] = []

    def stored(k: int, modality: str, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        file_name = f"{k}.{modality}.{SUFFIX.get(value['type'], 'bin')}"
        files.append((file_name, base64.b64decode(value["data"])))
        return {"type": value["type"], "url": f"/api/jobs/{name}/files/{file_name}"}

    samples = [
        {**sample, "values": {m: stored(k, m, value) for m, value in sample["values"].items()}}
        for k, sample in enumerate(result["samples"])
    ]
    return {**result, "samples": samples}, files
