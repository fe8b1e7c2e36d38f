"Fakes made while training, mask crops, augmentation with maps"
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import hff.blends
from hff.blends import FAKES, TrainingFaces, blended, boundary, mask_crops, neighbours, self_blended, soften, warped
from hff.datasets import PHOTO, FaceDataset, augment, epoch_batches
from hff.extract import extract_faces, read_faces
from hff.paths import HffError
from hff.video import write_mask_video, write_video

SIZE, SIDE = 64, 16
ANGLES = np.linspace(0, 2*np.pi, 468)


def ellipse(x=SIZE/2, y=SIZE/2, a=.3*SIZE, b=.36*SIZE): return np.stack([x+a*np.cos(ANGLES), y+b*np.sin(ANGLES)], 1).astype(np.float32)


def texture(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    return np.clip(cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3)).astype(np.float32), (0, 0), 1.5)*2-128+rng.uniform(-30, 30, 3), 0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    "Three people, real and forged, two frames each; the second person's forgery has no mask, one crop was never found"
    d, rows, points, masks, known = tmp_path_factory.mktemp('faces'), [], [], [], []
    for p in range(3):
        for label in (0, 1):
            for f in range(2):
                i, ok = len(rows), (p, label, f)!=(2, 0, 1)
                if ok: cv2.imwrite(str(d/f'{i}.png'), texture(i)[...,::-1])
                rows.append(dict(dataset='toy', method=('real', 'F2F')[label], quality='c23', video=f'{p}', split='train', label=label, source='', target=f'{p}', frame=f,
                                 crop=f'{i}.png' if ok else '', status='ok' if ok else 'missing'))
                points.append(ellipse(SIZE/2+p)); known.append(label==0 or p!=1)
                masks.append(np.full((SIDE, SIDE), 255*(label and p!=1), np.uint8)*(np.arange(SIDE)>7))
    pd.DataFrame(rows).to_parquet(d/'faces.parquet')
    for name, a in dict(landmarks=points, masks=masks, masks_known=known).items(): np.save(d/f'{name}.npy', np.array(a))
    return d


def table(d): return pd.read_parquet(d/'faces.parquet')


MAKERS = dict(blended=lambda im, p, rng: blended(im, p, texture(99), ellipse(30, 33), rng), self_blended=self_blended, warped=warped)


@pytest.mark.parametrize('name', MAKERS)
def test_made_fakes(name):
    face, points, make = texture(0), ellipse(), MAKERS[name]
    stored, whole, peaks = face.copy(), 0, set()
    for seed in range(30):
        fake, mask = make(face, points, np.random.default_rng(seed))
        again, same = make(face, points, np.random.default_rng(seed))
        assert (fake==again).all() and (mask==same).all() and (face==stored).all()
        assert fake.dtype==np.uint8 and mask.dtype==np.float32 and mask.shape==(SIZE, SIZE) and 0==mask.min() and mask.max()<=1
        kept = (fake[mask==0]==face[mask==0]).all()
        assert kept or name=='self_blended'
        whole += not kept; peaks.add(round(float(mask.max()), 2))
        assert (fake[mask>.2]!=face[mask>.2]).any(1).mean() > .5
        b = boundary(mask)
        assert (b[(mask==0) | (mask==1)]==0).all() and b.max()>.7
    assert name!='self_blended' or 5<whole<25                                     # half of the time the target is the changed one
    assert peaks==({.25, .5, .75, 1.} if name=='self_blended' else {1.})


def test_any_landmarks_and_size():
    for size, n in ((64, 68), (299, 468)):
        face, points = texture(1, size), ellipse(size/2, size/2, .35*size, .4*size)[np.linspace(0, 467, n).astype(int)]
        for make in (self_blended, warped, lambda *a: blended(*a[:2], texture(2, size), points+3, a[2])):
            fake, mask = make(face, points, np.random.default_rng(0))
            assert fake.shape==face.shape and .1<(mask>0).mean()<.9
    points[:40] = -50                                                             # partly outside the picture
    assert warped(face, points, np.random.default_rng(0))[1].max()==1


