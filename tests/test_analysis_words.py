"""The findings of analyze_bio.py in words."""

from wiggle.analysis_words import describe_dendrites, describe_events, describe_layer, describe_work, quoted


def gated(names, rates=None):
    rates = rates or [0.5 - 0.01 * i for i in range(len(names))]
    events = [{"token": name, "count": 20, "rate": rate} for name, rate in zip(names, rates, strict=True)]
    return {"event_rate": {"mean": 0.5}, "silent": 0.25, "always_on": 0.0, "silence": "gate", "events": events}


def test_tokens_are_named_once_and_only_where_they_occur_often():
    before = {"event_rate": {"mean": 0.15}}
    for names, said in (
        ("abcdefgh", "most on 'a' 50, 'b' 49, 'c' 48, 'd' 47, 'e' 46, 'f' 45; least on 'g' 44, 'h' 43"),
        ("ab", "most on 'a' 50, 'b' 49"),
        ("", "no token occurs 20 times"),
    ):
        line = describe_events(before, gated(names))
        assert line == f"events: 50 % of units fire (before 15), 25.0 % never, 0.0 % always; {said}"
    assert describe_events(before, gated("ab", [0.5, 0.499])).endswith("; alike on all tokens")


def test_branches_name_their_tokens_or_say_that_none_occurs_often():
    state = {"effective_branches": {"mean": 2}, "dead": 0, "information": {}}
    for tokens, said in (([[], [("a", 0.9)]], "% won:  | 'a' 90"), ([[], []], "no token occurs 20 times")):
        unit = {"unit": 3, "bits": 0.25, "entropy": 0.5, "tokens": tokens}
        lines = list(describe_dendrites(state, state, state | {"units": [unit]}))
        assert lines[1] == f"unit 3, 0.25 of 0.50 bit, {said}"


def test_zeros_are_told_as_zeros():
    line = describe_events({"event_rate": {"mean": 0.6}}, gated("ab") | {"silence": "zeros"})
    assert line.startswith(
        "exact zeros: 50 % of outputs (before 40), 25.0 % of units always 0, 0.0 % never; active most"
    )
    first_silence = describe_events({}, gated("ab") | {"silence": "zeros"})  # no zeros before
    assert "(before 0)" in first_silence


def test_a_layer_is_told_by_what_it_has():
    learned = {"neuron.a": {"mean": 1.02, "sd": 0.05}, "neuron.b": {"mean": 0.5, "sd": 1e-9}}
    past = {"neuron.a": {"mean": 1.0, "sd": 0.0}, "neuron.b": {"mean": 0.25, "sd": 0.0}}
    before, now = (
        {"preactivation_std": std, "nonlinear_share": share, "learned": parameters}
        for std, share, parameters in ((0.23, 0.06, past), (0.5, 0.2, learned))
    )
    assert list(describe_layer({"before": before, "now": now})) == [
        "pre-activations: std 0.50 (before 0.23), 20.0 % of the output's variance not linear (before 6.0)",
        "learned: a 1.02 +- 0.05 (before 1), b 0.5 (before 0.25)",
    ]


def test_work_is_told_as_bytes_and_multiply_adds():
    work = {"bytes": 1_200_000, "multiply_adds": 300_000, "bytes_left": 800_000, "multiply_adds_left": 200_000}
    said = "MLPs read 1.2 MB of weights a token, in 0.3M multiply-adds; "
    left = "without c_proj's rows of silent units 0.8 MB, in 0.2M"
    assert describe_work(work) == said + left
    screened = "; generating, with c_fc screened through 8 bits, 0.5 MB"
    assert describe_work(work | {"bytes_screened": 500_000}) == said + left + screened
    whole = "events leave all of it: silent features of a soft gate still add to the output"
    assert describe_work(work | {"bytes_left": 1_200_000}) == said + whole


def test_a_token_stands_in_marks_that_it_does_not_hold():
    assert (quoted("a"), quoted("'s"), quoted("\n")) == ("'a'", '"\'s"', "'\\n'")
