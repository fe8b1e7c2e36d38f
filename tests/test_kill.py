"Every command broken off once in every way (see `hff.faults`), and what is started again must give the same"
import io
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import hff.extract
import hff.trainer  # noqa: F401  (what a fork has, it need not import)
from hff.cli import main
from hff.extract import extract_faces, read_faces
from hff.faults import FAULTS, Job, digest, family, hff_jobs, left_behind, ready, start, trial, undisturbed
from hff.paths import HffError, atomic, locked, read_json, sha256
from hff.reproduce import run_notebooks
from hff.trainer import run_all
from test_extract import clips, manifest, whole  # noqa: F401  (fixtures among them)
from test_trainer import faces, recipe  # noqa: F401

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='module')
def jobs(tmp_path_factory):
    "Each command, its undisturbed results and how long they took"
    base = tmp_path_factory.mktemp('jobs')
    js = {j.name: j for j in hff_jobs(base, ('faces', 'miniff', 'train'))}
    known = dict(miniff=(digest(js['miniff'], base/'clips'), 0.))                     # it was built for the others; no moment is needed
    return {n: (j, *(known.get(n) or undisturbed(j, base/n))) for n, j in js.items()}


@pytest.mark.parametrize('job,fault', [*(('faces', f) for f in FAULTS if f not in ('nan', 'interrupt')),
                                       *(('train', f) for f in FAULTS if f not in ('worker', 'interrupt')), ('miniff', 'disk'), ('miniff', 'twice')])
def test_broken_off_and_started_again(job, fault, jobs, tmp_path):
    j, want, seconds = jobs[job]
    t = trial(fault, j, tmp_path/'d', want, seconds, np.random.default_rng([1, *fault.encode(), *job.encode()]))
    assert t['equal'] and t['clear'] and not t['left'], (t, t['said'][-3000:])
    if fault=='nan': assert t['broke'] and 'the loss is nan at epoch' in t['said'], t['said'][-500:]
    if fault=='twice' and t['broke']: assert 'in use by another process' in t['said'], t['said'][-500:]
    times = [v for p in (tmp_path/'d').rglob('log.csv') for v in pd.read_csv(p).seconds] + [read_json(p)['seconds'] for p in (tmp_path/'d').rglob('done.json')]
    assert all(v>=0 for v in times) and (job!='train' or times), times
    assert not [p for p in (tmp_path/'d').rglob('.*.tmp*')]


def until(ready, p, seconds=120):
    end = time.monotonic()+seconds
    while not ready() and p.is_alive() and time.monotonic()<end: time.sleep(.02)
    assert p.is_alive() and ready()


@pytest.mark.parametrize('sig', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_a_training_of_many(faces, tmp_path, sig, monkeypatch):  # noqa: F811
    "Two workers, in the middle of their runs where their parent has no time to end them; it alone gets the signal"
    todo = [replace(recipe, epochs=400, seed=s) for s in (0, 1)]
    monkeypatch.setattr('hff.info.source_info', lambda name: run_all(todo, faces, tmp_path/'runs'))       # through the command line, which knows SIGTERM
    p = start(Job('many', lambda d: main(['data', 'info', 'ffpp']), lambda d: []), tmp_path)
    until(lambda: len(list((tmp_path/'runs').glob('*/progress.json')))==2 if sig==signal.SIGKILL else len(family(p))>=2, p)
    known = family(p)
    os.kill(p.pid, sig); p.join(60)
    assert len(known)>=2 and not p.is_alive() and left_behind(p, known)==0
    assert p.exitcode==(-9 if sig==signal.SIGKILL else 130) and not list((tmp_path/'runs').glob('*/done.json'))
    for r in todo:
        with locked(tmp_path/'runs'/r.name): pass                                     # nobody holds it


def notebook(path, code):
    import nbformat
    cells = [nbformat.v4.new_code_cell('preset = ""\nseeds = []\nout_dir = ""\nscores = ""', metadata=dict(tags=['parameters'])), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), path)
    return path


