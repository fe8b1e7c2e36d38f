"The tables' arithmetic on small made-up results: cells, intervals, claims, and what happens when a run is missing"
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from hff.claims import CLAIMS, against, cells_of, claims_of, judge, paper_mean, verdict
from hff.compare import delong_test, holm
from hff.experiments import EXPERIMENTS, experiment
from hff.metrics import against_real, auc_difference, bootstrap_auc, evaluate
from hff.paths import HffError
from hff.recipe import METHODS
from hff.report import (accuracies, auc_draws, beside, chosen_threshold, draw_dots, draw_heats, groups, markdown, measured, optimism, optimism_line, paper_name, paper_values,
                        sides, scored_on, this_run, trained_on, trivial_line, wide, write_figure, write_table)
from hff.results import Results, read_results, write_results

ROOT = Path(__file__).parent.parent
CELLS = dict(T1=16, T3=24, T4=48, T5=12, T6=19, T7=8, T8=3)


def scores(run, up, dataset='miniff', quality='c23', methods=('real', 'touched', *METHODS), people=6, frames=3, seed=0):
    "Random scores of one run; its fakes are `up` above its reals"
    rng, rows = np.random.default_rng([seed, *run.encode(), *dataset.encode()]), []
    for m in methods:
        y = int(m not in ('real', 'touched'))
        z = rng.normal(up*y, 1, (people, frames)).astype('float32').astype(float)
        rows += [dict(run=run, dataset=dataset, method=m, quality=quality, video=f'{v:03d}', frame=f, label=y, score=1/(1+np.exp(-z[v, f])), logit=z[v, f], status='ok')
                 for v in range(people) for f in range(frames)]
    return pd.DataFrame(rows)


def results(runs, failed=(), val=None, logs=None, facts=None):
    "`runs`: name -> height or table of scores"
    ts = [x if isinstance(x, pd.DataFrame) else scores(k, x) for k, x in runs.items()]
    state = pd.DataFrame([dict(run=k, state='finished', epoch=2., seconds=1., error='', recipe='{}') for k in runs] +
                         [dict(run=k, state='failed', epoch=np.nan, seconds=np.nan, error='RuntimeError: out of memory', recipe='{}') for k in failed])
    return Results(state, pd.concat(ts, ignore_index=True), ts[0].iloc[:0] if val is None else val, pd.DataFrame(columns=['run', 'epoch']) if logs is None else logs, facts or {})


def plan_of(*rows): return pd.DataFrame(rows, columns=['row', 'train', 'seed', 'run'])


TWO = plan_of(('Xception', 'F2F', 0, 'x0'), ('Xception', 'F2F', 1, 'x1'), ('Luo et al.', 'F2F', 0, 'l0'), ('Luo et al.', 'F2F', 1, 'l1'))
BOTH = dict(x0=.3, x1=.5, l0=1.5, l1=1.8)


# ------------------------------------------------------------------ cells

def test_a_cell_is_the_mean_of_the_seeds_by_scikit_learn():
    r = results(BOTH)
    t = measured(r, TWO).set_index(['row', 'test'])
    for level in ('frame', 'video'):
        each = []
        for run in ('x0', 'x1'):
            s = r.scores[r.scores.run.eq(run) & r.scores.method.isin(('real', 'NT'))]
            if level=='video': s = s.groupby(['method', 'video'], as_index=False)[['score', 'label']].mean()
            each.append(roc_auc_score(s.label, s.score))
        assert abs(t.loc[('Xception', 'NT'), f'{level}_auc']-np.mean(each))<1e-12
        if level=='frame': assert np.allclose(t.loc[('Xception', 'NT'), ['seed_min', 'seed_max']].tolist(), [min(each), max(each)])
    assert (t.seeds==2).all() and (t.status=='measured').all() and t.loc[('Xception', 'all'), 'n_fake']==24 and t.loc[('Xception', 'all'), 'share_fake']==.8


