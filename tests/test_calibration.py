"Calibration and comparison against other ways to compute the same numbers"
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq, minimize
from scipy.special import expit
from scipy.stats import norm
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from hff.calibration import (aurc, brier, calibrate, calibration_table, ece, ece_if_right, error_draws, fit_calibration, for_video_file, nll, read_calibration, reliability,
                             risk_coverage, show_risk, write_calibration)
from hff.compare import compare, deepfakebench_groups, deepfakebench_video_auc, delong, delong_test, holm, target_draws, targets_of
from hff.exchange import export_videos
from hff.metrics import accuracy, average_precision, eer, evaluate, interval, pool_videos, rank_auc, video_auc, video_rows
from hff.paths import HffError
from hff.scores import check_scores


def table(seed=0, people=30, first=0, scale=30., methods=('real', 'DF', 'NT'), lost=.1):
    "Score table with small logits, uneven videos and rows without a score"
    rng = np.random.default_rng(seed)
    rows = [(m, f'{p+first:03d}', f, int(m != 'real'), (v + rng.normal() + 1.5*(m != 'real') - 1)/scale)
            for m in methods for p in range(people) for v in [rng.normal()] for f in range(rng.integers(2, 6))]
    d = pd.DataFrame(rows, columns='method video frame label logit'.split()).assign(dataset='t', quality='c23')
    gone = rng.random(len(d)) < lost
    d = d.assign(logit=d.logit.mask(gone), status=np.where(gone, 'error', 'ok'))
    return check_scores(d.assign(score=expit(d.logit)))


def test_errors_of_probabilities():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        y, z = np.r_[0, 1, rng.integers(0, 2, 40)], rng.normal(size=42).round(1)
        assert brier(y, expit(z)) == pytest.approx(brier_score_loss(y, expit(z)), abs=1e-12)
        assert nll(y, z) == pytest.approx(log_loss(y, expit(z)), abs=1e-9)
        r = reliability(y, expit(z), 5)
        assert r.n.sum() == 42 and (r.n @ r.score)/42 == pytest.approx(expit(z).mean()) and (r.n @ r.fakes)/42 == pytest.approx(y.mean())
        mix = rng.permutation(42)
        assert ece(y[mix], expit(z)[mix]) == pytest.approx(ece(y, expit(z)), abs=1e-12)      # ties in any order


def test_ece_by_hand():
    "Gaps .15, .05 and .2, a third of the scores each"
    assert ece([0, 0, 1, 0, 1, 1], [.1, .2, .4, .5, .7, .9], bins=3) == pytest.approx(.4/3, abs=1e-12)
    s = np.random.default_rng(0).random(150)                 # without ties: the slices of the sorted scores
    y = (np.random.default_rng(1).random(150) < s).astype(int)
    by_slices = np.mean([abs(s[i].mean()-y[i].mean()) for i in np.array_split(np.argsort(s), 15)])
    assert ece(y, s) == pytest.approx(by_slices, abs=1e-12)


def test_temperature_is_the_optimum():
    for seed in range(8):
        val = table(seed, scale=[1, 30, 1000][seed % 3])
        ok = val[val.status.eq('ok')]
        y, z = ok.label.to_numpy(), ok.logit.to_numpy()
        T, unit = fit_calibration(val).params['temperature'], 1/z.std()
        root = brentq(lambda a: (z*(expit(a*unit*z)-y)).mean(), 1e-4, 1e4)                   # where the derivative of the NLL is zero
        assert T*root*unit == pytest.approx(1, abs=1e-5)
        P = fit_calibration(val, 'platt').params
        w = minimize(lambda w: nll(y, w[0]*unit*z + w[1]), [1, 0], tol=1e-10).x
        assert [P['slope']/unit, P['offset']] == pytest.approx(w, abs=2e-3)
        assert nll(y, P['slope']*z + P['offset']) <= nll(y, z/T) + 1e-9 <= nll(y, z) + 2e-9


def test_order_is_kept_by_temperature():
    val, test = table(0), table(1, first=500)
    after = calibrate(test, fit_calibration(val))
    a, b = test[test.status.eq('ok')], after[after.status.eq('ok')]
    assert [rank_auc(b.label, b.score), average_precision(b.label, b.score)[0], eer(b.label, b.score)] == pytest.approx(
        [rank_auc(a.label, a.score), average_precision(a.label, a.score)[0], eer(a.label, a.score)], abs=1e-12)
    assert np.array_equal(b.score.rank(), a.score.rank())
    for m in ('DF', 'NT'):
        x, y = (pool_videos(t[t.method.isin([m, 'real'])], 'mean_logit').score.rank() for t in (test, after))
        assert np.array_equal(x, y, equal_nan=True)
    x, y = (evaluate(t, pool='mean_logit', draws=5, policy='ok_only').video_auc.tolist() for t in (test, after))
    assert x == pytest.approx(y, abs=1e-12)
    big = test.assign(logit=test.logit*30, score=expit(test.logit*30))
    assert not np.array_equal(pool_videos(test).score.rank(), pool_videos(big).score.rank(), equal_nan=True)      # mean of probabilities: the scale matters