def test_an_interrupted_notebook_ends_at_once(tmp_path, monkeypatch):
    "Its kernel has a session of its own; the notebook that waits is not begun"
    books = [notebook(tmp_path/f'{n}.ipynb', f"import time; open({str(tmp_path/n)!r}, 'w').close(); time.sleep(300)") for n in 'ab']
    monkeypatch.setattr('hff.info.source_info', lambda name: run_notebooks(books, 'smoke', (0,), tmp_path/'out', 1))
    p = start(Job('books', lambda d: main(['data', 'info', 'ffpp']), lambda d: []), tmp_path)
    until((tmp_path/'a').exists, p)
    known = family(p)
    os.kill(p.pid, signal.SIGTERM); p.join(60)
    assert p.exitcode==130 and known and left_behind(p, known)==0 and not (tmp_path/'b').exists()


def test_a_kernel_that_dies_is_a_failed_notebook(tmp_path, monkeypatch):
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs'))
    done = run_notebooks([notebook(tmp_path/'a.ipynb', 'import os; os.kill(os.getpid(), 9)')], 'smoke', (0,), tmp_path/'out', 1)
    assert not done.ok[0] and 'DeadKernelError' in done.error[0]


@pytest.mark.parametrize('held', ['out', 'runs/smoke'])
def test_two_reproductions_do_not_share_a_folder(held, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs')); monkeypatch.setenv('HFF_ROOT', str(ROOT))
    with locked(tmp_path/held, beside=held=='out'): code = main(['reproduce', '--preset', 'smoke', '--only', 'table3', '--out', str(tmp_path/'out')])
    err = capsys.readouterr().err
    assert code==1 and err.count('\n')==1 and f'{held} is in use by another process' in err


def test_the_table_of_faces_gets_its_name_last(clips, whole, tmp_path, monkeypatch):  # noqa: F811
    "Killed between the two names, and before the parts are removed"
    m, real = manifest(sorted(p.name for p in clips.iterdir())), os.replace
    def stop_at(a, b):
        if Path(b).name=='faces.parquet': raise KeyboardInterrupt
        real(a, b)
    monkeypatch.setattr('hff.paths.os.replace', stop_at)
    with pytest.raises(KeyboardInterrupt): extract_faces(m, clips, tmp_path/'faces', frames=4, size=64, jobs=1)
    assert (tmp_path/'faces/landmarks.npy').is_file()
    with pytest.raises(HffError, match='unfinished'): read_faces(tmp_path/'faces')
    monkeypatch.undo()
    monkeypatch.setattr(hff.extract, '_clear', lambda out: None)
    extract_faces(m, clips, tmp_path/'faces', frames=4, size=64, jobs=1)
    monkeypatch.undo()
    assert (tmp_path/'faces/parts').is_dir() and sha256(extract_faces(m, clips, tmp_path/'faces', frames=4, size=64, jobs=1))==sha256(whole)


def test_a_video_on_a_full_disk(tmp_path):
    "PyAV names the temporary file, and as an address"
    from hff.video import write_video
    noise = np.random.default_rng(0).integers(0, 255, (30, 64, 64, 3), np.uint8)
    def run(d): write_video(d/'a.mp4', noise)
    def limit(): signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
    p = start(Job('video', run, lambda d: []), tmp_path, limit); p.join()
    said = (tmp_path/'said.txt').read_text()
    assert p.exitcode==1 and f"Cannot write {tmp_path/'a.mp4'}: File too large" in said and [q.name for q in tmp_path.iterdir()]==['said.txt'], said


def test_processes_of_one_number_do_not_share_a_temporary_file(tmp_path):
    "As in containers on a shared disk"
    with atomic(tmp_path/'a.txt') as one, atomic(tmp_path/'a.txt') as two:
        one.write_text('one'); two.write_text('two')
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()]==[('a.txt', 'one')]
    with atomic(tmp_path/f"{'x'*195}.txt") as tmp: tmp.write_text('as long as a name is kept')
    with atomic(tmp_path/f"{'y'*251}.txt") as tmp: tmp.write_text('as long as a name can be')


