"What lies around a command: threads, folders, variables, modes. None of it is changed, and it decides nothing"
import json, os, subprocess, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import hff.paths
from hff.cli import main
from hff.faces import DETECTORS, detect_faces, find_landmarks, plugin
from hff.inference import refuse_within
from hff.models import create_model
from hff.paths import HffError, data_dir, figures_dir, is_checkout, locked, root, runs_dir
from hff.recipe import load_preset
from hff.reproduce import do_step, open_data, plan_file, run_notebooks, write_page
from hff.scores import score_images
from hff.trainer import cross_file

PEOPLE = [cv2.imread(str(p))[..., ::-1] for p in sorted((Path(__file__).parent/'data').rglob('*.jpg'))[:3]]


def python(code, *args, **env):
    "A process of its own: what it printed"
    r = subprocess.run([sys.executable, '-c', code, *map(str, args)], env=os.environ | dict(TQDM_DISABLE='1') | env, capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return r.stdout.strip()


def test_faces_are_the_same_in_threads():
    "A network of OpenCV holds one picture at a time; stdout and warnings are put back"
    alone, out, said = [find_landmarks(p) for p in PEOPLE], sys.stdout, list(warnings.filters)
    with ThreadPoolExecutor(4) as pool: beside = list(pool.map(find_landmarks, PEOPLE*6))
    assert len(PEOPLE)==3 and all(np.array_equal(a, b) for a, b in zip(alone*6, beside))
    assert sys.stdout is out and warnings.filters==said


def test_a_forked_process_finds_faces_whatever_threads_do():
    "The thread that holds the networks is not in the child"
    from multiprocessing import get_context
    inside, go = threading.Event(), threading.Event()
    def hold():
        with hff.faces._alone: inside.set(); go.wait(60)
    t = threading.Thread(target=hold); t.start(); inside.wait(60)
    p = get_context('fork').Process(target=detect_faces, args=(np.zeros((64, 64, 3), np.uint8),)); p.start(); p.join(60)
    go.set(); t.join()
    if p.exitcode is None: p.kill()
    assert p.exitcode==0


def test_a_detector_in_the_current_folder(tmp_path, monkeypatch):
    "As a console script starts, without the current folder among those of modules"
    (tmp_path/'own_faces_here.py').write_text('def f(image): return []')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [p for p in sys.path if p])
    assert plugin('own_faces_here:f', DETECTORS)(None)==[]


def test_a_lock_goes_inside_where_the_folder_above_is_not_ours(tmp_path, monkeypatch):
    (out := tmp_path/'given'/'out').mkdir(parents=True)
    real = os.access
    monkeypatch.setattr(os, 'access', lambda p, mode: Path(p)!=tmp_path/'given' and real(p, mode))
    with locked(out, beside=True):
        assert [p.name for p in (tmp_path/'given').rglob('*lock')]==['.lock']
        with pytest.raises(HffError, match='in use'), locked(out, beside=True): pass


def test_a_folder_and_a_link_to_it_have_one_lock(tmp_path, monkeypatch):
    "So has `.`"
    (tmp_path/'out').mkdir(); (tmp_path/'link').symlink_to(tmp_path/'out')
    monkeypatch.chdir(tmp_path/'out')
    with locked(tmp_path/'link', beside=True):
        assert (tmp_path/'.out.lock').is_file()
        for same in (tmp_path/'out', Path('.')):
            with pytest.raises(HffError, match='in use'), locked(same, beside=True): pass


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    "`.` as what is built, exported or shared"
    import hff.export, hff.miniff.build, hff.sharing
    from hff.sharing import Detector
    seen, run = [], tmp_path/'my_run'
    run.mkdir(); (run/'done.json').write_text('{}')
    monkeypatch.chdir(run)
    monkeypatch.setattr(hff.miniff.build, 'build', lambda out, **k: seen.append(out))
    assert main(['miniff', 'build', '--preset', 'smoke', '--out', '.'])==0 and seen==[run]
    monkeypatch.setattr(hff.export, 'export_model', lambda c, out, *a: seen.append(out) or run/'done.json')
    main(['export', '.'])
    assert seen[1]=='my_run.onnx'
    monkeypatch.setattr(hff.sharing, 'load_checkpoint', lambda p: None)
    monkeypatch.setattr(hff.sharing, 'write_card', lambda model, name, run: seen.append(name))
    with pytest.raises(HffError): Detector.from_run('.')
    assert seen[2]=='my_run'


@pytest.mark.parametrize('folder, source, good', [('p', 'p', False), ('p/out', 'p', False), ('p/../p/out', 'p', False), ('q', 'p', True), ('.', 'p', True), ('p', 'p/a.png', False), ('p/out', 'p/a.png', True)])
def test_overlays_are_not_among_what_they_were_made_from(folder, source, good, tmp_path):
    (tmp_path/'p').mkdir(); (tmp_path/'p/a.png').touch()
    if good: refuse_within(tmp_path/folder, tmp_path/source)
    else:
        with pytest.raises(HffError, match='lies with the source'): refuse_within(tmp_path/folder, tmp_path/source)


