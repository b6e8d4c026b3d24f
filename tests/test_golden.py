"""A change that is not meant to change training gives the identical losses (tests/golden/losses.json)."""

import json
import os

import pytest

from tests.golden.cases import CASES, LOSSES, losses_of

GOLDEN = json.loads(LOSSES.read_text(encoding="utf-8"))
# Another machine adds up in another order. WIGGLE_GOLDEN=exact asks for every bit, on the machine that recorded them.
TOLERANCE = 0.0 if os.environ.get("WIGGLE_GOLDEN") == "exact" else 1e-5


@pytest.mark.parametrize("case", CASES)
def test_the_losses_are_what_they_were(case, corpus, tmp_path):
    found = losses_of(case, corpus, tmp_path / case)
    assert found["losses"] == pytest.approx(GOLDEN[case]["losses"], rel=TOLERANCE, abs=0.0)
    assert found["val_loss"] == pytest.approx(GOLDEN[case]["val_loss"], rel=TOLERANCE, abs=0.0)
