"""A made-up probe table with the columns, params and attachments of a real one: three models, eight taps."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from probekit.files import safe_name
from probekit.results.fitted import Probe
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable

BLOCKS = {
    "layer1.0": ("low", 256),
    "layer1.2": ("low", 256),
    "layer2.1": ("mid", 512),
    "layer2.3": ("mid", 512),
    "layer3.2": ("mid", 1024),
    "layer3.5": ("mid", 1024),
    "layer4.0": ("high", 2048),
    "layer4.2": ("high", 2048),
}
DEPTHS = dict(zip(BLOCKS, (1 / 16, 3 / 16, 5 / 16, 7 / 16, 10 / 16, 13 / 16, 14 / 16, 1.0), strict=True))
CLASSES = ("daisy", "tulip", "rose", "sunflower", "iris", "orchid", "poppy", "lily", "peony", "cornflower")
# Model → (how accuracy moves over depth, R² of the two factors over depth), in [0, 1].
CURVES = {
    "supervised": lambda x: (0.30 + 0.62 * x**1.3, 0.55 + 0.35 * x - 0.85 * x**3, 0.75 - 0.55 * x**2),
    "moco": lambda x: (0.34 + 0.50 * x - 0.05 * x**4, 0.55 + 0.40 * x - 0.45 * x**3, 0.78 - 0.25 * x**2),
    "exemplar": lambda x: (0.33 + 0.58 * x - 0.03 * x**4, 0.54 + 0.42 * x - 0.60 * x**3, 0.77 - 0.35 * x**2),
    "random@0": lambda x: (0.33 - 0.10 * x, 0.42 - 0.35 * x, 0.60 - 0.45 * x),
    "random@1": lambda x: (0.31 - 0.07 * x, 0.40 - 0.30 * x, 0.57 - 0.40 * x),
    "random@2": lambda x: (0.34 - 0.12 * x, 0.44 - 0.40 * x, 0.62 - 0.50 * x),
}
SHOTS = (1, 2, 5, 10, 20)


def synthetic_probe_table(
    seed=0,
    n_test=400,
    classes=CLASSES,
    factors=("angle_deg", "size_px"),
    models=tuple(CURVES),
    class_target="species",
):
    rng = np.random.default_rng(seed)
    made = _Made(rng, n_test, tuple(classes), class_target)
    for model in models:
        for tap in BLOCKS:
            made.add_class(model, tap)
            for place, factor in enumerate(factors):
                made.add_factor(model, tap, factor, place)
    provenance = _provenance(models, n_test, classes, factors, class_target)
    frame = rows_to_frame({"run_id": provenance["run_id"], **row} for row in made.rows)
    return ResultTable(frame, provenance, made.attachments)


class _Made:
    def __init__(self, rng, n_test, classes, class_target):
        self.rng, self.n, self.classes, self.class_target = rng, n_test, classes, class_target
        self.ids = np.array([f"test/{i:04d}.jpg" for i in range(n_test)])
        self.labels = rng.integers(0, len(classes), n_test)
        self.hard = rng.normal(size=n_test)
        self.values = {}
        self.rows, self.attachments = [], {}

    def add_class(self, model, tap):
        x, c = DEPTHS[tap], len(self.classes)
        chance = 1 / c
        accuracy = chance + (CURVES[model](x)[0] - 0.1) * (1 - chance)
        threshold = np.quantile(self.hard, np.clip(accuracy, 0.01, 0.99))
        hits = (self.hard + 0.35 * self.rng.normal(size=self.n) < threshold).astype(float)
        guesses = np.where(hits == 1, self.labels, (self.labels + self.rng.integers(1, c, self.n)) % c)
        bits = np.where(hits == 1, 0.25, 2.6) * self.rng.uniform(0.4, 1.6, self.n)
        neighbours = np.where(self.rng.random(self.n) < 0.93, hits, 0.0)
        null = {
            "null": chance,
            "null_low": chance * 0.7,
            "null_high": chance * 1.35,
            "null_kind": "permuted,20",
        }
        base = self._base(model, tap, self.class_target) | {"n_classes": c}
        params = self._params(float(hits[::2].mean()))
        equal = np.where(self.rng.random(self.n) < 0.95, hits, 0.0)
        for metric, scores in {
            "accuracy": hits,
            "knn_accuracy": neighbours,
            "accuracy_equal_d": equal,
        }.items():
            extra = {"k": 20, "temperature": 0.07} if metric == "knn_accuracy" else params
            self.rows.append(base | self._mean(metric, scores) | null | {"params": extra})
        recalls = [
            float(hits[self.labels == k].mean()) if (self.labels == k).any() else np.nan for k in range(c)
        ]
        balanced = float(np.nanmean(recalls))
        self.rows.append(base | {"metric": "balanced_accuracy", "value": balanced, "params": params} | null)
        top = float(np.log2(c))
        bits_null = {"null": top, "null_low": top * 0.99, "null_high": top * 1.02, "null_kind": "permuted,20"}
        self.rows.append(base | self._mean("bits", bits) | bits_null | {"params": params})
        error = 0.02 + 0.05 * self.rng.random()
        self.rows.append(base | {"metric": "calibration_error", "value": error, "params": params})
        for k, recall in enumerate(recalls):
            count = int((self.labels == k).sum())
            row = {"metric": "class_recall", "n": count, "params": params | {"class": self.classes[k]}}
            row |= {"status": "no test image of this class"} if np.isnan(recall) else {"value": recall}
            self.rows.append(base | row)
        self._add_few_shot(base, float(hits.mean()), chance, null)
        scores = {"accuracy": hits, "bits": bits, "knn_accuracy": neighbours, "accuracy_equal_d": equal}
        frame = pd.DataFrame({"id": self.ids, "target": self.labels, "prediction": guesses, **scores})
        self._attach(model, tap, self.class_target, frame, self.classes, "class")

    def add_factor(self, model, tap, factor, place):
        x = DEPTHS[tap]
        truth = self.values.setdefault(factor, self.rng.uniform(0, 90, self.n))
        curve = CURVES[model](x)[1 + place % 2] - 0.06 * (place // 2)
        guess = truth + self.rng.normal(size=self.n) * np.sqrt(max(1 - curve, 0.01)) * truth.std()
        # Each image's score: 1 − n·e²/SST; the mean over images is R².
        scores = 1 - self.n * (guess - truth) ** 2 / ((truth - truth.mean()) ** 2).sum()
        base = self._base(model, tap, factor) | {"n_classes": 1}
        null = {"null": -0.01, "null_low": -0.04, "null_high": 0.01, "null_kind": "permuted within class,20"}
        self.rows.append(
            base | self._mean("r2", scores) | null | {"params": self._params(float(scores[::2].mean()))}
        )
        frame = pd.DataFrame({"id": self.ids, "target": truth, "prediction": guess, "r2": scores})
        self._attach(model, tap, factor, frame, (factor,), "continuous")

    def _base(self, model, tap, target):
        level, d = BLOCKS[tap]
        return {
            "analysis": "probe",
            "model": model,
            "arch": "resnet50",
            "weights": digest_of(model),
            "data": "flowers",
            "split": "test",
            "target": target,
            "tap": f"{tap}|gap",
            "block": tap,
            "level": level,
            "depth": DEPTHS[tap],
            "readout": "gap",
            "n": self.n,
            "d": d,
            "trial_seed": 0,
        }

    def _params(self, val):
        return {
            "penalty": 0.0316,
            "penalties": [1e-5, 10.0],
            "penalty_edge": None,
            "val": val,
            "gap": 3e-5,
            "iterations": 41,
            "converged": True,
            "n_train": 1600,
            "n_constant": 0,
        }

    def _mean(self, metric, scores):
        value, half = float(scores.mean()), float(1.96 * scores.std() / np.sqrt(len(scores)))
        ends = {"ci_low": value - half, "ci_high": value + half, "ci_kind": "bootstrap,test units"}
        return {"metric": metric, "value": value, **ends}

    def _add_few_shot(self, base, accuracy, chance, null):
        for shots in SHOTS:
            value = chance + (accuracy - chance) * (1 - np.exp(-((shots / 4) ** 0.6)))
            ends = {
                "ci_low": value - 0.08 / shots**0.5,
                "ci_high": value + 0.08 / shots**0.5,
                "ci_kind": "t,draws",
            }
            params = {"shots": shots, "draws": 5, "n_train": shots * len(self.classes), "penalty_edge": None}
            self.rows.append(
                base | {"metric": "few_shot_accuracy", "value": value, **ends, **null, "params": params}
            )

    def _attach(self, model, tap, target, frame, classes, kind):
        place = "/".join(safe_name(part) for part in ("flowers", model, f"{tap}|gap", target))
        self.attachments[f"scores/{place}.parquet"] = frame
        probe = Probe(
            weights=self.rng.normal(size=(4, len(classes))),
            intercept=np.zeros(len(classes)),
            mean=np.zeros(4),
            scale=np.ones(4),
            kept=np.ones(4, bool),
            classes=classes,
            kind=kind,
            tap=f"{tap}|gap",
            penalty=0.0316,
            target=target,
        )
        self.attachments[f"probes/{place}.npz"] = probe.to_arrays()


def digest_of(text):
    return hashlib.sha256(text.encode()).hexdigest()


def _provenance(models, n_test, classes, factors, class_target):
    preprocessing = {
        "size": 224,
        "resize": 256,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
    }
    facts = {
        model: {
            "arch": "resnet50",
            "spec": f"{model}=resnet50:{model}.pth",
            "weights": digest_of(model),
            "checkpoint": f"{model}.pth",
            "checkpoint_digest": digest_of(model + "file"),
            "branch": "online",
            "coverage": "318 of 318 weights filled, 2 unexpected (fc.weight, fc.bias)",
            "preprocessing": preprocessing,
            "preprocessing_text": "resize 256 bicubic, crop 224, mean 0.485/0.456/0.406, "
            "std 0.229/0.224/0.225",
            "parameters": 23508032,
            "random_init": "random@" in model,
            "control_of": "supervised" if "random@" in model else None,
        }
        for model in models
    }
    targets = {class_target: {"kind": "class", "classes": list(classes)}}
    targets |= {factor: {"kind": "continuous", "classes": [factor]} for factor in factors}
    shares = {
        "low": {"parameters": 0.01, "flops": 0.20},
        "mid": {"parameters": 0.35, "flops": 0.60},
        "high": {"parameters": 0.64, "flops": 0.20},
    }
    return {
        "format": 1,
        "analysis": "probe",
        "run_id": "4f1d0c2ab9e7",
        "probekit": "0.1.0",
        "versions": {"python": "3.11.7", "torch": "2.14.0", "timm": "1.0.31", "numpy": "2.4.6"},
        "command": "probekit probe --model supervised=resnet50:supervised.pth --model moco=resnet50:moco.pth "
        "--model exemplar=resnet50:exemplar.pth --data flowers/ --out reports/flowers",
        "created": "2026-11-20T09:30:00Z",
        "wall_s": 412.3,
        "seed": 0,
        "settings": {"taps": "blocks", "random": 3},
        "models": facts,
        "data": {
            "flowers": {
                "digest": digest_of("flowers"),
                "n": {"train": 1280, "val": 320, "test": n_test},
                "targets": targets,
                "seen_in_pretraining": "unknown",
                "skipped": 3,
            }
        },
        "level_shares": dict.fromkeys(models, shares),
        "warnings": [],
    }
