"""scikit-learn's LogisticRegressionCV with one hold-out: it warms each penalty with the one before.

# /// script
# dependencies = ["scikit-learn"]
# ///
"""

import time
import warnings

import numpy as np
from serve import probing, serve


def prepare(request):
    """It refits on train and val in the end, as it always does."""
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
    from sklearn.model_selection import PredefinedSplit

    warnings.simplefilter("ignore")
    train, val, test = probing(request)
    x, y = (np.concatenate(pair) for pair in zip(train, val, strict=True))
    hold_out = PredefinedSplit(np.r_[np.full(len(train[0]), -1), np.zeros(len(val[0]), int)])
    strengths = [1 / (len(train[0]) * penalty) for penalty in request["penalties"]]

    def step():
        began = time.perf_counter()
        middle = strengths[len(strengths) // 2]
        LogisticRegression(C=middle, tol=request["tol"], max_iter=request["max_iter"]).fit(*train)
        once = time.perf_counter() - began
        if once * len(strengths) > request["budget_s"]:
            return {"seconds": once * len(strengths), "extrapolated": True}
        began = time.perf_counter()
        model = LogisticRegressionCV(
            Cs=strengths, cv=hold_out, tol=request["tol"], max_iter=request["max_iter"],
            use_legacy_attributes=False,
        ).fit(x, y)  # fmt: skip
        accuracy = float(model.score(*test))
        seconds = time.perf_counter() - began
        penalty = 1 / (len(train[0]) * float(np.ravel(model.C_)[0]))
        return {"seconds": seconds, "penalty": penalty, "test": accuracy}

    return step


if __name__ == "__main__":
    serve(prepare)
