"""The notebooks and the example of the README run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted(Path("docs").glob("*.ipynb"))


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


@pytest.mark.slow
def test_the_readme_example_runs(tmp_path: Path):
    text = Path("README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in example.splitlines() if line.strip()]) <= 6
    example = example.replace("moco=resnet50:moco_v2_800ep.pth.tar", "net=resnet10t:random,size=32")
    example = example.replace('"flowers/"', '"digits,limit=40", random=1, permutations=2, shots=[1]')
    exec(compile(example, "README.md", "exec"), {})
