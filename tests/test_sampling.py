"""Prompts where none is given, and text that is printed as it is drawn."""

import errno
import io
import re
from pathlib import Path

import pytest
import torch

from train import train
from wiggle import corpora
from wiggle.sampling import default_prompt, print_as_drawn
from wiggle.tokenizer import ByteTokenizer, CharTokenizer, GPT2Tokenizer


@pytest.mark.parametrize("every", [1, 3, 7, 50])
def test_reading_the_ids_every_few_steps_shows_the_same(capsys, every):
    tokenizer = ByteTokenizer()
    text = "añ😀z".encode()
    steps = (torch.tensor([[byte], [65]]) for byte in text)
    assert print_as_drawn(steps, len(text), tokenizer, every).tolist() == [list(text), [65] * len(text)]
    assert capsys.readouterr().out == "añ😀z\n"


def test_a_prompt_that_nobody_gave_is_known_to_the_tokenizer():
    assert default_prompt(CharTokenizer("\n ab")) == default_prompt(ByteTokenizer()) == "\n"
    assert default_prompt(GPT2Tokenizer()) == "\n"
    assert default_prompt(CharTokenizer("xyz")) == "x"


def test_a_run_on_a_text_without_a_line_break_ends_with_its_sample(tiny, tmp_path, capsys):
    (tmp_path / "line.txt").write_text("abcab " * 500)
    corpora.prepare(str(tmp_path / "line.txt"), data_dir=str(tmp_path / "data"))
    assert train(tiny(data_dir=str(tmp_path / "data"), dataset="line", max_iters=1, final_sample=20)).steps == 1
    printed = capsys.readouterr().out
    assert re.search(r"sample\n\n[abc ]{20}\n$", printed)


class Closed(io.StringIO):
    """Standard output whose reader leaves once the sample begins."""

    closed_now = False

    def write(self, text):
        self.closed_now |= text.startswith("sample")
        if self.closed_now:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")
        return super().write(text)


def test_a_run_whose_output_closes_at_its_sample_is_finished_all_the_same(tiny, monkeypatch):
    monkeypatch.setattr("sys.stdout", Closed())
    result = train(tiny(max_iters=1, final_sample=20))
    assert result.steps == 1 and (Path(result.out_dir) / "best.pt").exists()
