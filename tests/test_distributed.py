"""The process group of a run under torchrun."""

import pytest
import torch
import torch.distributed as dist

from wiggle import distributed


@pytest.mark.parametrize(
    ("device", "has_nccl", "backend"), [("cuda", True, "nccl"), ("cuda", False, "gloo"), ("cpu", True, "gloo")]
)
def test_auto_takes_nccl_for_cards_where_torch_has_it(monkeypatch, device, has_nccl, backend):
    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_nccl_available", lambda: has_nccl)  # Windows has none
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.append(backend))
    monkeypatch.setattr(dist, "new_group", lambda backend, timeout: None)
    assert distributed.connect("auto", torch.device(device)) and asked == [backend]