ACCELERATE = "from hff.trainer import _accelerator; print(_accelerator(60).mixed_precision)"

def test_the_recipe_alone_says_the_precision():
    "Not a variable, and not what the process was set up for before"
    assert python(ACCELERATE, ACCELERATE_MIXED_PRECISION='bf16')=='no'
    assert 'restarted kernel' in python(f"import accelerate; accelerate.Accelerator(mixed_precision='bf16')\ntry:\n    {ACCELERATE}\nexcept Exception as e: print(type(e).__name__, e)")


def test_scores_on_other_faces_are_known_by_their_content(tmp_path):
    "Two folders of one name"
    for d, key in (('a', 'aaa'), ('b', 'bbb')): (tmp_path/d/'faces').mkdir(parents=True); (tmp_path/d/'faces/faces.json').write_text(json.dumps(dict(id=key)))
    assert [cross_file(tmp_path, 'celebdf_v2', tmp_path/d/'faces').name for d in 'ab']==['celebdf_v2-aaa.parquet', 'celebdf_v2-bbb.parquet']
    assert cross_file(tmp_path, 'celebdf_v2', tmp_path/'a').name=='celebdf_v2-a.parquet'


def test_home_and_relative_folders(tmp_path, monkeypatch):
    "A shell does not expand every ~, and a plan is read from other folders"
    monkeypatch.setenv('HOME', str(tmp_path))
    for k, f in (('HFF_ROOT', root), ('HFF_DATA', data_dir), ('HFF_RUNS', runs_dir), ('HFF_FIGURES', figures_dir)):
        monkeypatch.setenv(k, '~/x')
        assert f()==tmp_path/'x'
        monkeypatch.delenv(k)
    monkeypatch.chdir(tmp_path)
    data = open_data('paper', 'ff', dict(dfd='~/dfd', celebdf_v1='sub/../celeb'), wanted=('dfd', 'celebdf_v1'))
    assert data.root==tmp_path/'ff' and data.cross==dict(dfd=tmp_path/'dfd', celebdf_v1=tmp_path/'celeb')


def test_notebook_jobs_get_the_data_of_their_plan(tmp_path, monkeypatch):
    "Those that open networks would train on MiniFF, or fail"
    import hff.reproduce, pandas as pd
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs')); monkeypatch.chdir(Path(__file__).parent.parent)
    empty = dict(preset='paper', seeds=[0], tables=['table1'], data_root='/data/ff', cross={}, faces={}, runs={})
    monkeypatch.setattr(hff.reproduce, 'make_plan', lambda *a: empty)
    got = []
    monkeypatch.setattr(hff.reproduce, 'run_notebook', lambda b, out, **p: got.append(p) or dict(notebook=b.stem, ok=True, seconds=0, error=''))
    do_step('plan', 'paper', ('figure2',), data_root='/data/ff', cross=dict(dfd='/data/dfd'), out=tmp_path/'out')
    do_step('notebook', 'paper', ('figure2',), out=tmp_path/'out')
    assert (got[0]['data_root'], got[0]['cross'])==('/data/ff', dict(dfd='/data/dfd'))
    plan = json.loads(plan_file('paper').read_text())
    plan_file('paper').write_text(json.dumps(plan | dict(given=dict(data_root='/x'))))
    with pytest.raises(HffError, match='is no plan of paper'): do_step('notebook', 'paper', ('figure2',), out=tmp_path/'out')


def test_variables_and_warnings_are_put_back(tmp_path, monkeypatch):
    monkeypatch.delenv('TQDM_DISABLE', raising=False); monkeypatch.setenv('OMP_NUM_THREADS', '2')
    before, shown = dict(os.environ), warnings.showwarning
    assert not len(run_notebooks([], 'smoke', (0,), tmp_path))
    assert main(['data', 'info', 'ffpp'])==0
    assert dict(os.environ)==before and warnings.showwarning is shown


