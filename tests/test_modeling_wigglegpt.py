"""The one file that an exported folder brings along computes what the project's model does, and needs nothing of it."""

import ast
import itertools
from pathlib import Path

import pytest
import torch

from model_bio import GPT, MLPS, GPTConfig
from wiggle.sharing import own_config
from wiggle.tokenizer import CharTokenizer

transformers = pytest.importorskip("transformers")
modeling = pytest.importorskip("wiggle.modeling_wigglegpt")
LETTERS = "\n abcdefghijkl"
UNITS = [
    *({"mlp": mlp} for mlp in MLPS if mlp not in ("bio", "dendritic")),
    *({"mlp": "bio", "bio_gate": gate} for gate in ("none", "feature", "dense")),
    {"mlp": "bio", "bio_event": "hard"},
    *({"mlp": "dendritic", "dendritic_beta": beta} for beta in ("layer", "unit", "channel", "fixed")),
    {"mlp": "dendritic", "dendritic_branches": 4},
]
AROUND = [
    {"position": position, "use_rmsnorm": rmsnorm, "qk_norm": qk_norm, "bias": bias}
    for position, rmsnorm in itertools.product(("learned", "rope", "none"), (False, True))
    for qk_norm, bias in ((False, True), (True, False))
]


def noisy(**changes):
    """A tiny model whose weights are large enough for logits, and a greedy text, with some life in them."""
    shape = {"block_size": 64, "vocab_size": len(LETTERS), "n_layer": 2, "n_head": 2, "n_embd": 16} | changes
    model = GPT(GPTConfig(**shape), seed=3).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(0.3 * noise)  # biases and norms too, which start at 0 and 1
        for name, buffer in model.named_buffers():
            if name.endswith("threshold"):
                buffer.uniform_(0.0, 2.0, generator=torch.Generator().manual_seed(0))
    return model


def opened(model):
    """The same model by the modeling file's classes, as from_pretrained builds it."""
    theirs = modeling.WiggleGPTForCausalLM(modeling.WiggleGPTConfig(**own_config(model, CharTokenizer(LETTERS))))
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


def label(case):
    return "-".join(str(value) for value in case.values())


@pytest.mark.parametrize("unit", UNITS, ids=label)
def test_logits_are_the_projects_for_each_unit_position_and_norm(unit):
    ids = torch.arange(12).view(2, 6)
    for around in AROUND:
        model = noisy(**unit, **around)
        expected = model(ids, ids)[0]
        with torch.no_grad():
            found = opened(model)(ids).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0, msg=f"{unit | around}")


def left_padded(prompts):
    """Prompts of unequal length -> ids and attention mask, (B, longest) each."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
def test_a_text_is_the_same_with_a_cache_without_one_and_as_the_project_draws_it(position):
    model = noisy(mlp="bio", position=position, n_embd=32, n_head=4)
    ids = torch.tensor([[1, 4, 7]])
    expected = model.generate(ids, 50, temperature=0)
    assert len(set(expected[0, 3:].tolist())) > 2  # a text with some life in it
    for options in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
        found = opened(model).generate(ids, max_new_tokens=50, do_sample=False, **options)
        assert torch.equal(found, expected), options


@pytest.mark.parametrize("position", ["learned", "rope", "none"])
def test_prompts_padded_on_the_left_are_continued_as_one_by_one(position):
    model = opened(noisy(mlp="bio", position=position))
    prompts = [[3], [4, 5, 6, 7, 8, 9], [1, 2, 3]]
    ids, mask = left_padded(prompts)
    together = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        last = model(ids, attention_mask=mask).logits[:, -1]
    for prompt, text, logits in zip(prompts, together, last, strict=True):
        alone = torch.tensor([prompt])
        assert torch.equal(text[-20:], model.generate(alone, max_new_tokens=20, do_sample=False)[0, -20:])
        torch.testing.assert_close(logits, model(alone).logits[0, -1], atol=1e-5, rtol=0)


def test_a_text_that_is_read_in_pieces_has_the_logits_of_one_that_is_read_whole():
    model = opened(noisy(mlp="bio", position="rope"))
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    with torch.no_grad():
        first = model(ids[:, :3])
        second = model(ids[:, 3:], **{modeling.CACHE: getattr(first, modeling.CACHE)})
        torch.testing.assert_close(second.logits, model(ids).logits[:, 3:], atol=1e-5, rtol=0)


def test_the_loss_and_the_kept_logits_are_what_transformers_means_by_them():
    model = opened(noisy(mlp="dendritic"))
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
    output = model(ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(output.logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, output.logits[:, -2:])


def test_the_file_imports_torch_and_transformers_alone_and_has_300_lines_at_most():
    text = Path(modeling.__file__).read_text(encoding="utf-8")
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported == {"torch", "transformers"} and len(text.splitlines()) <= 300
