"The README's main job at its smallest size, twice, from nothing; and what happens when something is wrong"
import json, os, subprocess, sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


def hff(*args, **env):
    "Run the command line in a process of its own: exit status, standard output, standard error"
    r = subprocess.run([sys.executable, '-c', 'from hff.cli import main; raise SystemExit(main())', *map(str, args)], cwd=ROOT,
                       env={**os.environ, 'TQDM_DISABLE': '1', **{k: str(v) for k, v in env.items()}}, capture_output=True, text=True)
    return r.returncode, r.stdout, r.stderr


@pytest.fixture(scope='session')
def twice(tmp_path_factory):
    "Two complete smoke reproductions that share nothing"
    out = []
    for i in range(2):
        d = tmp_path_factory.mktemp(f'smoke{i}')
        out.append((d, hff('reproduce', '--preset', 'smoke', '--out', d/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')))
    return out


def test_smoke_runs(twice):
    for d, (code, out, err) in twice:
        assert code==0, out[-2000:] + err[-4000:]
        assert {'table3.csv', 'table3.md', 'table3.png', 'table4.csv', 'table4.md', 'table4.png', 'index.html'} <= {p.name for p in (d/'out').iterdir()}
        page = (d/'out/index.html').read_text()
        assert 'table4.png' in page and 'table3.png' in page and str(d) not in page


def test_two_reproductions_are_equal(twice):
    (a, _), (b, _) = twice
    names = sorted(p.name for p in (a/'out').glob('*.csv'))
    assert len(names)>=6
    for n in names: assert (a/'out'/n).read_bytes()==(b/'out'/n).read_bytes(), f'{n} differs between two runs of one seed'
    sums = [json.loads(next((d/'data').glob('miniff-*/miniff.json')).read_text())['files'] for d in (a, b)]
    assert sums[0]==sums[1] and len(sums[0])>50


def test_trained_checkpoints_load_and_score_the_same(twice):
    "The file of a run, through the public loader, gives the scores that the run wrote"
    import hff
    from hff.extract import read_faces
    from hff.scores import read_scores, score_faces
    d, _ = twice[0]
    faces = next((d/'data/faces').iterdir())
    table = read_faces(faces)
    table = table[table.split.eq('test') & table.quality.eq('c23')].iloc[:6]
    for name in ('rgb', 'two_stream'):
        run = next((d/'runs').rglob(f'{name}-F2F-*/done.json')).parent
        model = hff.load_checkpoint(run/'model.safetensors')
        key = ['method', 'quality', 'video', 'frame']
        both = score_faces(model, table, faces).merge(read_scores(run/'scores.parquet'), on=key, suffixes=('', '_run'))
        assert len(both)==6 and (both.logit-both.logit_run).abs().max()<1e-4


def test_finished_work_is_found_again(twice):
    d, _ = twice[0]
    before = {p: p.stat().st_mtime_ns for p in (d/'runs').rglob('model.safetensors')}
    code, out, err = hff('reproduce', '--preset', 'smoke', '--only', 'table3', '--out', d/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
    assert code==0 and before and before=={p: p.stat().st_mtime_ns for p in (d/'runs').rglob('model.safetensors')}


def test_a_failed_notebook_does_not_stop_the_rest(twice, tmp_path):
    "A run of Table 4 whose scores are damaged: that notebook is reported, the other is made, the page is written, the exit says so"
    d, _ = twice[1]
    victim = next((d/'runs').rglob('rgb-DF-*/scores.parquet'))
    good = victim.read_bytes()
    victim.write_bytes(good[:100])
    code, out, err = hff('reproduce', '--preset', 'smoke', '--out', tmp_path/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
    victim.write_bytes(good)
    assert code==1 and 'table4_cross_manipulation: FAILED' in out and 'table3_ablation: done' in out
    assert 'failed:' in (tmp_path/'out/index.html').read_text()


@pytest.mark.parametrize('args,words', [
    (['reproduce', '--preset', 'huge'], 'No preset'),
    (['reproduce', '--only', 'table9'], 'No notebook table9'),
    (['reproduce', '--preset', 'paper'], '--data-root'),
    (['reproduce', '--preset', 'smoke', '--data-root', '/no/such/tree'], '/no/such/tree'),
    (['reproduce', '--preset', 'smoke', '--out', '/proc/nowhere'], '/proc/nowhere'),
    (['miniff', 'build', '--preset', 'smoke', '--out', '/proc/nowhere'], '/proc/nowhere'),
    (['miniff', 'build', '--preset', 'smoke', '--faces', '/no/such/faces', '--out', '{tmp}/x'], '/no/such/faces'),
    (['miniff', 'verify', '/no/such/tree'], '/no/such/tree'),
    (['train', '--model', 'resnet'], 'resnet'),
    (['train', '--methods', 'Deepfakes'], 'Deepfakes'),
    (['evaluate', 'nowhere'], 'nowhere'),
    (['fly'], 'fly'),
])
def test_bad_input_is_one_clear_line(args, words, tmp_path):
    code, out, err = hff(*(a.format(tmp=tmp_path) for a in args), HFF_DATA=tmp_path/'data', HFF_RUNS=tmp_path/'runs')
    assert code in (1, 2) and words in err and 'Traceback' not in err, err[-2000:]
    assert err.startswith('hff: ') and err.count('\n')==1, err
    assert not list(tmp_path.rglob('*.mp4')) and not list(tmp_path.rglob('*.tmp*'))


def test_help_has_examples():
    for words in ([], ['reproduce'], ['miniff', 'build'], ['train'], ['evaluate']):
        code, out, _ = hff(*words, '--help')
        assert code==0 and (not words or 'Example: hff' in out)


def test_readme_shows_the_committed_results():
    "The README's tables are those of the committed run"
    text = (ROOT/'README.md').read_text()
    for name in ('table4_claims.md', 'table3_claims.md'): assert (ROOT/'figures/mini'/name).read_text().strip() in text, f'{name} is not in README.md as committed'


def test_readme_shows_the_committed_speeds():
    "The README's speeds are those of the committed benchmark"
    text = (ROOT/'README.md').read_text()
    loading, manifest = (pd.read_csv(ROOT/f'figures/bench/{n}.csv') for n in ('loading', 'manifest'))
    for i in (0, 2, 3): assert f'{loading.per_second[i]:,.0f}' in text, loading.candidate[i]
    assert f'{manifest.grew_mb[0]:,.0f} MB' in text and f"{manifest['median'][1]:.2f} s" in text


def test_committed_tables_are_complete():
    t4, t3 = (pd.read_csv(ROOT/f'figures/mini/{n}.csv') for n in ('table4', 'table3'))
    assert len(t4)==48 and (t4.status=='measured').sum()==32 and set(t4[t4.status=='quoted'].row)=={'Face X-ray'}
    assert len(t3)==24 and (t3.status=='measured').all()
    shared = t3[t3.row=='RGB'].merge(t4[(t4.row=='Xception') & (t4.train=='F2F')], on='test')
    assert len(shared)==4 and (shared.frame_auc_x==shared.frame_auc_y).all()        # one run, two tables


def test_committed_controls():
    "The benchmark is not solved by a trivial detector, and a network that sees no face is at chance"
    read = lambda n: pd.read_csv(ROOT/f'figures/mini/{n}.csv')
    trivial, blank, t4 = read('table4_trivial'), read('table4_blank'), read('table4')
    assert set(trivial.detector)=={'colour', 'sharpness', 'filesize'} and (trivial.frame_auc-.5).abs().max()<.35
    assert (blank.frame_auc-.5).abs().max()<.1
    best = trivial.groupby('test').frame_auc.apply(lambda a: (a-.5).abs().max()+.5)
    within = t4[(t4.train==t4.test) & (t4.status=='measured')]
    assert len(within)==8 and all(r.frame_auc>best[r.test] for r in within.itertuples())
