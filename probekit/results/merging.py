"""Stacking tables: rows below each other, provenance side by side, nothing overwritten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from probekit.errors import InputError
from probekit.files import safe_name
from probekit.results.schema import empty_frame

Parts = tuple[pd.DataFrame, Mapping[str, Any], Mapping[str, Any]]

# Keys whose values are merged name by name, and what a clash of names means.
_NAMED = {"models": "weights", "data": "digest"}
_NESTED = ("models", "data", "level_shares")
_LISTED = ("warnings", "runs")


def merged(tables: Sequence[Parts]) -> tuple[pd.DataFrame, dict[str, Any], dict[str, Any]]:
    """Return frame, provenance and attachments of several tables as those of one.

    Raises:
        InputError: If there is no table, if a name stands for two things, or if attachments collide.
    """
    if not tables:
        raise InputError("at least one table", "none", "Check what the list was filled from")
    frames = [frame for frame, _, _ in tables if len(frame)]
    frame = pd.concat(frames, ignore_index=True) if frames else empty_frame()
    return frame, _merge_provenance([one for _, one, _ in tables]), _merge_attachments(tables)


def _merge_provenance(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    keys = list(dict.fromkeys(key for part in parts for key in part))
    for key in keys:
        values = [part[key] for part in parts if key in part]
        if key in _NESTED:
            whole[key] = _merge_named(key, values)
        elif key in _LISTED:
            whole[key] = _merge_lists(values)
        elif len(values) == len(parts) and all(value == values[0] for value in values):
            whole[key] = values[0]
    differing = [key for key in keys if key not in whole]
    if differing:
        runs = [{key: part[key] for key in differing if key in part} for part in parts]
        whole["runs"] = _merge_lists([whole.get("runs", []), [run for run in runs if run]])
    return whole


def _merge_named(key: str, values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    identity = _NAMED.get(key)
    for value in values:
        for name, facts in (value or {}).items():
            known = whole.get(name, facts)
            if identity is not None and known.get(identity) != facts.get(identity):
                raise InputError(
                    f"one {identity} behind the name {name!r}",
                    f"{known.get(identity)} and {facts.get(identity)}",
                    "Give what differs a name of its own",
                )
            whole.setdefault(name, facts)
    return whole


def _merge_lists(values: Sequence[Sequence[Any]]) -> list[Any]:
    whole: list[Any] = []
    for value in values:
        whole += [one for one in value if one not in whole]
    return whole


def _merge_attachments(tables: Sequence[Parts]) -> dict[str, Any]:
    whole: dict[str, Any] = {}
    runs: dict[str, str] = {}
    seen: set[int] = set()
    for frame, provenance, attachments in tables:
        if id(attachments) in seen:  # parts of one table share theirs
            continue
        seen.add(id(attachments))
        run = str(provenance.get("run_id") or (frame["run_id"].iloc[0] if len(frame) else ""))
        for key in attachments:
            place = key
            if key in whole and not _same_run(run, runs[key]):
                place = f"{safe_name(run)}/{key}" if run else key
                if place in whole:
                    raise InputError(
                        f"one attachment named {key!r}",
                        "two from different runs",
                        "Give their rows a `run_id`",
                    )
            if place not in whole:
                whole[place], runs[place] = attachments[key], run
    return whole


def _same_run(one: str, other: str) -> bool:
    return one != "" and one == other