def test_draws_are_averaged_over_seeds_and_the_same_videos_for_every_run():
    r = results(BOTH)
    cell = measured(r, TWO, ('DF',)).set_index('row').loc['Luo et al.']
    d = np.mean([auc_draws(r, run, 'miniff', 'c23', 'DF') for run in ('l0', 'l1')], axis=0)
    assert np.allclose([cell.frame_auc, cell.frame_lo, cell.frame_hi], [d[0], *np.quantile(d[1:], [.025, .975])])
    one = [against_real(r.scores[r.scores.run.eq(k)], 'miniff', 'c23', 'DF') for k in ('l0', 'x0')]
    import zlib
    seed = zlib.crc32(b'miniff')
    assert np.allclose(auc_draws(r, 'l0', 'miniff', 'c23', 'DF')[1:], bootstrap_auc(one[0], seed=seed))
    paired = auc_draws(r, 'l0', 'miniff', 'c23', 'DF', 'video')-auc_draws(r, 'x0', 'miniff', 'c23', 'DF', 'video')
    known = auc_difference(*one, seed=seed)
    assert np.allclose([paired[0], *np.quantile(paired[1:], [.025, .975])], [known['difference'], known['lo'], known['hi']])


def test_results_do_not_depend_on_the_order_of_rows():
    r = results(BOTH)
    mixed = r._replace(scores=r.scores.sample(frac=1, random_state=0))
    pd.testing.assert_frame_equal(measured(r, TWO), measured(mixed, TWO))


def test_draws_of_one_result_are_not_taken_for_another():
    a, b = results(BOTH), results({**BOTH, 'x0': 3.})
    first = measured(a, TWO).frame_auc.tolist()
    assert measured(b, TWO).frame_auc.tolist()!=first and measured(a, TWO).frame_auc.tolist()==first


def test_a_frame_without_a_score_is_counted_and_stays_in_its_place():
    r = results(BOTH)
    t = r.scores.copy()
    gone = t.run.eq('x0') & t.method.eq('DF') & t.video.eq('002')
    t.loc[gone, ['score', 'logit', 'status']] = [np.nan, np.nan, 'missing']
    cell = measured(r._replace(scores=t), TWO).set_index(['row', 'test']).loc[('Xception', 'DF')]
    assert (cell.listed, cell.scored, cell.n_fake)==(12, 11, 5) and abs(cell.coverage-11/12)<1e-12
    assert 'at worst 91.7% of the listed videos' in this_run(r, TWO.assign(recipe=experiment('table1', 'smoke').recipe.iloc[0]), measured(r._replace(scores=t), TWO))


def test_runs_on_other_videos_are_refused():
    r = results(dict(x0=.3, x1=scores('x1', .5, people=5), l0=1., l1=1.))
    with pytest.raises(HffError, match='list other videos of miniff c23'): measured(r, TWO)


def test_a_failed_run_leaves_its_cells_empty_and_the_rest_goes_on():
    r = results({k: v for k, v in BOTH.items() if k!='x0'}, failed=['x0'])
    t = measured(r, TWO).set_index(['row', 'test'])
    assert (t.loc['Xception'].seeds==1).all() and (t.loc['Xception'].planned==2).all() and (t.loc['Xception'].status=='measured').all()
    none = results({k: v for k, v in BOTH.items() if k[0]=='l'}, failed=['x0', 'x1'])
    x = measured(none, TWO).query("row=='Xception'")
    assert len(x)==5 and x.status.eq('failed').all() and x.frame_auc.isna().all() and x.reason.eq('RuntimeError: out of memory').all()
    b = beside('T4', measured(none, TWO))
    assert len(b)==48 and b[(b.row=='Xception') & (b.train=='F2F')].status.eq('failed').all() and b[(b.row=='Luo et al.') & (b.train=='F2F')].status.eq('measured').all()
    assert wide(b[b.train=='F2F']).query("detector=='Xception'").DF.tolist()==['0.803', 'failed', 'failed']
    draw_heats(b), draw_dots(b[b.train=='F2F'])
    assert 'failed: x0: RuntimeError: out of memory' in this_run(none, TWO.assign(recipe=experiment('table1', 'smoke').recipe.iloc[0]), measured(none, TWO))
    acc = accuracies(none, TWO[TWO.row=='Xception'])
    assert set(acc.status)=={'failed'} and acc.video_acc.isna().all()


def test_tests_come_in_order_and_data_sets_are_told_apart():
    both = pd.concat([scores('x0', 1.), scores('x0', 1., 'celebdf_v1', '', ('real', 'Celeb-synthesis')), scores('x0', 1., 'dfd', 'c23', ('real', 'DFD'))])
    r, plan = results(dict(x0=both)), plan_of(('Xception', '+'.join(METHODS), 0, 'x0'))
    assert scored_on(r, plan)==[*(('miniff', 'c23', m) for m in (*METHODS, 'all')), ('dfd', 'c23', 'all'), ('celebdf_v1', '', 'all')]
    b = beside('T5', measured(r, plan)).query("row=='Xception'").set_index('test')
    assert b.status.to_dict()=={'DFD': 'measured', 'DFDC': 'not measured', 'CelebDF': 'measured', 'DF1.0': 'not measured'}
    s = r.scores[r.scores.dataset.eq('dfd')]
    assert abs(b.frame_auc['DFD']-roc_auc_score(s.label, s.score))<1e-12
    v2 = results(dict(x0=pd.concat([scores('x0', 1.), scores('x0', 1., 'celebdf_v2', '', ('real', 'Celeb-synthesis'))])))
    assert beside('T5', measured(v2, plan)).status.isin(['not measured', 'quoted']).all()          # v2 is not set beside the paper's CelebDF


