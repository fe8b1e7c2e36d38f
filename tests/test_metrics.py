"Metrics against scikit-learn on random score tables"
import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score, roc_curve

from hff.metrics import (CONTROLS, POLICIES, POOLS, auc_difference, average_precision, bootstrap_auc, class_accuracy, coverage_line, eer, evaluate,
                         frame_auc, impute_half, interval, partial_auc, pool_videos, rank_auc, tpr_at_fpr, tpr_text, video_auc, video_rows)
from hff.paths import HffError
from hff.scores import SCORE_COLUMNS, check_scores, logit_of, read_scores, write_scores


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


def holes(d, seed=0, share=.2):
    "The table with rows that have no score"
    out = np.random.default_rng(seed).random(len(d)) < share
    status = np.where(np.arange(len(d)) % 2, 'error', 'missing')
    return d.assign(score=d.score.mask(out), logit=d.logit.mask(out), status=np.where(out, status, 'ok'))


def random_sets(n=60, most=50):
    "Labels and scores with many ties, both classes there"
    for seed in range(n):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, most))
        yield np.r_[0, 1, rng.integers(0, 2, k)], rng.integers(0, int(rng.integers(2, 12)), k+2)/10   # .5 itself among them


def test_metrics_against_others():
    for y, s in random_sets():
        assert rank_auc(y, s) == pytest.approx(mannwhitneyu(s[y==1], s[y==0]).statistic/((y==1).sum()*(y==0).sum()), abs=1e-12)
        assert average_precision(y, s) == pytest.approx((average_precision_score(y, s), y.mean()), abs=1e-12)
        assert class_accuracy(y, s) == pytest.approx([recall_score(y, s>=.5, pos_label=c) for c in (0, 1)], abs=1e-12)
        for f in (.1, .5, 1): assert partial_auc(y, s, f) == pytest.approx(mcclish(y, s, f), abs=1e-9)


def mcclish(y, s, f):
    "Standardised partial area: vertices up to f, the line to f, trapezoids"
    x, t = map(np.array, zip(*sorted({((s[y==0]>=c).mean(), (s[y==1]>=c).mean()) for c in [*s, np.inf]})))
    i = np.flatnonzero(x <= f)[-1]
    at_f = t[i] if x[i] == f else t[i] + (f-x[i])*(t[i+1]-t[i])/(x[i+1]-x[i])
    x, t = np.r_[x[:i+1], f], np.r_[t[:i+1], at_f]
    return .5*(1 + (sum((x[1:]-x[:-1])*(t[1:]+t[:-1])/2) - f*f/2)/(f - f*f/2))


def test_tpr_at_fpr_by_every_threshold():
    for y, s in random_sets():
        n = (y==0).sum()
        for f in (.01, .1, .3, 1):
            got, step = tpr_at_fpr(y, s, f)
            assert step == 1/n
            if f < step: assert np.isnan(got)
            else: assert got == pytest.approx(max((s[y==1]>=c).mean() for c in [*s, np.inf] if (s[y==0]>=c).mean() <= f), abs=1e-12)
    for n in range(1, 200):        # k of n reals above the fakes' threshold: k/n is allowed at FPR k/n, whatever floats do
        y, s = np.r_[np.zeros(n, int), 1], np.r_[np.linspace(0, 1, n), 2]
        assert tpr_at_fpr(y, s, 1/n) == (1, 1/n)
    with pytest.raises(HffError, match='lies in'): tpr_at_fpr([0, 1], [0, 1], 0)


def test_eer_worked_example():
    "Nearest vertex .333, on the line between vertices .5"
    y, s = np.array([0, 0, 0, 1, 1, 1, 1]), np.array([.26, .30, .81, .09, .60, .73, .19])
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    assert fpr[np.argmin(abs(1-tpr-fpr).round(9))] == pytest.approx(1/3) and eer(y, s) == pytest.approx(.5, abs=1e-12)


def test_evaluate_columns():
    d = table(people=40, decimals=9)       # means of rounded scores may tie, or not, by the order of a sum
    t = evaluate(d, draws=50).set_index('method')
    for m in ('DF', 'NT'):
        s = d[d.method.isin([m, 'real'])]
        v = s.groupby(['method', 'video']).agg(label=('label', 'first'), score=('score', 'mean'))
        for level, x in (('frame', s), ('video', v)):
            both = [recall_score(x.label, x.score>=.5, pos_label=c) for c in (0, 1)]
            assert t.loc[m, [f'{level}_acc_real', f'{level}_acc_fake']].tolist() == pytest.approx(both)
            assert t.loc[m, f'{level}_pauc'] == pytest.approx(roc_auc_score(x.label, x.score, max_fpr=.1), abs=1e-12)
            assert t.loc[m, f'{level}_fpr_resolution'] == pytest.approx(1/x.label.eq(0).sum())
            assert t.loc[m, f'{level}_tpr_at_fpr10'] == tpr_at_fpr(x.label, x.score, .1)[0]
    assert t.video_tpr_at_fpr01.isna().all() and t.listed.tolist() == t.scored.tolist() == [80, 80] and t.policy.eq('strict').all()
    text = tpr_text(t)
    assert text.video_tpr_at_fpr01.eq('not resolvable, one real is 2.5%').all() and text.video_tpr_at_fpr10.str.fullmatch(r'[01]\.[0-9]{3}').all()
    mixed = evaluate(d.sample(frac=1, random_state=1), draws=50).set_index('method')
    assert np.allclose(mixed.select_dtypes('number'), t.select_dtypes('number'), equal_nan=True)      # the order of the rows decides nothing