def test_soft_masks():
    hard = np.zeros((40, 40), np.uint8); hard[10:30,10:30] = 1
    soft = soften(hard, 2)
    assert soft[20,20]==1 and soft[0,0]==0 and abs(soft[20,9:11].mean()-.5)<.05 and (soften(hard, 0)==hard).all()
    assert boundary(soft)[20,20]==0 and boundary(soft)[20,9:11].min()>.9


def test_own_face_is_no_neighbour():
    points = np.stack([ellipse(30+.1*k) for k in range(40)])
    who = np.arange(40)//4
    near = neighbours(points, who, near=5)
    assert all(who[j]!=who[i] for i, row in enumerate(near) for j in row) and (near>=0).all()
    assert (np.abs(near-np.arange(40)[:,None]).max(1)<=12).all()
    few = neighbours(points, who, near=5, most=10, seed=1)
    assert len(np.unique(few[few>=0]))<=10 and (few==neighbours(points, who, near=5, most=10, seed=1)).all()


@pytest.mark.parametrize('memory', [0, 1e9])
def test_data_is_the_plain_data_set(faces, memory):
    for blank in (False, True):
        a, b = FaceDataset(table(faces), faces, blank, memory), TrainingFaces(table(faces), faces, memory=memory, blank_face=blank)
        assert len(a)==len(b)==11 and (a.labels==b.labels).all() and (a.picture(3)==b.picture(3)).all() and a[4][1:]==b[4][1:]
        for u, v in zip(a.batch([7, 0, 3]), b.batch([7, 0, 3])): assert torch.equal(u, v) and u.dtype==v.dtype and u.stride()==v.stride()


@pytest.mark.parametrize('fakes,n', [('blended', 10), ('self_blended', 10), ('warped', 10), ('data+blended', 16)])
def test_items(faces, fakes, n):
    d = TrainingFaces(table(faces), faces, fakes, seed=2)
    assert len(d)==len(d.labels)==n and int((d.labels==0).sum())==5
    assert all(float(d.labels[b].float().mean())==.5 for b in epoch_batches(n, 4, labels=d.labels))
    made = np.arange(n-5, n)
    assert (d.rows[made]==np.flatnonzero(table(faces).label.eq(0) & table(faces).status.eq('ok'))).all()
    first = d.batch(made)[0].clone()
    assert torch.equal(d.batch(made[::-1])[0].flip(0), first) and torch.equal(d[n-2][0], first[3])
    plain = FaceDataset(table(faces), faces, memory=0)
    real = [i for i in range(n) if not d.labels[i]]
    assert torch.equal(d.batch(real)[0], torch.stack([plain[list(plain.rows).index(d.rows[i])][0] for i in real]))
    d.epoch = 1
    assert (d.batch(made)[0]!=first).flatten(1).any(1).all()
    d.epoch = 0
    assert torch.equal(TrainingFaces(table(faces), faces, fakes, seed=2, memory=0).batch(made)[0], first)
    assert not torch.equal(TrainingFaces(table(faces), faces, fakes, seed=3).batch(made)[0], first)


def test_workers_make_the_same_fakes(faces):
    d = TrainingFaces(table(faces), faces, 'data+blended', seed=1, maps=True, memory=0)
    for d.epoch in (0, 1):
        batches = [[0, 12, 13], [15, 3], [11, 14]]
        load = lambda n: [t.clone() for b in DataLoader(d, batch_sampler=batches, num_workers=n, collate_fn=lambda b: b) for t in b]
        assert all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in zip(load(0), load(2)))


def test_a_blend_takes_the_other_persons_face(faces, monkeypatch):
    seen = []
    monkeypatch.setattr(hff.blends, 'blended', lambda face, p, other, q, rng: seen.append((face.copy(), p, other, q)) or (face, np.zeros((SIZE, SIZE), np.float32)))
    d = TrainingFaces(table(faces), faces, 'blended')
    d.batch(range(5, 10))
    number = {hashlib.sha256(texture(i)).hexdigest(): i for i in range(12)}
    of = lambda im: number.get(hashlib.sha256(np.ascontiguousarray(im)).hexdigest())
    assert [of(s[0]) for s in seen]==[0, 1, 4, 5, 8]
    for face, p, other, q in seen:
        a, b = of(face)//4, of(other)//4
        assert a!=b and of(other)%4<2                                             # another person's real face
        assert (p==ellipse(SIZE/2+a)).all() and (q==ellipse(SIZE/2+b)).all()      # landmarks from the rows of the full table