# ------------------------------------------------------------------ beside the paper

@pytest.mark.parametrize('table', CELLS)
def test_every_cell_of_the_paper_stays(table):
    key = f'table{table[1:]}'
    runs = experiment(key, 'smoke')
    quality = runs.recipe.iloc[0].quality
    r = results({k: scores(k, .5, quality=quality) for k in runs.run})
    ours = accuracies(r, runs, pair=table=='T7') if table in ('T6', 'T7') else measured(r, runs)
    b = beside(table, ours, 'video_acc' if table in ('T6', 'T7') else 'frame_auc')
    p = paper_values(table)
    assert len(b)==CELLS[table]==len(p) and b[['row', 'train', 'test', 'paper', 'origin']].equals(p[['row', 'train', 'test', 'paper', 'origin']])
    quoted = {'T6': {'SSTNet'}, 'T7': {'LAE', 'ClassNSeg', 'ForensicTrans'}}.get(table, set())
    assert set(b[b.status=='quoted'].row)==quoted and set(b[b.status!='quoted'].row)==set(p.row)-quoted
    assert b[b.status=='quoted'].filter(regex='frame|video').isna().all(axis=None)
    if table not in ('T5', 'T8'): assert b[b.status!='quoted'].status.eq('measured').all() and np.allclose(b.difference.dropna(), b.dropna(subset='difference').eval(f"{'video_acc' if table in ('T6', 'T7') else 'frame_auc'}-paper"))
    assert len(wide(b))>=b.row.nunique()


def test_who_ran_it():
    o = {t: paper_values(t).groupby('row').origin.first().to_dict() for t in CELLS}
    assert set(o['T1'].values()) | set(o['T3'].values())=={"authors' own run"} and o['T5']['Face X-ray']==o['T4']['Face X-ray']=="authors' own run of a re-implementation"
    assert o['T7']=={'LAE': 'copied by the authors', 'ClassNSeg': 'copied by the authors', 'ForensicTrans': 'copied by the authors', 'Luo et al.': "authors' own run"}
    assert {o['T6'][k] for k in ('SRMNet', 'Bayar Conv', 'SSTNet', 'F3Net')} | {o['T8'][k] for k in ('FWA', 'FFD')}=={'not stated'}


# ------------------------------------------------------------------ accuracy

def test_accuracy_and_threshold_by_hand():
    s = pd.DataFrame([dict(run='x0', dataset='d', quality='', method=m, video=v, frame=f, label=int(m!='real'), score=p, logit=0., status='ok')
                      for m, v, ps in (('real', 'a', (.1, .3)), ('real', 'b', (.9, .5)), ('real', 'e', (.1, .1)), ('DF', 'c', (.8, .8)), ('DF', 'd', (.4, .5)))
                      for f, p in enumerate(ps)])
    r, plan = results(dict(x0=s), val=s), plan_of(('Luo et al.', 'DF', 0, 'x0'))
    t = accuracies(r, plan).set_index('test')
    assert np.allclose([t.video_acc['DF'], t.video_acc['Real'], t.frame_acc['DF'], t.frame_acc['Real']], [1/2, 2/3, 3/4, 4/6])
    assert abs(chosen_threshold(r, 'x0')-(.2+.45)/2)<1e-12                  # videos .1 .2 .7 real, .45 .8 fake
    assert np.allclose([t.video_chosen['DF'], t.video_chosen['Real']], [1, 2/3])
    assert np.allclose(accuracies(r, plan, pair=True).video_acc, (1/2+2/3)/2)
    e = evaluate(s.drop(columns='run').assign(quality='q'))
    assert np.allclose([e.video_acc_fake.item(), e.frame_acc_real.item(), e.video_balanced_acc.item()], [1/2, 4/6, (1/2+2/3)/2])


