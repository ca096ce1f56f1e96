from rich.console import Console

from raydistal.pipelines.live import Live, grid
from raydistal.search.agenda import Agenda
from raydistal.search.strategies import Grid

POINT = {"set": "ranking", "data": 0.6842, "prune": 0.4291, "kd_weight": 0.1234, "tau": 0.0712, "negatives": 32}
POINT |= {"bits": 8}
VARIED = ["data", "prune", "kd_weight", "tau", "negatives", "bits"]


def test_table_fits_80_columns(capsys):
    measured = {"accuracy": 0.912, "num_params": 3_372_289, "size_mb": 13.51}
    rows = [POINT | {"seed": 0, "state": "epoch 12: 0.912"}, POINT | measured | {"seed": 1, "state": "[failed]"}]
    Console(width=80).print(grid(VARIED, rows, "accuracy", "search"))
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "search",
        "data prune weight tau K bits seed accuracy params MB",
        "0.6842 0.4291 0.1234 0.0712 32 8 0 - - - epoch 12: 0.912",
        "0.6842 0.4291 0.1234 0.0712 32 8 1 0.912 3.37 M 13.51 [failed]",
    ]


def test_lines_where_there_is_no_terminal(capsys):
    agenda = Agenda(Grid([POINT]), 2, {}, lambda rows: [1.0], lambda stage: False)
    with Live(["prune", "bits"], "auc", num_trials=2) as live:
        for status, told in (("ok", {"auc": 0.9, "size_mb": 1.0}), ("failed", {"auc": None, "error": "no\nluck"})):
            trial = agenda.next()
            live.show(agenda)
            live.tell(agenda, trial, {"epoch": 1, "score": 0.5})
            row = {"trial": trial.id, "seed": trial.seed, "status": status, "epochs": 1, **trial.point, **told}
            agenda.finish(trial, row)
            live.finish(agenda, trial, row)
    assert capsys.readouterr().err.splitlines() == [
        "search: 1/2 trials: prune=0.4291 bits=8 seed 0: auc 0.900, 1.00 MB",
        "search: 2/2 trials: prune=0.4291 bits=8 seed 1: failed, no",
    ]
