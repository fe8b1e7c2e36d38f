"The four manipulations and the control, on two rendered people and hardly trained networks"
import hashlib, os, subprocess, sys

import cv2
import numpy as np
import pytest
import torch

from hff.miniff.blending import blend, feathered, noise_level
from hff.miniff.forgeries import METHODS, forge
from hff.miniff.generators import Nets, train_deepfakes, train_neural_textures
from hff.miniff.heads import make_clip
from hff.miniff.warps import camera, expressions, mesh, read_at, turning, warp_map
from hff.paths import HffError


def build():
    torch.set_num_threads(1)
    people = [make_clip(s, 3, 160) for s in (3, 4)]
    nets = Nets(train_deepfakes(people, steps=12, size=48, batch=4, seed=7), train_neural_textures(people, steps=8, batch=4, seed=7))
    return people, nets, {m: forge(m, *people, nets, seed=5) for m in METHODS}


def digest(made): return hashlib.sha256(b''.join(made[m].frames.tobytes()+made[m].masks.tobytes() for m in METHODS)).hexdigest()


@pytest.fixture(scope='module')
def built(): return build()


@pytest.mark.parametrize('method', METHODS)
def test_contract(built, method):
    (target, _), _, made = built
    f = made[method]
    assert f.frames.shape==target.frames.shape and f.frames.dtype==np.uint8
    assert f.masks.shape==target.visible.shape and set(np.unique(f.masks))=={0, 255}
    assert (f.frames[f.masks==0]==target.frames[f.masks==0]).all()
    assert not ((f.masks>0)&(target.visible==0)).any()
    assert (f.frames!=target.frames).any((1, 2, 3)).all()
    assert set(f.stages)=={'target', 'source', 'face', 'alpha', 'fitted', 'result'}


def test_how_much_changes(built):
    (target, _), _, made = built
    d = {m: np.abs(f.frames.astype(int)-target.frames)[f.masks>0].mean() for m, f in made.items()}
    assert d['touched']<d['FS'] and d['F2F']<d['FS']
    area = {m: (f.masks>0).mean() for m, f in made.items()}
    assert area['NT']<.5*area['F2F']


def test_faceswap_carries_the_source(built):
    (target, source), _, _ = built
    red = type(source)('red', np.stack([source.frames[...,0]]+[source.frames[...,0]//3]*2, -1), source.landmarks, source.visible)
    face = forge('FS', target, red).stages['face']
    inside = face.sum(-1)>60
    assert face[inside][:,0].mean()>2*face[inside][:,1].mean()


def test_same_bytes_in_another_process(built):
    code = 'import sys; sys.path.insert(0, sys.argv[1]); import test_forgeries as t; print(t.digest(t.build()[2]))'
    env = dict(os.environ, OMP_NUM_THREADS='1', TQDM_DISABLE='1', PYTHONPATH=os.pathsep.join(sys.path))
    out = subprocess.run([sys.executable, '-c', code, os.path.dirname(__file__)], capture_output=True, text=True, env=env, check=True)
    assert out.stdout.split()[-1]==digest(built[2])


def test_seed_matters(built):
    (target, source), nets, made = built
    assert (forge('FS', target, source, nets, seed=6).frames!=made['FS'].frames).any()


def test_nets_come_back(built, tmp_path):
    (target, source), nets, made = built
    nets.save(tmp_path/'nets.safetensors')
    back = Nets.load(tmp_path/'nets.safetensors')
    for m in ('DF', 'NT'): assert (forge(m, target, source, back, seed=5).frames==made[m].frames).all()


def test_mistakes(built):
    (target, source), nets, _ = built
    with pytest.raises(HffError, match='choose one of'): forge('Deepfakes', target, source, nets)
    with pytest.raises(HffError, match='source clip'): forge('F2F', target)
    with pytest.raises(HffError, match='trained renderer'): forge('NT', target, source)
    stranger = type(source)('999', source.frames, source.landmarks, source.visible)
    with pytest.raises(HffError, match="never saw '999'"): forge('DF', target, stranger, nets)


def test_face_hidden(built):
    (target, source), nets, _ = built
    hidden = type(target)(target.name, target.frames, target.landmarks, np.zeros_like(target.visible))
    for m in METHODS: assert (forge(m, hidden, source, nets).frames==target.frames).all()


def test_warp_moves_a_known_point(built):
    (target, source), _, _ = built
    old, new = source.landmarks[0], target.landmarks[0]
    at, inside = warp_map(old, new, (160, 160))
    x, y = np.round(new[1]).astype(int)
    assert inside[y,x] and np.abs(at[y,x]-old[1]).max()<2.5
    ramp = np.dstack([np.tile(np.arange(160, dtype=np.float32), (160, 1))]*3)
    assert abs(read_at(ramp, at)[y,x,0]-at[y,x,0])<.1   # OpenCV reads at 1/32 of a pixel
    assert (turning(new, mesh())>0).mean()>.9


def test_expression_ignores_similarity(built):
    (target, _), _, _ = built
    m = np.array([[.8, -.3], [.3, .8]])
    assert np.allclose(expressions(target.landmarks), expressions(target.landmarks@m.T+[5, 9]), atol=1e-4)
    assert np.allclose(camera(target.landmarks[0]+[3, 4])-camera(target.landmarks[0]), [[0, 0]]*3+[[3, 4]], atol=1e-3)


def test_grain_and_mask():
    rng = np.random.default_rng(0)
    frame = np.clip(120+rng.normal(0, 5, (96, 96, 3)), 0, 255).astype(np.uint8)
    alpha = feathered(cv2.circle(np.zeros((96, 96), np.uint8), (48, 48), 34, 255, -1))
    out, _ = blend(frame, np.full((96, 96, 3), 90.), alpha, np.random.default_rng(1))
    core = alpha>.99
    assert np.abs(noise_level(out, core)/noise_level(frame, core)-1).max()<.15
    assert abs(out[core].mean()-frame[core].mean())<2
    assert alpha.max()<=1 and alpha[0].max()==0
