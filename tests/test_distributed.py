"Two processes (Gloo, on the CPU) do what one does. The same file is what `torchrun` starts in each of them"
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import hff.trainer as trainer
from hff.paths import HffError, locked, read_json, sha256, write_json
from hff.recipe import Recipe
from hff.scores import SCORE_COLUMNS, read_scores
from hff.trainer import batches_of, load_state, train

# 21 real and 21 fake training faces in batches of 13: the parts are 6 and 7, the last batch holds 3 and can't be shared
recipe = Recipe(model='rgb', backbone='mobilenetv2_100', pretrained=False, image_size=32, frames=3, epochs=3, batch_size=13, lr=1e-3,
                optimizer='adamw', schedule='one_cycle', switches=dict(head='cosine'))


class Summed(torch.autograd.Function):
    "Sum over the processes, for numbers and for their gradients"
    @staticmethod
    def forward(ctx, t): return Summed.of(t)

    @staticmethod
    def backward(ctx, g): return Summed.of(g)

    @staticmethod
    def of(t):
        t = t.clone()
        if torch.distributed.is_initialized(): torch.distributed.all_reduce(t)
        return t


class SharedNorm(nn.BatchNorm2d):
    "Batch norm over the batch of all processes: what `SyncBatchNorm` does on GPUs"
    def forward(self, x):
        if not self.training: return super().forward(x)
        n, s, q = Summed.apply(torch.stack([torch.full_like(x[0,:,0,0], x[:,0].numel()), x.sum((0, 2, 3)), x.square().sum((0, 2, 3))]))
        mean, var = s/n, q/n-(s/n)**2
        with torch.no_grad():
            for old, new in ((self.running_mean, mean), (self.running_var, var*n/(n-1))): old.lerp_(new, self.momentum)
        at = lambda v: v[:,None,None]
        return (x-at(mean))/at(var+self.eps).sqrt()*at(self.weight)+at(self.bias)


class Tiny(nn.Module):
    "A network with batch norm and an average over the picture that trains in milliseconds"
    def __init__(self, norm=SharedNorm):
        super().__init__()
        self.config = dict(name='tiny')
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, bias=False), norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, bias=False), norm(8), nn.ReLU())
        self.head = nn.Linear(8, 2)

    def forward(self, x): return type('Output', (), dict(logits=self.head(self.body(x).mean((2, 3)))))


class Stop(Exception): "Stands for a power cut"


def recorded(data, seen):
    "Note which items a process is given"
    give = type(data).batch
    def batch(idx): seen.append([int(i) for i in idx]); return give(data, idx)
    data.batch = batch
    return data


def watched_training(recipe, faces, out):
    "Train, and write down the items of each step, in the order in which they came"
    seen, whole = [], trainer.train_epoch
    def epoch(model, optimizer, data, *a, **kw): return whole(model, optimizer, recorded(data, seen), *a, **kw)
    trainer.train_epoch = epoch
    try: run = train(recipe, faces, out, show=False)
    finally: trainer.train_epoch = whole
    write_json(seen, out/f"seen{os.environ.get('RANK', 0)}.json")
    return run


def all_of_it(faces, out):
    "What both processes do: whole, resumed, locked, with a loss that is no number"
    faces, out = Path(faces), Path(out)
    import hff.models
    hff.models.create_model = lambda *a, **k: Tiny()
    run = watched_training(recipe, faces, out/'whole')
    train(replace(recipe, average=.5, watch=1, select='last'), faces, out/'whole', show=False)
    whole = trainer.train_epoch
    def cut(*a, **kw):
        whole(*a, **kw)
        if a[4]==1: raise Stop
        return .5
    trainer.train_epoch = lambda *a, **kw: cut(*a, **kw) if a[4]==1 else whole(*a, **kw)
    with pytest.raises(Stop): train(recipe, faces, out/'cut', show=False)
    trainer.train_epoch = whole
    state = load_state(out/'cut'/recipe.name/'state.pt')
    assert state['epoch']==1 and not any(k.startswith('module.') for k in state['model'])
    train(recipe, faces, out/'cut', show=False)
    if trainer._accelerator(60).is_main_process:
        with locked(out/'held'/recipe.name): refused(faces, out/'held', 'in use by another process')
    else: refused(faces, out/'held', 'in use by another process')
    trainer.make_loss, good = (lambda *a: lambda z, y: z.sum()*(float('nan') if os.environ['RANK']=='1' else 0.)), trainer.make_loss
    refused(faces, out/'nan', 'loss is nan at epoch 1, step 1')                  # said by both, though one of them met it
    trainer.make_loss = good
    assert train(recipe, faces, out/'whole', show=False)==run


