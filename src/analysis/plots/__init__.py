"""The pictures of a big_df; each function returns a matplotlib figure.

Keys of the configuration are mapped to rows and columns of panels, colours, styles or an axis.
`encoding` turns their values into names, colours, styles and legends. `panels` makes the figure
of panels and all around them. With these, `results` draws pictures of one number for each setting,
or for each class, and `curves` pictures of whole curves; `overview` puts several on a page. Which
setting is best, and its mean over seeds, comes from src/analysis/.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.analysis.plots.curves import (
        learning_curves,  # a line for each setting
        to_target,  # when curves first reach a value
    )
    from src.analysis.plots.overview import summary  # a batch on one page
    from src.analysis.plots.results import (
        against,  # a metric against a key
        heat_map,  # a metric against two keys
        per_class,  # a number for each class
        tradeoff,  # a metric against another, or time
    )
else:
    __getattr__ = lazy_names(__name__)