def test_every_module_is_in_its_mode_again():
    "A frozen batch norm stays one"
    model = create_model('rgb', backbone='tf_efficientnet_lite0', image_size=64)
    model.train(); (frozen := next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))).eval()
    modes = [m.training for m in model.modules()]
    score_images(model, torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    from hff.diagrams import live
    live(model, torch.zeros(1, 3, 64, 64), [next(n for n, _ in model.named_children())])
    assert [m.training for m in model.modules()]==modes and not frozen.training


def test_an_own_preset_does_not_take_the_place_of_another(tmp_path):
    text = (Path(hff.paths.__file__).parent/'presets/smoke.yaml').read_text()
    for name in ('mini.yaml', 'mine.yaml'): (tmp_path/name).write_text(text)
    with pytest.raises(HffError, match='give your file another'): load_preset(str(tmp_path/'mini.yaml'))
    assert load_preset(str(tmp_path/'mine.yaml'))==load_preset('smoke')==load_preset(str(Path(hff.paths.__file__).parent/'presets/smoke.yaml'))


def test_a_foreign_settings_file_above(tmp_path):
    (tmp_path/'sub').mkdir(); (tmp_path/'settings.ini').write_bytes(b'\xff\xfeS\x00')
    assert not is_checkout(tmp_path) and root(tmp_path/'sub')==tmp_path/'sub'
    (tmp_path/'sub/settings.ini').mkdir()
    assert not is_checkout(tmp_path/'sub')


def test_an_interruption_before_the_kernel_lives(tmp_path, monkeypatch):
    "It is ended when it comes up, not waited for"
    import hff.reproduce
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    from test_reproduce import toy_book
    books, real = [toy_book(tmp_path/f'{n}.ipynb', f"open({str(tmp_path/'ran')!r}, 'w').close(); import time; time.sleep(300)") for n in 'ab'], hff.reproduce.run_notebook
    def interrupted(b, *a, **k):
        if b.stem=='a': raise KeyboardInterrupt
        time.sleep(.5); return real(b, *a, **k)                       # the other one begins when all has been called off
    monkeypatch.setattr(hff.reproduce, 'run_notebook', interrupted)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt): run_notebooks(books, 'smoke', (0,), tmp_path/'out', 2)
    assert time.monotonic()-start<200                                # the notebook alone takes 300 s


# ---- screens, and inputs that change ----------------------------------------------------------------------------------------------------

HFF = 'from hff.cli import main; raise SystemExit(main())'
PICTURE = next((Path(__file__).parent/'data').rglob('*.jpg'))

def test_files_are_written_though_nobody_reads_the_screen(tmp_path):
    "`hff predict ... | true`"
    p = subprocess.Popen([sys.executable, '-c', HFF, 'predict', PICTURE, '--csv', tmp_path/'t.csv', '--json', tmp_path/'t.json', '--overlay', tmp_path/'over'],
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | dict(TQDM_DISABLE='1'), text=True)
    p.stdout.close()
    with p: err = p.stderr.read()
    assert 'Traceback' not in err and all((tmp_path/n).exists() for n in ('t.csv', 't.json', 'over')), err


def test_a_name_outside_of_the_terminals_alphabet(tmp_path):
    (tmp_path/'日本.jpg').write_bytes(PICTURE.read_bytes())
    out = python(HFF, 'predict', tmp_path, '--csv', tmp_path/'t.csv', PYTHONIOENCODING='latin-1')
    assert '\\u65e5\\u672c.jpg' in out and '日本.jpg' in (tmp_path/'t.csv').read_text(encoding='utf-8')


@pytest.mark.parametrize('closed', ['1>&-', '2>&-', '0<&- 1>&- 2>&-'])
def test_without_standard_streams_notebooks_run(closed, tmp_path):
    code = f"import sys; from hff.cli import _streams; _streams(); from pathlib import Path; from hff.reproduce import run_notebooks; run_notebooks([Path({str(tmp_path/'a.ipynb')!r})], 'smoke', (0,), Path({str(tmp_path/'out')!r}), 1)"
    from test_reproduce import toy_book
    toy_book(tmp_path/'a.ipynb', f"open({str(tmp_path/'ran')!r}, 'w').close()")
    subprocess.run(['bash', '-c', f'exec "$0" -c "$1" {closed}', sys.executable, code], env=os.environ | dict(HFF_RUNS=str(tmp_path/'runs')), timeout=300)
    assert (tmp_path/'ran').exists()


def test_notebooks_go_on_when_the_reader_is_gone(tmp_path, monkeypatch):
    from test_reproduce import toy_book
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    def gone(*a, **k): raise BrokenPipeError
    monkeypatch.setattr('hff.reproduce.print', gone, raising=False)
    done = run_notebooks([toy_book(tmp_path/f'{n}.ipynb', 'x = 1') for n in 'ab'], 'smoke', (0,), tmp_path/'out', 1)
    assert done.ok.tolist()==[True, True]


def test_workers_take_no_module_of_the_current_folder(tmp_path):
    from hff.paths import child_env
    (tmp_path/'random.py').write_text('raise SystemExit("the wrong one")')
    r = subprocess.run([sys.executable, '-c', 'import random, hff; print(random.__file__)'], cwd=tmp_path, env=child_env(), capture_output=True, text=True)
    assert r.returncode==0 and str(tmp_path) not in r.stdout


