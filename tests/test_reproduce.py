"The README's main job at its smallest size, twice, from nothing; and what happens when something is wrong"
import json, os, re, subprocess, sys
from dataclasses import asdict
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parent.parent


def hff(*args, **env):
    "Run the command line in a process of its own: exit status, standard output, standard error"
    r = subprocess.run([sys.executable, '-c', 'from hff.cli import main; raise SystemExit(main())', *map(str, args)], cwd=ROOT,
                       env={**os.environ, 'TQDM_DISABLE': '1', **{k: str(v) for k, v in env.items()}}, capture_output=True, text=True)
    return r.returncode, r.stdout, r.stderr


SOME = 'table2,table3,table4,table5'


@pytest.fixture(scope='session')
def twice(tmp_path_factory):
    "Two smoke reproductions that share nothing: a complete one, and some of the tables again"
    out = []
    for i, only in enumerate((['--only', 'all'], ['--only', SOME])):
        d = tmp_path_factory.mktemp(f'smoke{i}')
        out.append((d, hff('reproduce', '--preset', 'smoke', *only, '--out', d/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')))
    return out


def test_smoke_runs(twice):
    for d, (code, out, err) in twice:
        assert code==0, out[-2000:] + err[-4000:]
        assert not [line for line in out.splitlines() if 'FAILED' in line]
    d, books = twice[0][0], sorted(p.stem for p in (ROOT/'nbs/paper').glob('[!_]*.ipynb'))
    page, made = (d/'out/index.html').read_text(), {p.name for p in (d/'out').iterdir()}
    assert str(d) not in page and len(books)>=12
    for b in books:
        assert any(n.startswith(b.split('_')[0]) and n.endswith('.csv') for n in made), f'{b} wrote no table'
    runs = pd.read_csv(d/'out/scores/runs.csv', keep_default_na=False)
    assert runs.state.eq('finished').all() and len(runs)>60, runs[runs.state.ne('finished')][['run', 'error']].to_string()


def test_two_reproductions_are_equal(twice):
    (a, _), (b, _) = twice
    names = sorted(p.name for p in (b/'out').glob('table[3-5]*.csv'))       # Table 2 counts what was cut out, and that is more for all tables
    assert len(names)>=8
    for n in names: assert (a/'out'/n).read_bytes()==(b/'out'/n).read_bytes(), f'{n} differs between two runs of one seed'
    sums = [{p.parent.name: json.loads(p.read_text())['files'] for p in (d/'data').glob('miniff-*/miniff.json')} for d in (a, b)]    # the stand-ins too
    assert len(sums[1])>=2 and set(sums[1])<=set(sums[0]) and sum(map(len, sums[1].values()))>100
    for n in sums[1]: assert sums[0][n]==sums[1][n], f'{n} is built differently a second time'


def test_trained_checkpoints_load_and_score_the_same(twice):
    "The file of a run, through the public loader, gives the scores that the run wrote"
    import hff
    from hff.extract import read_faces
    from hff.scores import read_scores, score_faces
    d, _ = twice[0]
    for name in ('rgb-F2F', 'two_stream-F2F', 'xray-F2F+blended', 'f3net-DF+F2F+FS+NT'):
        run = next((d/'runs').rglob(f'{name}-c*/done.json')).parent
        recipe = json.loads((run/'recipe.json').read_text())
        faces = d/'data/faces'/recipe['data']
        table = read_faces(faces)
        table = table[table.split.eq('test') & table.quality.eq(recipe['quality'])].iloc[:6]
        model = hff.load_checkpoint(run/'model.safetensors')
        key = ['method', 'quality', 'video', 'frame']
        both = score_faces(model, table, faces).merge(read_scores(run/'scores.parquet'), on=key, suffixes=('', '_run'))
        assert len(both)==6 and (both.logit-both.logit_run).abs().max()<1e-4, name


def test_finished_work_is_found_again(twice):
    d, _ = twice[0]
    before = {p: p.stat().st_mtime_ns for p in (d/'runs').rglob('model.safetensors')}
    code, out, err = hff('reproduce', '--preset', 'smoke', '--only', 'table3', '--out', d/'out3', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
    assert code==0 and before and before=={p: p.stat().st_mtime_ns for p in (d/'runs').rglob('model.safetensors')}
    code, out, err = hff('reproduce', '--preset', 'smoke', '--dry-run', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
    assert code==0 and '0 to train' in out


def test_a_part_joins_the_rest(twice, tmp_path):
    "Table 3 one day, Table 4 the next, into one folder: both are there, and come out again from the packed scores"
    from hff.reproduce import differing
    d, _ = twice[0]
    for part in ('table3', 'table4'):
        code, out, err = hff('reproduce', '--preset', 'smoke', '--only', part, '--out', tmp_path/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
        assert code==0 and '-before' not in out, out+err[-2000:]
    for n in ('table3.csv', 'table4.csv'): assert (tmp_path/'out'/n).read_bytes()==(d/'out'/n).read_bytes()
    page = (tmp_path/'out/index.html').read_text()
    assert 'id="table3"' in page and 'id="table4"' in page
    code, out, err = hff('reproduce', '--preset', 'smoke', '--from-scores', tmp_path/'out/scores', '--out', tmp_path/'again', HFF_RUNS=tmp_path/'runs')
    assert code==0 and differing(tmp_path/'out', tmp_path/'again')==[], out+err[-2000:]
    theirs = tmp_path/'out/scores/scores.parquet'                  # networks that came out otherwise, as on another processor
    t = pd.read_parquet(theirs)
    t.assign(logit=t.logit+1).to_parquet(theirs)
    said, changed = '', theirs.read_bytes()
    for step in ('plan', 'pack'):
        code, out, err = hff('reproduce', '--preset', 'smoke', '--only', 'table3', '--out', tmp_path/'out', '--step', step, HFF_DATA=d/'data', HFF_RUNS=d/'runs')
        assert code==0, out+err[-2000:]
        said += out
    assert 'scores-before1' in said and (tmp_path/'out/scores-before1/scores.parquet').read_bytes()==changed and theirs.read_bytes()!=changed


def test_from_scores_gives_the_same_bytes(twice, tmp_path):
    "Tables, pictures and page from the packed scores alone: nothing differs"
    from hff.reproduce import differing
    d, _ = twice[0]
    code, out, err = hff('reproduce', '--preset', 'smoke', '--from-scores', d/'out/scores', '--out', tmp_path/'out', HFF_DATA=tmp_path/'data', HFF_RUNS=tmp_path/'runs')
    assert code==0, out[-2000:] + err[-3000:]
    assert differing(d/'out', tmp_path/'out')==[] and not (tmp_path/'data').exists()


def test_committed_results_come_out_again(tmp_path):
    "The committed tables, pictures and page are those of the committed scores"
    from hff.reproduce import differing
    code, out, err = hff('reproduce', '--preset', 'mini', '--from-scores', ROOT/'figures/mini/scores', '--out', tmp_path/'out', HFF_RUNS=tmp_path/'runs')
    assert code==0, out[-2000:] + err[-3000:]
    assert [n for n in differing(ROOT/'figures/mini', tmp_path/'out') if not n.endswith(('.png', '.pdf'))]==[]
    for p in (tmp_path/'out').glob('*.png'): assert_same_picture(p, ROOT/'figures/mini'/p.name)


def assert_same_picture(a, b):
    "Another version of matplotlib may set a letter otherwise; the picture must be the same"
    import cv2, numpy as np
    x, y = (cv2.imread(str(p)) for p in (a, b))
    assert y is not None and x.shape==y.shape, a.name
    assert np.abs(x.astype(int)-y).mean()<1, a.name


def test_a_failed_run_is_reported_and_the_rest_is_made(twice, tmp_path):
    "A run of Table 4 whose scores are damaged: its cells are empty, the other tables are made"
    d, _ = twice[1]
    victim = next((d/'runs').rglob('rgb-DF-*/scores.parquet'))
    good = victim.read_bytes()
    victim.write_bytes(good[:100])
    code, out, err = hff('reproduce', '--preset', 'smoke', '--only', 'table3,table4', '--out', tmp_path/'out', HFF_DATA=d/'data', HFF_RUNS=d/'runs')
    victim.write_bytes(good)
    assert 'table4_cross_manipulation: done' in out and 'table3_ablation: done' in out, out+err[-3000:]
    t = pd.read_csv(tmp_path/'out/table4.csv')
    assert t[(t.row=='Xception') & (t.train=='DF')].frame_auc.isna().all() and t[(t.row=='Xception') & (t.train=='FS')].frame_auc.notna().all()
    assert '1 failed' in (tmp_path/'out/index.html').read_text()


def toy_book(path, code):
    "A notebook with the parameters of a paper notebook and one line of code"
    path.parent.mkdir(exist_ok=True)
    cells = [nbformat.v4.new_code_cell('preset = ""\nseeds = []\nout_dir = ""\nscores = ""', metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), path)
    return path


def test_a_failed_notebook_does_not_stop_the_rest(tmp_path, monkeypatch):
    "Its traceback is kept in its executed copy"
    from hff.reproduce import run_notebooks
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    books = [toy_book(tmp_path/f'{n}.ipynb', code) for n, code in (('bad', "raise ValueError('no such film')"), ('good', 'print(1)'))]
    done = run_notebooks(books, 'smoke', (0,), tmp_path/'out', 2)
    assert done.ok.tolist()==[False, True] and done.error[0]=='ValueError: no such film'
    assert 'no such film' in (tmp_path/'runs/smoke/notebooks/bad.ipynb').read_text()


def test_kernels_work_in_the_folder_of_the_command(tmp_path, monkeypatch):
    "So a relative path means the same in both; and nobody changes the folder of this process, which all notebooks at work share"
    from hff.reproduce import run_notebooks
    from papermill.iorw import papermill_io
    monkeypatch.chdir(tmp_path)
    papermill_io.get_handler('local').cwd('/')                # left by an earlier call
    monkeypatch.setenv('HFF_RUNS', 'runs')
    books = [toy_book(tmp_path/n/f'{n}.ipynb', 'import os; print(os.getcwd())') for n in 'ab']
    monkeypatch.setattr(os, 'chdir', lambda d: Path(d)==tmp_path or pytest.fail(f'changed to {d}'))       # papermill changes to where it is
    done = run_notebooks(books, 'smoke', (0,), tmp_path/'out', 2)
    assert done.ok.all(), done
    for n in 'ab': assert nbformat.read(tmp_path/f'runs/smoke/notebooks/{n}.ipynb', 4).cells[-1].outputs[0].text==f'{tmp_path}\n'


def test_a_kernel_that_does_not_start_does_not_stop_the_rest(tmp_path, monkeypatch):
    "The first kernel dies before it says anything, the next one lives; both have more than a minute for it"
    import papermill
    from hff.reproduce import run_notebooks
    execute, asked = papermill.execute_notebook, []
    monkeypatch.setattr(papermill, 'execute_notebook', lambda *a, **k: (asked.append(k['start_timeout']), execute(*a, **k))[1])
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path/'jupyter'))
    code = f"import os, sys\ntry: os.mkdir({str(tmp_path/'tried')!r})\nexcept FileExistsError: os.execv(sys.executable, [sys.executable, '-m', 'ipykernel_launcher', *sys.argv[1:]])"
    (spec := tmp_path/'jupyter/kernels/python3/kernel.json').parent.mkdir(parents=True)
    spec.write_text(json.dumps(dict(argv=[sys.executable, '-c', code, '-f', '{connection_file}'], display_name='python3', language='python')))
    done = run_notebooks([toy_book(tmp_path/f'{n}.ipynb', 'print(1)') for n in 'ab'], 'smoke', (0,), tmp_path/'out', 1)
    assert (tmp_path/'tried').exists() and done.ok.tolist()==[False, True], done
    assert done.error[0].startswith('RuntimeError: Kernel died'), done.error[0]
    assert asked==[600, 600]


@pytest.mark.parametrize('recipe', [None, '{"model": "rgb", "glasses": 1}', '{"image_size": "x"}', '[]', '{'])
def test_a_foreign_run_folder_blocks_nothing(recipe, tmp_path, monkeypatch, capsys):
    "It is left out, and said in one line"
    from hff.recipe import Recipe
    from hff.reproduce import finished_runs
    monkeypatch.setenv('HFF_RUNS', str(tmp_path))
    for name, text in (('mine', json.dumps(asdict(Recipe()))), ('theirs', recipe)):
        (d := tmp_path/'smoke'/name).mkdir(parents=True)
        (d/'done.json').write_text('{}')
        if text is not None: (d/'recipe.json').write_text(text)
    assert list(finished_runs('smoke').values())==[tmp_path/'smoke/mine']
    err = capsys.readouterr().err
    assert err.startswith(f"hff: {tmp_path/'smoke/theirs'} is left out: ") and err.count('\n')==1, err


FACTS = dict(preset='smoke', seeds=[0], tables=['table1'], data=[], machine={}, seconds={}, samples=[])

@pytest.mark.parametrize('facts', [{}, dict(samples=[1]), *(FACTS | c for c in (dict(samples=[{}]), dict(samples=[dict(file='a.png')]), dict(samples=5), dict(seconds=dict(data='x')), dict(seconds=dict(data=10**400)), dict(seeds=['0']), dict(seeds=0),
                                                dict(tables=[1]), dict(data=[dict(crops='a')]), dict(machine='a'), dict(preset=5), dict(seeds_of=dict(table1=0)))),
                                   *({k: v for k, v in FACTS.items() if k!=lost} for lost in ('seeds', 'tables', 'data', 'machine'))])
def test_damaged_facts_are_said(facts, tmp_path, monkeypatch):
    "Before any notebook is run"
    from hff.paths import HffError
    from hff.reproduce import reproduce
    from test_fuzz import PACKED
    from trees import put
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    put(tmp_path/'in', PACKED | {'facts.json': json.dumps(facts)})
    with pytest.raises(HffError, match='damaged or incomplete'): reproduce('smoke', from_scores=tmp_path/'in', out=tmp_path/'out')


def test_scores_of_no_notebook(tmp_path, monkeypatch):
    "Of no table; or a figure of networks is asked for, and none was packed"
    from hff.paths import HffError
    from hff.reproduce import reproduce
    from test_fuzz import PACKED
    from trees import put
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    for only, tables in (((), []), (('figure2',), ['table1'])):
        put(tmp_path/'in', PACKED | {'facts.json': json.dumps(FACTS | dict(tables=tables))})
        with pytest.raises(HffError, match='none of the notebooks'): reproduce('smoke', only, from_scores=tmp_path/'in', out=tmp_path/'out')


def test_facts_of_earlier_versions_are_read(tmp_path):
    from hff.results import read_facts
    from trees import put
    assert read_facts(ROOT/'figures/mini/scores', ('seeds', 'tables', 'data', 'machine', 'seeds_of'))['preset']=='mini'
    put(tmp_path, {'facts.json': json.dumps({k: FACTS[k] for k in ('preset', 'seeds', 'tables', 'data', 'machine')})})
    assert read_facts(tmp_path, ('seeds', 'tables', 'data', 'machine'))['seeds']==[0]


def test_a_plan_is_that_of_its_preset_and_names_known_data_sets(tmp_path, monkeypatch):
    "Both become names of folders and files"
    from hff.paths import HffError
    from hff.reproduce import read_plan
    from test_fuzz import PLAN
    monkeypatch.setenv('HFF_RUNS', str(tmp_path))
    (p := tmp_path/'smoke/plan.json').parent.mkdir()
    run = PLAN['runs']['a']
    good = [{}, dict(preset='my/smoke.yaml'), dict(cross=dict(dfd='x'), runs=dict(a=run | dict(cross=dict(dfd='x'))))]
    bad = [dict(preset='..'), dict(preset='mini'), dict(cross={'../../x': 'y'}), dict(seeds=['0']), dict(tables=5), dict(faces=dict(a=5)), *(dict(runs=dict(a=run | c)) for c in (dict(cross={'../../x': 'y'}), dict(cross=dict(dfd=5)), dict(cross=5), dict(faces=None)))]
    for change in good: p.write_text(json.dumps(PLAN | change)); assert read_plan('smoke')['seeds']==[0]
    for change in bad:
        p.write_text(json.dumps(PLAN | change))
        with pytest.raises(HffError, match='plan.json is no plan of smoke'): read_plan('smoke')


@pytest.mark.parametrize('args,words', [
    (['reproduce', '--preset', 'huge'], 'No preset'),
    (['reproduce', '--only', 'table9'], 'No notebook table9'),
    (['reproduce', '--preset', 'paper'], '--data-root'),
    (['reproduce', '--preset', 'smoke', '--from-scores', '/no/such/scores', '--out', '{tmp}/x'], '/no/such/scores'),
    (['reproduce', '--preset', 'smoke', '--cross', 'kaggle=/data'], 'kaggle'),
    (['reproduce', '--preset', 'smoke', '--step', 'fly', '--out', '{tmp}/x'], 'fly'),
    (['reproduce', '--preset', 'smoke', '--step', 'run', '--run', 'x', '--out', '{tmp}/x'], 'step `plan` first'),
    (['reproduce', '--preset', 'smoke', '--step', 'page', '--out', '{tmp}/x'], 'No notebook of this plan has run'),
    (['train', '--fakes', 'painted'], 'painted'),
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


HEADLINES = ['Xception is better within its training method than across methods', 'The full network beats RGB on unseen methods', 'Luo et al. beats Xception across methods (12 cells)',
             'Luo et al. beats Face X-ray across methods (12 cells)', 'Luo et al. beats Xception on other databases (mean of 4)', 'Luo et al. beats Face X-ray on other databases (mean of 4)']


def test_readme_shows_the_committed_results():
    "The README's verdicts and headline claims are those of the committed run"
    text, mini = (ROOT/'README.md').read_text(), ROOT/'figures/mini'
    assert (mini/'summary_verdicts.md').read_text().strip() in text
    lines = (mini/'summary_claims.md').read_text().splitlines()
    for c in HEADLINES:
        row, = [x for x in lines if f'| {c} |' in x]
        assert row in text, f'not in README.md as committed: {row}'


def test_readme_tells_what_the_studies_found():
    "Each figure of that paragraph, and that nothing else left its interval across methods"
    text = next(p for p in (ROOT/'README.md').read_text().split('\n\n') if p.startswith('The three studies'))
    t = pd.concat(pd.read_csv(ROOT/f'figures/mini/{n}_claims.csv') for n in ('ablation_fidelity', 'ablation_training', 'beyond_paper')).set_index('claim')
    short = lambda v: f'{v:.3f}'.removeprefix('0')
    for c, k in (('no batch norm after feature SRM: cross', 'a'), ('no batch norm after feature SRM: cross', 'b'), ('all toward the paper: cross', 'a'), ('RSA: product only: within', 'a'), ('RSA: product only: within', 'b'), ('DCMA: no gamma: within', 'a'),
                 ('a quarter of the people: cross', 'difference'), ('a quarter of the people: within', 'difference'), ('160 pixels: within', 'a'), ('SBI, RGB network beats Luo et al. across methods', 'a')):
        assert short(abs(t.loc[c, k])) in text, (c, k)
    told = lambda of, verdict: sorted(c for c in t.index[t.verdict.eq(verdict)] if c.endswith(of))
    fidelity = pd.read_csv(ROOT/'figures/mini/ablation_fidelity_claims.csv').claim
    assert [c for c in told(': cross', 'does not hold') if c in set(fidelity)]==['all toward the paper: cross', 'no batch norm after feature SRM: cross'] and not told(': cross', 'holds')
    assert not told('across methods', 'holds') and len(told('across methods', 'does not hold'))==3 and t.seeds.str.endswith('of 2').all() and '**two seeds**' in text


def test_readme_shows_what_rounding_does():
    "AUC of both networks and what each precision of OpenVINO moves it by"
    text, t = (ROOT/'README.md').read_text(), pd.read_csv(ROOT/'figures/bench/auc.csv')
    short = lambda v: f'{abs(v):.4f}'.removeprefix('0')
    assert t.network.nunique()==2 and not t.quick.any()
    assert t.refused.isna().all()
    moved = t.assign(by=t.frame_auc_change.map(short)).query("engine=='openvino'").set_index(['network', 'precision']).by
    (ships, ships16), (xception, xception16) = ((moved[n, 'int8'], moved[n, 'int8, bf16']) for n in ('the one that ships', 'Xception, trained on DF'))
    assert xception==xception16 and f'the first network by {ships}, and by {ships16} when the rest is in bfloat16; the second by {xception} either way' in text
    for name, g in t.groupby('network'):
        g = g.set_index(['engine', 'precision'])
        f32, mixed, bf16 = (short(g.frame_auc_change['openvino', p]) for p in ('f32', 'mixed', 'bf16'))
        if name.startswith('Xception'): assert g.frame_auc_change.abs().max()<=.001 and 'on the network trained for it, none of it did more than .001' in text
        assert f"{g.frame_auc['plain', 'f32']:.4f}" in text and (f'by {f32} in f32, {mixed} in `mixed` and {bf16} in `bf16`' in text or f'by {f32}, {mixed} and {bf16}' in text)


def test_readme_counts_what_was_tried():
    "Faults and fuzz, as committed"
    text = (ROOT/'README.md').read_text()
    faults = pd.read_csv(ROOT/'figures/bench/faults.csv')
    assert not faults.quick.any() and (f"{faults.trials.max()} times each of the {len(faults)} pairs that make sense, and starts them again. In {faults.broke.sum()} of {faults.trials.sum()} trials the first attempt broke; "
        f"in the end {faults.equal.sum()} had the files of an undisturbed run, {faults.clear.sum()} showed neither a traceback nor a hang, and {faults.left.sum()} left a process behind") in text
    fuzz = pd.read_csv(ROOT/'figures/bench/fuzz.csv')
    assert fuzz.cases.sum()>=1e5 and f"{len(fuzz)} parsers {fuzz.cases.sum():,} damaged or odd inputs: {fuzz['own errors'].sum():,} were refused with an `HffError`, {fuzz.accepted.sum():,} read, {fuzz['other crashes'].sum()} crashed" in text


def test_readme_shows_the_committed_speeds():
    "The README's speeds are those of the committed benchmark"
    text = (ROOT/'README.md').read_text()
    loading, manifest = (pd.read_csv(ROOT/f'figures/bench/{n}.csv') for n in ('loading', 'manifest'))
    for i in (0, 2, 3): assert f'{loading.per_second[i]:,.0f}' in text, loading.candidate[i]
    assert f'{manifest.grew_mb[0]:,.0f} MB' in text and f"{manifest['median'][1]:.2f} s" in text


def test_readme_shows_the_committed_ratios():
    "The tables of inference and training, row by row, and the sentence below them"
    text, (inf, train, start) = (ROOT/'README.md').read_text(), (pd.read_csv(ROOT/f'figures/bench/{n}.csv') for n in ('inference', 'training', 'startup'))
    row = lambda name, values: f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |"
    wide = lambda t, k: t.pivot(index='candidate', columns='batch', values=k).drop('transcription')
    fast, one, (step, peak) = wide(inf, 'ratio'), train[train.threads.eq(1)].set_index('candidate'), (wide(train[train.threads.gt(1)], k) for k in ('ratio', 'of_memory'))
    assert not inf.quick.any() and not train.quick.any() and list(fast)==[1, 8, 32] and list(step)==[4, 8] and one.batch.eq(8).all()
    for c in fast.index: assert row(c, fast.loc[c]) in text, c
    for c in step.index: assert row(c, [*step.loc[c], one.ratio[c], *peak.loc[c]]) in text, c
    plain = inf[inf.candidate.eq('transcription')].sort_values('batch')
    assert 'took {:.1f}, {:.1f} and {:.1f} times as long as its fastest'.format(*plain.slowest/plain.fastest) in text
    bound, took = inf[inf.candidate=='OpenVINO f32'].of_bound.tolist(), start.set_index('candidate')['median']
    assert '{:.2f} of its time, at 8 and 32 {:.2f} and {:.2f}'.format(*bound) in text and f'less than {np.ceil(100*train.waiting.max()):.0f} % of a training step' in text
    assert f"`import hff` takes {took['import hff']:.2f} s, `hff --help` {took['hff --help']:.2f} s, PyTorch alone {took['import torch']:.1f} s; the shipped network is ready to predict after {took['the shipped network']:.1f} s" in text
    peaks = [[f'{v:.0f}' for v in t.sort_values('minutes').peak_mb.iloc[[0, -1]]] for _, t in pd.read_csv(ROOT/'figures/bench/memory.csv').groupby('frames')]
    assert '{} MB for one minute of video and {} MB for an hour'.format(*peaks[0]) in text and 'at most 2,000 frames {} and {} MB'.format(*peaks[1]) in text
    assert f"Compiling took {inf[inf.candidate.str.contains('compile')].warm_up.max():.0f} s" in text
    curve, built = (pd.read_csv(ROOT/f'figures/bench/{n}.csv') for n in ('curve', 'miniff'))
    assert not curve.quick.any() and not built.quick.any() and curve.seed.nunique()==6
    c, sec = curve.iloc[0], curve.groupby('precision').seconds.min()
    assert (f'ends {c.difference:+.3f} from float32 in test AUC (95 % interval of the pairs {c.difference_lo:+.3f} to {c.difference_hi:+.3f}), beside a standard deviation of {c.seed_sd:.3f} over the seeds; '
            f"the fastest epoch of that small network took {sec['bfloat16']:.0f} s in bfloat16 and {sec['float32']:.0f} s in float32") in text
    assert "the {} clips of MiniFF's preset `smoke` takes {:.0f} s with one process and {:.0f} s with two".format(built.batch[0], *built['median']) in text


def test_committed_tables_are_complete():
    "Every cell of the paper is there, every row that can be trained is measured, and nothing quoted was filled"
    read = lambda n: pd.read_csv(ROOT/f'figures/mini/{n}.csv')
    cells = dict(table1=16, table3=24, table4=48, table5=12, table6=19, table7=8, table8=3)
    quoted = {n: set(t.row[t.status=='quoted']) for n, t in ((n, read(n)) for n in cells)}
    for n, k in cells.items():
        t = read(n)
        assert len(t.drop_duplicates(['row', 'train', 'test']))>=k and set(t.status)<={'measured', 'quoted'}, n
    assert quoted=={n: set() for n in cells} | dict(table6={'SSTNet'}, table7={'LAE', 'ClassNSeg', 'ForensicTrans'})
    t4, t3 = read('table4'), read('table3')
    shared = t3[t3.row=='RGB'].merge(t4[(t4.row=='Xception') & (t4.train=='F2F')], on='test')
    assert len(shared)==4 and (shared.frame_auc_x==shared.frame_auc_y).all()        # one run, two tables


def test_committed_controls():
    "The benchmark is not solved by a trivial detector, and a network that sees no face is at chance"
    read = lambda n: pd.read_csv(ROOT/f'figures/mini/{n}.csv')
    trivial, blank, t4 = read('table4_trivial'), read('table4_blank'), read('table4')
    assert set(trivial.detector)=={'colour', 'sharpness', 'filesize'}
    own = trivial[trivial.train==trivial.test]
    assert len(own)==12 and own.best.max()<.85
    assert (blank.frame_auc-.5).abs().max()<.1
    best = trivial.groupby('test').best.max()
    within = t4[(t4.train==t4.test) & t4.row.isin(['Xception', 'Luo et al.'])]
    assert len(within)==8 and all(r.frame_auc>best[r.test] for r in within.itertuples())
