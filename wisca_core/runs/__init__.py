"""Reading the logs of training runs, whatever tool wrote them, into one long table.

>>> from wisca_core.runs import read  # doctest: +SKIP
>>> for run in read(["lightning_logs", "out/trainer_state.json"]).runs:  # doctest: +SKIP
...     print(run.name, len(run), run.remarks)
"""

from wisca_core.runs.follow import Logs, read
from wisca_core.runs.table import COLUMNS, Run, Series, long_pieces, long_table

__all__ = ["COLUMNS", "Logs", "Run", "Series", "long_pieces", "long_table", "read"]
