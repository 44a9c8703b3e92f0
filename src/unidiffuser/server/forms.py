"""Multipart forms, read strictly: so many fields, so many files, each once, each of a bearable size."""

import base64
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from unidiffuser.server.limits import TurnedAwayError

LIMITS = {"max_files": 2, "max_fields": 24, "max_part_size": 64 * 1024}
MAX_FILE = 24 * 2**20


async def read_form(request: Request, schema: type[Any], names: tuple[str, ...]) -> tuple[Any, dict[str, str]]:
    """The fields of a multipart form, strictly, and its files as data URLs.

    Args:
        request: not yet read.
        schema: of the fields, with a `read`.
        names: of the files; the first must be there.

    Raises:
        TurnedAwayError: 400, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise TurnedAwayError(415, "send a form with files, as multipart/form-data", "not_multipart")
    fields: dict[str, Any] = {}
    files: dict[str, str] = {}
    async with request.form(**LIMITS) as form:
        for key, value in form.multi_items():
            name = key.removesuffix("[]")
            if name in fields or name in files:
                raise TurnedAwayError(400, f"the field {name[:40]!r} is there twice", "twice", param=name[:40])
            if isinstance(value, UploadFile):
                if name not in names:
                    raise TurnedAwayError(422, f"there is no file field {name[:40]!r} here", "invalid", param=name[:40])
                files[name] = await _data_url(value)
            else:
                fields[name] = value
    for name in names[:1]:
        if name not in files:
            raise TurnedAwayError(422, f"the file field {name!r} is missing", "invalid", param=name)
    return schema.read(fields), files


async def _data_url(file: UploadFile) -> str:
    data = await file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise TurnedAwayError(413, f"a file is larger than {MAX_FILE >> 20} MiB", "too_large")
    return "data:image/png;base64," + base64.b64encode(data).decode()
