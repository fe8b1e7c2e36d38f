"Metrics against scikit-learn on random score tables"
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hff.metrics import auc_difference, bootstrap_auc, eer, evaluate, frame_auc, interval, pool_videos, rank_auc, video_auc
from hff.paths import HffError


def table(seed=0, people=10, methods=('DF', 'NT'), decimals=2):
    "Score table with uneven videos and ties"
    rng = np.random.default_rng(seed)
    rows = [('t', m, 'c23', f'{p:03d}', f, int(m != 'real'), rng.normal() + (m != 'real'))
            for m in ('real', *methods) for p in range(people) for f in range(rng.integers(1, 5))]
    d = pd.DataFrame(rows, columns='dataset method quality video frame label logit'.split())
    return d.assign(score=(1/(1 + np.exp(-d.logit))).round(decimals), status='ok')


def test_rank_auc_and_eer():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 40))
        y, s = np.r_[0, 1, rng.integers(0, 2, n)], rng.integers(0, 7, n+2)       # few values: many ties
        assert rank_auc(y, s) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
        assert rank_auc(1-y, s) == pytest.approx(1-rank_auc(y, s), abs=1e-12)
        assert eer(1-y, -s) == pytest.approx(eer(y, s), abs=1e-9)                # swapping the classes mirrors the curve


def test_levels_and_identity():
    d = table()
    v = d.groupby(['method', 'video']).agg(label=('label', 'first'), score=('score', 'mean'))
    assert frame_auc(d) == pytest.approx(roc_auc_score(d.label, d.score), abs=1e-12)
    assert video_auc(d) == pytest.approx(roc_auc_score(v.label, v.score), abs=1e-12)
    two = pd.concat([d, d.assign(quality='c40')])
    assert len(pool_videos(two)) == 2*len(pool_videos(d)) == 60    # same names in another quality are other videos


def test_bootstrap_centre_and_strata():
    d = table(people=60)
    for pool, point in ((None, frame_auc(d)), ('mean', video_auc(d))):
        b = bootstrap_auc(d, pool)
        lo, hi = interval(b)
        assert lo < point < hi and abs(b.mean()-point) < .01
        assert (b == bootstrap_auc(d, pool)).all() and (b != bootstrap_auc(d, pool, seed=1)).any()
    order = d.sample(frac=1, random_state=0)
    assert np.allclose(bootstrap_auc(order), bootstrap_auc(d))     # the order of the rows decides nothing


def test_evaluate_rows_status_and_errors():
    d = table()
    d.loc[d.method.eq('DF') & d.video.eq('003'), ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    t = evaluate(d, draws=50, min_coverage=.9).set_index('method')
    assert list(t.index) == ['DF', 'NT'] and t.coverage['DF'] == pytest.approx(19/20) and t.coverage['NT'] == 1
    assert t.n_fake['DF'] == 9 and t.frame_prevalence['NT'] == pytest.approx(d[d.method.isin(['NT', 'real'])].label.mean())
    with pytest.raises(HffError, match='only 95.0%'): evaluate(d, min_coverage=.99)
    with pytest.raises(HffError, match='both are needed'): evaluate(d[d.label.eq(1)])
    with pytest.raises(HffError, match='not finite'): frame_auc(d.assign(status='ok'))
    with pytest.raises(HffError, match='no scored frame'): auc_difference(d, d.assign(quality='c40'))
