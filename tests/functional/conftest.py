"""Planted problems whose optimum is worth finding, and one torch thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

Planted = Callable[..., tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def planted() -> Planted:
    """Correlated standardised features, and labels drawn from a softmax of them."""

    def draw(
        n: int, d: int, c: int, *, seed: int = 0, dtype: type = np.float64
    ) -> tuple[np.ndarray, np.ndarray]:
        stream = np.random.default_rng(seed)
        mixing = np.eye(d) + stream.normal(size=(d, d)) * 0.3 / np.sqrt(d)
        x = (stream.normal(size=(n, d)) * np.exp(0.5 * stream.normal(size=d))) @ mixing
        x = (x - x.mean(0)) / x.std(0)
        labels = (3 * x @ stream.normal(size=(d, c)) / np.sqrt(d) + stream.gumbel(size=(n, c))).argmax(1)
        labels[:c] = np.arange(c)
        return x.astype(dtype), labels

    return draw
