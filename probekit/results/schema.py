"""The one schema of every result table: ordered columns, their types, what a missing value is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from probekit.errors import SchemaMismatch, near_names
from probekit.files import canonical_json

SCHEMA_VERSION = 1

# Column → dtype, in order. Missing text is '', missing floats NaN, missing whole numbers <NA>.
SCHEMA: dict[str, str] = {
    "run_id": "string",
    "analysis": "string",
    "model": "string",
    "arch": "string",
    "weights": "string",
    "data": "string",
    "split": "string",
    "target": "string",
    "tap": "string",
    "block": "string",
    "level": "string",
    "depth": "float64",
    "readout": "string",
    "metric": "string",
    "value": "float64",
    "ci_low": "float64",
    "ci_high": "float64",
    "ci_kind": "string",
    "null": "float64",
    "null_low": "float64",
    "null_high": "float64",
    "null_kind": "string",
    "n": "Int64",
    "d": "Int64",
    "n_classes": "Int64",
    "pretrain_seed": "Int64",
    "trial_seed": "Int64",
    "status": "string",
    "params": "string",
}
LEVELS = ("low", "mid", "high")
OK = "ok"

_MISSING: dict[str, Any] = {"string": "", "float64": float("nan"), "Int64": pd.NA}
_TEXTS = [column for column, dtype in SCHEMA.items() if dtype == "string"]
_NUMBERS = ["value", "ci_low", "ci_high", "null", "null_low", "null_high"]
_DEFAULTS = {column: _MISSING[dtype] for column, dtype in SCHEMA.items()} | {"status": OK, "params": "{}"}


def empty_frame() -> pd.DataFrame:
    """Return a frame of the schema without rows.

    Examples:
        >>> list(empty_frame().columns) == list(SCHEMA), len(empty_frame())
        (True, 0)
    """
    return pd.DataFrame({column: pd.Series([], dtype=dtype) for column, dtype in SCHEMA.items()})


def rows_to_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build a valid frame from rows that name only what they know.

    Args:
        rows: One mapping per row, column → value. Columns left out, and None, become missing values;
            ``status`` becomes ``'ok'``. ``params`` may be a mapping or JSON text.

    Returns:
        A frame in the order and the types of the schema, already validated.

    Raises:
        SchemaMismatch: If a row names an unknown column, or a value does not fit its column.

    Examples:
        >>> frame = rows_to_frame([{"metric": "accuracy", "value": 0.5, "params": {"k": 20, "a": 1}}])
        >>> frame.loc[0, "status"], frame.loc[0, "params"], frame.loc[0, "tap"]
        ('ok', '{"a":1,"k":20}', '')
    """
    columns: dict[str, list[Any]] = {column: [] for column in SCHEMA}
    for row in rows:
        for name in row:
            if name not in SCHEMA:
                raise _unknown_column(str(name))
        for column, default in _DEFAULTS.items():
            value = row.get(column)
            columns[column].append(default if value is None else value)
    columns["params"] = [params_text(value) for value in columns["params"]]
    frame = pd.DataFrame(
        {column: _typed(column, values, SCHEMA[column]) for column, values in columns.items()}
    )
    return validate(frame)


