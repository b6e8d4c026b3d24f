"""One correction over several reports."""

import csv

import pytest

from studies import family


def write_table(folder, lines, name="table.csv"):
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", newline="") as file:
        writer = csv.DictWriter(file, ["arm", "difference", "p", "p_holm", "verdict", "p_equivalent"], restval="")
        writer.writeheader()
        for line in lines:
            writer.writerow(dict(zip(writer.fieldnames, line, strict=False)))


def test_the_family_is_corrected_as_one_and_a_repeated_test_counts_once(tmp_path, capsys):
    control = ("gelu", "", "", "", "control")
    write_table(tmp_path / "a", [control, ("bio", "-0.1", "0.001", "0.001", "better")])
    write_table(
        tmp_path / "b", [control, ("relu", "0.2", "0.02", "0.02", "worse"), ("bio", "-0.1", "0.001", "0.002", "better")]
    )
    write_table(tmp_path / "b", [control, ("silu", "0.01", "0.4", "0.4", "inconclusive")], "table-c_fc_std=None.csv")
    (tmp_path / "analysis").mkdir()
    family.main([str(tmp_path / name) for name in ("a", "b", "analysis")])
    out = capsys.readouterr().out
    assert "| a | bio | -0.1000 | 0.001 | 0.001 | 0.003 | better | better |" in out
    assert "| b | relu | +0.2000 | 0.02 | 0.02 | 0.04 | worse | worse |" in out
    assert "| b-c_fc_std=None | silu | +0.0100 | 0.4 | 0.4 | 0.4 | inconclusive | inconclusive |" in out
    assert "3 tests; of 2 verdicts 0 are dropped." in out


def test_a_verdict_that_the_family_does_not_bear_is_dropped(tmp_path, capsys):
    write_table(
        tmp_path / "a", [("bio", "-0.1", "0.03", "0.03", "better"), ("relu", "0.1", "0.2", "0.2", "inconclusive")]
    )
    family.main([str(tmp_path / "a")])
    assert "| better | **inconclusive** |" in capsys.readouterr().out


def test_equivalence_is_corrected_by_its_own_p_and_arms_without_a_difference_count_each(tmp_path, capsys):
    sure, unsure = ("0.001", "0.4", "0.4", "equivalent", "0.01"), ("0.002", "0.3", "0.3", "equivalent", "0.04")
    diverged = ("", "0.03", "0.03", "worse")
    write_table(tmp_path / "a", [("silu", *sure), ("mish", *unsure), ("gcu", *diverged), ("snake", *diverged)])
    write_table(tmp_path / "b", [("silu", "0.003", "0.5", "0.5", "equivalent", "0.03")])
    family.main([str(tmp_path / name) for name in ("a", "b")])
    out = capsys.readouterr().out
    assert "| a | silu | +0.0010 | 0.4 | 0.4 | 0.9 | equivalent | equivalent |" in out
    assert "| a | mish | +0.0020 | 0.3 | 0.3 | 0.9 | equivalent | **inconclusive** |" in out
    assert "| a | snake | – | 0.03 |" in out and "5 tests; of 5 verdicts 4 are dropped." in out


def test_folders_without_reports_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        family.main([str(tmp_path)])
    assert "name the folders of reports" in capsys.readouterr().err
