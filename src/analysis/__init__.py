"""Many runs in one dataframe, big_df: select, choose, look for edges, draw, write a page."""

from typing import TYPE_CHECKING

from src import lazy_names

if TYPE_CHECKING:
    from src.analysis.page import best_settings, render_page
    from src.analysis.plots import learning_curves
    from src.analysis.read import read_experiments
    from src.analysis.run_plot import save_learning_curves
else:
    __getattr__ = lazy_names(__name__)