def conform(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a valid copy of a frame that holds the schema's columns in any order or related type.

    Whole numbers held as floats, text held as objects, missing values of any kind become what the
    schema says; nothing is rounded or invented.

    Raises:
        SchemaMismatch: As ``validate``; also if a value cannot be converted without loss.

    Examples:
        >>> frame = conform(rows_to_frame([{"value": 1.0}]).assign(model="a", n=5))
        >>> str(frame["n"].dtype), str(frame["model"].dtype)
        ('Int64', 'string')
    """
    _check_known(frame)
    made = frame[list(SCHEMA)].reset_index(drop=True)
    # Most frames come from others that were valid: a column is touched only where something is to be done.
    changed: dict[str, pd.Series[Any]] = {}
    for column in _other_types(made):
        dtype = SCHEMA[column]
        values = [None if pd.isna(value) else value for value in made[column].tolist()]
        changed[column] = _typed(
            column, [_MISSING[dtype] if value is None else value for value in values], dtype
        )
    for column in _with_gaps(made):
        changed.setdefault(column, made[column].fillna(""))
    return validate(made.assign(**changed) if changed else made)


def validate(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame unchanged if it follows the schema.

    Raises:
        SchemaMismatch: If a column is missing, unknown, out of order or of another type; if text is
            missing other than as ``''``; if a value is missing although its status is ``'ok'``; or if
            levels, depths, interval ends or ``params`` are not what the schema says.
    """
    _check_columns(frame)
    _check_types(frame)
    _check_values(frame)
    return frame


def params_text(params: Mapping[str, Any] | str) -> str:
    """Return parameters as JSON text with sorted keys; NumPy numbers and arrays are converted.

    Raises:
        SchemaMismatch: If the parameters are not a JSON object, or hold NaN or infinity.
    """
    try:
        value = json.loads(params) if isinstance(params, str) else _plain(params)
        if not isinstance(value, dict):
            raise TypeError(f"{type(value).__name__} instead of an object")
        return canonical_json(value)
    except (TypeError, ValueError) as error:
        raise SchemaMismatch(
            "a JSON object in the column 'params'", f"{str(params)[:80]!r} ({error})", "Use None for missing"
        ) from error


def read_params(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the parameters of every row as dicts."""
    return [json.loads(text) for text in frame["params"]]


def _typed(column: str, values: list[Any], dtype: str) -> pd.Series[Any]:
    if dtype == "string":
        for value in values:
            if not isinstance(value, str):
                raise _wrong_value(column, "text", repr(value))
    try:
        # Whole numbers pass through Int64's own check, which refuses 2.5.
        return pd.Series(values, dtype=dtype)
    except (TypeError, ValueError) as error:
        raise _wrong_value(column, f"values of type {dtype}", str(error)) from error


def _check_known(frame: pd.DataFrame) -> None:
    present = [str(column) for column in frame.columns]
    for column in present:
        if column not in SCHEMA:
            raise _unknown_column(column)
    for column in SCHEMA:
        if column not in present:
            raise SchemaMismatch(
                f"the column {column!r}", "a frame without it", "Build frames with `rows_to_frame`"
            )


def _check_columns(frame: pd.DataFrame) -> None:
    _check_known(frame)
    present = [str(column) for column in frame.columns]
    if present != list(SCHEMA):
        place = next(i for i, (a, b) in enumerate(zip(present, SCHEMA, strict=False)) if a != b)
        raise SchemaMismatch(
            f"the column {list(SCHEMA)[place]!r} at position {place}",
            repr(present[place]),
            "Order columns as `frame[list(SCHEMA)]`",
        )


def _check_types(frame: pd.DataFrame) -> None:
    for column, dtype in _other_types(frame).items():
        raise _wrong_value(column, f"dtype {SCHEMA[column]}", f"dtype {dtype}")
    for column in _with_gaps(frame):
        raise _wrong_value(column, "'' for missing text", "a missing value")


def _other_types(frame: pd.DataFrame) -> dict[str, str]:
    """Return the types of those columns that have another one than the schema's."""
    # All columns at once, here and below: one by one, pandas takes longer to find them than to look at them.
    held = {str(column): str(dtype) for column, dtype in frame.dtypes.items()}
    return {column: held[column] for column, dtype in SCHEMA.items() if held[column] != dtype}


def _with_gaps(frame: pd.DataFrame) -> list[str]:
    """Return the columns of text in which a value is missing."""
    gaps = frame[_TEXTS].isna().any()
    return [column for column in _TEXTS if gaps[column]]


def _check_values(frame: pd.DataFrame) -> None:
    silent = frame["value"].isna() & (frame["status"] == OK)
    if bool(silent.any()):
        metric = frame.loc[silent, "metric"].iloc[0]
        raise _wrong_value(
            "status",
            "the reason, in words, of a missing value",
            f"'ok' beside an empty {metric!r} in {int(silent.sum())} rows",
        )
    strange = ~frame["level"].isin(("", *LEVELS))
    if bool(strange.any()):
        raise _wrong_value("level", "low, mid, high or ''", repr(frame.loc[strange, "level"].iloc[0]))
    if bool(((frame["depth"] < 0) | (frame["depth"] > 1)).any()):
        raise _wrong_value("depth", "positions in [0, 1]", f"up to {frame['depth'].abs().max():g}")
    numbers = dict(zip(_NUMBERS, frame[_NUMBERS].to_numpy(float).T, strict=True))
    for column, values in numbers.items():
        if np.isinf(values).any():
            raise _wrong_value(column, "finite or missing values", "infinity")
    for low, high in (("ci_low", "ci_high"), ("null_low", "null_high")):
        if (numbers[low] > numbers[high]).any():
            raise _wrong_value(low, f"values of at most {high}", "larger ones")
    for text in frame["params"].unique():
        if not _is_canonical(text):
            raise _wrong_value("params", "JSON with sorted keys and no spaces", repr(text[:60]))


@lru_cache(maxsize=1 << 14)
def _is_canonical(params: str) -> bool:
    """Whether parameters are written as ``params_text`` does: tables that are cut and joined ask often."""
    return params_text(params) == params


def _plain(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    """Turn NumPy scalars and arrays, tuples and mappings into what JSON knows."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _unknown_column(name: str) -> SchemaMismatch:
    return SchemaMismatch(
        "columns of the result schema",
        f"the unknown column {name!r}",
        f"Nearest: {near_names(name, SCHEMA)}; anything else belongs into `params`",
    )


def _wrong_value(column: str, expected: str, came: str) -> SchemaMismatch:
    return SchemaMismatch(f"{expected} in the column {column!r}", came, "Build frames with `rows_to_frame`")
