"Every number of the 7 x 5 suite, the same treatment for both classes, faces from the clean boxes, paired intervals"
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from hff.extract import BOX, cut_face, extract_faces, read_faces
from hff.metrics import bootstrap_auc, frame_auc, video_auc
from hff.miniff import standins
from hff.paths import HffError
from hff.robustness import (CLEAN, FURTHER_TYPES, NAMES, SUITE, TYPES, check_alike, conditions, level_draws, parameter, perturb, perturb_clip, perturbed_faces,
                            recompress, robustness_means, robustness_table, score_perturbed, show_curve, show_levels)
from hff.scores import check_scores
from hff.video import encode, read_video, write_video

GREY, WHITE = (np.full((256, 256, 3), v, np.uint8) for v in (128, 255))
PRINTED = dict(CS=[.4, .3, .2, .1, 0], CC=[.85, .725, .6, .475, .35], BW=[16, 32, 48, 64, 80], GNC=[.001, .002, .005, .01, .05], GB=[7, 9, 13, 17, 21],
               JPEG=[2, 3, 4, 5, 6], VC=[30, 32, 35, 38, 40])


def scene(h=256, w=256, seed=0):
    "A smooth coloured picture with some grain"
    rng = np.random.default_rng(seed)
    f = cv2.GaussianBlur(rng.uniform(0, 255, (h, w, 3)).astype(np.float32), (0, 0), 4)
    return np.clip((f-f.mean())*6+128+rng.normal(0, 6, f.shape), 0, 255).astype(np.uint8)


# ---- the table of parameters

def test_the_parameters():
    assert {k: list(v) for k, v in SUITE.items()} == PRINTED == {k: list(v) for k, v in standins.LEVELS.items()}
    assert [parameter(k, i) for k in PRINTED for i in range(1, 6)] == [v for x in PRINTED.values() for v in x]
    assert conditions() == [CLEAN, *((k, i) for k in PRINTED for i in range(1, 6))] and len(conditions()) == 36
    assert set(NAMES) == {'clean', *TYPES} and set(TYPES) == {*SUITE, *FURTHER_TYPES} and conditions('H264')[-1] == ('H264', 6)
    assert min(FURTHER_TYPES['H264']) == 18 and max(FURTHER_TYPES['H264']) == 45


@pytest.mark.parametrize('level', range(1, 6))
def test_saturation(level):
    "OpenCV's YCrCb with the chroma scaled about its centre; level 5 is grey"
    f = scene()
    y = cv2.cvtColor(f.astype(np.float32)/255, cv2.COLOR_RGB2YCrCb)
    y[...,1:] = .5+PRINTED['CS'][level-1]*(y[...,1:]-.5)
    assert np.abs(perturb(f, 'CS', level)-255*cv2.cvtColor(y, cv2.COLOR_YCrCb2RGB)).max() < .6
    if level == 5: assert np.ptp(perturb(f, 'CS', 5), axis=2).max() == 0


@pytest.mark.parametrize('level,white', list(zip(range(1, 6), (216, 184, 153, 121, 89))))
def test_contrast_darkens(level, white):
    "Values times a factor: 255 -> 216 at level 1 by truncation, rounded it is 216.75"
    assert perturb(WHITE, 'CC', level, upstream_quirks=True).max() == white == int(255*PRINTED['CC'][level-1])
    assert perturb(WHITE, 'CC', level).max() == np.rint(np.float32(255)*np.float32(PRINTED['CC'][level-1]))


def test_blocks_cover():
    covered = lambda n, level, **kw: np.mean([(perturb(np.full((n, n, 3), 255, np.uint8), 'BW', level, frame=i, **kw) == 128).mean() for i in range(25)])
    assert covered(256, 5) == pytest.approx(.076, abs=.002)
    assert covered(512, 5) == pytest.approx(.038, abs=.002)
    assert covered(720, 5) == pytest.approx(.020, abs=.002)
    shares = [covered(256, i) for i in range(1, 6)]
    assert shares == sorted(shares) and shares[0] == pytest.approx(16*64/256**2, abs=.002)
    one = perturb(WHITE, 'BW', 1)
    assert set(np.unique(one)) == {128, 255}


