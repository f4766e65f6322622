"""A logistic regression on the same features: the line every model must beat."""

from __future__ import annotations

import warnings

import numpy as np
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from octavo.data import Batch, EventLog
from octavo.evaluation import Quality, quality

EVENTS_AT_ONCE = 1 << 16  # of held-out events, whatever scores them


def logistic_regression(log: EventLog, train_end: int, task: str, max_events: int = 200_000) -> Quality | None:
    """Held-out quality of one L2 logistic regression on one-hot ids (no sequences) and standardised dense features.

    Weighted as the models are. Fitted at once on the last ``max_events`` training events, so unlike a streaming model
    it sees them together.
    None where their known labels are all the same (or none): there is nothing to tell apart.
    """
    train = log.read(max(0, train_end - max_events), train_end)
    label = train.labels[task].numpy()
    known = ~np.isnan(label)
    if len(np.unique(label[known])) < 2:
        return None
    scaler = StandardScaler().fit(train.dense.numpy()) if train.dense.shape[1] else None
    model = LogisticRegression(max_iter=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 60 steps are enough for a baseline
        model.fit(_features(log, train, scaler)[known], label[known], train.weight.numpy()[known])
    found = [
        (model.predict_proba(_features(log, test, scaler))[:, 1], test.labels[task].numpy(), test.weight.numpy())
        for test in log.batches(EVENTS_AT_ONCE, train_end)
    ]
    predictions, labels, weights = (np.concatenate(column) for column in zip(*found, strict=True))
    return quality(predictions, labels, weights)


def _features(log: EventLog, batch: Batch, scaler: StandardScaler | None) -> sp.csr_matrix:
    """[B, sum of table rows + dense] with the count of each id."""
    sizes = [feature.rows for feature in log.schema.sparse]
    first = np.concatenate([[0], np.cumsum(sizes)])
    offsets, values = batch.sparse.offsets.numpy(), batch.sparse.values.numpy()
    lengths = np.diff(offsets)
    feature = np.repeat(np.repeat(np.arange(len(sizes)), len(batch)), lengths)
    event = np.repeat(np.tile(np.arange(len(batch)), len(sizes)), lengths)
    for position, column in enumerate(log.schema.sparse):
        if column.dynamic:  # any 64-bit ids
            own = slice(offsets[position * len(batch)], offsets[(position + 1) * len(batch)])
            values = np.concatenate([values[: own.start], values[own] % column.rows, values[own.stop :]])
    ones = np.ones(len(values), dtype=np.float32)
    shape = (len(batch), int(first[-1]))
    one_hot = sp.csr_matrix((ones, (event, values + first[feature])), shape=shape)
    if scaler is None:
        return one_hot
    return sp.hstack([one_hot, sp.csr_matrix(scaler.transform(batch.dense.numpy()))], format="csr")
