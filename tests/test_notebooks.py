"""The notebooks and the example of the README run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

FOLDER = Path("analyses/notebooks")
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # what the notebook machinery warns about is not ours
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rendered_notebooks_show_the_code_there_is_and_load_nothing(path: Path):
    page = Path("reports/notebooks", f"{path.stem}.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    # Nor does it say where it was made.
    assert not re.findall(r"(?<![\w.])/(?:tmp|home|root|work)/", page)
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert "".join(cell["source"]).strip() in shown


@pytest.mark.slow
def test_the_readme_example_runs(tmp_path: Path):
    text = Path("README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    example = example.replace("moco=resnet50:moco_v2_800ep.pth.tar", "net=resnet10t:random,size=32")
    example = example.replace('"flowers/"', '"digits,limit=40", random=1, permutations=2, shots=[1]')
    exec(compile(example, "README.md", "exec"), {})
