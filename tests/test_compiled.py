"""A converted model under torch.compile: the shapes of a run do not change, so one graph serves all its steps.

The graph is captured whole and then run by torch's own kernels, so that no minute goes into a compiler.
"""

from typing import Any

import torch
from released_model import Formats
from released_truth import photo


def test_one_graph_serves_all_steps_and_changes_no_bit(formats: Formats) -> None:
    graphs = list[Any]()

    def captured(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain, compiled = formats.model(), formats.model()
    compiled.network.compile(backend=captured, fullgraph=True, dynamic=False)
    asks: list[tuple[str, dict[str, Any], int]] = [
        ("image", {"text": "cat", "steps": 4, "guidance": 2.0}, 1),
        ("image", {"text": "red", "steps": 2, "guidance": 5.0}, 1),
        ("text", {"image": photo(), "steps": 3, "guidance": 2.0}, 2),  # other heads
        ("image", {"text": "cat", "steps": 2, "guidance": 2.0, "size": (96, 160)}, 3),  # other shapes
    ]
    for name, options, so_far in asks:
        [a], [b] = (model.sample(name, seed=1, **options) for model in (plain, compiled))
        assert all(torch.equal(x, b.streams[s]) for s, x in a.streams.items())
        assert len(graphs) == so_far
