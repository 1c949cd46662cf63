"""Run the notebooks and keep them as pages that load nothing: ``python docs/render_notebooks.py``."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
from nbconvert import HTMLExporter

NOTEBOOKS, PAGES = Path("analyses/notebooks"), Path("reports/notebooks")


def render(path: Path) -> str:
    """Return the page of a notebook that was run just now."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    for cell in notebook.cells:
        # Progress and logs are for whoever waits.
        outputs = cell.get("outputs", [])
        cell["outputs"] = [one for one in outputs if one.get("name") != "stderr"]
    named = {"metadata": {"name": path.stem.replace("_", " ")}}
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, named)
    # Formulas, diagrams and widgets, fetched from elsewhere: there are none.
    return re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = PAGES / f"{path.stem}.html"
        page.write_text(render(path), encoding="utf-8")
        print(page)