def test_scores_and_page_on_a_full_disk(tmp_path):
    "Packed scores and the page: one line, nothing half-written, then whole"
    from hff.page import index_page
    from hff.results import read_results, write_results
    r = read_results(ROOT/'figures/mini/scores')
    def run(d): write_results(r, d/'out/scores'); index_page(d/'out', [dict(stem='table3', ok=True, title='x'*9000)], {}, 'page')
    j = Job('page', run, lambda d: [p for p in (d/'out').rglob('*') if p.is_file()])
    want, seconds = undisturbed(j, tmp_path/'whole')
    for i in range(3):
        t = trial('disk', j, tmp_path/str(i), want, seconds, np.random.default_rng(i))
        assert t['equal'] and t['clear'] and (not t['broke'] or 'Cannot write' in t['said']), t


def test_a_download_that_is_cut_leaves_nothing(tmp_path, monkeypatch):
    "timm alone would keep the half file and fail on it for ever; the digest in the name stops that"
    from hff.backbones import classifier, timm
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    class Half(io.BytesIO):
        def info(self): return type('Headers', (), dict(get_all=lambda self, k: ['1000'], getheaders=lambda self, k: ['1000']))()
    asked = []
    monkeypatch.setattr('torch.hub.urlopen', lambda request, *a, **k: asked.append(request.full_url) or Half(b'PK\x03\x04'+b'half'*50))
    kept = lambda: [p.name for p in tmp_path.rglob('*') if p.is_file()]
    with pytest.raises(HffError, match='could not be fetched'): classifier('legacy_xception', pretrained=True)
    assert asked and all(u.startswith('https://') for u in asked) and kept()==[]
    with pytest.raises(Exception): timm.create_model('legacy_xception', pretrained=True)
    assert kept()==['xception-43020ad28.pth']


def test_a_download_is_named_with_its_digest(monkeypatch, capsys):
    "Weights that came from elsewhere are told apart by their tensors"
    from hff.backbones import classifier, tensors_sha256, timm
    make = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained=False, **kw: make(name, pretrained=False, **kw))
    net, said = classifier('legacy_xception', pretrained=True), capsys.readouterr().err
    assert said.startswith('legacy_xception: weights from ') and tensors_sha256(net) in said
    with torch.no_grad(): next(net.parameters()).add_(1)
    assert tensors_sha256(net) not in said


@pytest.mark.parametrize('own', [True, False])
def test_a_worker_dies_or_else_the_job_itself(own, tmp_path):
    "This one goes on after the loss of its worker"
    def run(d):
        if own: p = start(Job('worker', lambda d: time.sleep(1), lambda d: []), d); p.join(); print('worker:', p.exitcode)
        else: time.sleep(1)
        (d/'x.out').touch()
    j = Job('job', run, lambda d: d.glob('x.out'), workers=own)
    want, seconds = undisturbed(j, tmp_path/'whole')
    t = trial('worker', j, tmp_path/'d', want, seconds, np.random.default_rng(0))
    assert t['equal'] and not t['left'] and t['broke']==(not own) and ('worker: -9' in t['said'])==own, t


def test_the_harness_notices(tmp_path):
    "A careless job, which takes half a file for a whole one"
    def run(d):
        if not (p := d/'x.out').exists():
            with open(p, 'w') as f: f.write('half '); f.flush(); time.sleep(.5); f.write('whole')
    j = Job('careless', run, lambda d: d.glob('*.out'))
    want, seconds = undisturbed(j, tmp_path/'whole')
    assert not trial('kill', j, tmp_path/'cut', want, seconds, np.random.default_rng(0))['equal']
    assert digest(j, ready(j, tmp_path/'nothing'))=='' and want


FORKS = """
import os, signal, time
from multiprocessing import get_context
from hff.cli import _stoppable
os.register_at_fork(after_in_parent=lambda: signal.raise_signal(signal.SIGINT))
with _stoppable() as asked:
    try: p = get_context('fork').Process(target=time.sleep, args=(0,)); p.start(); p.join(); time.sleep(5); print('lost', asked)
    except KeyboardInterrupt: print('interrupted', len(asked))
"""


def test_interruption_in_the_midst_of_a_fork_is_not_lost():
    r = subprocess.run([sys.executable, '-c', FORKS], capture_output=True, text=True, timeout=60)
    assert r.stdout.strip()=='interrupted 2' and 'Exception ignored' not in r.stderr, r.stdout+r.stderr
