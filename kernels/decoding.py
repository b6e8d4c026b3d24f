"""What a model needs to generate text token by token: a cache of keys and values, and the draw of the next token."""

import math
from typing import NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

# Options of torch.compile for the step that reads one token: run it as one CUDA graph, as mode="reduce-overhead" does;
# and let Inductor write products with one vector itself, fused with their neighbours, which this tuning makes it do.
STEP_OPTIONS = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}


def cast_matrices(model: nn.Module, dtype: torch.dtype) -> None:
    """
    Cast the weights of all Linear modules, and a token embedding that is tied to one, to the dtype of autocast.

    Autocast would cast them anew for each token, which reads and writes more than the product itself. Everything else
    stays in float32, the neurons' vectors above all, so autocast must stay on.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.to(dtype)


class KVCache(nn.Module):
    """
    Keys and values of the tokens read so far, in two buffers (B, H, tokens, D) a layer, allocated once.

    shape: (L, B, H, tokens, D). It is a module because torch.compile takes a module's tensors to keep their addresses,
    as a CUDA graph needs. Each layer has buffers of its own: torch.compile copies the whole of a tensor into a part of
    which it writes.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        layers, *shape_of_layer = shape
        for layer in range(layers):
            # Zeros, not empty: a masked place still enters the product, where a NaN would come through.
            self.register_buffer(f"keys_{layer}", torch.zeros(shape_of_layer, device=device, dtype=dtype))
            self.register_buffer(f"values_{layer}", torch.zeros(shape_of_layer, device=device, dtype=dtype))

    def extend(self, layer: int, places: slice | Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """
        Store a layer's k, v (B, H, T, D) at `places` -> keys and values to attend to, (B, H, S, D), and their mask.

        places as a slice: S is its end and the mask None, so no more is read than is needed. places as a tensor (1,),
        for a compiled step, whose shapes may not depend on the place: S is the whole buffer, and the mask (1, S) hides
        what lies past the place.
        """
        keys, values = getattr(self, f"keys_{layer}"), getattr(self, f"values_{layer}")
        keys[:, :, places], values[:, :, places] = k.to(keys.dtype), v.to(values.dtype)
        if isinstance(places, slice):
            return keys[:, :, : places.stop], values[:, :, : places.stop], None
        return keys, values, torch.arange(keys.size(2), device=keys.device) <= places[:, None]


class Past(NamedTuple):
    """What the attention of one layer looks back on while generating: its part of a cache, and where new tokens go."""

    cache: KVCache
    layer: int
    places: slice | Tensor  # as in KVCache.extend

    @property
    def keys(self) -> Tensor:
        """The layer's whole buffer of keys, (B, H, tokens, D)."""
        return getattr(self.cache, f"keys_{self.layer}")

    @property
    def values(self) -> Tensor:
        """The layer's whole buffer of values, (B, H, tokens, D)."""
        return getattr(self.cache, f"values_{self.layer}")

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """KVCache.extend in this layer, at these places."""
        return self.cache.extend(self.layer, self.places, k, v)


def check_drawing(temperature: float, top_k: int | None, top_p: float | None, repetition_penalty: float = 1.0) -> None:
    """Raise ValueError where tokens cannot be drawn in this way, as GPT.stream explains it."""
    if temperature < 0 or repetition_penalty <= 0 or (top_k is not None and top_k < 1):
        raise ValueError("temperature must be at least 0, repetition_penalty above 0, top_k at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p={top_p} must lie in (0, 1]")


def weaken_seen(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make ids that were seen less likely, by a penalty above 1 (Keskar et al., 2019). logits, seen (bool): (B, V)."""
    weaker = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(seen, weaker, logits)


def pick_tokens(
    logits: Tensor,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
    ids: Tensor | None = None,
) -> Tensor:
    """
    The next token of each sequence: the likeliest at temperature 0, else a draw from softmax(logits / temperature).

    logits: (B, V) -> ids (B, 1). top_k keeps the k likeliest tokens, top_p the fewest that hold that much probability
    (Holtzman et al., 2020); None keeps all. ids: (B, V), where the logits are not those of 0..V-1 but a part that has
    the likeliest. No operation in here waits for the device.
    """
    if temperature == 0:
        drawn = logits.argmax(dim=-1, keepdim=True)
        return drawn if ids is None else ids.gather(1, drawn)
    kept, cut = min(top_k or math.inf, logits.size(-1)), top_p is not None and top_p < 1
    if kept < logits.size(-1) or cut or ids is not None:
        logits, places = logits.topk(kept)  # sorted, the likeliest first
        ids = places if ids is None else ids.gather(1, places)
    p = (logits / temperature).softmax(dim=-1)
    if cut:
        before = p.cumsum(dim=-1) - p  # the probability of all likelier tokens; 0 for the first, which is always kept
        p = p.masked_fill(before >= top_p, 0.0)
    # argmax(p / E) with E ~ Exp(1) is a draw from p, by the Gumbel-max trick. torch.multinomial gives the same, but
    # checks p on the host first, which waits for the device.
    drawn = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=-1, keepdim=True)
    return drawn if ids is None else ids.gather(1, drawn)
