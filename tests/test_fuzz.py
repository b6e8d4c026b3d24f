"""Hostile flags and config files: a valid config or one sentence, and never another exception."""

import dataclasses
import string
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sample_bio import SampleConfig
from train import TrainConfig
from wiggle import configurator
from wiggle.errors import UserError

KINDS = typing.get_type_hints(TrainConfig)
KEYS = st.sampled_from([*KINDS, *typing.get_type_hints(SampleConfig)])

WORDS = """
None True false nan -inf 1e999 -1 0 1 1.0 0x10 1_0 1j 01 1e-400 0b2 () [] {} {1:2} [[1]] 'a \\ é 😀 1+1 ... = -- -
__import__('os') gelu bio rope adamw float16 cosine file.py:Name a.py:b.py:C cuda:99 12 100000000 9223372036854775808
""".split()  # noqa: SIM905 - easier to read
LONG = ["9" * 5000, "-" * 3000 + "1", "(" * 3000, "[" * 300 + "]" * 300, "a" * 5000, "\u2028", "", "\0", "\n", "\ud800"]
TEXT = st.one_of(st.sampled_from(WORDS + LONG), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
MISSPELT = st.builds(lambda key, i: key[:i] + key[i + 1 :], KEYS, st.integers(0, 9))
KEY = st.one_of(KEYS, KEYS, MISSPELT, TEXT)
FLAG = st.one_of(st.builds("--{}={}".format, KEY, TEXT), st.builds("--{}".format, KEY))
ARGUMENT = st.one_of(FLAG, FLAG, TEXT, st.sampled_from(["no/such.py", ".", "/", "/dev/null", "-h", "--help"]))

VALUES = """
None|True|[]|{}|()|object()|print|int|10**5000|-10**400|1e400|b'x'|lambda: 0|Evil()|Evil|...|1 +|nothing|1/0|range(9)
open('/no/such')|__file__|(yield)|[i for i in 3]|'a' 'b'|f'{1/0}'|exit()|float('nan')|'\\n'|n_layer|1j|'x' * 10**6
""".strip().replace("\n", "|")
VALUE = st.one_of(
    st.sampled_from(VALUES.split("|")), TEXT.map(repr), st.integers().map(str), st.floats().map("float('{}')".format)
)
STATEMENTS = """
import sys
import os as n_layer
import no_such_module
from train import *
raise ValueError('a\\nb')
raise SystemExit('x')
raise BaseException
raise GeneratorExit
raise Exception(10**5000)
raise Evil
raise type('Odd', (BaseException,), {'__str__': 0})
def n_layer(): pass
class batch_size: pass
del n_layer
globals().clear()
globals()[5] = 1
__builtins__ = 3
f = lambda: f(); f()
x: int = 3
n_layer += 1
n_layer, n_head = 2, 2
   indented = 1
é = 1
'''
#
"""
EVIL = """
class Evil:
    def _no(self, *a):
        raise RuntimeError('no\\nno')
    __repr__ = __eq__ = __str__ = _no
    __hash__ = None
"""
NAME = st.text(string.ascii_letters + "_", min_size=1, max_size=9)
LINE = st.one_of(
    st.builds("{} = {}".format, st.one_of(KEYS, KEYS, NAME), VALUE),
    st.sampled_from(STATEMENTS.split("\n")),
    st.text(max_size=20),
)
FILE = st.one_of(
    st.lists(LINE, max_size=5).map(lambda lines: (EVIL + "\n".join(lines)).encode("utf-8", "surrogatepass")),
    st.binary(max_size=60),
)
CALM = {"deadline": None, "database": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


def read_or_refuse(cls, argv):
    """Fail unless the arguments make a valid instance of cls, or a UserError of one sentence."""
    try:
        config = configurator.read_settings(cls, argv)
    except UserError as error:
        sentence = str(error)
        assert sentence and len(sentence.splitlines()) == 1 and len(sentence) < 1000, sentence[:3000]
    except SystemExit as stop:
        assert not stop.code and {"-h", "--help"} & set(argv)
    else:
        assert dataclasses.replace(config) == config  # its values pass its own checks again


@pytest.mark.slow
@settings(max_examples=1200, **CALM)
@given(st.lists(ARGUMENT, max_size=4), st.sampled_from([TrainConfig, SampleConfig]))
def test_hostile_flags(argv, cls):
    read_or_refuse(cls, argv)


@pytest.mark.slow
@settings(max_examples=800, **CALM)
@given(FILE, st.lists(FLAG, max_size=2))
def test_hostile_config_files(tmp_path_factory, content, flags):
    path = tmp_path_factory.getbasetemp() / "hostile.py"
    path.write_bytes(content)
    read_or_refuse(TrainConfig, [str(path), *flags])