def test_policies():
    d = table(people=20)
    lost = d.method.eq('DF') & d.video.lt('005') | d.method.eq('real') & d.video.eq('007')
    d.loc[lost, ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    with pytest.raises(HffError, match='only 85.0%'): evaluate(d)
    for name in ('ok_only', 'impute_0.5'):
        t = evaluate(d, draws=20, policy=name).set_index('method').loc['DF']
        v = pool_videos(d[d.method.isin(['DF', 'real'])])
        v = v.dropna(subset='score') if name == 'ok_only' else v.fillna(dict(score=.5))
        assert t.video_auc == pytest.approx(roc_auc_score(v.label, v.score), abs=1e-12)
        assert (t.listed, t.scored, t.n_videos, t.coverage, t.policy) == (40, 34, len(v), pytest.approx(.85), name)
    with pytest.raises(HffError, match=', '.join(POLICIES)): evaluate(d, policy='half')


def test_a_lost_score_is_never_a_half():
    "Unless it is asked for by name, and then only for videos without any scored frame"
    for seed in range(10):
        d = holes(table(seed, decimals=6), seed, .5)
        for pool in POOLS:
            v = pool_videos(d, pool)
            assert v.score.isna().equals(v.n_frames.eq(0)) and not v.score.eq(.5).any()
            r = video_rows(d, pool)
            assert r.score.isna().equals(r.status.ne('ok')) and r.logit.isna().equals(r.status.ne('ok')) and list(r)[:9] == SCORE_COLUMNS
        ok = d[d.status.eq('ok')]
        assert frame_auc(d) == frame_auc(ok) and video_auc(d) == pytest.approx(video_auc(ok), abs=1e-12)
        i = check_scores(impute_half(d))
        gone = pool_videos(d).n_frames.eq(0)
        assert pool_videos(i).score[gone].eq(.5).all() and np.allclose(pool_videos(i).score[~gone], pool_videos(d).score[~gone])
        assert i.score.eq(.5).sum() == pool_videos(d).n_listed[gone].sum()


def test_one_class_or_no_score():
    d = table()
    for bad in (d[d.label.eq(0)], d[d.label.eq(1)], d.assign(status='error', score=np.nan)):
        for f in (frame_auc, video_auc, bootstrap_auc):
            with pytest.raises(HffError, match='needs real'): f(bad)
    for f in (tpr_at_fpr, partial_auc, class_accuracy, average_precision, eer):
        with pytest.raises(HffError, match='real \\(0\\) and fake \\(1\\)'): f([1, 1], [.2, .3], *([.1] if f is tpr_at_fpr else []))
        with pytest.raises(HffError, match='not finite'): f([0, 1], [.2, np.nan], *([.1] if f is tpr_at_fpr else []))


def test_coverage_line():
    d = table(people=140)
    d.loc[d.method.eq('DF') & d.video.isin(['003', '017', '100']), ['score', 'logit', 'status']] = np.nan, np.nan, 'missing'
    assert coverage_line(d[d.method.eq('DF')]) == 'scored 137 of 140 listed videos (97.9 %): DF (fake) 137 of 140'
    assert coverage_line(d) == 'scored 417 of 420 listed videos (99.3 %): real 140 of 140, DF (fake) 137 of 140, NT (fake) 140 of 140'
    many = pd.DataFrame(dict(dataset='t', method='DF', quality='', video=[f'{i:04d}' for i in range(3000)], frame=0, label=1, score=.5, logit=0., status='ok'))
    many.loc[0, ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    assert '2999 of 3000 listed videos (99.9 %)' in coverage_line(many)         # 99.97 does not become 100
    control = d[d.method.eq('real')].assign(method=CONTROLS[0])
    assert coverage_line(pd.concat([d, control])).endswith('touched (real) 140 of 140, DF (fake) 137 of 140, NT (fake) 140 of 140')


def test_further_columns_survive(tmp_path):
    d = table().assign(x_width=7, reason='', scratch=1, face=0)
    write_scores(d, tmp_path/'s.parquet')
    assert list(read_scores(tmp_path/'s.parquet')) == [*SCORE_COLUMNS, 'face', 'reason', 'x_width']
    z = logit_of([0, 1e-300, .25, 1, np.nan])
    assert np.isfinite(z[:4]).all() and np.isnan(z[4]) and z[2] == pytest.approx(np.log(1/3)) and z[3] == pytest.approx(-z[0])
