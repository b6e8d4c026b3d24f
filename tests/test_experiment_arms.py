"""Which comparisons are isolated, which are refused, and what a sweep ranges over."""

from types import SimpleNamespace

import pytest

from experiment.arms import at_edge, parse_also, plan_arms, resolve, spell
from experiment.study import Arm, Study
from experiment.tuning import Tuning, finalists
from train import TrainConfig
from wiggle.errors import UserError

WORDS = ["config/compare_tiny.py", "--device=cpu"]
BOTH = ["mlp=gelu,bio"]


def plan(vary, *words, sweep=(), control=None, match="steps"):
    return plan_arms(vary, list(sweep), control, match, [*WORDS, *words])


def names(vary, *words, control=None):
    return [arm.name for arm in plan(vary, *words, control=control)[0]]


def test_a_file_that_sets_a_second_key_by_the_varied_one_is_refused_by_name(tmp_path):
    file = tmp_path / "two.py"
    file.write_text('if mlp == "bio":\n    weight_decay = 0.2\n')
    message = "weight_decay differs too: 0.1 in gelu, 0.2 in bio; arms may differ in mlp alone"
    with pytest.raises(UserError, match=message):
        plan(BOTH, str(file))


def test_a_swept_key_may_differ_in_files_since_the_sweep_sets_it(tmp_path):
    file = tmp_path / "two.py"
    file.write_text('learning_rate = 1e-2 if mlp == "bio" else 1e-3\n')
    with pytest.raises(UserError, match="learning_rate differs too"):
        plan(BOTH, str(file))
    arms, swept = plan(BOTH, str(file), sweep=["learning_rate=1e-2,1e-3"])
    assert [arm.name for arm in arms] == ["gelu", "bio"] and swept == {"learning_rate": [1e-3, 1e-2]}


def test_a_file_that_is_not_the_same_twice_is_refused(tmp_path):
    (tmp_path / "dice.py").write_text("import itertools, sys\nsys.dice = getattr(sys, 'dice', itertools.count(1))\n"
                                      "warmup_iters = next(sys.dice)\n")  # fmt: skip
    with pytest.raises(UserError, match="warmup_iters differs too"):
        plan(BOTH, str(tmp_path / "dice.py"))


def test_a_grid_has_every_cell_that_is_a_model_of_its_own():
    assert names(["mlp=gelu,bio", "bio_gate=none,feature"]) == ["gelu", "bio none", "bio feature"]
    assert names(["mlp=gelu,bio", "n_layer=1,2"], control="bio 2") == ["bio 2", "gelu 1", "gelu 2", "bio 1"]
    assert names(["mlp=gelu,bio", "bio_event=soft,hard"]) == ["gelu", "bio soft", "bio hard"]
    assert names(["bio_event=soft,hard", "bio_target_rate=0.5,0.15"], "--mlp=bio") == ["soft", "hard 0.5", "hard 0.15"]
    arms, _ = plan(["use_bio_mlp=False,True"])
    assert [(arm.name, arm.config.mlp) for arm in arms] == [("gelu", "gelu"), ("bio", "bio")]


def test_keys_that_are_varied_together_make_an_arm_of_each_value():
    values = "gelu,bio+none,bio+feature+soft,bio+feature+hard+0.5,bio+feature+hard+.04"
    vary = f"mlp+bio_gate+bio_event+bio_target_rate={values}"
    arms, _ = plan([vary])
    assert [a.name for a in arms] == [
        "gelu",
        "bio none",
        "bio feature soft",
        "bio feature hard 0.5",
        "bio feature hard 0.04",
    ]
    assert (
        arms[-1].config.bio_target_rate == 0.04
        and arms[1].config == plan(["mlp=gelu,bio"], "--bio_gate=none")[0][1].config
    )
    assert names(["n_head+n_embd=1+8,2+16", "mlp=gelu,bio"]) == ["1 8 gelu", "1 8 bio", "2 16 gelu", "2 16 bio"]


@pytest.mark.parametrize(
    ("vary", "more", "message"),
    [
        (["seed=1,2"], {}, "seed is no property of the model"),
        (BOTH, {"sweep": ["out_dir=1,2"]}, "out_dir is no property"),
        (BOTH, {"sweep": ["dataset=a,b"]}, "dataset is no property"),
        (["mlp+n_layer=gelu+1+2,bio"], {}, "'gelu+1+2' names 3 values for the 2 keys mlp+n_layer"),
        (["mlp+lerning_rate=gelu,bio"], {}, "did you mean 'learning_rate'?"),
        (["lerning_rate=1,2"], {}, "did you mean 'learning_rate'?"),
        (["mlp=gelu,gelu"], {}, "names one arm twice"),
        (["mlp=gelu"], {}, "two arms or more"),
        (BOTH, {"control": "relu"}, "one of them the control; there are: gelu, bio"),
        (BOTH, {"sweep": ["mlp=gelu,bio"]}, "sweep other ones"),
        (BOTH, {"sweep": ["learning_rate=1,2", "learning_rate=3,4"]}, "each given once"),
        (["n_layer=1,2"], {"sweep": ["mlp=gelu,bio"]}, "mlp makes an arm of its own"),
        ([*BOTH, "bias=True,False", "dropout=0,0.1"], {}, "two as a full grid"),
        (BOTH, {"sweep": ["lr_schedule=wsd,fast"]}, "expected 'cosine' or 'wsd'"),
        (BOTH, {"sweep": ["n_head=2,3"]}, "n_head=3 does not divide"),
        (BOTH, {"sweep": ["max_iters=5,6"], "match": "time"}, "--match=time sets the number of steps"),
        (["warmup_iters=5,6"], {"match": "flops"}, "--match=flops sets the number of steps"),
        (["mlp=gelu,"], {}, "not of the form KEY=A,B"),
        (BOTH, {"sweep": ["batch_size=8,16"], "match": "flops"}, "batch_size changes what a step costs"),
        (["mlp+dataset=gelu+a,bio+b"], {}, "vary dataset by itself"),
    ],
)
def test_what_is_no_experiment_is_refused_in_a_sentence(vary, more, message):
    with pytest.raises(UserError) as refused:
        plan(vary, **more)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("flags", ["--init_from=resume", "--batch_size=auto --tokens_per_step=128", "--eval_only=True"])