@pytest.mark.parametrize('target', ['boundary', 'mask'])
def test_maps(faces, target):
    part = table(faces).iloc[2:]                                                  # a part of the table: rows are looked up by crop
    d = TrainingFaces(part, faces, 'data+blended', maps=True, target=target)
    x, y, rows, m = d.batch(range(len(d)))
    assert m.shape==(len(d), 1, SIDE, SIDE) and m.dtype==torch.float32 and (m[y==0]==0).all()
    lost = (part.label.eq(1) & part.video.eq('1')).to_numpy()[rows] & (np.arange(len(d))<d.n)
    assert (m.isnan().flatten(1).any(1).numpy()==lost).all() and lost.sum()==2 and m.isnan().flatten(1).all(1).sum()==2
    mine = m[0,0].numpy()                                                         # person 0's fake: right half forged
    assert mine[:,2].max()==0 and (mine[:,12]==(target=='mask')).all() and mine[:,7:9].max()>.8
    fake, soft = d.make(len(d)-1)
    assert (x[-1].permute(1,2,0).numpy()==fake).all()
    want = cv2.resize(boundary(soft) if target=='boundary' else soft, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    assert np.abs(m[-1,0].numpy()-want).max()<1e-6
    assert TrainingFaces(part, faces, 'warped', maps=True, side=9).batch([0, 4])[3].shape==(2, 1, 9, 9)
    assert len(d[0])==4 and len(TrainingFaces(part, faces, 'warped').batch([0]))==3


def test_mistakes(faces, tmp_path):
    t = table(faces)
    for words, args, kw in (('choose|there are data', ('x',), {}), ('No map', (), dict(maps=True, target='x')), ('take side=16', (), dict(maps=True, side=8)),
                            ('under the paint', ('warped',), dict(blank_face=True))):
        with pytest.raises(HffError, match=words): TrainingFaces(t, faces, *args, **kw)
    with pytest.raises(HffError, match='one person'): TrainingFaces(t[t.video.eq('1')], faces, 'blended')
    with pytest.raises(HffError, match='No real faces'): TrainingFaces(t[t.label.eq(1)], faces, 'self_blended')
    for p in faces.iterdir():
        if not p.name.startswith(('masks', 'landmarks')): (tmp_path/p.name).write_bytes(p.read_bytes())
    with pytest.raises(HffError, match='mask_crops'): TrainingFaces(t, tmp_path, maps=True)
    with pytest.raises(HffError, match='landmarks.npy'): TrainingFaces(t, tmp_path, 'warped')
    assert set(FAKES)=={'data', 'blended', 'data+blended', 'self_blended', 'warped'}


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "Clips with given landmarks that walk over the frame, and masks that do the same"
    d, n = tmp_path_factory.mktemp('clips'), 5
    (d/'landmarks').mkdir()
    points = np.stack([ellipse(30+4*t, 40+2*t, 16, 20) for t in range(n)])
    masks = np.stack([cv2.fillConvexPoly(np.zeros((96, 96), np.uint8), p.round().astype(np.int32), 255) for p in points])
    rows = []
    for v in ('000', '001', '002', '003'):
        np.savez(d/f'landmarks/{v}.npz', landmarks=points)
        for y, kind in enumerate(('real', 'fake')):
            write_video(d/f'{kind}/{v}.mp4', np.stack([texture(t, 96) for t in range(n)]))
            rows.append(dict(dataset='toy', method=('real', 'F2F')[y], quality='c23', video=v, split='train', label=y, path=f'{kind}/{v}.mp4', source='', target=v,
                             mask=f'masks/{v}.mp4' if y and v!='001' else ''))
    write_mask_video(d/'masks/000.mp4', masks)
    (d/'masks/002.mp4').write_bytes(b'junk')
    write_mask_video(d/'masks/003.mp4', masks[:3, ::2, ::2]//255)                  # too short, half the size, written as 0 and 1
    return d, pd.DataFrame(rows)


@pytest.mark.parametrize('jobs', [1, 2])
def test_mask_crops(clips, tmp_path, jobs):
    root, manifest = clips
    faces = extract_faces(manifest, root, tmp_path/'faces', frames=3, size=SIZE, jobs=1)
    t, p = read_faces(faces), mask_crops(faces, manifest, root, jobs=jobs)
    masks, known = np.load(p), np.load(faces/'masks_known.npy')
    assert p==faces/'masks.npy' and masks.shape==(24, SIDE, SIDE) and masks.dtype==np.uint8
    assert known.tolist()==[y==0 or v=='000' or (v=='003' and f<3) for y, v, f in zip(t.label, t.video, t.frame)]
    assert not masks[~known].any() and not masks[t.label==0].any()
    inside = cv2.fillConvexPoly(np.zeros((SIZE, SIZE), np.uint8), np.load(faces/'landmarks.npy')[0].round().astype(np.int32), 255)
    want = cv2.resize(inside, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    forged = masks[(t.label==1).to_numpy() & known]
    assert len(forged)==5 and all(np.abs(m-want.astype(float)).mean()<16 for m in forged)   # every frame's mask was moved into its crop
    before = p.stat().st_mtime_ns
    assert mask_crops(faces, manifest, root).stat().st_mtime_ns==before and not list(faces.glob('.*.tmp*'))
    assert np.load(mask_crops(faces, manifest, root, side=8)).shape==(24, 8, 8)
    with pytest.raises(HffError, match='001 has faces'): mask_crops(faces, manifest[manifest.video.ne('001')], root, side=9)
    assert not np.load(mask_crops(faces, manifest.drop(columns='mask'), root, side=9)).any()


def test_flip_and_shift_are_what_they_were():
    "Digests of the bytes before colours and maps came in"
    x = (torch.arange(5*3*40*32)*7919%251).to(torch.uint8).reshape(5, 3, 40, 32)
    was = {(): 'dd2166bfc3d9189f', ('flip',): '05a94314ad8688b0', ('shift',): 'c1885c0284644bfe', ('flip', 'shift'): '7d0d1745bfbb9aa7'}
    for names, digest in was.items():
        g, bare = torch.Generator().manual_seed(11), torch.Generator().manual_seed(11)
        for _ in range(3): out = augment(x, names, g); torch.rand(5, 3, generator=bare)
        assert hashlib.sha256(out.contiguous().numpy().tobytes()).hexdigest()[:16]==digest
        assert torch.equal(g.get_state(), bare.get_state())                       # and no draw more


def test_maps_move_with_their_pictures():
    g, n = (lambda: torch.Generator().manual_seed(5)), 60
    maps = torch.rand(n, 1, 8, 8, generator=g())
    x = (255*maps).round().repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8).repeat(1, 3, 1, 1)
    names = ('flip', 'shift', *PHOTO)
    moved, m = augment(x, names[:1], g(), maps=maps)
    assert torch.equal((255*m).round().to(torch.uint8)[:,0], moved[:,0,::4,::4]) and not torch.equal(m, maps)
    moved, m = augment(x, names, g(), maps=maps)
    assert torch.equal(moved, augment(x, names, g())) and m.shape==maps.shape
    assert torch.equal(m, augment(x, names[:2], g(), maps=maps)[1])               # colours draw nothing from the moves
    assert augment(x, names, g(), maps=torch.full_like(maps, torch.nan))[1].isnan().all()


@pytest.mark.parametrize('name', PHOTO)
def test_photo_changes(name):
    x = torch.from_numpy(np.stack([texture(k) for k in range(80)])).permute(0, 3, 1, 2)
    g = lambda k=1: torch.Generator().manual_seed(k)
    y = augment(x, (name,), g())
    hit = (y!=x).flatten(1).any(1)
    assert torch.equal(y, augment(x, (name,), g())) and not torch.equal(y, augment(x, (name,), g(2))) and y.dtype==torch.uint8 and y.shape==x.shape
    assert 20<hit.sum()<60 and (y[hit].float()-x[hit]).abs().mean()<40
    assert len({y[k].sub(x[k]).float().std().item() for k in torch.where(hit)[0]})>.8*hit.sum()   # a strength of its own for each
    with pytest.raises(HffError, match='uint8'): augment(x.float(), (name,), g())