def test_calibration_improves_and_keeps_rows():
    val, test = table(0, people=80), table(1, people=80, first=500)
    for method in ('temperature', 'platt', 'isotonic'):
        for pool in ('', 'mean', 'mean_logit'):
            how = fit_calibration(val, method, pool)
            after, before = calibrate(test, how), video_rows(test, pool) if pool else test
            assert after.status.tolist() == before.status.tolist() and after.score.isna().tolist() == before.score.isna().tolist()
            ok = after.status.eq('ok')
            assert ece(after.label[ok], after.score[ok]) < ece(before.label[ok], before.score[ok])
            assert brier(after.label[ok], after.score[ok]) < brier(before.label[ok], before.score[ok])
    t = calibration_table(dict(raw=test, after=calibrate(test, fit_calibration(val))))
    assert t.n.tolist() == [test.status.eq('ok').sum(), 240]*2 and t.auc[0] == pytest.approx(t.auc[2], abs=1e-12)


def test_provenance_and_refusals(tmp_path):
    val, test = table(0), table(1, first=500)
    how = fit_calibration(val, pool='mean', split='val')
    assert how.fitted_on['split'] == 'val' and how.fitted_on['n_videos'] == how.fitted_on['n_rows'] == len(how.videos) and how.fitted_on['datasets'] == ['t']
    assert how.fitted_on['sha256'] == fit_calibration(val.sample(frac=1, random_state=0), pool='mean').fitted_on['sha256']
    assert how.fitted_on['sha256'] != fit_calibration(table(2), pool='mean').fitted_on['sha256']
    write_calibration(how, tmp_path/'c.json')
    assert read_calibration(tmp_path/'c.json') == how
    export_videos(calibrate(test, how), tmp_path/'x.scores.csv', 'mean', 'rgb', 'test', calibration=for_video_file(how))
    with pytest.raises(HffError, match='fitted on other|was fitted on'): calibrate(val, how)
    with pytest.raises(HffError, match='1 videos, first t/DF/c23/000'): calibrate(pd.concat([test, val[val.video.eq('000') & val.method.eq('DF')]]), how)
    calibrate(val.assign(quality='c40'), how)                     # another quality is another video
    ok = val[val.status.eq('ok')]
    for bad, say in ((ok.assign(logit=ok.label-.5), 'without a mistake'), (ok.assign(logit=-ok.logit), 'chance'), (ok.assign(logit=0.), 'chance'),
                     (ok[ok.label.eq(1)], 'needs real')):
        with pytest.raises(HffError, match=say): fit_calibration(bad.assign(score=expit(bad.logit)))
    (tmp_path/'c.json').write_text('[]')
    with pytest.raises(HffError, match='no calibration'): read_calibration(tmp_path/'c.json')


def components(y, S):
    "DeLong's covariance by the definition: every fake against every real"
    win = lambda a, b: 1. if a > b else .5 if a == b else 0.
    v10 = np.array([[np.mean([win(x, r) for r in s[y==0]]) for x in s[y==1]] for s in S])
    v01 = np.array([[np.mean([win(x, r) for x in s[y==1]]) for r in s[y==0]] for s in S])
    return np.cov(v10)/(y==1).sum() + np.cov(v01)/(y==0).sum()


def test_delong_against_the_definition():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        y = np.r_[0, 0, 1, 1, rng.integers(0, 2, int(rng.integers(0, 40)))]
        S = rng.normal(size=(3, len(y))).round(int(rng.integers(0, 2))) + y                  # many ties
        auc, cov = delong(y, S)
        assert np.allclose(cov, components(y, S), atol=1e-14) and np.allclose(auc, [roc_auc_score(y, s) for s in S], atol=1e-12)
        r = delong_test(y, S[0], S[1])
        sd = np.sqrt(max(0, cov[0,0]+cov[1,1]-2*cov[0,1]))
        if sd > 1e-9:
            assert r['p'] == pytest.approx(2*(1-norm.cdf(abs(auc[0]-auc[1])/sd)), abs=1e-9) and r['hi']-r['lo'] == pytest.approx(2*1.959964*sd, rel=1e-6)
        assert delong_test(y, S[0], S[0])['p'] == 1 and delong_test(1-y, -S[0], -S[1])['p'] == pytest.approx(r['p'], abs=1e-9, nan_ok=True)


