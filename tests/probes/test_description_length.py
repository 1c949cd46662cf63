"""The online code: closed forms, scikit-learn block by block, and what it says of what was planted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from probekit.data.targets import Target
from probekit.probes.description_length import _weigh, description_rows, encode, portion_ends
from tests.probes.conftest import QUICK, gaussians, tap_data

NAMES = ("a", "b", "c")
CODED = replace(QUICK, orders=3)


def centred(values: np.ndarray) -> np.ndarray:
    return ((values - values.mean(0)) / values.std(0)).astype(np.float32)


def rows_of(values: np.ndarray, labels: np.ndarray, protocol=CODED) -> dict:
    target = Target(labels, "class", NAMES)
    return {row["metric"]: row for row in description_rows(tap_data(values), "class", target, protocol)}


@pytest.mark.parametrize("count", [1, 2, 7, 100, 999, 60_000])
def test_portions_grow_and_end_with_all(count: int):
    ends = portion_ends(count)
    assert ends[0] >= 1
    assert ends[-1] == count
    assert all(start < end for start, end in pairwise(ends))
    if count == 60_000:
        assert [round(end / 600, 2) for end in ends] == [
            0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25, 50, 100,
        ]  # fmt: skip


def test_the_first_block_is_uniform():
    values, labels = gaussians(n=4000)
    code = encode(centred(values), labels[None], np.array([0.1]), n_classes=3)
    np.testing.assert_array_equal(code.bits[0, : portion_ends(4000)[0]], np.log2(3))


def test_equal_probabilities_cost_n_log2_c_exactly():
    # Every portion ends on whole rounds of the classes, so that features without information give 1/C.
    labels = np.arange(4000) % 4
    assert all(end % 4 == 0 for end in portion_ends(4000)[:6])
    code = encode(np.zeros((4000, 2), np.float32), labels[None], np.array([1.0, 0.1]), n_classes=4)
    balanced = code.bits[0, : portion_ends(4000)[6]]
    np.testing.assert_allclose(balanced, 2.0, atol=1e-6)
    assert code.bits.sum() == pytest.approx(4000 * 2, rel=1e-4)


def test_features_without_information_give_laplace_s_rule():
    labels = np.random.default_rng(0).integers(0, 3, 500)
    code = encode(np.zeros((500, 1), np.float32), labels[None], np.array([1.0]), n_classes=3)
    for start, end in pairwise(portion_ends(500)):
        shares = (np.bincount(labels[:start], minlength=3) + 1) / (start + 3)
        np.testing.assert_allclose(code.bits[0, start:end], -np.log2(shares[labels[start:end]]), rtol=1e-6)


def test_a_class_that_appears_late_costs_finite_bits():
    values, labels = gaussians(n=400, d=200, distance=6.0)
    labels = np.where(np.arange(400) < 150, labels % 2, labels)
    code = encode(centred(values), labels[None], np.array([10.0, 1.0, 1e-2, 1e-4]), n_classes=3)
    late = code.bits[0, 100:200][labels[100:200] == 2]
    assert np.isfinite(code.bits).all()
    assert 1 < late.max() < 20


def test_the_length_is_that_of_scikit_learn_block_by_block():
    values, labels = gaussians(n=300, distance=2.0)
    order = np.random.default_rng(1).permutation(300)
    x, y, penalty = centred(values)[order], labels[order], 0.03
    code = encode(x, y[None], np.array([penalty]), n_classes=3, gap=1e-10)
    bits = np.full(300, np.log2(3))
    for start, end in pairwise(portion_ends(300)):
        rows = np.concatenate([x[:start], np.zeros((3, x.shape[1]), np.float32)]).astype(float)
        model = LogisticRegression(C=1 / ((start + 3) * penalty), tol=1e-10, max_iter=10_000)
        model.fit(rows, np.append(y[:start], [0, 1, 2]))
        bits[start:end] = -np.log2(model.predict_proba(x[start:end])[np.arange(end - start), y[start:end]])
    np.testing.assert_allclose(code.bits[0], bits, rtol=1e-3, atol=1e-4)
    assert code.bits.mean() == pytest.approx(bits.mean(), rel=1e-5)


def test_no_label_has_a_part_in_how_its_own_block_is_coded():
    values, labels = gaussians(n=800, distance=2.0)
    x, penalties, ends = centred(values), np.array([1.0, 0.1, 0.01]), portion_ends(800)
    changed = labels.copy()
    changed[ends[-2] + 1 :] = (changed[ends[-2] + 1 :] + 1) % 3
    one, other = (encode(x, each[None], penalties, n_classes=3) for each in (labels, changed))
    np.testing.assert_array_equal(one.bits[0, : ends[-2] + 1], other.bits[0, : ends[-2] + 1])
    assert one.bits.sum() < other.bits.sum()


def test_probabilities_of_all_classes_sum_to_one():
    # Were they to sum to more, some other labels would have to be worth more than they cost.
    values, labels = gaussians(n=200, distance=1.0)
    place = 150
    costs = []
    for label in range(3):
        shown = labels.copy()
        shown[place] = label
        costs.append(encode(centred(values), shown[None], np.array([1.0, 0.1]), n_classes=3).bits[0, place])
    assert np.sum(2.0 ** -np.array(costs)) == pytest.approx(1, abs=1e-9)


def test_labellings_are_coded_each_on_its_own():
    values, labels = gaussians(n=200)
    x, penalties, other = centred(values), np.array([1.0, 0.01]), labels[::-1].copy()
    both = encode(x, np.stack([labels, other]), penalties, n_classes=3, gap=1e-8).bits
    alone = [encode(x, one[None], penalties, n_classes=3, gap=1e-8).bits[0] for one in (labels, other)]
    np.testing.assert_allclose(both, np.stack(alone), rtol=1e-3, atol=1e-4)


def test_mixing_penalties_costs_little_more_than_the_best_of_them():
    values, labels = gaussians(n=600, d=100, distance=2.0)
    x, grid = centred(values), np.array([10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4])
    mixed = encode(x, labels[None], grid, n_classes=3).bits.sum()
    single = [encode(x, labels[None], grid[[p]], n_classes=3).bits.sum() for p in range(len(grid))]
    assert mixed < min(single) + 30
    assert mixed < np.median(single)


def test_penalties_far_behind_are_dropped_but_for_the_neighbours():
    weights = _weigh(
        np.array([[100.0, 40.0, 0.0, 3.0, np.inf, 60.0], [0.0, np.inf, np.inf, np.inf, 9.0, 9.0]])
    )
    assert (weights > 0).tolist() == [
        [False, True, True, True, True, False],
        [True, True, False, True, True, True],
    ]
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert weights[0, 2] / weights[0, 3] == pytest.approx(8)


def test_separable_classes_compress_more_the_further_apart_they_are():
    found = [
        rows_of(*gaussians(distance=distance))["compression"]["value"] for distance in (0.0, 2.0, 4.0, 8.0)
    ]
    assert found == sorted(found)
    assert 0.93 < found[0] < 1.02
    assert found[-1] > 10


def test_noise_and_permuted_labels_fall_to_the_null():
    values, labels = gaussians(n=900, distance=4.0)
    row = rows_of(values, np.random.default_rng(3).permutation(labels))["compression"]
    assert row["null_kind"] == "permuted,3"
    assert abs(row["value"] - row["null"]) < 0.02
    assert 0.94 < row["value"] < 1.01
    real = rows_of(values, labels)["compression"]
    assert real["ci_low"] > real["null_high"] + 1


def test_unequal_classes_lift_the_null_as_well():
    values, labels = gaussians(n=900, distance=0.0)
    rare = np.where(np.arange(900) % 10 == 0, labels, 0)
    row = rows_of(values, rare)["compression"]
    assert row["null"] > 2
    assert row["value"] == pytest.approx(row["null"], rel=0.1)


def test_the_rows_agree_and_say_what_was_coded():
    rows = rows_of(*gaussians(distance=2.0))
    length, compression = rows["description_length"], rows["compression"]
    assert compression["value"] == pytest.approx(np.log2(3) / length["value"])
    assert compression["ci_low"] == pytest.approx(np.log2(3) / length["ci_high"])
    for row in rows.values():
        assert row["ci_low"] < row["value"] < row["ci_high"]
        assert row["ci_kind"] == "bootstrap,coded images"
        assert (row["split"], row["n"]) == ("train+val", 375)
    assert length["params"]["order_sd"] > 0
    assert len(length["params"]["penalty"]) == 3


def test_costs_are_averaged_image_by_image():
    # An image hard in one order is hard in the others: were images mixed up, the interval would shrink.
    values, labels = gaussians(distance=2.0)
    one, many = (
        rows_of(values, labels, replace(CODED, orders=orders))["description_length"] for orders in (1, 6)
    )
    widths = [row["ci_high"] - row["ci_low"] for row in (one, many)]
    assert widths[1] > 0.75 * widths[0]


def test_test_images_touch_nothing():
    values, labels = gaussians()
    changed, other = values.copy(), labels.copy()
    changed[375:], other[375:] = 0, 0
    assert rows_of(values, labels) == rows_of(changed, other)


def test_orders_and_permutations_are_left_out_by_zero():
    values, labels = gaussians()
    assert rows_of(values, labels, QUICK) == {}
    alone = rows_of(values, labels, replace(CODED, orders=1, permutations=0))
    assert not any("null" in row for row in alone.values())
    assert alone["compression"]["params"]["order_sd"] is None
