"""The picture and the words of a proof."""

from dataclasses import replace

import numpy as np
import pytest
from figures import assert_inside_and_apart, written_whole

from nnunet_nas.complexity import Complexity
from nnunet_nas.evaluation.paired import compare
from nnunet_nas.evaluation.rows import Row
from nnunet_nas.figures import write_figure
from nnunet_nas.xtiny.proof import (
    NARROW,
    WIDE,
    Independence,
    corrected,
    finished,
    in_order,
    passes,
    planned_tests,
)
from nnunet_nas.xtiny.proof_report import Planned, ProofReport, Trial, draw, proof_csv, table

WIDEST, CASES = 64, 40


def cost(cap):
    return Complexity(int(5e5 * (cap / WIDEST) ** 2), int(3e9 * (cap / WIDEST) ** 1.5), 0, 1.0, 1.0, 1.0)


def proof_of(losses, *, order=NARROW, spread=0.01, looks=0, raced=False):
    """A proof of widths that lose so much Dice, cases with a spread around it."""
    random = np.random.default_rng(0)
    base = random.normal(0.85, 0.03, CASES)
    planned = [Planned(cap, f"2d_xtiny{cap}", cost(cap), (cap / WIDEST) ** 1.5, 1.0) for cap in in_order(losses, order)]
    trials = []
    for item in planned:
        noise = random.standard_normal(CASES)
        dice = base - losses[item.cap] + spread * (noise - noise.mean()) / noise.std(ddof=1)
        found = compare(base, dice, margin=0.01)
        tests = corrected(found.equivalence, planned_tests(order, len(planned)))
        found = replace(found, equivalence=tests)
        row = Row("foreground mean", "foreground mean", [str(case) for case in range(CASES)], base, dice, found)
        trials.append(Trial(item.cap, item.configuration, item.complexity, row, passes(tests, "equivalent")))
        if finished([trial.passed for trial in trials], order, len(planned)):
            break
    inputs = {"order": order, "margin": 0.01, "claim": "equivalent", "distill": False, "judge": "test"}
    inputs |= {"dataset": "Dataset107_DSB2018Nuclei", "cases": list(range(CASES)), "patients": None}
    independence = Independence(not raced, "Selected and judged on the same cases." if raced else "Judged elsewhere.")
    return ProofReport(inputs, "2d", cost(WIDEST), "nnUNetTrainer", None, planned, trials, independence, looks)


FAR, ALL_PASS, NONE = {2: 0.3, 4: 0.1, 8: 0.02, 16: 0.001, 32: 0.0}, {8: 0.002, 16: 0.001, 32: 0.0}, {4: 0.5}


@pytest.mark.parametrize(
    ("losses", "order"), [(FAR, NARROW), (FAR, WIDE), (ALL_PASS, WIDE), (ALL_PASS, NARROW), (NONE, NARROW)]
)
def test_all_words_of_the_picture_can_be_read(losses, order):
    assert_inside_and_apart(draw(proof_of(losses, order=order)))


def test_the_picture_is_written_whole(tmp_path):
    image = written_whole(lambda path: write_figure(draw(proof_of(FAR)), path, dpi=50), tmp_path)
    assert image.shape[2] == 4


def test_the_verdict_in_numbers_that_can_be_checked():
    report = proof_of({8: 0.002}, spread=0.01)
    # Standard error 0.01 / sqrt(40) = 0.00158, t of 39 degrees at 95 %: 1.685; (0.01 - 0.002) / 0.00158 = 5.06.
    assert report.chosen.interval == pytest.approx((-0.002 - 0.00266, -0.002 + 0.00266), abs=1e-5)
    assert report.verdict == (
        "2d_xtiny8 (7,812 parameters, 1/64 of the base's) is equivalent to 2d within 0.01 Dice: difference -0.0020, "
        "90 % interval [-0.0047, +0.0007], p = 5.2e-06 (40 cases)."
    )


def test_nothing_proven_says_why():
    report = proof_of({8: 0.0}, spread=0.1, looks=2, raced=True)
    words = "\n".join(report.sentences())
    assert report.verdict == "No width was shown to be equivalent to 2d within 0.01 Dice."
    assert "Selected and judged on the same cases." in words
    assert "2d_xtiny8: unclear; about 858 cases show equivalence with 80 % probability" in words
    assert "2 proof(s) with other settings" in words


@pytest.mark.parametrize(("trainer", "said"), [("nnUNetTrainer", False), ("nnUNetTrainerNoDA", True)])
def test_what_distilled_candidates_do_not_share_with_the_base_is_said(trainer, said):
    report = proof_of(ALL_PASS)
    report = replace(report, trainer=trainer, inputs={**report.inputs, "distill": True})
    words = "\n".join(report.sentences())
    assert f"Trained by {trainer}, the candidates by distillation from the base" in words
    assert ("they share length, rate and mirroring" in words) is said


def test_what_was_not_tested_is_in_the_table_and_said():
    report = proof_of(ALL_PASS)
    header, rows = table(report)
    assert [row[0] for row in rows] == ["2d", "2d_xtiny8", "2d_xtiny16", "2d_xtiny32"]
    assert all(len(row) == len(header) for row in rows)
    assert rows[1][-1] == "<- proven"
    assert rows[2][header.index("Dice")] == "-"
    assert "Not tested, because the order ended before: 2d_xtiny16, 2d_xtiny32." in report.sentences()
    assert len(proof_csv(report).splitlines()) == 2
