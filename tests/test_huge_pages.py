"""Weights are moved into huge pages without a change, or stay where they are."""

import pytest
import torch

from kernels import huge_pages
from kernels.huge_pages import PAGE, hold_in_huge_pages


def test_numbers_and_addresses_stay():
    tensors = [torch.randn(3 * PAGE // 4), torch.randn(5), torch.zeros(2, device="meta"), None]
    before = [(t.data_ptr(), t.clone()) for t in tensors[:2]]
    hold_in_huge_pages(*tensors)
    hold_in_huge_pages(*tensors)
    assert all(
        t.data_ptr() == address and torch.equal(t, copy) for t, (address, copy) in zip(tensors, before, strict=False)
    )


def test_all_pages_that_a_tensor_touches_are_asked_for(monkeypatch):
    calls = []
    monkeypatch.setattr(huge_pages, "_madvise", lambda: lambda *a: calls.append(a))
    t = torch.empty(3 * PAGE, dtype=torch.uint8)
    hold_in_huge_pages(t, t[: PAGE - 1])
    ((start, size, _),) = calls
    assert start.value % PAGE == size.value % PAGE == 0
    assert start.value <= t.data_ptr() and t.data_ptr() + t.nbytes <= start.value + size.value


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    monkeypatch.setattr(huge_pages.sys, "platform", system)
    assert huge_pages._madvise.__wrapped__() is None
