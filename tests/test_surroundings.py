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
