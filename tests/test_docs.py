"""The pages under docs/ name what there is."""

from __future__ import annotations

import re

from probekit.backbones.families import SIGNS
from probekit.data.listings import COMMON_KEYS, FORMATS
from tests.conftest import ROOT

CHECKPOINTS = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_every_family_of_checkpoints_has_its_row():
    rows = re.findall(r"^\| ([^|]+) \|", CHECKPOINTS, re.MULTILINE)
    named = {name.strip() for row in rows for name in row.split(",")}
    assert {one.family.name for one in SIGNS} <= named


def test_every_key_and_format_of_data_is_explained():
    keys = set(
        re.findall(
            r"`(\w+)`", "".join(line.split("|")[1] for line in DATA.splitlines() if line.startswith("| `"))
        )
    )
    assert {*COMMON_KEYS, "format", "annotations", "ignore", "root"} <= keys
    assert all(f"`{name}`" in DATA for name in FORMATS)


def test_links_lead_somewhere():
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
