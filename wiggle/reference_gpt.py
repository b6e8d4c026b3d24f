"""A plain GPT in nanoGPT's manner, against which bench.py judges speed: LayerNorm, nn.GELU, SDPA, no kernels."""

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn import functional as F

from model_bio import GPTConfig


class ReferenceBlock(nn.Module):
    """Causal attention and a GELU MLP, each behind a LayerNorm. (B, T, C) -> (B, T, C)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.gelu = nn.Linear(width, 4 * width, bias=False), nn.GELU()
        self.down, self.dropout = nn.Linear(4 * width, width, bias=False), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split(C, dim=2)
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in (q, k, v))  # (B, H, T, D)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).contiguous().view(B, T, C)
        x = x + self.dropout(self.out(y))
        return x + self.dropout(self.down(self.gelu(self.up(self.norm_2(x)))))


class Reference(nn.Module):
    """The plain GPT that speed is judged against. Token ids x and targets y, (B, T) each -> (logits, loss)."""

    def __init__(self, c: GPTConfig):
        super().__init__()
        self.tokens, self.places = nn.Embedding(c.vocab_size, c.n_embd), nn.Embedding(c.block_size, c.n_embd)
        self.blocks = nn.Sequential(*(ReferenceBlock(c.n_embd, c.n_head) for _ in range(c.n_layer)))
        self.norm = nn.LayerNorm(c.n_embd, bias=False)
        self.head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.tokens.weight = self.head.weight

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        h = self.tokens(x) + self.places(torch.arange(x.size(1), device=x.device))
        logits = self.head(self.norm(self.blocks(h)))
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1), ignore_index=-1)