def test_delong_against_permutation():
    "Exchange the two detectors video by video: nearly the same p"
    rng = np.random.default_rng(4)
    y = np.arange(160) % 2
    a = y + rng.normal(size=160)
    b = .4*y + .5*a + rng.normal(size=160)
    a, b = (pd.Series(s).rank().to_numpy() for s in (a, b))          # the same scale, so that they may be exchanged
    d, null = rank_auc(y, a)-rank_auc(y, b), []
    for _ in range(1500):
        flip = rng.random(160) < .5
        null.append(rank_auc(y, np.where(flip, b, a)) - rank_auc(y, np.where(flip, a, b)))
    assert np.mean(np.abs(null) >= abs(d)) == pytest.approx(delong_test(y, a, b)['p'], abs=.03)


def test_holm_by_hand():
    assert holm([.01, .04, .03, .005]).tolist() == pytest.approx([.03, .06, .06, .02])      # .005 x 4, .01 x 3, .03 x 2, then .04 x 1 < .06
    assert holm([.9, .8]).tolist() == [1, 1] and holm([np.nan, .02]).tolist()[1] == .02
    for seed in range(20):
        p = np.random.default_rng(seed).random(6)/20
        h = holm(p)
        assert (h >= p).all() and (np.diff(h[np.argsort(p)]) >= 0).all() and h.min() == pytest.approx(min(1, 6*p.min()))
        assert np.allclose(h[::-1], holm(p[::-1]))


