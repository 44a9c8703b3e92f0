"""Any model measured against pairs of its own kind.

    report = evaluate_data(model, open_data("folder"), samples=200)

`reference` draws the true pairs and `trial` the samples, `features` turns values into vectors, every file with a row in
`report.MEASURES` makes rows of the report, `page` shows it with pictures. Nothing here knows a world.
"""

from unidiffuser.evaluation.report import MEASURES, evaluate_data, lines

__all__ = ["MEASURES", "evaluate_data", "lines"]
