"""What a user's neuron is known by: its class with what it uses, in its file and in those beside it."""

import pytest
import torch

from wiggle.custom_neuron import load_neuron
from wiggle.neuron_identity import changes

MINE = '''
import torch
from torch import nn
from helper import f

SLOPE = 0.5  # of the line
TABLE = {"a": 1}
TABLE["b"] = 2
UNUSED = 3

def g(x):
    """What it does."""
    return SLOPE * f(x)

class Base(nn.Module):
    pass

class Wave(Base):
    """A wave."""

    def __init__(self, features):
        super().__init__()
        self.n = TABLE["b"]

    def forward(self, x):
        return g(x)  # here
'''
HELPER = """
import torch
from pieces import inner

def f(x):
    return inner.deep(x)

def unused(x):
    return x
"""
INNER = """
def deep(x):
    return x.sin()

def other(x):
    return x.cos()
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "__init__.py").write_text("")
    (tmp_path / "pieces" / "inner.py").write_text(INNER)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def load(folder):
    return load_neuron(f"{folder / 'mine.py'}:Wave")


def edit(folder, file, old, new):
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))


def test_the_parts_are_what_the_class_uses_and_nothing_else(folder):
    assert set(load(folder).parts) == {
        "class Wave",
        "class Base",
        "function g",
        "assignment of SLOPE",
        "assignment of TABLE",
        "statement TABLE['b'] = 2",
        "import of nn",
        "import of f",
        "helper.py function f",
        "helper.py import of inner",
        "pieces/inner.py function deep",
    }


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("mine.py", "UNUSED = 3", "UNUSED = 4\n\nclass Unrelated(nn.Linear):\n    pass"),
        ("mine.py", "# of the line", "# of another line"),
        ("mine.py", "SLOPE = 0.5", "SLOPE   =   0.5"),
        ("mine.py", '"""A wave."""', '"""A wave, told otherwise."""'),
        ("mine.py", "from torch import nn", "from torch import Tensor, nn"),
        ("helper.py", "def unused(x):\n    return x", "def unused(x):\n    return -x"),
        ("pieces/inner.py", "x.cos()", "x.tan()"),
    ],
)
def test_what_the_class_does_not_use_may_change(folder, file, old, new):
    before = load(folder).sha256
    edit(folder, file, old, new)
    assert load(folder).sha256 == before


@pytest.mark.parametrize(
    ("file", "old", "new", "part"),
    [
        ("mine.py", "return g(x)", "return -g(x)", "class Wave"),
        ("mine.py", "SLOPE = 0.5", "SLOPE = 0.6", "assignment of SLOPE"),
        ("mine.py", "class Base(nn.Module):\n    pass", "class Base(nn.Module):\n    a = 1", "class Base"),
        ("mine.py", "SLOPE * f", "2 * SLOPE * f", "function g"),
        ("helper.py", "return inner.deep(x)", "return -inner.deep(x)", "helper.py function f"),
        ("pieces/inner.py", "x.sin()", "x.tanh()", "pieces/inner.py function deep"),
    ],
)
def test_what_the_class_uses_makes_it_another_one_and_is_named(folder, file, old, new, part):
    before = load(folder)
    edit(folder, file, old, new)
    after = load(folder)
    assert after.sha256 != before.sha256
    assert changes(before.parts, after.parts) == [part]


def test_a_helper_is_run_as_it_stands_now(folder):
    x = torch.ones(1, 4)
    assert torch.equal(load(folder)(4)(x), 0.5 * x.sin())
    edit(folder, "pieces/inner.py", "x.sin()", "x.tanh()")
    assert torch.equal(load(folder)(4)(x), 0.5 * x.tanh())


def test_pieces_that_come_and_go_are_told(folder):
    before = load(folder).parts
    edit(folder, "mine.py", "return SLOPE * f(x)", "return torch.sin(x)")
    after = load(folder).parts
    assert changes(before, after) == [
        "assignment of SLOPE (no longer used)",
        "function g",
        "helper.py function f (no longer used)",
        "helper.py import of inner (no longer used)",
        "import of f (no longer used)",
        "import of torch (not used before)",
        "pieces/inner.py function deep (no longer used)",
    ]


def test_neither_the_place_nor_the_name_of_the_file_counts(folder):
    before = load(folder).sha256
    (folder / "mine.py").rename(folder / "yours.py")
    moved = folder.rename(folder.with_name("elsewhere"))
    assert load_neuron(f"{moved / 'yours.py'}:Wave").sha256 == before


@pytest.mark.parametrize(
    ("imports", "use"),
    [
        ("import helper", "helper.f(x)"),
        ("import helper as h", "h.f(x)"),
        ("from helper import *", "f(x)"),
        ("import pieces.inner", "pieces.inner.deep(x)"),
        ("from pieces.inner import deep as d", "d(x)"),
        ("try:\n    from helper import f\nexcept ImportError:\n    f = None", "f(x)"),
        ("", "f_inside(x)"),
    ],
)
def test_every_way_to_import_is_followed(folder, imports, use):
    inside = "def f_inside(x):\n    from pieces.inner import deep\n    return deep(x)\n"
    neuron = f"class Wave(nn.Module):\n    def forward(self, x):\n        return {use}\n"
    (folder / "mine.py").write_text(f"from torch import nn\n{imports}\n\n{inside}\n{neuron}")
    before = load(folder)
    assert "pieces/inner.py function deep" in before.parts
    edit(folder, "pieces/inner.py", "x.sin()", "x.tanh()")
    assert changes(before.parts, load(folder).parts) == ["pieces/inner.py function deep"]


def test_installed_packages_and_this_projects_modules_are_not_followed(folder):
    (folder / "mine.py").write_text("from model_bio import OscillatingNeuron as Wave\n")
    assert set(load(folder).parts) == {"import of Wave"}
