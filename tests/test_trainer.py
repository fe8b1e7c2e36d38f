"Runs that are killed, repeated, shared or spoilt"
import json
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from torch import nn

import hff.trainer as trainer
from hff.cli import main
from hff.datasets import FaceDataset, LenientFaces
from hff.paths import HffError, sha256
from hff.recipe import Recipe, load_recipe
from hff.scores import loading, read_scores, score_faces
from hff.trainer import load_state, locked, run_all, train

recipe = Recipe(model='rgb', backbone='mobilenetv2_100', pretrained=False, image_size=32, frames=2, epochs=4, batch_size=4, lr=1e-3,
                optimizer='adamw', schedule='one_cycle', switches=dict(head='cosine'))


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    "Noise crops: three training people, two for validation, two for the test; one test crop was never found"
    d, rng, rows = tmp_path_factory.mktemp('faces'), np.random.default_rng(0), []
    for split, people in (('train', 6), ('val', 2), ('test', 2)):
        for method in ('real', 'F2F', 'NT', 'touched'):
            for p in range(people):
                for f in range(3):
                    crop = f'{method}_{split}{p}_{f}.png'
                    cv2.imwrite(str(d/crop), rng.integers(0, 256, (32, 32, 3), np.uint8))
                    rows.append(dict(dataset='toy', method=method, quality='c23', video=f'{split}{p}', split=split, label=int(method in ('F2F', 'NT')),
                                     source='', target=f'{split}{p}', frame=f, crop=crop, x0=0., y0=0., x1=32., y1=32., status='ok'))
    rows[-1] |= dict(crop='', status='missing')
    pd.DataFrame(rows).to_parquet(d/'faces.parquet')
    np.save(d/'landmarks.npy', np.full((len(rows), 468, 2), 16, np.float32))
    return d


class Tiny(nn.Module):
    "A network with batch norm and dropout that trains in milliseconds"
    def __init__(self):
        super().__init__()
        self.config = dict(name='tiny')
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.5), nn.Flatten(), nn.LazyLinear(2))
        self.body(torch.zeros(2, 3, 32, 32))

    def forward(self, x): return type('Output', (), dict(logits=self.body(x)))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr('hff.models.create_model', lambda *a, **k: Tiny())


def both(run): return sha256(run/'model.safetensors'), sha256(run/'scores.parquet')


def test_killed_run_ends_with_the_same_weights(faces, tmp_path):
    whole = train(recipe, faces, tmp_path/'whole', show=False)
    half = tmp_path/'cut'/recipe.name
    half.mkdir(parents=True)
    p = trainer._launch(half)
    p.stdin.write(json.dumps([recipe.settings, str(faces), {}])+'\n'); p.stdin.flush()
    while not (half/'state.pt').exists():                          # the first epoch is over, the second has begun
        assert p.poll() is None, (half/'stderr.txt').read_text()
        time.sleep(.005)
    time.sleep(.05)
    os.kill(p.pid, signal.SIGKILL)
    p.communicate()
    assert not (half/'done.json').exists() and 1 <= load_state(half/'state.pt')['epoch'] < recipe.epochs
    assert both(train(recipe, faces, tmp_path/'cut', show=False)) == both(whole)
    cols = ['epoch', 'train_loss', 'val_loss', 'val_frame_auc', 'val_video_auc', 'lr']
    assert pd.read_csv(half/'log.csv')[cols].equals(pd.read_csv(whole/'log.csv')[cols])


def test_scores_cover_every_test_row(faces, tmp_path, tiny):
    s = read_scores(train(replace(recipe, frames=3), faces, tmp_path, show=False)/'scores.parquet')
    assert s.groupby('method').size().to_dict() == {'real': 6, 'F2F': 6, 'NT': 6, 'touched': 6}
    assert s.status.value_counts().to_dict() == {'ok': 23, 'missing': 1}
    assert s[s.status == 'missing'].method.item() == 'touched'