def test_arms_train_from_scratch_with_a_known_batch(flags):
    with pytest.raises(UserError, match="train from scratch with a batch_size given as a number"):
        plan(BOTH, "--gradient_accumulation_steps=None", *flags.split())


def test_config_for_the_quick_form_is_tiny():
    config = resolve(WORDS, [], [])
    assert config.n_layer == 2 and config.dataset == "shakespeare_works"


# --- the sweep ---


def test_values_of_a_sweep_are_numbers_in_their_order_or_words_as_given():
    sweep = ["learning_rate=3e-3,1e-3", "c_fc_std=unit,0.5,None,0.04,0.04", "lr_schedule=wsd,cosine"]
    _, swept = plan(BOTH, "--n_embd=16", "--n_head=2", sweep=sweep)
    assert swept == {
        "learning_rate": [1e-3, 3e-3],
        "c_fc_std": [None, 0.04, "unit", 0.5],  # 0.02, 0.04, 1/sqrt(16), 0.5
        "lr_schedule": ["wsd", "cosine"],
    }
    assert [spell(value) for value in (1e-3, None, "unit", 5, True)] == ["0.001", "None", "unit", "5", "True"]


def test_values_are_spelled_as_a_flag_reads_them():
    assert list(map(spell, (1048576, 0.003, 0.0012345678, 1.0, None, "unit"))) == [
        *("1048576", "0.003", "0.0012345678", "1", "None", "unit")
    ]


def edges(point, **swept):
    arm = Arm("gelu", {"mlp": "gelu"}, TrainConfig(n_embd=16, n_head=2))
    study = Study(None, [], [arm], swept, [], None, {}, 1)
    return at_edge(study, arm, point)


def test_the_edge_of_a_sweep_is_told_by_key():
    swept = {"learning_rate": [1.0, 2.0, 3.0], "c_fc_std": [None, 0.04, "unit", 0.5]}
    assert edges((1.0, 0.04), **swept) == ["learning_rate"]
    assert edges((3.0, None), **swept) == ["learning_rate", "c_fc_std"]
    assert edges((2.0, 0.5), **swept) == ["c_fc_std"]
    assert edges((2.0, "unit"), **swept) == []
    assert edges(("unit",), c_fc_std=[0.04, "unit"]) == ["c_fc_std"]


def test_a_key_with_one_value_or_words_without_order_has_no_edge():
    assert edges((1.0,), learning_rate=[1.0]) == []
    assert edges(("wsd",), lr_schedule=["wsd", "cosine"]) == []
    assert edges((True,), qk_norm=[True, False]) == []


def test_also_names_one_value_that_is_swept():
    swept = {"learning_rate": [1e-3, 2e-3], "c_fc_std": [None, "unit"]}
    assert parse_also("c_fc_std=None", swept, WORDS) == ("c_fc_std", None)
    assert parse_also("learning_rate=2e-3", swept, WORDS) == ("learning_rate", 2e-3)
    for text in ("c_fc_std=0.04", "c_fc_std=None,unit", "beta2=0.9"):
        with pytest.raises(UserError, match="must name one value of a --sweep"):
            parse_also(text, swept, WORDS)


def test_the_best_point_has_the_lowest_finite_mean():
    inf = float("inf")
    tuning = Tuning({(1e-3, None): [2.0], (1e-3, "unit"): [1.0, inf], (2e-3, None): [1.9], (2e-3, "unit"): [1.8]})
    assert tuning.best() == (2e-3, "unit")
    assert tuning.best(1, None) == (2e-3, None)
    assert tuning.best(0, 1e-3) == (1e-3, None)
    assert tuning.lead() == pytest.approx([0.1])
    assert Tuning({(1.0,): [1.0, 2.0], (2.0,): [1.5, 3.0], (3.0,): [9.0, inf]}).lead() == [0.5, 1.0]
    assert Tuning({(1.0,): [1.0], (2.0,): [inf]}).lead() == []
    assert Tuning({(1.0,): [inf]}).best() is None and Tuning({}).best() is None


def test_finalists_that_are_one_run_count_once():
    study = SimpleNamespace(options=SimpleNamespace(finalists=2), also=[], swept={"learning_rate": [], "beta": []})
    losses = {
        (0.1, 1): (1.0, "a"),
        (0.1, 2): (1.0, "a"),
        (0.2, 1): (1.1, "b"),
        (0.2, 2): (1.1, "b"),
        (0.3, 1): (2, "c"),
    }
    assert finalists(study, losses) == {(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)}
    assert Tuning({(1,): [1.0, 1.2], (2,): [1.0, 1.2], (3,): [1.5, 1.4]}).lead() == pytest.approx([0.5, 0.2])
