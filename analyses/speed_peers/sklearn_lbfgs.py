"""scikit-learn's LogisticRegression, one penalty after another.

# /// script
# dependencies = ["scikit-learn"]
# ///
"""

import warnings

from serve import serve, sweep


def prepare(request):
    """Take the settings of the request: tolerance, iterations, precision."""
    from sklearn.linear_model import LogisticRegression

    warnings.simplefilter("ignore")

    def fit(train, penalty):
        x, y = train
        model = LogisticRegression(C=1 / (len(x) * penalty), tol=request["tol"], max_iter=request["max_iter"])
        model.fit(x.astype(request["precision"]), y)
        return model.coef_.T, model.intercept_

    return sweep(request, fit)


if __name__ == "__main__":
    serve(prepare)
