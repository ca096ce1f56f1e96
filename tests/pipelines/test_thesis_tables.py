"""jobs/papers/thesis_tables.py without its trainings."""

import pytest


@pytest.fixture
def job(load_paper):
    return load_paper("thesis_tables")


def test_what_the_thesis_says_is_the_default(job):
    """5.2.1: frames; table 5.1.3.3.1: faces to train on; 5.7.4: steps; 6.2.5: the teacher and its weight."""
    config = job.Config(videos="v", out="/run")
    extracted, plan = config.to_extract(), config.plan()
    assert (extracted.sample, extracted.sample_fake) == ("every:30", "random:10")
    assert {(one.limits.max_real, one.limits.max_per_method) for one in plan.values()} == {(7_000, 2_100)}
    pruned, tuned = plan["kd-pruned-35"], plan["kd-25-tuned"]
    assert (pruned.ratio, pruned.steps, pruned.scope, pruned.recipe) == (0.35, 5, "global", "finetune")
    assert pruned.detector == tuned.out
    assert {one.teaching.alpha for one in (pruned, tuned)} == {0.25}
    assert {one.teaching.teachers for one in (pruned, tuned)} == {(plan["b0-tuned"].out,)}
    assert (plan["one-shot-20"].steps, plan["local-5"].scope) == (1, "local")
    assert set(plan) == set(job.PAPER)


def test_frames_are_the_same_of_all_videos_if_asked_for(job):
    extracted = job.Config(videos="v", out="/run", sample="even:3").to_extract()
    assert (extracted.sample, extracted.sample_fake) == ("even:3", "")
