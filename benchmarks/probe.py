"""What a cross-validated probe costs, against scikit-learn in the same folds.

    python benchmarks/probe.py [--quick] [--json] [--rows N] [--width D] [--probe NAME]

Made-up states of one layer (4,000 rows, width 384) with a planted signal; five folds; everything in turn in this process, one
thread each, in paired rounds. Ridge: 28 penalties by generalised cross-validation, against StandardScaler and RidgeCV
over the same penalties. Logistic regression: five classes, the penalty chosen on a held-back fifth from five values,
against StandardScaler and LogisticRegression fitted at each value and once more. A figure is the median over rounds
of scikit-learn's time divided by ours; the last columns are the largest difference between the two predictions, and, of
logistic regression, the largest of each from the probabilities of a fit to a tolerance of 1e-7.
"""

import json
import statistics
import time
import warnings
from collections.abc import Callable

import _options
import numpy as np
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from layercache.analyze import logistic, ridge
from layercache.analyze.folds import held_back

FOLDS, CLASSES = 5, 5


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def sklearn_ridge(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> np.ndarray:
    out = np.empty(len(y))
    for fold in range(FOLDS):
        fitted = folds != fold
        scaler = StandardScaler().fit(x[fitted])
        model = RidgeCV(ridge.PENALTIES * fitted.sum()).fit(scaler.transform(x[fitted]), y[fitted])
        out[~fitted] = model.predict(scaler.transform(x[~fitted]))
    return out


def sklearn_logistic(x: np.ndarray, y: np.ndarray, folds: np.ndarray, inner: np.ndarray) -> np.ndarray:
    out = np.empty((len(y), CLASSES))
    for fold in range(FOLDS):
        fitted = folds != fold
        scaler = StandardScaler().fit(x[fitted])
        wide, target, back = scaler.transform(x[fitted]), y[fitted], held_back(inner[fitted])
        best = (np.inf, 0.0)
        for penalty in logistic.PENALTIES:
            model = LogisticRegression(C=penalty, max_iter=1000).fit(wide[~back], target[~back])
            loss = log_loss(target[back], model.predict_proba(wide[back]), labels=range(CLASSES))
            if loss >= best[0]:
                break
            best = (loss, penalty)
        model = LogisticRegression(C=best[1], max_iter=1000).fit(wide, target)
        out[~fitted] = model.predict_proba(scaler.transform(x[~fitted]))
    return out


def converged(x: np.ndarray, y: np.ndarray, folds: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The probabilities where every fold's fit goes on to a tolerance of 1e-7, at the C that it chose."""
    chosen = logistic.cross_validate(x, y[:, None], CLASSES, folds, inner).penalty[:, 0]
    out = np.empty((len(y), CLASSES))
    for fold, penalty in enumerate(chosen):
        fitted = folds != fold
        scores = logistic.fit(x[fitted], y[fitted], CLASSES, float(penalty), 1e-7).scores(x[~fitted])
        out[~fitted] = logistic.probabilities(scores)
    return out


def main() -> None:
    parser = _options.parser(__doc__, "fewer rows and rounds")
    parser.add_argument("--rows", type=int, help="4,000, or 1,000 of --quick, when not given")
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--probe", choices=["ridge", "logistic"], help="only this one")
    options = parser.parse_args()
    n, rounds = (1000, 3) if options.quick else (4000, 5)
    n, width = options.rows or n, options.width
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) / 20).astype(np.float32)
    signal = x @ rng.normal(size=(width, CLASSES)) / 20
    number = signal[:, 0] + rng.normal(size=n)
    classes = (signal + rng.gumbel(size=signal.shape)).argmax(axis=1)
    folds, inner = np.arange(n) % FOLDS, np.arange(n) // FOLDS % 5
    contests = {
        "ridge": (
            lambda: ridge.cross_validate(x, number[:, None], folds).prediction[:, 0],
            lambda: sklearn_ridge(x, number, folds),
        ),
        "logistic": (
            lambda: logistic.cross_validate(x, classes[:, None], CLASSES, folds, inner).probability[0],
            lambda: sklearn_logistic(x, classes, folds, inner),
        ),
    }
    figures: dict[str, float] = {}
    print(f"{n:,} rows, {width} wide, {FOLDS} folds, {rounds} rounds")
    print(
        f"{'probe':10} {'layercache s':>13} {'scikit-learn s':>15} {'ratio':>7} {'A/A':>6} {'difference':>11}{'ours from the optimum, theirs':>31}"
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, (ours, theirs) in contests.items():
            if options.probe not in (None, name):
                continue
            runs = [(timed(ours), timed(theirs), timed(ours)) for _ in range(rounds)]
            ratio = statistics.median(b[0] / a[0] for a, b, _ in runs)
            again = statistics.median(c[0] / a[0] for a, _, c in runs)
            seconds = [statistics.median(run[i][0] for run in runs) for i in (0, 1)]
            gap = float(np.abs(runs[0][0][1] - runs[0][1][1]).max())
            line = f"{name:10} {seconds[0]:13.2f} {seconds[1]:15.2f} {ratio:7.2f} {again:6.2f} {gap:11.1e}"
            if name == "logistic":
                best = converged(x, classes, folds, inner)
                off = [float(np.abs(runs[0][i][1] - best).max()) for i in (0, 1)]
                line += f"{off[0]:>20.1e}{off[1]:>11.1e}"
                figures |= {"ours_from_optimum": off[0], "sklearn_from_optimum": off[1]}
            print(line)
            figures |= {f"sklearn_over_{name}": round(ratio, 2), f"{name}_a_over_a": round(again, 2)}
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
