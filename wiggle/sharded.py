"""A model whose parameters, gradients and moments lie in shards on several processes: FSDP2, Zhao et al., 2023."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from model_bio import GPT


def shard(model: GPT, device: torch.device) -> None:
    """
    Keep only this process's share of each parameter, cut along its first dimension.

    Each block gathers its weights when it computes, and drops them again. Embeddings, last norm and lm_head are one
    group: the token embedding is lm_head's too, and may belong to one group alone.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in model.transformer.h:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, which may be empty; of a tensor that is not sharded all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its shards. All processes must call it together; others than shards stay as is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def norms_of(tensors: list[Tensor]) -> Tensor:
    """The norms of n tensors, sharded or not, (n,). Of shards all processes must ask together."""
    norms = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    if not isinstance(tensors[0], DTensor):
        return norms
    squares = norms.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def whole_weights(model: GPT) -> dict[str, Tensor | None]:
    """The state dict of a model, whole on the CPU of the first process where it is sharded. All must call it."""
    state = model.state_dict(keep_vars=True)  # which also drops weights that the last evaluation left gathered
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return model.state_dict()
    tensors = {id(tensor): tensor.detach() for tensor in state.values()}
    gathered = gather(tensors)  # by identity: a tied weight is gathered once, and saved once
    return {name: gathered[id(tensor)] for name, tensor in state.items()}


def gather(tree: object) -> object:
    """
    Nested dicts and lists with shards in them -> the same with whole tensors on the first process's CPU, and None in
    their places in the others. All processes must call it together.
    """
    if isinstance(tree, DTensor):
        tensor = tree.full_tensor()
        return tensor.cpu() if dist.get_rank() == 0 else None
    if isinstance(tree, dict):
        return {key: gather(value) for key, value in tree.items()}
    return [gather(value) for value in tree] if isinstance(tree, list) else tree


def scatter_state(state: dict[int, dict], optimizer: torch.optim.Optimizer) -> dict[int, dict]:
    """
    An optimizer's state of whole tensors, by the parameter's number -> the same with this process's shards of those
    that belong to sharded parameters. Each process holds the whole state, so that nothing is sent.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {number: _scatter(values, parameters[number]) for number, values in state.items()}


def _scatter(values, parameter):
    if not isinstance(parameter, DTensor):
        return values
    where = {"device_mesh": parameter.device_mesh, "placements": parameter.placements, "src_data_rank": None}
    return {
        key: distribute_tensor(value.to(parameter.device), **where)
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim()
        else value
        for key, value in values.items()
    }