def test_threads_and_outside_randomness_decide_nothing(faces, tmp_path, tiny):
    torch.manual_seed(1)
    a = train(recipe, faces, tmp_path/'a', show=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(2)
    try:
        b = train(recipe, faces, tmp_path/'b', show=False)
        assert torch.get_num_threads() == 2
    finally: torch.set_num_threads(threads)
    assert both(a) == both(b)
    assert both(train(replace(recipe, seed=1), faces, tmp_path/'a', show=False)) != both(a)


def test_nan_stops_and_keeps_the_last_good_state(faces, tmp_path, tiny, monkeypatch):
    steps, good = 2*6*2//4, trainer.lr_at
    monkeypatch.setattr(trainer, 'lr_at', lambda i, *a: float('inf') if i >= steps else good(i, *a))
    with pytest.raises(HffError, match=r'loss is nan at epoch 2, step 2 .*the state after 1 epoch is kept'): train(recipe, faces, tmp_path/'a', show=False)
    state = load_state(tmp_path/'a'/recipe.name/'state.pt')
    assert state['epoch'] == 1 and all(v.isfinite().all() for v in state['model'].values())
    monkeypatch.setattr(trainer, 'lr_at', good)
    assert both(train(recipe, faces, tmp_path/'a', show=False)) == both(train(recipe, faces, tmp_path/'b', show=False))


@pytest.mark.parametrize('change', [dict(), dict(average=.5), dict(fakes='self_blended', train_methods=(), select='last'), dict(fakes='self_blended', train_methods=(), select='last', average=.5)])
def test_weights_spoilt_by_the_last_step_of_an_epoch_are_not_kept(change, faces, tmp_path, tiny, monkeypatch):
    "No loss comes after that step; fakes that are made have no validation that would notice"
    r, good, rates = replace(recipe, **change), trainer.lr_at, []
    monkeypatch.setattr(trainer, 'lr_at', lambda i, total, *a: rates.append(i) or (float('inf') if i==total//r.epochs*2-1 else good(i, total, *a)))
    with pytest.raises(HffError, match='weights are no longer finite after epoch 2: lower lr in the recipe; the state after 1 epoch is kept'): train(r, faces, tmp_path, show=False)
    state = load_state(tmp_path/r.name/'state.pt')
    assert state['epoch']==1 and all(v.isfinite().all() for k in ('model', 'average') for v in state.get(k, {}).values())
    monkeypatch.setattr(trainer, 'lr_at', good)
    assert (train(r, faces, tmp_path, show=False)/'done.json').is_file()


def test_a_state_of_another_network_is_told(faces, tmp_path, tiny, monkeypatch):
    r, stop = replace(recipe, average=.5), RuntimeError('stopped')
    monkeypatch.setattr(trainer._Run, 'finish', lambda self: (_ for _ in ()).throw(stop))
    with pytest.raises(RuntimeError, match='stopped'): train(r, faces, tmp_path, show=False)
    path = tmp_path/r.name/'state.pt'
    whole = load_state(path)
    weights, groups = whole['model'], whole['optimizer']
    for spoilt in (dict(model={f'net.{k}': v for k, v in weights.items()}), dict(model={k: v[:1] for k, v in weights.items() if v.ndim}), dict(optimizer=groups | dict(param_groups=[])), dict(optimizer={}), dict(average={}), dict(model=3)):
        trainer.save_state(whole | spoilt, path)
        with pytest.raises(HffError, match='state.pt is not of this version: delete it and the run starts again') as e: train(r, faces, tmp_path, show=False)
        assert '\n' not in str(e.value)


class Faulty(FaceDataset):
    "Decodes on demand; while there is a file `end`, the process that decodes ends itself"
    def __init__(self, recipe, table, root): super().__init__(table, root, memory=0)
    def batch(self, idx):
        if (self.root/'end').exists(): os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(idx)


@pytest.mark.skipif(sys.platform!='linux', reason='processes that decode are forked')
def test_what_goes_wrong_in_a_process_that_decodes_is_one_line(faces, tmp_path, tiny, monkeypatch):
    d = shutil.copytree(faces, tmp_path/'faces')
    (d/'real_train5_2.png').unlink()
    for k, v in dict(_training_faces=Faulty, decoders=lambda: 1).items(): monkeypatch.setattr(trainer, k, v)
    r = replace(recipe, frames=3)
    with pytest.raises(HffError) as e: train(r, d, tmp_path, show=False)
    assert str(e.value)==f"Cannot read the crop {d/'real_train5_2.png'}: extract the faces again"
    (d/'end').touch()
    with pytest.raises(HffError, match='ended from outside, perhaps for want of memory') as e: train(r, d, tmp_path, show=False)
    assert '\n' not in str(e.value)


@pytest.mark.skipif(sys.platform!='linux', reason='processes that decode are forked')
def test_a_decoder_that_ends_while_scoring_is_told(faces, monkeypatch):
    table, main = trainer.read_faces(faces), os.getpid()
    whole = score_faces(Tiny(), table, faces, workers=1)
    assert whole.status.value_counts().to_dict()=={'ok': 119, 'missing': 1}
    monkeypatch.setattr(LenientFaces, 'picture', lambda *a: os.getpid()!=main and os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(HffError, match='ended from outside'): score_faces(Tiny(), table, faces, workers=1)


def test_other_errors_stay_as_they_are():
    for e in (HffError('a\nb'), RuntimeError('DataLoader is odd'), ValueError('x')):
        with pytest.raises(type(e)) as got, loading(): raise e
        assert got.value is e


def test_last_epoch_and_best_epoch(faces, tmp_path, tiny):
    kept = {s: trainer.read_json(train(replace(recipe, select=s), faces, tmp_path, show=False)/'done.json')['kept'] for s in ('last', 'val_video_auc')}
    log = pd.read_csv(tmp_path/recipe.name/'log.csv')
    assert kept['last']['epoch'] == recipe.epochs
    assert kept['val_video_auc']['epoch'] == log.sort_values(['val_video_auc', 'val_loss'], ascending=[False, True]).epoch.iloc[0]


def test_one_line_errors(faces, tmp_path, tiny):
    with locked(tmp_path/recipe.name), pytest.raises(HffError, match='in use by another process'): train(recipe, faces, tmp_path, show=False)
    (tmp_path/'file').touch()
    with pytest.raises(HffError, match='choose another run root'): train(recipe, faces, tmp_path/'file', show=False)
    with pytest.raises(HffError, match='choose another run root'): run_all([recipe], faces, tmp_path/'file')
    (tmp_path/recipe.name/'state.pt').write_bytes(b'PK\x03\x04 half')
    with pytest.raises(HffError, match='state.pt is damaged: delete it'): train(recipe, faces, tmp_path, show=False)


def test_a_failed_run_does_not_stop_the_others(faces, tmp_path):
    bad, good = replace(recipe, train_methods=('FS',), epochs=1), replace(recipe, epochs=1)
    with pytest.raises(HffError) as e: run_all([bad, good], faces, tmp_path)
    assert str(e.value).startswith('1 of 2 runs failed: ') and 'no train faces of FS' in str(e.value) and '\n' not in str(e.value)
    assert (tmp_path/good.name/'done.json').exists() and not (tmp_path/bad.name/'done.json').exists()
    before = (tmp_path/good.name/'done.json').stat().st_mtime_ns
    assert run_all([good], Path(faces), tmp_path) == [tmp_path/good.name]
    assert (tmp_path/good.name/'done.json').stat().st_mtime_ns == before


def test_half_written_files_of_a_killed_run_go_away(faces, tmp_path, tiny):
    (tmp_path/recipe.name).mkdir()
    (tmp_path/recipe.name/'.state.99.tmp.pt').write_bytes(b'half')
    train(recipe, faces, tmp_path, show=False)
    assert {p.name for p in (tmp_path/recipe.name).iterdir()} - {'.lock'} == {'recipe.json', 'log.csv', 'model.safetensors', 'val_scores.parquet', 'scores.parquet', 'done.json'}


def test_a_dead_worker_loses_only_the_run_it_was_at(faces, tmp_path):
    "Of three runs of one worker that is killed at the second, the first is done and another worker does the third"
    a, b, c = (replace(recipe, seed=s, epochs=e) for s, e in ((0, 1), (1, 400), (2, 1)))
    workers = []
    def kill():
        while not (tmp_path/b.name/'progress.json').exists(): time.sleep(.02)
        workers.extend(psutil.Process().children()); workers[0].kill()
    killer = Thread(target=kill, daemon=True); killer.start()
    with pytest.raises(HffError) as e: run_all([a, b, c], faces, tmp_path, jobs=1)
    killer.join(60)
    assert str(e.value)==f'1 of 3 runs failed: {b.name}: stopped by SIGKILL (out of memory?)' and len(workers)==1
    assert [(tmp_path/r.name/'done.json').exists() for r in (a, b, c)]==[True, False, True]


def test_a_worker_that_cannot_start_says_why(faces, tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    (tmp_path/'tqdm.py').write_text('raise ImportError("no tqdm here")')
    todo = [replace(recipe, seed=s) for s in (0, 1)]
    with pytest.raises(HffError, match='2 of 2 runs failed: .*: exit code 1, see stderr.txt'): run_all(todo, faces, tmp_path)
    assert all('no tqdm here' in (tmp_path/r.name/'stderr.txt').read_text() for r in todo)


def test_nested_shares_of_the_people():
    people = [f'{i:03d}' for i in range(40)]
    some = {s: trainer.some_people(people*2, s) for s in (.25, .5, 1.)}
    assert [len(v) for v in some.values()] == [10, 20, 40] and set(some[.25]) < set(some[.5]) < set(some[1.])


@pytest.fixture
def folder(faces, tmp_path):
    "The crops with settings, as `hff faces` leaves them"
    def make(name, dataset='toy'):
        d = tmp_path/name
        shutil.copytree(faces, d)
        t = pd.read_parquet(d/'faces.parquet')
        t.assign(dataset=dataset).to_parquet(d/'faces.parquet')
        (d/'faces.json').write_text(json.dumps(dict(id='0'*12, size=32, frames=3, margin=1.3)))
        return d
    return make


def test_train_takes_settings_and_a_place(folder, tmp_path, monkeypatch, capsys):
    "What stands on the command line reaches the recipe; the run lies where it was asked for, and is judged on two data sets at once"
    monkeypatch.setenv('TQDM_DISABLE', '1')
    a, b = folder('a'), folder('b', 'other')
    words = ['backbone=mobilenetv2_100', 'pretrained=false', 'epochs=1', 'lr=1e-4', 'batch_size=4', 'frames=2', 'switches={"head": "cosine"}', 'watch=0']
    assert main(['train', '--preset', 'smoke', '--model', 'rgb', '--faces', str(a), '--runs', str(tmp_path/'mine'), *(x for w in words for x in ('--set', w))])==0
    run, = (tmp_path/'mine').iterdir()
    got = load_recipe(run/'recipe.json')
    assert (got.epochs, got.lr, got.backbone, got.pretrained, got.switches)==(1, 1e-4, 'mobilenetv2_100', False, {'head': 'cosine'})
    capsys.readouterr()
    assert main(['evaluate', str(run), '--faces', str(a), '--faces', str(b), '--policy', 'ok_only', '--out', str(tmp_path/'m.csv')])==0
    said, t = capsys.readouterr().out, pd.read_csv(tmp_path/'m.csv')
    both = t[t.method.eq('all')]
    assert sorted(both.dataset)==['other', 'toy'] and f'mean over 2 data sets, all fakes of each together: frame AUC {both.frame_auc.mean():.3f}, video AUC {both.video_auc.mean():.3f}' in said
    assert main(['evaluate', str(run), '--faces', str(a), '--faces', str(a)])==1 and 'both hold toy c23' in capsys.readouterr().err
