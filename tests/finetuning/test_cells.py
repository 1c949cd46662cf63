"""A finished training gets its name, whenever the process dies on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probekit.files import check_folder
from probekit.finetuning.cells import ANSWERS, RESULT, _load, _save
from probekit.training.loop import METRICS, SNAPSHOT

RESULTS = {"test": 0.5, "answers": np.zeros(2), "ids": np.array(["a", "b"])}


class Killed(BaseException):
    """What no code catches."""


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("last", range(4))
def test_no_snapshot_is_left_without_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, reverse: bool
):
    unfinished = tmp_path / ".cell.unfinished"
    unfinished.mkdir()
    for name in (METRICS, SNAPSHOT, "weights-000003.pt", "left.tmp"):
        (unfinished / name).write_text(name, encoding="utf-8")
    unlink, iterdir, left = Path.unlink, Path.iterdir, iter(range(last))

    def dies(path: Path, missing_ok: bool = False) -> None:
        if path.parent == unfinished and not path.name.startswith(".") and next(left, None) is None:
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as there:
        there.setattr(Path, "unlink", dies)
        there.setattr(Path, "iterdir", lambda path: iter(sorted(iterdir(path), reverse=reverse)))
        if last < 3:
            with pytest.raises(Killed):
                _save({**RESULTS, "folder": str(unfinished)}, tmp_path / "cell")
        else:
            _save({**RESULTS, "folder": str(unfinished)}, tmp_path / "cell")
    if last < 3:
        assert (unfinished / METRICS).exists() or not (unfinished / SNAPSHOT).exists()
        _save({**RESULTS, "folder": str(unfinished)}, tmp_path / "cell")
    check_folder(tmp_path / "cell")
    names = {one.name for one in (tmp_path / "cell").iterdir()}
    assert names == {ANSWERS, RESULT, "weights-000003.pt", "seal.json"}
    assert _load(tmp_path / "cell")["test"] == 0.5
