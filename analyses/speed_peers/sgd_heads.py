"""Heads by SGD over a grid of learning rates, all trained together, as DINOv2's linear evaluation does.

Thirteen learning rates, momentum 0.9, no weight decay, cosine schedule, batches of 128, ten passes: not the
optimum of a stated objective, so that it has no gap.

# /// script
# dependencies = ["torch"]
# ///
"""

from serve import probing, serve

RATES = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1]
PASSES, BATCH = 10, 128


def prepare(request):
    """One linear layer a learning rate, each with its own optimiser group."""
    import torch
    from torch import nn

    torch.set_num_threads(request["threads"])
    train, val, test = probing(request)
    x, y = torch.from_numpy(train[0]), torch.from_numpy(train[1])

    def step():
        torch.manual_seed(0)
        heads = [nn.Linear(x.shape[1], request["classes"]) for _ in RATES]
        for head in heads:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        groups = [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, RATES, strict=True)]
        optimiser = torch.optim.SGD(groups, momentum=0.9)
        steps = PASSES * (len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0)
        for _ in range(PASSES):
            for rows in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
                optimiser.zero_grad()
                sum(nn.functional.cross_entropy(head(x[rows]), y[rows]) for head in heads).backward()
                optimiser.step()
                schedule.step()

        def accuracy(head, rows):
            with torch.inference_mode():
                return float((head(torch.from_numpy(rows[0])).argmax(1).numpy() == rows[1]).mean())

        best = max(heads, key=lambda head: accuracy(head, val))
        return {"val": accuracy(best, val), "test": accuracy(best, test)}

    return step


if __name__ == "__main__":
    serve(prepare)
