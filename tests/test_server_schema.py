"""The schema, attacked by schemathesis with all its checks: nothing fails inside, nothing undocumented comes back.

After every request the canary is drawn again: the same bytes, whatever was sent.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from running_server import Server, running  # noqa: E402
from tiny_model import saved_model  # noqa: E402

EXAMPLES = 8
# A body may be of the schema and yet make no sense for the model: a word it does not know, a name it does not have.
ACCEPTABLE = ["2xx", "400", "401", "404", "409", "415", "422", "429"]
CONFIG = {"checks": {"positive_data_acceptance": {"expected-statuses": ACCEPTABLE}}}
CANARY = {"prompt": "a large red circle", "unidiffuser": {"seed": 7}}


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("attacked")
    with running(saved_model(folder / "tiny"), folder / "data") as server:
        yield server


def canary(server: Server) -> str:
    return str(server.post("/v1/images/generations", CANARY).json()["data"][0]["b64_json"])


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: str(mode.value))
def test_the_schema_is_kept(attacked: Server, mode: Any, subtests: pytest.Subtests) -> None:
    config = schemathesis.Config.from_dict(CONFIG)
    schema = schemathesis.openapi.from_url(f"{attacked.url}/openapi.json", config=config)
    reference = canary(attacked)
    attacks = 0
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def attack(case: Any) -> None:
            nonlocal attacks
            attacks += 1
            case.call_and_validate()
            assert canary(attacked) == reference

        with subtests.test(operation.label):
            try:
                attack()
            except Unsatisfiable:
                continue  # an operation without parameters cannot be called wrongly
    assert attacks > 50
