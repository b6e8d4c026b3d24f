"""Arrays as a report's figures, and tokens as one reads them."""

import numpy as np
import torch

from wiggle.figures import readable, summarise, to_array


def test_arrays_become_distributions_and_numbers_keep_six_digits():
    found = summarise({"a": {"b": np.arange(101.0)}, "c": 1 / 3, "d": "word", "e": [1, 2]})
    quantiles = {"q05": 5.0, "q25": 25.0, "q50": 50.0, "q75": 75.0, "q95": 95.0}
    assert found == {"a": {"b": {"mean": 50.0, "sd": 29.1548} | quantiles}, "c": 0.333333, "d": "word", "e": [1, 2]}


def test_tensors_of_any_kind_become_arrays():
    assert to_array(torch.ones(2, 2, dtype=torch.bfloat16)).tolist() == [1.0] * 4
    assert to_array(torch.tensor([True, False])).tolist() == [True, False]


def test_a_token_is_readable_whatever_characters_it_holds():
    for token, shown in ((" the", "␣the"), ("\n\n", "\\n\\n"), ("\t", "\\t"), ("é", "é"), ("你好", "你好")):
        assert readable(token) == shown
    assert readable("\u0301") == "\\u0301"  # an accent alone would be drawn upon its neighbour
    assert readable("\u202e") == "\\u202e" and readable("\x00") == "\\x00"
    assert readable(b"\xe2\x82".decode("utf-8", "backslashreplace")) == "\\xe2\\x82"  # a part of a character
