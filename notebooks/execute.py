"""Run view_results.ipynb and keep its outputs: after a change of the notebook or of what it draws.

python submit_multiple.py jobs/digits-example.yaml -s local      # the batch that it shows
python notebooks/execute.py
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_name("view_results.ipynb")


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; a cell that raises ends it."""
    notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel_name="python3", resources=place, record_timing=False)
    return client.execute()


if __name__ == "__main__":
    text = nbformat.writes(executed(NOTEBOOK))
    # Folders of this machine are nobody else's concern.
    NOTEBOOK.write_text(text.replace(f"{NOTEBOOK.parents[1]}/", "") + "\n")