def refused(faces, out, words):
    with pytest.raises(HffError, match=words): train(recipe, faces, out, show=False)


def silent(faces, out):
    "The second process hangs in its second epoch"
    import hff.models
    hff.models.create_model = lambda *a, **k: Tiny()
    whole = trainer.train_epoch
    def hang(*a, **kw):
        if a[4]==1 and os.environ['RANK']=='1': Path(out, 'hangs').touch(); time.sleep(600)
        return whole(*a, **kw)
    trainer.train_epoch = hang
    Path(out, os.environ['RANK']).touch()
    while not (Path(out, '0').exists() and Path(out, '1').exists()): time.sleep(.05)     # started together, however long Python took
    train(recipe, faces, out, show=False, timeout=4)


def torchrun(*args, timeout=120):
    path = [str(Path(trainer.__file__).parent.parent), *filter(None, [os.environ.get('PYTHONPATH')])]
    env = os.environ | dict(OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONPATH=os.pathsep.join(path))
    cmd = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', *map(str, args)]
    return subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    "Crops whose fakes carry a grid; 27 of the test, two of them never found"
    d, rng, rows = tmp_path_factory.mktemp('faces'), np.random.default_rng(0), []
    for split, people in (('train', 7), ('val', 3), ('test', 3)):
        for method in ('real', 'F2F', 'NT'):
            for p in range(people):
                for f in range(3):
                    im, crop = rng.normal(128, 30, (32, 32, 3)), f'{method}_{split}{p}_{f}.png'
                    if method!='real': im[::4] += 12
                    cv2.imwrite(str(d/crop), im.clip(0, 255).astype(np.uint8))
                    rows.append(dict(dataset='toy', method=method, quality='c23', video=f'{split}{p}', split=split, label=int(method!='real'),
                                     source='', target=f'{split}{p}', frame=f, crop=crop, x0=0., y0=0., x1=32., y1=32., status='ok'))
    for i in (-1, -5): rows[i] |= dict(crop='', status='missing')
    pd.DataFrame(rows).to_parquet(d/'faces.parquet')
    np.save(d/'landmarks.npy', np.full((len(rows), 468, 2), 16, np.float32))
    write_json(dict(id='toy', size=32, margin=1.3, frames=3), d/'faces.json')
    return d


@pytest.fixture(scope='module')
def two(faces, tmp_path_factory):
    out = tmp_path_factory.mktemp('two')
    r = torchrun(__file__, 'all_of_it', faces, out)
    assert r.returncode==0, r.stderr[-4000:]
    return out


@pytest.fixture(scope='module')
def one(faces, tmp_path_factory):
    out, patch = tmp_path_factory.mktemp('one'), pytest.MonkeyPatch()
    patch.setattr('hff.models.create_model', lambda *a, **k: Tiny())
    watched_training(recipe, faces, out)
    train(replace(recipe, average=.5, watch=1, select='last'), faces, out, show=False)
    patch.undo()
    return out


def steps(folder, rank): return read_json(folder/f'seen{rank}.json')


def test_the_same_items_in_each_step(one, two):
    alone, a, b = steps(one, 0), steps(two/'whole', 0), steps(two/'whole', 1)
    assert len(alone)==len(a)==len(b)==3*4
    for whole, x, y in zip(alone, a, b):
        if len(whole)>=4: assert x+y==whole and (len(x), len(y))==(6, 7) and {i<21 for i in x}=={i<21 for i in y}=={True, False}
        else: assert x==y==whole and len(whole)==3                       # too small to share: both do all of it
    orders = [sum(alone[4*e:4*e+4], []) for e in range(3)]
    assert all(sorted(o)==list(range(42)) for o in orders) and len({tuple(o) for o in orders})==3
    assert alone==[b.tolist() for e in range(3) for b in batches_of(recipe, [0]*21+[1]*21, e)]


