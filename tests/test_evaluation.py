"""What an evaluation reports."""

import json
import math

import pytest

from train import train
from wiggle.corpora import prepare
from wiggle.dataset import Dataset
from wiggle.evaluation import bits_per_byte, size_of_validation


def test_bits_per_byte_of_a_model_that_guesses_bytes_at_random_is_eight():
    assert bits_per_byte(math.log(256), tokens=1000, text_bytes=1000) == pytest.approx(8)


def test_bits_per_byte_do_not_depend_on_how_a_text_is_cut_into_tokens():
    nats = 5000.0  # that a model needs for a text of 2,000 bytes, whatever its tokens
    assert bits_per_byte(nats / 400, 400, 2000) == pytest.approx(bits_per_byte(nats / 1000, 1000, 2000))


def test_a_run_reports_bits_per_byte_where_the_bytes_are_known(tiny, capsys):
    result = train(tiny())
    assert result.val_bpb == pytest.approx(result.val_loss / math.log(2))  # a byte a character
    assert f"{result.val_bpb:.4f} bits a byte" in capsys.readouterr().out
    assert result.history[-1]["val_bpb"] == result.val_bpb


@pytest.mark.parametrize("tokenizer", ["char", "byte"])
def test_the_bytes_of_old_data_of_characters_are_counted_from_its_ids(tmp_path, tokenizer):
    text = "Größe, naïve façade. " * 400
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    folder = prepare(str(tmp_path / "text.txt"), data_dir=tmp_path, tokenizer=tokenizer)
    counted = size_of_validation(Dataset(folder, 16, 1))
    meta = json.loads((folder / "meta.json").read_text())
    assert counted == (meta["val_tokens"], meta["val_bytes"])
    (folder / "meta.json").write_text(json.dumps({key: meta[key] for key in meta if not key.endswith("_bytes")}))
    assert size_of_validation(Dataset(folder, 16, 1)) == counted
