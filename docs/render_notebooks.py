"""Run the notebooks and keep them as pages that load nothing: ``python docs/render_notebooks.py``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import nbclient
import nbformat
from nbconvert import HTMLExporter

NOTEBOOKS, PAGES = Path("analyses/notebooks"), Path("reports/notebooks")
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}
.prompt, .anchor-link {{ color: var(--muted); font-size: .8rem; text-decoration: none; }}
.output_area {{ overflow-x: auto; }}
.output_area img {{ max-width: 100%; background: #fff; }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def render(path: Path) -> str:
    """Return the page of a notebook that was run just now."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute()
    for cell in notebook.cells:
        # Progress and logs are for whoever waits.
        outputs = cell.get("outputs", [])
        cell["outputs"] = [one for one in outputs if one.get("name") != "stderr"]
    # The body alone: whole templates bring scripts from elsewhere and 280 kB of styles.
    body, _ = HTMLExporter(template_name="basic", embed_images=True).from_notebook_node(notebook)
    return framed(path.stem, body)


def framed(name: str, body: str) -> str:
    """Return the page around what a notebook shows."""
    style = files("probekit.reporting").joinpath("page.css").read_text(encoding="utf-8")
    # What scrolls is reached by the keyboard.
    body = body.replace(
        '<div class="output_area">', '<div class="output_area" tabindex="0" role="group" aria-label="Output">'
    )
    return PAGE.format(title=name.replace("_", " "), style=style, body=body)


if __name__ == "__main__":
    PAGES.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        page = PAGES / f"{path.stem}.html"
        page.write_text(render(path), encoding="utf-8")
        print(page)
