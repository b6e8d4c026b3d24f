"""What a model needs to generate text token by token: a memory of those read and a draw."""

import math

import torch
import torch.nn as nn

# For torch.compile of a step: a CUDA graph, as in mode="reduce-overhead"; and products with one vector that Inductor
# writes itself, joined with what stands around them, for which it wants this tuning.
STEP_OPTIONS = {"triton.cudagraphs": True, "coordinate_descent_tuning": True}


def cast_matrices(model, dtype):
    """
    Keep the weights of all Linear modules, and the token embedding that is tied to one, in what autocast computes in.

    It would cast them anew for each token, which reads and writes more than the product itself. All else stays in
    float32, the neurons' vectors above all, and autocast stays on.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.to(dtype)


class KVCache(nn.Module):
    """
    Keys and values of the tokens read so far, in buffers allocated once: (L, B, H, tokens, D) each.

    A module, because torch.compile takes a module's tensors to stay where they are, as a CUDA graph needs them to.
    """

    def __init__(self, config, batch, tokens, device, dtype):
        super().__init__()
        shape = (config.n_layer, batch, config.n_head, tokens, config.n_embd // config.n_head)
        self.register_buffer("keys", torch.zeros(shape, device=device, dtype=dtype))  # what a mask hides is finite, too
        self.register_buffer("values", torch.zeros(shape, device=device, dtype=dtype))

    def extend(self, layer, places, k, v):
        """
        Store a layer's k, v (B, H, T, D) at `places` -> keys and values to look at, (B, H, S, D), and a mask or None.

        places as a slice: S is its end, and nothing is hidden, which reads no more than is needed. Or as a tensor (1,),
        for a compiled step, whose shapes may not depend on it: S is the whole buffer, and the mask (1, S) hides what
        lies behind the place.
        """
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, places], values[:, :, places] = k.to(keys.dtype), v.to(values.dtype)
        if isinstance(places, slice):
            return keys[:, :, : places.stop], values[:, :, : places.stop], None
        return keys, values, torch.arange(keys.size(2), device=keys.device) <= places[:, None]


def pick(logits, temperature, top_k, top_p, generator):
    """
    logits: (B, V) -> ids (B, 1): the likeliest where temperature is 0, else drawn from softmax(logits / temperature).

    top_k keeps the k likeliest, top_p the fewest that hold that much probability; None keeps all. Nothing in here
    waits for the device.
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    ids, kept, cut = None, min(top_k or math.inf, logits.size(-1)), top_p is not None and top_p < 1
    if kept < logits.size(-1) or cut:
        logits, ids = logits.topk(kept)  # the likeliest first
    share = (logits / temperature).softmax(dim=-1)
    if cut:
        before = share.cumsum(dim=-1) - share  # probability ahead of each id; the first is always kept
        share = share.masked_fill(before >= top_p, 0.0)
    # What argmax(share / E) returns with E exponential has the distribution `share`. torch.multinomial does the same,
    # but first checks the shares on the host.
    drawn = (share / torch.empty_like(share).exponential_(generator=generator)).argmax(dim=-1, keepdim=True)
    return drawn if ids is None else ids.gather(1, drawn)
