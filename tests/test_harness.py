"""lm-eval gets right numbers from a model here: known ones on a task made for it, and those of its own backend."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

import export
from model_bio import GPT, GPTConfig, model_args
from tests.test_modeling_wigglegpt import noisy
from wiggle import checkpoint
from wiggle.errors import UserError
from wiggle.tokenizer import CharTokenizer, GPT2Tokenizer

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from wiggle.harness import HarnessLM, Stop, find_tasks, run_tasks

CPU = torch.device("cpu")
LETTERS = "\n abcdefghijklmnopqrstuvwxyz:"


def echo():
    """A model to which the letter before is the likeliest: orthogonal embeddings, and blocks that add nothing."""
    model = GPT(GPTConfig(block_size=16, vocab_size=len(LETTERS), n_layer=1, n_head=1, n_embd=32, position="none"))
    with torch.no_grad():
        for parameter in model.transformer.h.parameters():
            parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(len(LETTERS), 32))
    return model.eval()


def requests(kind, *arguments):
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


@pytest.fixture
def lm():
    return HarnessLM(echo(), CharTokenizer(LETTERS), CPU)


@pytest.fixture
def local_task(tmp_path):
    """Ten questions, each which letter repeats; in the last three the answer called right does not."""
    items = [
        {"text": f"x{letter}", "choices": [letter, "z"], "gold": int(i >= 7)} for i, letter in enumerate("abcdefghij")
    ]
    (tmp_path / "echo.jsonl").write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "echo.yaml").write_text(
        f"""
task: echo
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "echo.jsonl"}}}, cache_dir: {tmp_path / "cache"}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
    )
    return tmp_path


def log_probability(repeats):
    """What echo() gives to the letter before (or to another): a layer norm of a one-hot vector times the embeddings."""
    x = torch.nn.functional.layer_norm(torch.eye(32)[0], (32,))[: len(LETTERS)]
    return x.log_softmax(0)[0 if repeats else 1].item()


def test_ten_items_have_the_scores_that_are_known(lm, local_task):
    found = run_tasks(lm, ["echo"], str(local_task), num_fewshot=None, limit=None)
    assert found["echo"]["acc,none"] == 0.7 and (found["echo"]["examples"], found["echo"]["num_fewshot"]) == (10, 0)
    assert math.isclose(found["echo"]["acc_stderr,none"], math.sqrt(0.7 * 0.3 / 9), rel_tol=1e-6)
    assert lm.tokens == 10 * 2 * 2 and lm.seconds > 0


def test_a_log_likelihood_is_that_of_the_continuation_alone(lm):
    found = lm.loglikelihood(requests("loglikelihood", ("ab", "bbb"), ("ab", "bcc"), ("b", "c")))
    same, other = log_probability(True), log_probability(False)
    expected = [(3 * same, True), (2 * same + other, False), (other, False)]
    for (value, greedy), (known, known_greedy) in zip(found, expected, strict=True):
        assert math.isclose(value, known, abs_tol=1e-4) and greedy == known_greedy


def test_a_rolling_log_likelihood_counts_each_token_once_after_a_line_break(lm):
    found = lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("a" * 40,), ("\n" * 3,)))
    same, other = log_probability(True), log_probability(False)
    assert math.isclose(found[0], other + 39 * same, abs_tol=1e-4)
    assert math.isclose(found[1], 3 * same, abs_tol=1e-4)


def test_empty_texts_are_certain_and_an_empty_context_is_a_line_break(lm):
    pairs = [("", ""), ("a", ""), ("", "a"), ("", "\n\n"), (" ", "")]  # of the fourth, one is the context
    values = [value for value, _ in lm.loglikelihood(requests("loglikelihood", *pairs))]
    same, other = log_probability(True), log_probability(False)
    assert values == pytest.approx([0, 0, other, same, other], abs=1e-4)
    assert lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0.0]
    assert lm.generate_until(requests("generate_until", ("", {"max_gen_toks": 3}))) == ["\n\n\n"]


def test_texts_are_continued_until_a_stop_text_and_in_the_order_asked_for(lm):
    settings = {"until": ["aaa"], "max_gen_toks": 5, "do_sample": False}
    found = lm.generate_until(
        requests("generate_until", ("ba", settings), ("cccb", settings), ("a", {"max_gen_toks": 2}))
    )
    assert found == ["", "bbbbb", "aa"]
    assert lm.generate_until(requests("generate_until", ("b", {"until": "bb", "max_gen_toks": 5}))) == [""]


