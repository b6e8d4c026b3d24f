"""
A model here as lm-eval, EleutherAI's evaluation harness, asks for it. lm-eval is optional, and this file needs it.

The numbers are those of the harness' own Hugging Face backend on the exported model: a text that is too long for the
context loses its beginning; a rolling log-likelihood gives each window after the first one a single token of context;
an empty context is the end-of-text token, or a line break where the tokenizer has none.
"""

import logging
import os
import time
from collections.abc import Iterable, Iterator

import lm_eval
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from model_bio import GPT
from wiggle.errors import UserError
from wiggle.scoring import Sampling, Score, Window, continue_texts, first_context, score, windows
from wiggle.tokenizer import Tokenizer, stream

CACHE_BYTES = 2**30  # for the keys and values of texts that are continued together
NEW_TOKENS = 256  # the harness' own limit where a task names none


class HarnessLM(LM):
    """
    A GPT in eval mode and its tokenizer, as the harness' LM.

    tokens, seconds: what was read and written so far, and the time that it took.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer, device: torch.device):
        super().__init__()
        self.model, self.tokenizer, self._device = model, tokenizer, device
        self.tokens, self.seconds = 0, 0.0

    def encode(self, text: str) -> list[int]:
        """Text -> ids, '<|endoftext|>' in it being GPT-2's own token."""
        return self.tokenizer.encode(text, special=True)

    # --- how likely is it? ---

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(context, continuation) -> (log-probability of the continuation, whether greedy drawing would give it)."""
        pairs = [self.encode_pair(*request.args) for request in requests]
        return self._score([self._windows(context, continuation) for context, continuation in pairs])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """(text,) -> log-probability of the whole text, whatever its length."""
        texts = [self.encode(request.args[0]) for request in requests]
        scores = self._score([self._windows([first_context(self.tokenizer)], text) for text in texts])
        return [result.log_probability for result in scores]

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """
        Ids of a context, one at least, and of what follows it, cut where the ids of the context alone end.

        Blanks at the context's end belong to the continuation, as GPT-2's tokens begin with them.
        """
        stripped = context.rstrip()
        whole = self.encode(context + continuation)
        ids = self.encode(stripped)
        if ids:
            return ids, whole[len(ids) :]
        first = first_context(self.tokenizer)
        return [first], whole[1:] if whole[:1] == [first] else whole

    def _windows(self, context: list[int], tokens: list[int]) -> list[Window]:
        return list(windows(context, tokens, self.model.config.block_size, overlap=1))

    def _score(self, texts: list[list[Window]]) -> list[Score]:
        """The windows of each text -> its score; that of an empty text is (0, True)."""
        start = time.perf_counter()
        scores = iter(score(self.model, [window for text in texts for window in text], self._device))
        self.seconds += time.perf_counter() - start
        self.tokens += sum(len(window.tokens) for text in texts for window in text)
        parts = [[next(scores) for _ in text] for text in texts]
        return [Score(sum(part.log_probability for part in text), all(p.greedy for p in text)) for text in parts]

    # --- what comes next? ---

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """(context, settings) -> the text that follows, up to the first stop text of the settings' `until`."""
        prompts = [self._prompt(*request.args) for request in requests]
        found: list[str] = [""] * len(requests)
        for batch in self._batches(requests, prompts):
            texts = self._continue([prompts[i] for i in batch], requests[batch[0]].args[1])
            for i, text in zip(batch, texts, strict=True):
                found[i] = text
        return found

    def _prompt(self, context: str, settings: dict) -> list[int]:
        """A context's ids, from its end so many that with the new ones they fit the model's context, or half of it."""
        size = self.model.config.block_size
        room = max(size - new_tokens(settings), size // 2, 1)
        return (self.encode(context) or [first_context(self.tokenizer)])[-room:]

    def _batches(self, requests: list[Instance], prompts: list[list[int]]) -> Iterator[list[int]]:
        """
        Numbers of requests with the same settings, as many as their keys and values have room.

        Texts of a batch grow together from the shortest prompt's end on, so lengths differ by the new tokens at most:
        else more steps would go by before the longest grows than it grows by.
        """
        c = self.model.config
        most = max(1, CACHE_BYTES // (8 * c.n_layer * c.n_embd * c.block_size))  # two float32 numbers each
        settings = [repr(request.args[1]) for request in requests]
        batch: list[int] = []
        for i in sorted(range(len(requests)), key=lambda i: (settings[i], len(prompts[i]))):
            first = batch[0] if batch else i
            longest = len(prompts[first]) + new_tokens(requests[first].args[1])
            if len(batch) == most or settings[i] != settings[first] or len(prompts[i]) > longest:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def _continue(self, prompts: list[list[int]], settings: dict) -> list[str]:
        """The texts that follow prompts, in one batch."""
        until = settings.get("until") or []
        stops = [Stop(self.tokenizer, [until] if isinstance(until, str) else until) for _ in prompts]
        is_over = [stop.is_over for stop in stops]
        count, sampling = new_tokens(settings), sampling_of(settings)
        start = time.perf_counter()
        new = continue_texts(self.model, prompts, count, sampling, is_over, self._device)
        self.seconds += time.perf_counter() - start
        self.tokens += sum(map(len, new))
        return [stop.before() for stop in stops]


class Stop:
    """Follows one text as it grows: is_over says whether a stop text, or the end-of-text token, has come."""

    def __init__(self, tokenizer: Tokenizer, until: Iterable[str]):
        self.until = [text for text in until if text]
        self.end = first_context(tokenizer) if tokenizer.kind == "gpt2" else None
        self.push, self.text = stream(tokenizer), ""

    def is_over(self, token: int) -> bool:
        """Take the text's next token -> whether the text ends with it."""
        if token == self.end:
            return True
        self.text += self.push(token)
        return any(stop in self.text for stop in self.until)

    def before(self) -> str:
        """The text before the first stop text."""
        text = self.text + self.push()
        return min((text.split(stop)[0] for stop in self.until), key=len, default=text)


def new_tokens(settings: dict) -> int:
    """How many tokens a task's settings let a text grow by."""
    return int(settings.get("max_gen_toks", NEW_TOKENS))


def sampling_of(settings: dict) -> Sampling:
    """A task's settings -> how tokens are drawn: greedily unless it asks otherwise."""
    temperature = float(settings.get("temperature", 1.0 if settings.get("do_sample") else 0.0))
    if not settings.get("do_sample", temperature > 0):
        temperature = 0.0
    return Sampling(temperature, settings.get("top_k") or None, settings.get("top_p"))


# --- tasks ---


def find_tasks(names: list[str], include_path: str | None) -> tuple[list[str], TaskManager]:
    """
    Names of tasks, '*' in them standing for anything -> (the tasks', the index that knows them).

    include_path: a folder of the user's own tasks. Raises UserError for a name that no task has.
    """
    if include_path and not os.path.isdir(include_path):
        raise UserError(f"include_path={include_path} is no folder: name the one that holds your tasks' .yaml files")
    manager = TaskManager(include_path=include_path, include_defaults=False) if include_path else None
    if manager is None or not all(map(manager.match_tasks, ([name] for name in names))):
        manager = TaskManager(include_path=include_path)  # all of the harness', which takes seconds to list
    for name in names:
        if not manager.match_tasks([name]):
            raise UserError(f"lm-eval knows no task {name!r}: `lm-eval ls tasks` lists them, --include_path adds yours")
    return manager.match_tasks(names), manager


def run_tasks(lm: HarnessLM, names: list[str], include_path: str | None, **options) -> dict[str, dict]:
    """
    Judge a model by tasks -> name -> metrics, the number of examples and of those shown before each.

    options: num_fewshot and limit, as in lm_eval.simple_evaluate. Raises UserError for a task that is unknown, or whose
    examples cannot be fetched.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks, manager = find_tasks(names, include_path)
    try:
        results = lm_eval.simple_evaluate(lm, tasks=tasks, task_manager=manager, log_samples=False, **options)
    except OSError as error:  # the kinds that datasets and the hub's client raise are all of this one
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"lm-eval cannot fetch the examples of {', '.join(tasks)} ({reason}): connect once") from None
    found = {}
    for name, metrics in results["results"].items():
        found[name] = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        found[name]["examples"] = results["n-samples"].get(name, {}).get("effective")
        found[name]["num_fewshot"] = results["n-shot"].get(name)
    return found