def test_blocks_of_small_frames():
    small = np.full((192, 192, 3), 255, np.uint8)
    with pytest.raises(HffError, match='BW has no block for a frame of 192x192'): perturb(small, 'BW', 5)
    assert (perturb(small, 'BW', 5, upstream_quirks=True) == 255).all()
    scaled = np.mean([(perturb(small, 'BW', 5, frame=i, scale=192/256) == 128).mean() for i in range(25)])
    assert scaled == pytest.approx(.076, abs=.004)                                 # the same share at any size
    dense = np.mean([(perturb(small, 'BW', 5, frame=i, density=.1) == 128).mean() for i in range(25)])
    assert dense == pytest.approx(1-np.exp(-.1), abs=.006)
    assert (perturb(small, 'BW', 1, density=.1) == 128).mean() < dense/3


@pytest.mark.parametrize('level,bgr', list(zip(range(1, 6), [(19, 12, 16), (27, 17, 23), (42, 27, 36), (58, 38, 50), (93, 74, 87)])))
def test_noise_deviations(level, bgr):
    assert perturb(GREY, 'GNC', level)[...,::-1].std((0, 1)) == pytest.approx(bgr, abs=1.2)


@pytest.mark.parametrize('level,sigma', list(zip(range(1, 6), (1.17, 1.5, 2.17, 2.83, 3.5))))
def test_blur_is_gaussian(level, sigma):
    f = scene()
    soft = gaussian_filter(f.astype(float), (PRINTED['GB'][level-1]/6,)*2+(0,), mode='mirror', radius=(PRINTED['GB'][level-1]//2,)*2+(0,))
    assert PRINTED['GB'][level-1]/6 == pytest.approx(sigma, abs=.01) and np.abs(perturb(f, 'GB', level)-soft).max() <= 2


@pytest.mark.parametrize('level', range(1, 6))
def test_pixelation(level):
    f, p = scene(240, 360), level+1
    assert (perturb(f, 'JPEG', level, upstream_quirks=True) == cv2.resize(cv2.resize(f, (360//p, 240//p)), (360, 240))).all()
    assert (perturb(f, 'JPEG', level) == perturb(f, 'JPEG', level, upstream_quirks=True)).all()       # 240 and 360 are divisible by 2 to 6
    assert np.abs(perturb(f, 'JPEG', level, scale=.01).astype(int)-f).mean() < np.abs(perturb(f, 'JPEG', level).astype(int)-f).mean()


def test_video_compression(tmp_path):
    clip = np.stack([np.roll(scene(96, 96), 2*t, 1) for t in range(5)])
    for level, crf in enumerate(PRINTED['VC'], 1):
        assert (perturb_clip(clip, 'VC', level) == read_video(write_video(tmp_path/'a.mp4', clip, crf))).all()
    loss = [np.abs(perturb_clip(clip, 'H264', i).astype(int)-clip).mean() for i in range(1, 7)]
    assert loss == sorted(loss) and loss[0] < loss[-1]/2
    assert perturb_clip(clip[:, :95, :93], 'VC', 1).shape == (5, 95, 93, 3)         # H.264 wants even sizes
    assert (recompress(iter(clip), 30, [4, 1]) == perturb_clip(clip, 'VC', 1)[[4, 1]]).all()


# ---- what is ours, and what the original does

def test_truncation_darkens_by_half():
    f = scene()
    for k in ('CS', 'CC', 'GNC'):
        assert perturb(f, k, 2).mean()-perturb(f, k, 2, upstream_quirks=True).mean() == pytest.approx(.5, abs=.06)


def test_seeded_and_copied():
    f = scene(); before = f.copy()
    for k in set(TYPES)-{'VC', 'H264'}:
        for i in range(1, len(TYPES[k])+1):
            a = perturb(f, k, i, 'clip', 3)
            assert a.dtype == np.uint8 and a.shape == f.shape and a.flags.c_contiguous and not np.shares_memory(a, f)
            assert (a == perturb(f, k, i, 'clip', 3)).all() and (a != f).any()
    assert (f == before).all()
    for k in ('BW', 'GNC'):
        seen = [perturb(f, k, i, v, n).tobytes() for i in (1, 2) for v in 'ab' for n in (0, 1)]
        assert len(set(seen)) == len(seen)                                        # clip, frame and level all count
    assert (perturb(f, *CLEAN) == f).all() and not np.shares_memory(perturb(f, *CLEAN), f)


def test_seed_is_the_same_on_every_machine():
    "The digest, not Python's hash"
    from hff.robustness import seeded
    assert seeded('toy/DF/c23/2', 5, 'BW', 5).integers(0, 1000, 3).tolist() == [174, 593, 639]


def test_jpeg_resize_screen():
    f = scene()
    want = cv2.imdecode(cv2.imencode('.jpg', f[...,::-1], [cv2.IMWRITE_JPEG_QUALITY, 50])[1], 1)[...,::-1]
    assert (perturb(f, 'JPEGQ', 3) == want).all()
    for k in ('JPEGQ', 'RESIZE', 'SCREEN'):
        loss = [np.abs(perturb(f, k, i).astype(int)-f).mean() for i in range(1, len(TYPES[k])+1)]
        assert loss == sorted(loss)
    flat = perturb(GREY, 'SCREEN', 3).mean((0, 1))                                 # gamma .8, red up and blue down by a tenth
    assert flat == pytest.approx(255*(128/255)**.8*np.array([1.1, 1, .9]), abs=2)


@pytest.mark.parametrize('call,words', [
    (lambda f: perturb(f, 'fog', 1), 'CS, CC, BW, GNC, GB, JPEG, VC, JPEGQ'), (lambda f: perturb(f, 'CS', 0), 'choose from 1, 2, 3, 4, 5'),
    (lambda f: perturb(f, 'clean', 1), 'Unknown type'), (lambda f: perturb(f, 'SCREEN', 4), 'SCREEN has no level 4; choose from 1, 2, 3'),
    (lambda f: perturb(f, 'VC', 1), 'perturb_clip'), (lambda f: perturb(f[:3, :3], 'JPEG', 5), 'too small'), (lambda f: perturb(f/255, 'CS', 1), 'uint8'),
    (lambda f: perturb(f[...,0], 'CS', 1), 'uint8'), (lambda f: perturb_clip(f[None][:0], 'CS', 1), 'no frames'), (lambda f: recompress([], 30), 'no frames'),
    (lambda f: perturb_clip(f[None], 'CS', 1, reencode='xvid'), 'none, x264_crf23'), (lambda f: conditions([]), 'No type')])
def test_errors(call, words):
    with pytest.raises(HffError, match=words.replace('(', r'\(')): call(scene())


# ---- faces and scores

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    "Two real and two forged clips of 192 pixels, with the landmarks of a face that moves"
    root, rows = tmp_path_factory.mktemp('robust'), []
    points = (96+np.random.default_rng(0).uniform(-55, 55, (6, 468, 2))).astype(np.float32)+np.arange(6, dtype=np.float32)[:,None,None]
    (root/'landmarks').mkdir()
    for i in range(4):
        frames = np.stack([np.roll(scene(192, 192, i%2), t, 1) for t in range(6)])
        if i > 1: frames[:, 60:120, 60:120] = 255-frames[:, 60:120, 60:120]
        write_video(root/f'{i}.mp4', frames, 18); np.savez(root/f'landmarks/{i}.npz', landmarks=points)
        rows.append(dict(dataset='toy', method='real' if i < 2 else 'DF', quality='c23', video=f'{i}', split='test', label=int(i > 1), path=f'{i}.mp4', source='', target=f'{i}'))
    m = pd.DataFrame(rows)
    folder = extract_faces(m, root, root/'faces', frames=2, size=64, jobs=1)
    return SimpleNamespace(root=root, manifest=m, folder=folder, faces=read_faces(folder))


def test_clean_pictures_are_the_crops(data):
    t, x = perturbed_faces(data.manifest, data.root, data.faces, [CLEAN, ('GNC', 1), ('VC', 5)], 64)
    stored = np.stack([cv2.imread(str(data.folder/c))[...,::-1] for c in data.faces.crop])
    assert x.dtype == torch.uint8 and x.shape == (3, 8, 3, 64, 64) and (x[0].permute(0, 2, 3, 1).numpy() == stored).all() and t.status.eq('ok').all()
    clip = read_video(data.root/'3.mp4')                                           # the last frame of the last clip by hand
    box, scale = data.faces[BOX].to_numpy(float)[7], float((data.faces.x1-data.faces.x0)[6:].median())/256
    assert (x[1, 7].permute(1, 2, 0).numpy() == cut_face(perturb(clip[5], 'GNC', 1, 'toy/DF/c23/3', 5, scale=scale), box, 64, 0.)).all()
    assert (x[2, 7].permute(1, 2, 0).numpy() == cut_face(perturb_clip(clip, 'VC', 5)[5], box, 64, 0.)).all()


def test_full_frame_before_the_crop(data):
    "Blur reaches over the edge of the box, so it is not the blur of the crop"
    _, x = perturbed_faces(data.manifest, data.root, data.faces[:1], [CLEAN, ('GB', 5)], 64)
    a, b = x[:, 0].permute(0, 2, 3, 1).numpy()
    assert (b != cv2.GaussianBlur(a, (0, 0), 2)).any() and np.abs(b.astype(int)-a).mean() > 1


def test_order_jobs_and_options(data):
    mixed = data.faces.sample(frac=1, random_state=1)
    (t, x), (_, y) = (perturbed_faces(data.manifest, data.root, f, [CLEAN, ('BW', 3)], 64, jobs=j) for f, j in ((mixed, 2), (data.faces, 1)))
    for k, r in enumerate(mixed.index): assert (x[:, k] == y[:, r]).all()          # rows stay where they are
    assert t.frame.tolist() == mixed.frame.tolist()
    with pytest.raises(HffError, match='no block for a frame of 192x192'): perturbed_faces(data.manifest, data.root, data.faces, [('BW', 1)], 64, reference=None)
    _, quiet = perturbed_faces(data.manifest, data.root, data.faces, [CLEAN, ('BW', 5)], 64, reference=None, upstream_quirks=True)
    assert (quiet[0] == quiet[1]).all()
    _, again = perturbed_faces(data.manifest, data.root, data.faces[:1], [('CS', 5)], 64, reencode='x264_crf23')
    assert (again != perturbed_faces(data.manifest, data.root, data.faces[:1], [('CS', 5)], 64)[1]).any()


def test_lost_clips_keep_their_rows(data):
    gone = data.manifest.assign(path=['0.mp4', 'gone.mp4', '2.mp4', '3.mp4'])
    t, x = perturbed_faces(gone, data.root, data.faces, [CLEAN], 64)
    assert t.status.tolist() == ['ok']*2+['error']*2+['ok']*4 and t.reason[2] == 'no file' and x.shape[1] == 6
    no_face = data.faces.assign(status=['missing', *['ok']*7])
    t, x = perturbed_faces(data.manifest, data.root, no_face, [CLEAN], 64)
    assert len(t) == 8 and x.shape[1] == 7 and t.status[0] == 'missing'
    with pytest.raises(HffError, match='None of the clips could be read, the first one for: no file'): perturbed_faces(gone, data.root, data.faces[2:4], [CLEAN], 64)
    with pytest.raises(HffError, match='None of 0 rows'): perturbed_faces(gone, data.root, data.faces[:0], [CLEAN], 64)
    with pytest.raises(HffError, match='not in the manifest'): perturbed_faces(data.manifest[1:], data.root, data.faces, [CLEAN], 64)
    with pytest.raises(HffError, match='Unknown type'): perturbed_faces(data.manifest, data.root, data.faces, [('fog', 1)], 64)


def test_folders_of_frames(data, tmp_path):
    clip = read_video(data.root/'0.mp4')
    for i, f in enumerate(clip): (tmp_path/'0').mkdir(exist_ok=True); cv2.imwrite(str(tmp_path/f'0/{i:03d}.png'), f[...,::-1])
    m = data.manifest[:1].assign(path='0')
    a, b = (perturbed_faces(*x, data.faces[:2], [CLEAN, ('CC', 2)], 64)[1] for x in ((m, tmp_path), (data.manifest, data.root)))
    assert (a == b).all()
    with pytest.raises(HffError, match='is no video: leave out VC'): perturbed_faces(m, tmp_path, data.faces[:2], [('VC', 1)], 64)
    (tmp_path/'0/005.png').unlink()
    with pytest.raises(HffError, match='no frame file'): perturbed_faces(m, tmp_path, data.faces[:2], [CLEAN], 64)


class Dark(torch.nn.Module):
    "Dark pictures are fake"
    def __init__(self, size=64):
        super().__init__()
        self.image_size, self.w = size, torch.nn.Parameter(torch.tensor(1.))

    def forward(self, x): return SimpleNamespace(logits=torch.stack([x.mean((1, 2, 3)), -x.mean((1, 2, 3))], 1)*self.w)


def test_scores(data):
    gone = data.manifest.assign(path=['0.mp4', 'gone.mp4', '2.mp4', '3.mp4'])
    s = score_perturbed(dict(dark=Dark(), again=Dark()), gone, data.root, data.faces, conditions('CC'), clips=3)
    assert len(s) == 2*6*8 and s.network.unique().tolist() == ['dark', 'again'] and s.status.eq('error').sum() == 2*6*2
    for _, t in s.groupby(['network', 'type', 'level']): check_scores(t.drop(columns=['network', 'type', 'level']))
    by = s[s.network.eq('dark')].groupby('level').score.mean()
    assert by.is_monotonic_increasing and by[5] > by[0]
    assert (s.logit[s.network.eq('dark')].to_numpy() == s.logit[s.network.eq('again')].to_numpy())[s.status[s.network.eq('dark')].eq('ok')].all()
    check_alike(s)
    alone = score_perturbed(dict(dark=Dark()), gone, data.root, data.faces, [('CC', 2)], clips=1)         # one of the parts has no clip that can be read
    assert len(alone) == 16 and alone.status.eq('error').sum() == 4 and alone.score.notna().sum() == 12
    with pytest.raises(HffError, match='one size'): score_perturbed(dict(a=Dark(64), b=Dark(96)), data.manifest, data.root, data.faces, [CLEAN])
    with pytest.raises(HffError, match='no rows'): score_perturbed(dict(a=Dark()), data.manifest, data.root, data.faces[:0], [CLEAN])


# ---- AUC, drops, means

def answers(kinds=('CS', 'GNC'), people=25, frames=2, seed=0):
    "Scores as `score_perturbed` gives them; noise takes away what tells the classes apart"
    rng, rows = np.random.default_rng(seed), []
    for m, y in (('real', 0), ('DF', 1), ('touched', 0)):
        for p in range(people):
            for f in range(frames):
                base = rng.normal()
                for k, i in conditions(kinds): rows.append(('net', k, i, m, f'{p:02d}', f, y, 2*y*(1-i/5*(k == 'GNC'))+base+.2*rng.normal()))
    t = pd.DataFrame(rows, columns=['network', 'type', 'level', 'method', 'video', 'frame', 'label', 'logit'])
    return t.assign(dataset='toy', quality='c23', status='ok', score=expit(t.logit))


def test_values_and_draws_are_those_of_the_metrics():
    s = answers(['GNC'], people=15)
    d = {pool: level_draws(s, pool, 40) for pool in (None, 'mean', 'median', 'max', 'mean_logit')}
    for (n, k, i), t in s.groupby(['network', 'type', 'level']):
        t = t.drop(columns=['network', 'type', 'level'])
        for pool in d:
            assert d[pool].loc[n, k, i][0] == pytest.approx(frame_auc(t) if pool is None else video_auc(t, pool), abs=1e-12)
            assert d[pool].loc[n, k, i].to_numpy()[1:] == pytest.approx(bootstrap_auc(t, pool, 40), abs=1e-9)


def test_table_and_means():
    s = answers()
    t, m = robustness_table(s, 300), robustness_means(s, draws=300)
    v = t.set_index(['type', 'level'])
    assert len(t) == 11 and (t.n_real.unique(), t.n_fake.unique()) == ([25], [25])                   # without the control
    assert v.video_drop['clean', 0] == 0 and v.video_drop['GNC', 5] == pytest.approx(v.video_auc['clean', 0]-v.video_auc['GNC', 5], abs=1e-12)
    assert v.video_drop_lo['GNC', 5] > 0 and v.video_drop_lo['CS', 5] < 0 < v.video_drop_hi['CS', 5]
    assert v.parameter['GNC', 2] == '0.002' and v.parameter['clean', 0] == ''
    m = m.set_index('type')
    assert m.auc['GNC'] == pytest.approx(np.mean([v.video_auc['GNC', i] for i in range(1, 6)]), abs=1e-12) and m.levels['GNC'] == 5
    d = level_draws(s, 'mean', 300).sort_index()                                                                   # draw by draw, then quantiles
    mean = d.loc['net', 'GNC'].mean()
    assert m.auc_lo['GNC'] == pytest.approx(np.quantile(mean[1:], .025), abs=1e-12)
    assert m.drop_hi['GNC'] == pytest.approx(np.quantile((d.loc['net', 'clean', 0]-mean)[1:], .975), abs=1e-12)
    assert '7 types' not in m.index
    whole = robustness_means(answers(SUITE, people=8), draws=20).set_index('type')
    assert whole.auc['7 types'] == pytest.approx(whole.auc[list(SUITE)].mean(), abs=1e-12) and whole.levels['7 types'] == 35


def test_both_classes_get_the_same():
    s = answers()
    noise = s.type.eq('GNC')
    for bad in (s[~(noise & s.label.eq(0))], s[~(noise & s.label.eq(1))], s[~(noise & s.level.eq(3) & s.video.eq('07'))], pd.concat([s, s[noise & s.level.eq(2)]])):
        with pytest.raises(HffError, match='need the same type and level'): level_draws(bad, draws=5)
    with pytest.raises(HffError, match='a real one differs'): check_alike(s[~(noise & s.label.eq(0))])
    with pytest.raises(HffError, match='a forged one differs'): check_alike(s[~(noise & s.label.eq(1))])
    with pytest.raises(HffError, match='no clean scores'): robustness_table(s[s.type.ne('clean')], 5)
    with pytest.raises(HffError, match='real .0. and fake .1.'): level_draws(s[s.label.eq(1)], draws=5)
    with pytest.raises(HffError, match='Unknown pooling'): level_draws(s, 'sum')


def test_a_frame_lost_in_one_condition_is_left_out_of_all():
    s = answers()
    lost = s.copy(); where = s.type.eq('CS') & s.level.eq(2) & s.video.eq('03') & s.method.eq('DF')
    lost.loc[where, ['score', 'logit', 'status']] = np.nan, np.nan, 'error'
    rest = s[~(s.video.eq('03') & s.method.eq('DF'))]
    assert level_draws(lost, draws=10).to_numpy() == pytest.approx(level_draws(rest, draws=10).to_numpy(), abs=1e-12)


def test_pictures_take_an_axis():
    import matplotlib.pyplot as plt
    t = robustness_table(answers(), 10)
    fig, axs = plt.subplots(1, 2)
    assert show_curve(t, 'GNC', axs[0]) is axs[0] and show_levels(t, 'net', axs[1]) is axs[1]
    assert [x.get_text() for x in axs[0].get_xticklabels()] == ['clean', '0.001', '0.002', '0.005', '0.01', '0.05']
    assert axs[0].lines[0].get_ydata()[0] == pytest.approx(t.video_auc[0]) and len(axs[1].texts) == 10
    with pytest.raises(HffError, match='it has clean, CS, GNC'): show_curve(t, 'VC')
    with pytest.raises(HffError, match="No network 'Xception'"): show_levels(t, 'Xception')
    plt.close(fig)
