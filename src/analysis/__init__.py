"""Many runs in one dataframe, big_df: select, choose, look for edges, draw, write a page.

read_experiments() makes the dataframe: one row for each run, a column for each configuration key
and for each curve. read.py finds the folders of runs, and fills in keys that they lack; runs.py
reads one, holds many as columns and owns the cache in a batch's folder (`.big_df.npz`); curves.py
is the type of the columns of curves, from which last(), best() and at() draw numbers.

Runs that differ in their seeds alone belong to one setting; settings.py gives each run a number
and each setting its mean over seeds, and src/ranking.py says which setting is best. On them stand
choice.py (the best setting, tables, paired comparisons and what to be warned of), edges.py (is the
best value at the edge of the grid?), plots/ (pictures of a big_df, for notebooks:
`from src.analysis.plots import learning_curves`) and page.py (the HTML of report.py;
page.js draws its curves). run_plot.py draws the one run that trains.
"""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.analysis.choice import (
        choose,  # the best setting by validation, and what it reaches on test
        paired,  # two kinds of runs, compared seed by seed
        table,  # all settings, the best first
    )
    from src.analysis.edges import edge_alarm  # sentences, and the job that extends the grid
    from src.analysis.page import (
        best_settings,  # the few whose curves one can tell apart
        render_page,  # the HTML of report.py
    )
    from src.analysis.plots import learning_curves  # a figure of a big_df
    from src.analysis.read import read_experiments  # batches -> big_df
    from src.analysis.run_plot import save_learning_curves  # the curves.png of one run
    from src.analysis.settings import (
        between,  # a range, for select
        select,  # the rows whose keys have these values
        varying,  # the keys in which runs differ
    )
else:
    __getattr__ = lazy_names(__name__)
