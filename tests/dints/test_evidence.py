"""Which candidate wins, by hand; and that nothing is scored twice."""

import math

import pytest

from nnunet_nas.dints.evidence import Evidence, distinct
from nnunet_nas.dints.topology import Topology

CANDIDATES = [
    Topology(2, ({(0, 0): name, (1, 1): "conv"}, {(0, 0): "skip", (1, 1): other}))
    for name, other in (("skip", "skip"), ("skip", "conv"), ("conv", "skip"), ("conv", "conv"))
]
SHARED = [0.9, 0.2, 0.1, 0.3]
TRAINED = [0.5, 0.4, 0.6, 0.1]


def gather(evidence, *, fits=lambda topology: True, finalists=3, trained=TRAINED, stop_after=None):
    asked = []

    def score(losses):
        def loss(topology):
            asked.append(topology)
            return losses[CANDIDATES.index(topology)]

        return loss

    def keep():
        if len(asked) == stop_after:
            raise KeyboardInterrupt

    winner = evidence.gather(shared=score(SHARED), trained=score(trained), fits=fits, finalists=finalists, keep=keep)
    return winner, asked


def test_the_best_with_shared_weights_are_trained_beside_the_decoded_one_and_the_best_of_those_wins():
    evidence = Evidence(CANDIDATES)
    # 2 and 1 have the lowest shared losses, 0 is the decoded one; of these 1 is the best after training.
    winner, asked = gather(evidence)
    assert winner == 1
    assert asked == [*CANDIDATES, CANDIDATES[0], CANDIDATES[2], CANDIDATES[1]]
    assert evidence.trained == {0: 0.5, 1: 0.4, 2: 0.6}
    assert gather(Evidence(CANDIDATES), finalists=4)[0] == 3


def test_what_does_not_fit_is_neither_trained_nor_delivered():
    winner, asked = gather(Evidence(CANDIDATES), fits=lambda topology: topology in CANDIDATES[2:])
    assert winner == 3
    assert asked[4:] == [CANDIDATES[0], CANDIDATES[2], CANDIDATES[3]]
    # The decoded one met it before, as far as it can be met.
    assert gather(Evidence(CANDIDATES), fits=lambda topology: False)[0] == 0


def test_the_decoded_one_alone_needs_no_training():
    assert gather(Evidence(CANDIDATES[:1]), finalists=2) == (0, CANDIDATES[:1])


def test_the_one_proposed_first_wins_a_tie_and_what_diverged_loses():
    assert gather(Evidence(CANDIDATES), trained=[0.5, 0.5, 0.5, 0.5])[0] == 0
    assert gather(Evidence(CANDIDATES), trained=[math.inf, 7.0, math.inf, 0.0])[0] == 1


@pytest.mark.parametrize("scores", range(1, 7))
def test_interrupted_it_goes_on_where_it_was(scores):
    evidence = Evidence(CANDIDATES)
    with pytest.raises(KeyboardInterrupt):
        gather(evidence, trained=[math.inf, *TRAINED[1:]], stop_after=scores)
    again = Evidence(CANDIDATES)
    again.recall(evidence.to_json())
    winner, asked = gather(again, trained=[math.inf, *TRAINED[1:]])
    assert winner == 1
    assert len(asked) == 7 - scores
    straight = Evidence(CANDIDATES)
    gather(straight, trained=[math.inf, *TRAINED[1:]])
    assert again.to_json() == straight.to_json()


def test_scores_of_other_candidates_are_not_taken_over():
    evidence = Evidence(CANDIDATES)
    gather(evidence)
    other = Evidence(CANDIDATES[::-1])
    other.recall(evidence.to_json())
    assert not other.shared
    other.recall([])
    assert not other.shared


def test_candidates_are_distinct():
    assert distinct([CANDIDATES[0], CANDIDATES[1], CANDIDATES[0], CANDIDATES[2]], 3) == CANDIDATES[:3]
    assert distinct([CANDIDATES[0]] * 5, 3) == CANDIDATES[:1]