def test_the_threshold_weighs_both_classes_alike():
    p = [.2, .6, .3, .35, .7, .8, .9, .95]                                  # two reals, six fakes: .65 has every real and 4 of 6 fakes right, .25 one real and every fake
    one = pd.DataFrame(dict(run='x0', dataset='d', quality='', video=list('abcdefgh'), frame=0, method=['real']*2+['DF']*6, label=[0]*2+[1]*6, score=p, status='ok'))
    assert chosen_threshold(results(dict(x0=1.), val=one), 'x0')==pytest.approx(.65)
    assert np.isnan(chosen_threshold(results(dict(x0=1.), val=one[one.label.eq(1)]), 'x0'))


# ------------------------------------------------------------------ claims

def draws(*means): return np.stack([np.r_[m, m+.02*norm.ppf((np.arange(1, 1000))/1000)] for m in means])


@pytest.mark.parametrize('means,word,seeds', [((.1, .08), 'holds', '2 of 2'), ((-.1, -.08), 'does not hold', '2 of 2'), ((.01,), 'cannot be told', '1 of 1'),
                                              ((.3, .2, -.01), 'cannot be told', '2 of 3'), ((-.3, -.2, .01), 'cannot be told', '2 of 3'), ((0., 0.), 'cannot be told', '2 of 2')])
def test_the_rule(means, word, seeds):
    v = verdict(draws(*means))
    assert (v['verdict'], v['seeds'])==(word, seeds) and v['lo']<=v['difference']<=v['hi'] and abs(v['difference']-np.mean(means))<1e-12


def test_a_claim_is_judged_on_paired_draws_of_its_cells():
    r = results(BOTH)
    claim = CLAIMS[CLAIMS.claim.eq('Luo et al. beats Xception across methods, trained on F2F (3 cells)')]
    j = judge(r, TWO, claim).iloc[0]
    per_seed = [np.mean([auc_draws(r, f'l{s}', 'miniff', 'c23', t)-auc_draws(r, f'x{s}', 'miniff', 'c23', t) for t in ('DF', 'FS', 'NT')], axis=0) for s in (0, 1)]
    d = np.mean(per_seed, axis=0)
    assert np.allclose([j.difference, j.lo, j.hi], [d[0], *np.quantile(d[1:], [.025, .975])]) and abs(j.a-j.b-j.difference)<1e-12
    assert j.verdict=='holds' and j.seeds=='2 of 2' and abs(j.paper_difference-((.837+.987+.984)-(.803+.762+.696))/3)<1e-12
    opposite = judge(results(dict(x0=.3, x1=2.5, l0=2.5, l1=.3)), TWO, claim).iloc[0]
    assert opposite.verdict=='cannot be told' and opposite.seeds=='1 of 2'
    assert judge(results({k: BOTH[k] for k in ('x0', 'x1', 'l0')}, failed=['l1']), TWO, claim).seeds.item()=='1 of 1'       # only seeds with both sides
    assert judge(results({k: BOTH[k] for k in ('x0', 'x1')}, failed=['l0', 'l1']), TWO, claim).verdict.item()=='not measured'
    assert set(judge(r, TWO[TWO.row=='Luo et al.'], claims_of('T7')).verdict)=={'quoted'}


def test_claims_say_what_the_printed_numbers_say():
    d = [paper_mean(c.table, c.a)-paper_mean(c.table, c.b) for c in CLAIMS.itertuples()]
    assert np.isfinite(d).all() and min(d)>0 and len(d)==53
    assert [round(paper_mean('T4', (row, METHODS, 'cross')), 3) for row in ('Xception', 'Face X-ray', 'Luo et al.')]==[.736, .779, .869]
    assert cells_of(('Xception', ('DF', 'NT'), 'cross'))==[('DF', 'F2F'), ('DF', 'FS'), ('DF', 'NT'), ('NT', 'DF'), ('NT', 'F2F'), ('NT', 'FS')]


def test_every_claim_can_be_judged_when_everything_was_measured():
    cross = dict(dfd=('c23', 'DFD'), dfdcp=('', 'method_A'), celebdf_v1=('', 'Celeb-synthesis'), df1=('', 'end_to_end'))
    for table in CLAIMS.table.unique():
        plan = experiment(f'table{table[1:]}', 'smoke')
        r = results({x.run: pd.concat([scores(x.run, .5, quality=x.recipe.quality)] + [scores(x.run, .5, c, cross[c][0], ('real', cross[c][1])) for c in x.cross]) for x in plan.itertuples()})
        j = judge(r, plan, claims_of(table))
        assert not j.verdict.eq('not measured').any(), table
        assert j.verdict.eq('quoted').sum()==dict(T6=2, T7=6).get(table, 0)