@pytest.mark.parametrize('which', [recipe, replace(recipe, average=.5, watch=1, select='last')], ids=['plain', 'averaged'])
def test_the_same_result(one, two, which):
    "Sums in another order: float32 differs in the last digits, and 12 steps of Adam let that grow a little"
    a, b = one/which.name, two/'whole'/which.name
    logs = [pd.read_csv(r/'log.csv').drop(columns='seconds') for r in (a, b)]
    pd.testing.assert_frame_equal(*logs, rtol=1e-4, atol=1e-4)
    s, t = (read_scores(r/'scores.parquet') for r in (a, b))
    assert s[SCORE_COLUMNS[:6]+['status']].equals(t[SCORE_COLUMNS[:6]+['status']]) and s.dtypes.equals(t.dtypes)
    gap = (s.logit-t.logit).abs()
    assert gap.max()<1e-4 and gap.max()<s.logit.std()/50, f'{gap.max()} of {s.logit.std()}'
    assert read_json(b/'done.json')['processes']==2 and read_json(a/'done.json')['kept']['epoch']==read_json(b/'done.json')['kept']['epoch']


def test_each_test_row_once(two, faces):
    s, t = read_scores(two/'whole'/recipe.name/'scores.parquet'), pd.read_parquet(faces/'faces.parquet').query("split=='test'")
    assert len(s)==27 and s[SCORE_COLUMNS[:5]].equals(t[SCORE_COLUMNS[:5]].reset_index(drop=True))
    assert s.status.value_counts().to_dict()=={'ok': 25, 'missing': 2} and s.logit.notna().sum()==25


def test_resumed_is_whole(two):
    a, b = two/'whole'/recipe.name, two/'cut'/recipe.name
    for f in ('model.safetensors', 'scores.parquet', 'val_scores.parquet'): assert sha256(a/f)==sha256(b/f), f
    assert {p.name for p in b.iterdir()}-{'.lock'}=={'recipe.json', 'log.csv', 'model.safetensors', 'val_scores.parquet', 'scores.parquet', 'done.json'}


def test_no_wrapper_in_the_file(two):
    from safetensors import safe_open
    for run in (two/'whole').iterdir():
        if run.is_dir():
            with safe_open(run/'model.safetensors', 'pt') as f: assert set(f.keys())==set(Tiny().state_dict())


def test_refusals_leave_nothing(two):
    assert {p.name for p in (two/'held'/recipe.name).iterdir()}=={'.lock'}
    assert not (two/'nan'/recipe.name/'model.safetensors').exists()


def test_a_silent_process_does_not_hold_the_others(faces, tmp_path):
    start = time.time()
    r = torchrun(__file__, 'silent', faces, tmp_path)
    assert r.returncode!=0 and (tmp_path/'hangs').exists() and time.time()-start<60
    assert load_state(tmp_path/recipe.name/'state.pt')['epoch']==1           # the finished epoch is kept


def test_the_command(faces, tmp_path):
    "The command line and a real network; dropout and batch norm of its own in each process"
    wanted = ('backbone', 'pretrained', 'image_size', 'frames', 'batch_size', 'lr', 'schedule', 'switches', 'optimizer')
    settings = {k: v for k, v in asdict(recipe).items() if k in wanted}
    (tmp_path/'two.yaml').write_text(json.dumps(dict(recipe=settings | dict(epochs=1))))
    env = pytest.MonkeyPatch()
    env.setenv('HFF_RUNS', str(tmp_path/'runs'))
    try: r = torchrun('-m', 'hff', 'train', '--preset', tmp_path/'two.yaml', '--model', 'two_stream', '--faces', faces)
    finally: env.undo()
    assert r.returncode==0, r.stderr[-4000:]
    run, = (tmp_path/'runs/two').iterdir()
    assert read_json(run/'done.json')['processes']==2 and len(read_scores(run/'scores.parquet'))==27 and 'Warning' not in r.stderr, r.stderr


def test_gpus_share_batch_norm():
    "The converter keeps weights, names and results; only where several GPUs share a batch"
    kind = lambda n, device: type('A', (), dict(num_processes=n, device=torch.device(device)))
    from hff.models import create_model
    model = create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=False, image_size=32).eval()
    x, before, names = torch.rand(2, 3, 32, 32), model.state_dict(), list(model.state_dict())
    with torch.inference_mode(): y = model(x).logits
    assert trainer._synced(model, kind(1, 'cuda')) is model and trainer._synced(model, kind(2, 'cpu')) is model
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    new = trainer._synced(model, kind(2, 'cuda')).eval()
    assert any(isinstance(m, nn.SyncBatchNorm) for m in new.modules()) and not any(type(m) is nn.BatchNorm2d for m in new.modules())
    assert list(new.state_dict())==names and all(torch.equal(v, before[k]) for k, v in new.state_dict().items())
    with torch.inference_mode(): assert torch.equal(new(x).logits, y)


if __name__=='__main__': globals()[sys.argv[1]](*sys.argv[2:])