def test_a_prompt_longer_than_the_context_keeps_its_end():
    model = noisy(vocab_size=len(LETTERS), mlp="bio", block_size=16)
    lm = HarnessLM(model, CharTokenizer(LETTERS), CPU)
    text = "abcdefgh" * 5
    found = lm.generate_until(requests("generate_until", (text, {"max_gen_toks": 4}), (text, {"max_gen_toks": 100})))
    for length, new in ((12, found[0]), (8, found[1])):
        prompt = torch.tensor([CharTokenizer(LETTERS).encode(text[-length:])])
        expected = model.generate(prompt, len(new), temperature=0)[0, length:].tolist()
        assert new == CharTokenizer(LETTERS).decode(expected)
    assert list(map(len, found)) == [4, 100]


def test_a_stop_text_may_span_tokens_and_end_of_text_ends_too(toy_gpt2):
    stop = Stop(toy_gpt2, ["ll\n", ""])
    assert [stop.is_over(token) for token in toy_gpt2.encode("Hell\nx")][-2:] == [True, True]
    assert stop.before() == "He"
    ended = Stop(toy_gpt2, [])
    assert ended.is_over(50256) and ended.before() == ""


def test_an_unknown_task_or_folder_is_one_sentence(local_task):
    with pytest.raises(UserError, match="include_path=/nowhere is no folder"):
        find_tasks(["echo"], "/nowhere")


@pytest.mark.slow
def test_a_task_that_nobody_knows_is_one_sentence(local_task):
    with pytest.raises(UserError, match="lm-eval knows no task 'ecko'"):
        find_tasks(["echo", "ecko"], str(local_task))


# Scores an exported folder by the harness' own backend, in a process that knows nothing of this project.
THEIRS = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
asked = json.load(open("asked.json"))
lm = HFLM(pretrained=sys.argv[1], device="cpu", batch_size=2, dtype="float32", trust_remote_code=True)
found = {}
for kind, arguments in asked.items():
    found[kind] = getattr(lm, kind)([Instance(kind, {}, tuple(args), i) for i, args in enumerate(arguments)])
json.dump(found, open("found.json", "w"))
"""
TEXT = "The oscillating neuron, sin(wx + p) tanh(x), is even for small x.\n\nIt isn't monotone;  GELU is 1 of 16. "


@pytest.mark.slow
@pytest.mark.parametrize(("mlp", "vocab_size"), [("gelu", 50257), ("bio", 50304)])  # a plain GPT-2 has no unused rows
def test_the_numbers_are_those_of_the_harness_own_backend_on_the_exported_model(tmp_path, mlp, vocab_size):
    pytest.importorskip("accelerate")
    try:
        tokenizer = GPT2Tokenizer()
        tokenizer.encode("")
    except UserError as error:
        pytest.skip(str(error))
    model = noisy(mlp=mlp, vocab_size=vocab_size, block_size=32)
    model.limit_sampling(tokenizer.vocab_size)
    saved = {"model": model.state_dict(), "model_args": model_args(model.config), "tokenizer": tokenizer.identity()}
    checkpoint.save(tmp_path / "best.pt", saved)
    export.main([f"--out_dir={tmp_path}", f"--to={tmp_path / 'folder'}"])
    settings = {"until": ["\n"], "max_gen_toks": 8, "do_sample": False}
    asked = {
        "loglikelihood": [
            ("The neuron", " oscillates"),
            ("The neuron ", "oscillates twice"),
            ("", "A text"),
            ("", "<|endoftext|>A text"),
            (TEXT * 3, "more"),
            (TEXT, TEXT[:40]),
        ],
        "loglikelihood_rolling": [("",), ("x",), (TEXT,), (TEXT * 2,)],
        "generate_until": [("The", settings), (TEXT, settings), ("A much longer prompt than", settings)],
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    modules = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-I", "-c", THEIRS, str(tmp_path / "folder")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | modules)
    assert done.returncode == 0, done.stderr
    theirs = json.loads((tmp_path / "found.json").read_text())
    lm = HarnessLM(model, tokenizer, CPU)
    ours = {kind: getattr(lm, kind)(requests(kind, *arguments)) for kind, arguments in asked.items()}
    for (a, greedy), (b, their_greedy) in zip(ours["loglikelihood"], theirs["loglikelihood"], strict=True):
        assert abs(a - b) < 1e-4 and greedy == their_greedy
    for a, b in zip(ours["loglikelihood_rolling"], theirs["loglikelihood_rolling"], strict=True):
        assert abs(a - b) < 1e-4
    assert ours["generate_until"] == theirs["generate_until"]