def test_holm_goes_over_the_whole_table_within_a_seed():
    plan = pd.concat([TWO, plan_of(*[('Face X-ray', 'F2F+blended', s, f'f{s}') for s in (0, 1)])], ignore_index=True)
    r = results({**BOTH, 'f0': .4, 'f1': .2})
    t = against(r, plan)
    assert len(t)==8 and t.train.eq('F2F').all()
    p = {}
    for seed in (0, 1):
        for other in 'xf':
            for m in METHODS:
                v = [r.scores[r.scores.run.eq(f'{k}{seed}') & r.scores.method.isin(('real', m))].groupby(['label', 'video']).score.mean() for k in ('l', other)]
                p[seed, other, m] = delong_test(v[0].index.get_level_values('label'), v[0].to_numpy(), v[1].to_numpy())['p']
    corrected = {s: dict(zip([k[1:] for k in p if k[0]==s], holm([v for k, v in p.items() if k[0]==s]))) for s in (0, 1)}
    names = dict(Xception='x', **{'Face X-ray': 'f'})
    for x in t.itertuples():
        both = [corrected[s][names[x.against], x.test] for s in (0, 1)]
        assert abs(x.p_holm-max(both))<1e-9 and x.significant==f'{sum(q<.05 for q in both)} of 2 seeds'


def test_delong_without_two_of_each_gives_no_p():
    r = results(dict(x0=scores('x0', .3, people=1), x1=scores('x1', .3, people=1), l0=scores('l0', 1., people=1), l1=scores('l1', 1., people=1)))
    t = against(r, TWO)
    assert len(t)==4 and t.p_holm.isna().all() and t.significant.eq('0 of 2 seeds').all()
    assert measured(r, TWO).frame_auc.notna().all()


# ------------------------------------------------------------------ beside the tables

def test_optimism_is_the_best_epoch_minus_the_kept_one():
    logs = pd.DataFrame(dict(run=['x0']*3+['x1']*3+['l0'], epoch=[1, 2, 3]*2+[1], x_test_DF=[.6, .5, .9, .7, .7, .6, .9], x_test_F2F=[.9, .8, .8, np.nan, np.nan, np.nan, .9]))
    o = optimism(results(BOTH, logs=logs), TWO)
    assert o[['row', 'test']].values.tolist()==[['Xception', 'DF'], ['Xception', 'F2F']]                     # one epoch is no choice
    assert np.allclose(o.kept, [(.5+.7)/2, .8]) and np.allclose(o.gap, [(.4+0)/2, .1]) and o.seeds.tolist()==[2, 1]
    assert 'would have added 0.150 on average over 2 cells, 0.200 over the 1 of unseen methods; at most 0.200' in optimism_line(o)


def test_the_best_trivial_detector_counts_in_both_directions():
    plan = plan_of(('Face X-ray', 'F2F+blended', 0, 'x0'), ('FWA', 'warped', 0, 'x1'))
    four = '+'.join(METHODS)
    r = results({'x0': 1., 'x1': 1., 'trivial-colour-F2F': .6, 'trivial-sharpness-F2F': -2., f'trivial-filesize-{four}': .5, 'trivial-colour-DF': 9.})
    t = trivial_line(r, plan).set_index(['train', 'test'])
    assert set(t.index.get_level_values('train'))=={'F2F', four} and t.loc['F2F'].detector.eq('sharpness').all() and t.loc[four].detector.eq('filesize').all()
    s = r.scores[r.scores.run.eq('trivial-sharpness-F2F') & r.scores.method.isin(('real', 'FS'))]
    assert abs(t.best[('F2F', 'FS')]-(1-roc_auc_score(s.label, s.score)))<1e-12
    assert trivial_line(results(dict(x0=1.)), plan).empty
    lines = wide(beside('T3', measured(r, plan.assign(row='RGB', train='F2F').head(1))), trivial=trivial_line(r, plan.head(1)))
    assert lines.iloc[-1]['detector']=='best trivial' and lines.iloc[-1]['FS'].endswith(' sharpness')


def test_touched_clips_are_a_test_of_their_own():
    t = measured(results(BOTH), TWO, ('touched',))
    assert t.test.tolist()==['touched']*2 and t.n_fake.tolist()==[6, 6]
    s = results(BOTH).scores.query("run=='x0'")
    assert np.isclose(auc_draws(results(BOTH), 'x0', 'miniff', 'c23', 'touched')[0], roc_auc_score(s[s.method.isin(('real', 'touched'))].method.eq('touched'), s[s.method.isin(('real', 'touched'))].score))


