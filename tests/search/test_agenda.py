from raydistal.search.agenda import Agenda, Trial
from raydistal.search.strategies import Grid

FIXED = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}


def agenda_of(points, num_seeds=1, rows=None, made=(), **options):
    def judge(rows):
        return None if any(row["status"] == "failed" for row in rows) else [len(rows)]

    return Agenda(Grid(points), num_seeds, rows if rows is not None else {}, judge, set(made).__contains__, **options)


def row_of(trial, status="ok"):
    return {"trial": trial.id, "seed": trial.seed, "status": status, "epochs": 3, **trial.point}


def test_stages_of_a_trial():
    trials = [Trial(FIXED | {"prune": prune, "bits": bits}, 0) for prune in (0.0, 0.5) for bits in (32, 8)]
    plain, quantized, pruned, both = (trial.stages for trial in trials)
    assert plain == quantized[:1] == pruned[:1] == both[:1]
    assert pruned == both[:2]
    assert [name.split("-")[0] for name in both] == ["train", "prune", "int8"]
    assert quantized[1] != both[2]
    assert Trial(FIXED, 1).stages[0] != plain[0]
    assert [Trial.of(row_of(trial)) for trial in trials] == trials


def test_what_two_trials_share_is_made_once():
    made = []
    points = [FIXED | {"alpha": alpha, "prune": prune} for alpha in (0.0, 1.0) for prune in (0.3, 0.5)]
    agenda = agenda_of(points, made=made)
    agenda.is_made = made.__contains__
    first, second = agenda.next(), agenda.next()
    assert [trial.point for trial in (first, second)] == [points[0], points[2]]  # the others wait for their students
    assert agenda.next() is None
    assert not agenda.is_finished
    made.append(first.stages[0])  # trained, not pruned yet
    third = agenda.next()
    assert third.point == points[1]
    for trial in (first, third, second):
        agenda.finish(trial, row_of(trial))
    last = agenda.next()
    assert last.point == points[3]
    agenda.finish(last, row_of(last, "failed"))
    assert agenda.next() is None
    assert agenda.is_finished


def test_agenda_runs_what_has_no_row():
    points = [FIXED | {"prune": prune} for prune in (0.0, 0.3)]
    known = [Trial(points[0], 0), Trial(points[0], 1), Trial(points[1], 1)]
    agenda = agenda_of(points, num_seeds=2, rows={trial.id: row_of(trial) for trial in known})
    trial = agenda.next()
    assert trial == Trial(points[1], 0)
    assert agenda.next() is None
    agenda.finish(trial, row_of(trial))
    assert agenda.is_finished
    assert [row["seed"] for row in agenda.rows_of(points[1])] == [0, 1]