def test_compare_uses_what_all_have_scored():
    a, b, c = table(0, lost=0), table(0, lost=0).assign(logit=lambda d: d.logit + np.random.default_rng(1).normal(size=len(d))/10), table(0, lost=0)
    b['score'] = expit(b.logit)
    b.loc[b.video.isin(['003', '004']) & b.method.eq('DF'), ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    c.loc[c.video.eq('009'), ['score', 'logit', 'status']] = np.nan, np.nan, 'missing'
    t = compare(dict(a=a, b=b, c=c), 'a').set_index('detector')
    out = lambda s: s[~(s.video.isin(['003', '004']) & s.method.eq('DF')) & s.video.ne('009')]
    assert (t.n == 85).all() and (t.dropped == 5).all() and t.auc.b == pytest.approx(video_auc(out(b)))
    assert t.auc_reference.tolist() == pytest.approx([video_auc(out(a))]*2)
    assert np.allclose(t.p_holm, holm(t.p)) and t.difference.b == pytest.approx(t.auc.b-t.auc_reference.b) and (t.n_real+t.n_fake == t.n).all()
    by = compare(dict(a=a, b=b, c=c), 'a', target=lambda video: video, draws=300).set_index('detector')
    assert np.allclose(by.difference, t.difference) and by.how.eq('bootstrap over 29 people').all()
    assert (by.lo <= by.difference).all() and (by.difference <= by.hi).all()
    mixed = compare(dict(a=a.sample(frac=1, random_state=0), b=b, c=c), 'a').set_index('detector')
    assert np.allclose(mixed[['auc', 'lo', 'hi', 'p']], t[['auc', 'lo', 'hi', 'p']])
    with pytest.raises(HffError, match='needs real'): compare(dict(a=a[a.label.eq(1)], b=b[b.label.eq(1)]), 'a')


def test_people_move_together():
    v = pool_videos(table(3, lost=0))
    people = targets_of(v, lambda name: name)
    w = np.random.default_rng(7).multinomial(30, np.full(30, 1/30), size=4)
    for k, draw in enumerate(target_draws(v, people, 4, seed=7)):
        rows = np.repeat(np.arange(len(v)), w[k][v.video.astype(int)])
        assert draw == pytest.approx(roc_auc_score(v.label.iloc[rows], v.score.iloc[rows]), abs=1e-12)
    one = target_draws(v.iloc[[0, 30, 60]], ['a', 'b', 'c'], 200)           # draws with one class only are nan, not a guess
    assert np.isnan(one).any() and set(one[~np.isnan(one)]) <= {0., .5, 1., *one[~np.isnan(one)]}
    assert interval(target_draws(v, people))[0] < rank_auc(v.label, v.score) < interval(target_draws(v, people))[1]


def test_deepfakebench_rule():
    "Folder names: four fakes in one group, label = floor of the mean label"
    def step_by_step(s):
        groups = {}
        for name, y, p in zip(s.video, s.label, s.score): groups.setdefault(name, []).append((p, y))
        return roc_auc_score([int(sum(y for _, y in f)/len(f)) for f in groups.values()], [sum(p for p, _ in f)/len(f) for f in groups.values()])
    d = table(0, methods=('real', 'DF', 'F2F', 'FS', 'NT'), lost=0)
    ffpp = d.assign(video=np.where(d.label.eq(1), d.video+'_x', d.video))
    g = deepfakebench_groups(ffpp)
    assert len(g) == 60 and len(pool_videos(ffpp)) == 150 and g.n_videos.tolist() == [1, 4]*30 and g.n_frames.sum() == len(d)
    assert deepfakebench_video_auc(ffpp) == pytest.approx(step_by_step(ffpp), abs=1e-12) != pytest.approx(video_auc(ffpp), abs=1e-3)
    assert deepfakebench_groups(d).label.eq(0).all()                        # real and fake under one name: all 'real'
    single = ffpp[ffpp.method.isin(['real', 'DF'])]
    assert deepfakebench_video_auc(single) == pytest.approx(video_auc(single), abs=1e-12)


# ---- how sure the errors are; risk over coverage

def test_error_draws():
    t = table(3)
    ok = t[t.status.eq('ok')]
    for metric, value in (('brier', brier(ok.label, ok.score)), ('nll', nll(ok.label, ok.logit))):
        d = error_draws(t, metric, 400)
        assert len(d) == 401 and d[0] == pytest.approx(value, abs=1e-12)
        assert interval(d[1:])[0] < value < interval(d[1:])[1] and np.array_equal(d, error_draws(t, metric, 400))
    after = calibrate(t, fit_calibration(table(0, first=500)))
    a, b = (error_draws(x, 'brier', 400) for x in (t, after))
    assert interval((a-b)[1:])[0] > 0 and (a-b)[1:].std() < b[1:].std()             # paired
    with pytest.raises(HffError, match='brier, nll'): error_draws(t, 'ece')


def test_error_draws_take_videos():
    "With every frame of a video the same, the interval is that of the videos and not narrower"
    t = table(4, lost=0.)
    one = t.groupby(['dataset', 'method', 'quality', 'video'], sort=False).head(1)
    eight = pd.concat([one.assign(frame=f) for f in range(8)])
    assert error_draws(eight, 'brier', 50) == pytest.approx(error_draws(one, 'brier', 50), abs=1e-12)


def test_ece_if_right():
    rng = np.random.default_rng(0)
    p = expit(rng.normal(0, 2, 150))
    limit = ece_if_right(p)
    below = np.mean([ece((rng.random(150) < p).astype(int), p) < limit for _ in range(150)])
    assert below == pytest.approx(.95, abs=.05) and limit == ece_if_right(p)
    assert ece((rng.random(150) < expit(3*(p-.5))).astype(int), p) > limit          # scores that say too much
    assert ece_if_right(np.tile(p, 20)) < limit/2                                    # more videos, less chance


def test_risk_by_hand():
    assert aurc([1, 0, 1, 0], [.95, .9, .7, .4]) == pytest.approx((0+1/2+1/3+1/4)/4)
    r = risk_coverage([1, 0, 1, 0], [.95, .9, .7, .4])
    assert r.coverage.tolist() == pytest.approx([.25, .5, .75, 1]) and r.risk.tolist() == pytest.approx([0, 1/2, 1/3, 1/4])
    tied = risk_coverage([0, 1, 1, 1], [.9]*4)
    assert len(tied) == 1 and tied.risk[0] == .25 and aurc([0, 1, 1, 1], [.9]*4, balanced=True) == .5
    assert aurc([0, 1], [.2, .9]) == 0 and aurc([1, 0], [.2, .9]) == 1


def test_risk_properties():
    for seed in range(10):
        t = table(seed, lost=0.)
        y, p = t.label.to_numpy(), expit(30*t.logit.to_numpy()-1)
        for balanced in (False, True):
            r = risk_coverage(y, p, .4, balanced)
            assert r.coverage.is_monotonic_increasing and r.coverage.iloc[-1] == pytest.approx(1)
            assert r.risk.iloc[-1] == pytest.approx(1-accuracy(y, p, .4)[int(balanced)])
            mix = np.random.default_rng(seed).permutation(len(y))
            assert aurc(y[mix], p[mix], .4, balanced) == pytest.approx(aurc(y, p, .4, balanced), abs=1e-12)
        assert aurc(y, expit(5*t.logit)) == pytest.approx(aurc(y, expit(t.logit)), abs=1e-9)         # a temperature changes nothing at .5


def test_show_risk_takes_an_axis():
    import matplotlib.pyplot as plt
    fig, ax = plt.subplots()
    assert show_risk([1, 0, 1, 0], [.95, .9, .7, .4], ax, 'net', color='k') is ax
    assert ax.get_legend_handles_labels()[1] == [f'net AURC {aurc([1, 0, 1, 0], [.95, .9, .7, .4]):.3f}'] and ax.get_xlabel() == 'coverage'
    plt.close(fig)