def test_names():
    assert [trained_on(x) for x in ('F2F', 'F2F+blended', 'DF+NT', 'self_blended')]==['F2F', 'F2F', 'DF+NT', '']
    assert [paper_name('dfdcp', 'all'), paper_name('dfdc', 'all'), paper_name('df1', 'end_to_end'), paper_name('ffpp', 'DF')]==['DFDC', 'all', 'DF1.0 end_to_end', 'DF']


def test_a_cell_of_a_markdown_table_is_one_line():
    t = markdown(pd.DataFrame({'a|b': ['two\nlines', 'a|b'], 'n': [1, 2]}))
    assert t==('| a\\|b | n |\n| --- | --- |\n| two lines | 1 |\n| a\\|b | 2 |\n')


def test_packed_and_unpacked_results_give_the_same_files(tmp_path):
    r = results(BOTH, facts=dict(preset='smoke', seeds=[0, 1]))
    r = r._replace(runs=r.runs.assign(recipe=json.dumps(dict(trivial=True))), logs=pd.DataFrame(dict(run=['x0'], epoch=[1])), val=r.scores.iloc[:6])
    again = read_results(write_results(r, tmp_path/'scores'))
    for name, x in (('a', r), ('b', again)):
        b = beside('T4', measured(x, TWO))
        write_table(b, name, tmp_path, wide(b))
        write_figure(draw_heats(b), name, tmp_path)
    for kind in ('csv', 'md', 'png', 'pdf'): assert (tmp_path/f'a.{kind}').read_bytes()==(tmp_path/f'b.{kind}').read_bytes(), kind


# ------------------------------------------------------------------ the notebooks

BOOKS = sorted((ROOT/'nbs/paper').glob('table*.ipynb')) + [ROOT/'nbs/paper'/f'{n}.ipynb' for n in ('reevaluations', 'summary')]


@pytest.mark.parametrize('book', BOOKS, ids=lambda p: p.stem)
def test_a_paper_notebook_begins_with_the_same_parameters(book):
    cells = json.loads(book.read_text(encoding='utf-8'))['cells']
    tagged = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged)==1 and ''.join(cells[0]['source']).startswith('# ')
    known = {}
    exec(tagged[0], known)
    assert {k: v for k, v in known.items() if k!='__builtins__'}==dict(preset='mini', seeds=[0, 1, 2], data_root='', cross={}, out_dir='', jobs=2, scores='figures/mini/scores')
    assert all('#' in line for line in tagged[0].splitlines())
    assert any('open_results(' in ''.join(c['source']) for c in cells) and any(''.join(c['source']).startswith('## How to read') for c in cells if c['cell_type']=='markdown')


LOOKS = sorted(p for p in (ROOT/'nbs/paper').glob('*.ipynb') if p.stem.startswith('figure') or p.stem in ('calibration', 'explanations', 'frequency', 'robustness'))


@pytest.mark.parametrize('book', LOOKS, ids=lambda p: p.stem)
def test_a_notebook_of_figures_has_the_same_parameters(book):
    from hff.reproduce import NETWORK_BOOKS
    cells = json.loads(book.read_text(encoding='utf-8'))['cells']
    tagged = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged)==1 and ''.join(cells[0]['source']).startswith('# ')
    known = {}
    exec(tagged[0], known)
    scores = '' if book.stem in (*NETWORK_BOOKS, 'figure5_network') else 'figures/mini/scores'
    assert {k: v for k, v in known.items() if k not in ('__builtins__', 'seeds')}==dict(preset='mini', data_root='', cross={}, out_dir='', jobs=2, scores=scores)
    assert known['seeds'][0]==0 and all('#' in line for line in tagged[0].splitlines())
    source = '\n'.join(''.join(c['source']) for c in cells)
    assert 'write_table(' in source and 'write_figure(' in source and 'assert ' in source and '## How to read' in source


def test_there_is_a_notebook_for_every_table():
    names = {p.stem.split('_')[0] for p in BOOKS}
    assert names=={*(f'table{i}' for i in range(1, 9)), 'reevaluations', 'summary'} and {p.stem.split('_')[0] for p in LOOKS}>={f'figure{i}' for i in range(1, 9)} and {t for t in EXPERIMENTS if t.startswith('table')}<=names
