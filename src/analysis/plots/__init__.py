"""The pictures of a big_df: each takes keys for rows, columns, colours and styles, or an axis.

from src.analysis.plots import learning_curves, against, heat_map, tradeoff, to_target, summary
"""

from src.analysis.plots.cells import heat_map
from src.analysis.plots.keys import against
from src.analysis.plots.learning import learning_curves
from src.analysis.plots.summaries import summary
from src.analysis.plots.targets import to_target
from src.analysis.plots.tradeoffs import tradeoff

__all__ = ["against", "heat_map", "learning_curves", "summary", "to_target", "tradeoff"]
