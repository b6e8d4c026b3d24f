"""What a user's class says of itself is followed or refused, never passed over; and how its arguments are spelt."""

import pytest

from experiment.arms import split_values
from model_bio import GPTConfig
from wiggle.custom_neuron import load_neuron, parse_spec
from wiggle.errors import UserError

HEAD = "import torch\nfrom torch import nn\n"
FORWARD = "    def forward(self, x):\n        {forward}\n"


def neuron(tmp_path, body, arguments="", forward="return torch.relu(x)"):
    """A class Mine with this body, loaded."""
    (tmp_path / "mine.py").write_text(f"{HEAD}class Mine(nn.Module):\n{body}\n{FORWARD.format(forward=forward)}")
    return load_neuron(f"{tmp_path / 'mine.py'}:Mine{arguments}")


def init(parameters, *lines):
    """The text of a constructor."""
    return "\n        ".join([f"    def __init__(self, {parameters}):", "super().__init__()", *lines])


A = init("features", "self.a = nn.Parameter(torch.ones(features))")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    fan = 0", "has fan=0: it is the number of c_fc's rows"),
        ("    fan = 2.0", "has fan=2.0"),
        ("    stands_for = 'block'", "has stands_for='block'"),
        ("    stands_for = 'mlp'\n    fan = 2", "stands for the whole MLP, which has no c_fc: leave out its fan"),
        ("    stands_for = 'mlp'\n    c_fc_std = 1.0", "stands for the whole MLP, .* leave out its c_fc_std"),
        ("    c_fc_std = 'big'", "has c_fc_std='big'"),
        ("    c_fc_std = -1.0", "has c_fc_std=-1.0"),
        ("    auxiliary_loss = 0.1", "has an auxiliary_loss that is no method"),
        ("    def aux_loss(self): pass", "has aux_loss, which nothing reads: did you mean auxiliary_loss"),
        ("    stand_for = 'mlp'", "did you mean stands_for"),
        ("    parameters_options = {}", "did you mean parameter_options"),
    ],
)
def test_what_a_class_cannot_mean_is_refused_when_it_is_loaded(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        neuron(tmp_path, body)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (A + "\n        self.fan = 2", "sets fan in __init__, too late to be read"),
        (A + "\n        self.parameter_option = {}", "has parameter_option, which nothing reads"),
        (A + "\n        self.parameter_options = [1]", "no dict of dicts"),
        ("    parameter_options = {'b': {'decay': False}}\n" + A, "for 'b', but its trained parameters are: a"),
        (
            "    parameter_options = {'a': {'weight_decay': 0}}\n" + A,
            "the options are decay, learning_rate_scale",
        ),
        ("    parameter_options = {'a': {'decay': 0}}\n" + A, "it is True or False"),
        ("    parameter_options = {'a': {'learning_rate_scale': 0}}\n" + A, "it is a factor above 0"),
        ("    parameter_options = {'a': {'orthogonalise': True}}\n" + A, "orthogonalises matrices, and this one has 1"),
        ("    def auxiliary_loss(self): return 0.1", "gives float: it must be a scalar tensor"),
        ("    def auxiliary_loss(self): return torch.ones(2)", r"gives a tensor of shape \(2,\)"),
        ("    def auxiliary_loss(self): return torch.tensor(0.1)", "without gradient, which trains nothing"),
        ("    fan = 2", r"must map \(2, 4, 64\) to \(2, 4, 32\), as fan=2 says, but gives \(2, 4, 64\)"),
    ],
)
def test_what_a_module_cannot_mean_is_refused_by_the_trial(tmp_path, body, message):
    with pytest.raises(UserError, match=message):
        neuron(tmp_path, body).try_at(64)


# --- the constructor ---


@pytest.mark.parametrize(
    ("signature", "arguments", "message"),
    [
        ("features, share=0.1", "(shaer=0.2)", "Mine has no argument shaer; its arguments are share"),
        ("features", "(share=0.2)", "Mine has no argument share; it takes none"),
        ("features, share", "", r"Mine needs a value for share: write Mine\(share=...\)"),
        ("features, share", "(features=3, share=1)", "features is given by the model"),
        ("features, share", "(0.2)", r"are not understood: each is a name and a plain Python value"),
        ("features, share", "(share=sqrt(2))", "are not understood"),
        ("features, share", "(share=)", "are not understood"),
        ("features, share", "(**{'share': 1})", "are not understood"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_a_sentence(tmp_path, signature, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        neuron(tmp_path, init(signature), arguments)
    assert "\n" not in str(error.value)


def test_a_value_that_the_class_refuses_is_told_with_its_reason(tmp_path):
    body = init("features, share", "self.n = int(share * features)", "assert self.n > 0, 'share is too small'")
    with pytest.raises(UserError, match=r"Mine\(share=0\) cannot be built with 64 features: .*share is too small"):
        neuron(tmp_path, body, "(share=0)").try_at(64)


@pytest.mark.parametrize(
    ("signature", "given"),
    [
        ("features", ["features"]),
        ("layer, features", ["layer", "features"]),
        ("config", ["config"]),
        ("config, *, layer, k=1", ["config", "layer"]),
        ("n", ["n"]),
        ("k=1", []),
    ],
)
def test_a_constructor_gets_exactly_what_it_names(tmp_path, signature, given):
    names = [name.strip(" ").partition("=")[0] for name in signature.split(",") if "*" not in name]
    built = neuron(tmp_path, init(signature, f"self.got = dict({', '.join(f'{name}={name}' for name in names)})"))
    config = GPTConfig(n_layer=2, n_head=1, n_embd=8)
    got = built.make(32, config, 1).got
    expected = {"features": 32, "n": 32, "layer": 1, "config": config}
    assert {name: got[name] for name in given} == {name: expected[name] for name in given}
    assert all(got[name] == 1 for name in names if name not in given)


def test_one_spelling_for_each_meaning():
    spec = parse_spec("a: b/my.py:x.py:TopK( k = 2,share=.20, kind='a,b)' )")
    assert (spec.file, spec.class_name) == ("a: b/my.py:x.py", "TopK")
    assert spec.name == "TopK(k=2, kind='a,b)', share=0.2)"
    assert parse_spec("a.py:TopK()").name == "TopK"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("gelu,relu", ["gelu", "relu"]),
        ("a.py:TopK(share=0.1,k=2),gelu", ["a.py:TopK(share=0.1,k=2)", "gelu"]),
        ("a.py:A(x=[1,2],y=(3,)),b.py:B", ["a.py:A(x=[1,2],y=(3,))", "b.py:B"]),
        ("a.py:A(x='),'),gelu", ["a.py:A(x='),')", "gelu"]),
        ("it's/a.py:A,that's/b.py:B", ["it's/a.py:A", "that's/b.py:B"]),
        ("1e-3,,3", ["1e-3", "", "3"]),
    ],
)
def test_values_are_split_outside_of_brackets(text, values):
    assert split_values(text) == values