def crops_id(root, **settings):
    "Id of the crops of one clip"
    from dataclasses import asdict
    from hff.extract import faces_id, make_cropping
    from test_extract import manifest
    return faces_id(manifest([next(p.name for p in root.iterdir() if p.is_dir())]), root, **asdict(make_cropping(**settings)))

def test_changed_pictures_of_a_clip_are_other_crops(tmp_path):
    "Of the same names; and of the same sizes"
    (clip := tmp_path/'clip').mkdir()
    for i in range(4): cv2.imwrite(str(clip/f'{i:03}.bmp'), np.full((8, 8, 3), i, np.uint8))
    was = crops_id(tmp_path)
    for i in range(4): cv2.imwrite(str(clip/f'{i:03}.bmp'), np.full((8, 8, 3), 9-i, np.uint8))
    assert crops_id(tmp_path)!=was
    (clip/'loop').symlink_to(clip); (clip/'nowhere').symlink_to(tmp_path/'gone')
    assert len(crops_id(tmp_path))==12


def test_a_changed_detector_gives_other_crops(tmp_path, monkeypatch):
    (tmp_path/'clip').mkdir(); monkeypatch.syspath_prepend(str(tmp_path))
    (own := tmp_path/'own_boxes.py').write_text('def f(image): return []')
    known = crops_id(tmp_path)
    plugin('own_boxes:f', DETECTORS); was = crops_id(tmp_path, detector='own_boxes:f')
    own.write_text('def f(image): return [1]')
    assert crops_id(tmp_path, detector='own_boxes:f')!=was and crops_id(tmp_path)==known


@pytest.mark.parametrize('code, said', [('1/0', 'division by zero'), ('def f(:', 'invalid syntax'), ("open('/nofile')", 'No such file'), ('raise AssertionError', 'AssertionError')])
def test_a_detector_that_cannot_be_loaded_is_named(code, said, tmp_path, monkeypatch):
    name = 'bad_'+str(abs(hash(code)))
    (tmp_path/f'{name}.py').write_text(code); monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HffError, match=f'Cannot load {name}:f: .*{said}'): plugin(f'{name}:f', DETECTORS)


@pytest.mark.parametrize('shape', [(10, 20000), (20000, 10), (1, 1), (1, 3000)])
def test_thin_pictures_have_no_face(shape): assert detect_faces(np.zeros((*shape, 3), np.uint8))==[]


def test_a_film_of_uneven_pace(tmp_path):
    "As a telephone writes it: five frames in a fifth of a second, then one every two"
    from hff.inference import predict
    from hff.overlays import overlay_video
    from hff.video import encode, frame_clock, probe_video
    at = lambda i: i/25 if i<5 else .2+2*(i-5)
    encode(tmp_path/'phone.mp4', [cv2.resize(PEOPLE[0], (160, 160))]*8, at=at)
    t = predict(tmp_path/'phone.mp4', frames=100)
    assert t.time.tolist()==pytest.approx([at(i) for i in range(8)], abs=1e-3) and t.status.eq('ok').all()
    overlay_video(tmp_path/'phone.mp4', t, tmp_path/'over.mp4')
    clock, even = frame_clock(tmp_path/'over.mp4', probe_video(tmp_path/'over.mp4')['fps'])
    assert not even and [clock(i) for i in range(8)]==pytest.approx([at(i) for i in range(8)], abs=1e-3)


def test_a_dry_run_looks_at_the_data_it_is_given(tmp_path, monkeypatch):
    "What was trained on other data is not finished; a folder that is not there is said"
    import pandas as pd
    import hff.reproduce
    monkeypatch.chdir(Path(__file__).parent.parent); monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    (tmp_path/'ff').mkdir(); (tmp_path/'one').mkdir()
    monkeypatch.setattr(hff.reproduce, 'manifest_of', lambda data, name, quality: (pd.DataFrame(), data.root))
    monkeypatch.setattr('hff.extract.faces_id', lambda m, where, **s: Path(where).name)
    names = hff.reproduce.plan('smoke', ('figure2',)).run
    from dataclasses import asdict, replace
    from hff.experiments import all_runs
    first = all_runs(('table1',), 'smoke').recipe[0]
    (d := tmp_path/'runs/smoke/x').mkdir(parents=True); (d/'done.json').write_text('{}')
    (d/'recipe.json').write_text(json.dumps(asdict(replace(first, data='one')), default=list))
    state = lambda **k: hff.reproduce.plan('smoke', ('figure2',), **k).status.ne('to train').sum()
    assert len(names)==4 and state()==1 and state(data_root=str(tmp_path/'one'))==1 and state(data_root=str(tmp_path/'ff'))==0
    with pytest.raises(HffError, match='No folder .*nowhere'): state(data_root=str(tmp_path/'nowhere'))
    with pytest.raises(HffError, match='No folder .*gone'): state(data_root=str(tmp_path/'ff'), cross=dict(dfd=str(tmp_path/'gone')))
