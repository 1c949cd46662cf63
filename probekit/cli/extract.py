"""``probekit extract``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from probekit.cli import options


def extract(
    model: options.Models = None,
    data: options.Data = None,
    taps: options.Taps = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or float16 [default: float32].")] = None,
    precision: options.Precision = None,
    engine: Annotated[
        str | None, typer.Option(help="auto, eager or fused forward pass [default: auto, by a trial].")
    ] = None,
    batch_size: options.BatchSize = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder for one .npz (or .parquet) file a model, data set and tap.")
    ] = None,
    parquet: Annotated[bool, typer.Option("--parquet", help="Export Parquet instead of .npz.")] = False,
    config: options.Config = None,
    changes: options.Changes = None,
    store: options.Store = None,
    device: options.Device = None,
) -> None:
    """Compute and keep features: every image passes once, every tap is read.

    Example: probekit extract -m resnet18:random -d digits -t stages,penultimate --export features/

    On several devices or machines: torchrun --nproc-per-node 4 -m probekit extract … --store /shared/store
    """
    from probekit.errors import InputError
    from probekit.features.extraction import extract as compute
    from probekit.files import safe_name
    from probekit.plan import check_settings

    flags = {
        "models": model,
        "data": data,
        "taps": options.split_taps(taps),
        "dtype": dtype,
        "precision": precision,
        "engine": engine,
        "batch_size": batch_size,
    }
    settings = dict(options.build_plan("extract", config, flags, changes).settings)
    models, sets = settings.pop("models", None) or [], settings.pop("data", None) or []
    models, sets = ([one] if isinstance(one, str) else one for one in (models, sets))
    if not models or not sets:
        raise InputError("--model and --data", "neither" if not models and not sets else "one", "See --help")
    check_settings(compute, {"model": "", "data": "", **settings}, "extract")
    for one in models:
        for words in sets:
            for tap, features in compute(one, words, store=store, device=device, **settings).items():
                typer.echo(f"{one}  {words}  {tap}  {features.axes}  {'×'.join(map(str, features.shape))}")
                if export is not None:
                    path = export / safe_name(one) / safe_name(words) / safe_name(tap)
                    if parquet:
                        features.to_parquet(path.with_name(f"{path.name}.parquet"))
                    else:
                        features.to_npz(path.with_name(f"{path.name}.npz"))
