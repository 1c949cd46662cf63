"""Named random streams."""

import numpy as np

from probekit.seeds import named_seed, random_stream


def test_streams_differ_by_name_and_key():
    seeds = {
        named_seed("split", 0),
        named_seed("split", 1),
        named_seed("bootstrap", 0),
        named_seed("split", "0"),
    }
    assert len(seeds) == 4


def test_keys_are_kept_apart():
    assert named_seed("a", 1, 2) != named_seed("a", 12)


def test_streams_do_not_touch_the_global_generator():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy generator is what must stay untouched
    random_stream("x", 1).random(10)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_a_stream_is_that_of_pcg64():
    expected = np.random.Generator(np.random.PCG64(named_seed("x", 3))).random(4)
    assert (random_stream("x", 3).random(4) == expected).all()
