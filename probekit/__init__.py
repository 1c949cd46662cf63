"""Representation analysis of pretrained vision backbones: probing and layer-wise transfer.

Public names resolve on first use: ``import probekit`` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from probekit.version import __version__

# Public name → the module that defines it.
_HOMES = {
    "Attributions": "probekit.attribution.attributions",
    "Backbone": "probekit.backbones.backbone",
    "Features": "probekit.features.features",
    "ImageSet": "probekit.data.images",
    "Plan": "probekit.plan",
    "Preprocessing": "probekit.data.transforms",
    "Probe": "probekit.results.fitted",
    "ProbekitError": "probekit.errors",
    "ResultTable": "probekit.results.table",
    "Tap": "probekit.taps.tap",
    "attribute_images": "probekit.attribution.methods",
    "compose": "probekit.attribution.composed",
    "attribute": "probekit.attribution.sweep",
    "describe_images": "probekit.data.description",
    "diagnose": "probekit.finetuning.diagnosing",
    "extract": "probekit.features.extraction",
    "inspect_checkpoint": "probekit.backbones.inspection",
    "list_layers": "probekit.taps.layers",
    "load_backbone": "probekit.backbones.loading",
    "measure_concepts": "probekit.attribution.concepts",
    "measure_geometry": "probekit.geometry.sweep",
    "measure_infidelity": "probekit.attribution.quality",
    "measure_invariance": "probekit.invariance.sweep",
    "measure_sensitivity": "probekit.attribution.quality",
    "measure_similarity": "probekit.similarity.sweep",
    "open_images": "probekit.data.readers",
    "pretrain": "probekit.pretraining.sweep",
    "own_classifier": "probekit.attribution.composed",
    "probe": "probekit.probes.sweep",
    "probe_boxes": "probekit.probes.boxes",
    "probe_cam": "probekit.attribution.linear",
    "reconstruct": "probekit.reconstruction.sweep",
    "record": "probekit.taps.record",
    "reset": "probekit.backbones.reset",
    "reset_curves": "probekit.finetuning.sweep",
    "stream": "probekit.features.streaming",
    "stream_moments": "probekit.geometry.sweep",
    "transfer": "probekit.finetuning.sweep",
    "unfold": "probekit.features.statistics",
    "verify": "probekit.verification.verdict",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from probekit.attribution.attributions import Attributions as Attributions
    from probekit.attribution.composed import compose as compose
    from probekit.attribution.composed import own_classifier as own_classifier
    from probekit.attribution.concepts import measure_concepts as measure_concepts
    from probekit.attribution.linear import probe_cam as probe_cam
    from probekit.attribution.methods import attribute_images as attribute_images
    from probekit.attribution.quality import measure_infidelity as measure_infidelity
    from probekit.attribution.quality import measure_sensitivity as measure_sensitivity
    from probekit.attribution.sweep import attribute as attribute
    from probekit.backbones.backbone import Backbone as Backbone
    from probekit.backbones.inspection import inspect_checkpoint as inspect_checkpoint
    from probekit.backbones.loading import load_backbone as load_backbone
    from probekit.backbones.reset import reset as reset
    from probekit.data.description import describe_images as describe_images
    from probekit.data.images import ImageSet as ImageSet
    from probekit.data.readers import open_images as open_images
    from probekit.data.transforms import Preprocessing as Preprocessing
    from probekit.errors import ProbekitError as ProbekitError
    from probekit.features.extraction import extract as extract
    from probekit.features.features import Features as Features
    from probekit.features.statistics import unfold as unfold
    from probekit.features.streaming import stream as stream
    from probekit.finetuning.diagnosing import diagnose as diagnose
    from probekit.finetuning.sweep import reset_curves as reset_curves
    from probekit.finetuning.sweep import transfer as transfer
    from probekit.geometry.sweep import measure_geometry as measure_geometry
    from probekit.geometry.sweep import stream_moments as stream_moments
    from probekit.invariance.sweep import measure_invariance as measure_invariance
    from probekit.plan import Plan as Plan
    from probekit.pretraining.sweep import pretrain as pretrain
    from probekit.probes.boxes import probe_boxes as probe_boxes
    from probekit.probes.sweep import probe as probe
    from probekit.reconstruction.sweep import reconstruct as reconstruct
    from probekit.results.fitted import Probe as Probe
    from probekit.results.table import ResultTable as ResultTable
    from probekit.similarity.sweep import measure_similarity as measure_similarity
    from probekit.taps.layers import list_layers as list_layers
    from probekit.taps.record import record as record
    from probekit.taps.tap import Tap as Tap
    from probekit.verification.verdict import verify as verify


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'probekit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
