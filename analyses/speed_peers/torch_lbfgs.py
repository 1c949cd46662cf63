"""torch.optim.LBFGS in float32, one penalty after another.

# /// script
# dependencies = ["torch"]
# ///
"""

from serve import serve, sweep


def prepare(request):
    """Strong Wolfe line search, from zero."""
    import torch

    torch.set_num_threads(request["threads"])

    def fit(train, penalty):
        x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])
        weight = torch.zeros(x.shape[1], request["classes"], requires_grad=True)
        bias = torch.zeros(request["classes"], requires_grad=True)
        optimiser = torch.optim.LBFGS(
            [weight, bias], max_iter=request["max_iter"], tolerance_grad=request["tol"],
            tolerance_change=1e-9, line_search_fn="strong_wolfe",
        )  # fmt: skip

        def loss():
            optimiser.zero_grad()
            value = (
                torch.nn.functional.cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
            )
            value.backward()
            return value

        optimiser.step(loss)
        return weight.detach().numpy(), bias.detach().numpy()

    return sweep(request, fit)


if __name__ == "__main__":
    serve(prepare)
