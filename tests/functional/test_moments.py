"""One pass, mergeable, exact: moments against NumPy, merging, files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError, NonFiniteFeatures
from probekit.functional.moments import CrossMoments, Moments, merge


def rows(n: int, d: int, c: int, seed: int, offset: float = 0.0):
    stream = np.random.default_rng(seed)
    return stream.normal(size=(n, d)) + offset, stream.integers(0, c, n)


def same(one, other, rtol: float = 1e-10) -> None:
    """Compare around one shift, relative to the size of each statistic."""
    moved = (
        other.moved_to(one.shift) if isinstance(one, Moments) else other.moved_to(one.x_shift, one.y_shift)
    )
    for name, value in vars(one).items():
        held = np.asarray(getattr(moved, name), np.float64)
        size = np.abs(np.asarray(value, np.float64)).max() + 1e-300
        np.testing.assert_allclose(held, value, rtol=0, atol=rtol * max(size, 1.0), err_msg=name)


def test_against_a_plain_loop():
    x, y = rows(60, 5, 4, 0)
    y[y == 2] = 3  # a class without a row
    kept = Moments.of(x, y, n_classes=4)
    assert kept.counts.tolist() == np.bincount(y, minlength=4).tolist()
    np.testing.assert_allclose(kept.mean, x.mean(0))
    within = np.zeros((5, 5))
    for c in (0, 1, 3):
        own = x[y == c]
        np.testing.assert_allclose(kept.means[c], own.mean(0))
        centred = own - own.mean(0)
        within += centred.T @ centred
        assert kept.scatters[c] == pytest.approx((centred**2).sum())
    np.testing.assert_allclose(kept.within_scatter, within, atol=1e-10)
    np.testing.assert_allclose(kept.total_scatter, np.cov(x.T) * 59, atol=1e-10)
    assert kept.scatters[2] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.integers(1, 9), st.integers(1, 6), st.integers(0, 10**6), st.floats(-1e3, 1e3))
def test_stream_is_batch_in_any_order_of_merging(n, d, c, seed, offset):
    x, y = rows(n, d, c, seed, offset)
    whole = Moments.of(x, y, n_classes=c)
    cuts = np.sort(np.random.default_rng(seed + 1).integers(1, n, 3))
    parts = [
        Moments.of(a, b, n_classes=c)
        for a, b in zip(np.split(x, cuts), np.split(y, cuts), strict=True)
        if len(a)
    ]
    same(whole, merge(parts))
    left = parts[0]
    for part in parts[1:]:
        left = left + part
    right = parts[-1]
    for part in parts[-2::-1]:
        right = part + right
    same(left, right)
    z = np.random.default_rng(seed + 2).normal(size=(n, 3)) - offset
    cross = [
        CrossMoments.of(a, b) for a, b in zip(np.split(x, cuts), np.split(z, cuts), strict=True) if len(a)
    ]
    same(CrossMoments.of(x, z), merge(cross), 1e-9)


def test_digits_survive_an_offset():
    x, y = rows(2000, 3, 2, 3)
    far = (x * 1e-3 + 1000.0).astype(np.float32)
    kept = Moments.of(far, y, n_classes=2)
    np.testing.assert_allclose(kept.total_scatter, np.cov(far.T.astype(np.float64)) * 1999, rtol=1e-9)


def test_cross_statistics_around_the_means():
    x, _ = rows(40, 4, 1, 5, 3.0)
    z, _ = rows(40, 6, 1, 6, -2.0)
    kept = CrossMoments.of(x, z).centred()
    a, b = x - x.mean(0), z - z.mean(0)
    k, l_ = (a**2).sum(1), (b**2).sum(1)
    np.testing.assert_allclose(kept.products, a.T @ b, atol=1e-9)
    np.testing.assert_allclose(kept.x_sum, 0, atol=1e-9)
    assert [kept.k_sum, kept.l_sum, kept.kl_sum] == pytest.approx([k.sum(), l_.sum(), k @ l_])
    np.testing.assert_allclose(kept.ky, k @ b, atol=1e-8)
    np.testing.assert_allclose(kept.lx, l_ @ a, atol=1e-8)


def test_blocks_do_not_matter(monkeypatch):
    x, y = rows(500, 7, 5, 8)
    whole, cross = Moments.of(x, y, n_classes=5), CrossMoments.of(x, x[:, :2])
    monkeypatch.setattr("probekit.functional.moments._BLOCK_BYTES", 7 * 8 * 33)
    same(whole, Moments.of(x, y, n_classes=5))
    same(cross, CrossMoments.of(x, x[:, :2]))


@pytest.mark.parametrize("products", [True, False])
def test_saved_and_restored(tmp_path, products: bool):
    x, y = rows(30, 4, 3, 9)
    kept = Moments.of(x, y, n_classes=3, products=products)
    kept.save(tmp_path / "kept.npz")
    back = Moments.load(tmp_path / "kept.npz")
    for name, value in vars(kept).items():
        np.testing.assert_array_equal(getattr(back, name), value)
    cross = CrossMoments.of(x, x)
    cross.save(tmp_path / "cross.npz")
    assert CrossMoments.load(tmp_path / "cross.npz").count == 30
    with pytest.raises(InputError, match="something else"):
        Moments.load(tmp_path / "cross.npz")
    content = (tmp_path / "kept.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-40])
    with pytest.raises(InputError, match="Sum the rows again"):
        Moments.load(tmp_path / "cut.npz")
    with pytest.raises(InputError, match="Sum the rows again"):
        Moments.load(tmp_path / "nowhere.npz")


def test_says_what_is_wrong():
    x, y = rows(30, 4, 3, 9)
    kept = Moments.of(x, y, n_classes=3)
    with pytest.raises(InputError, match="one set of classes"):
        kept + Moments.of(x, y, n_classes=4)
    with pytest.raises(InputError, match="products alike"):
        kept + Moments.of(x, y, n_classes=3, products=False)
    with pytest.raises(InputError, match="products=True"):
        _ = Moments.of(x, y, n_classes=3, products=False).total_scatter
    with pytest.raises(InputError, match="from 0 to 2"):
        Moments.of(x, y + 1, n_classes=3)
    with pytest.raises(InputError, match="a shift of 4"):
        Moments.of(x, y, n_classes=3, shift=[0.0])
    with pytest.raises(InputError, match="Align them by id"):
        CrossMoments.of(x, x[:5])
    with pytest.raises(InputError, match="at least one part"):
        merge([])
    x[3, 1] = np.inf
    with pytest.raises(NonFiniteFeatures, match="row 3"):
        Moments.of(x, y, n_classes=3)
