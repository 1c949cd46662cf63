"""Build the API reference from the docstrings: ``python docs/build_api.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import pdoc

import probekit


def build_api(folder: Path) -> Path:
    """Write the reference of all public names, with a search, into a folder; return its page."""
    # They resolve on first use, which pdoc does not try; and modules name backbones that they do not load.
    public = {name: getattr(probekit, name) for name in probekit.__all__}
    vars(probekit).update(public)
    for one in public.values():
        if module := sys.modules.get(getattr(one, "__module__", "")):
            vars(module).setdefault("Backbone", probekit.Backbone)
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("probekit", "!probekit[.].*", output_directory=folder)
    return folder / "probekit.html"


if __name__ == "__main__":
    print(build_api(Path(sys.argv[1])))
