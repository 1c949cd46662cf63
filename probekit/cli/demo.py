"""``probekit demo``."""

from __future__ import annotations

from probekit.cli import options


def demo(
    out: options.Out = None,
    store: options.Store = None,
    device: options.Device = None,
    smoke: options.Smoke = False,
    dry_run: options.DryRun = False,
) -> None:
    """Run the main job on what is built in: probes, geometry, pixels and resets of five trained backbones.

    EfficientNet-Lite0 with ImageNet's weights, and four small networks that differ in the objective they
    were trained by, beside random init; on drawn images, so that nothing is downloaded.

    Example: probekit demo --out runs/demo
    """
    from joblib import cpu_count

    from probekit.cli.run import run_plan
    from probekit.demo import PLAN

    place, jobs = out or "runs/demo", 1 if smoke else cpu_count()
    run_plan(PLAN, place, smoke=smoke, dry_run=dry_run, store=store, device=device, jobs=jobs)
