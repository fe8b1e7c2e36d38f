"Explanations: maps of every network, scores that are right where the answer is known, checks that fail when they should"
import numpy as np
import pandas as pd
import pytest
import torch
from filling import smooth_images
from torch import nn

from hff.explain import (MAP_SCORES, PICKS, RULE, areas, blob_like, cascade, centre_blob, check_map, curves, dcma_attention, explain_scores, face_maps, faithful, from_the_top, grad_cam, judge_check,
                         label_flip, layers, located, map_scores, masked_fakes, means, pick, predicted_map, rank_correlation, rsa_map, show_cascade, show_curves, show_overlay, show_scores, shuffled, shuffled_cells,
                         uniform_map, video_mean)
from hff.models import MODELS, create_model
from hff.overlays import heat_map
from hff.paths import HffError


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def net():
    nets = {}
    def get(name, **kw):
        if (name, *kw.values()) not in nets:
            torch.manual_seed(0)
            nets[(name, *kw.values())] = create_model(name, backbone='tf_efficientnet_lite0', pretrained=False, image_size=64, **kw)
        return nets[(name, *kw.values())]
    return get


X = smooth_images(4, 64)
IMAGES = ((X+1)*127.5).round().to(torch.uint8)


def boxes(n=4, side=16):
    m = np.zeros((n, side, side), np.uint8)
    for i in range(n): m[i, 3:8+i%3, 4:11] = 255
    return m


@pytest.mark.parametrize('name', MODELS)
def test_every_network_gives_maps(net, name):
    m = net(name).train()
    m.head.eval()                                            # a mode of its own is put back too
    t = layers(m)
    assert len(t) in (6, 7, 12, 13) and t.layer.is_unique and t.iloc[:, 2:].gt(0).all(axis=None)
    for layer in ('last', t.layer.iloc[2], t.layer.iloc[-1]):
        h = grad_cam(m, X, layer)
        size = t.set_index('layer').loc[layer, ['height', 'width']].tolist() if layer!='last' else list(h.shape[1:])
        assert h.shape==(4, *size) and (h>=0).all() and h.isfinite().all() and all(v in (0, 1) for v in h.amax((1, 2)).tolist())
    assert torch.equal(grad_cam(m, X), heat_map(m, X))
    assert m.training and not m.head.training and m.head[0].training is False and all(p.grad is None for p in m.parameters())
    with pytest.raises(HffError, match=f"{name} has no layer 'exi': choose from .*exit"): grad_cam(m, X, 'exi')


def test_streams_and_names(net):
    two, one, f3 = net('two_stream'), net('rgb'), net('f3net')
    assert {'rgb.exit', 'hf.middle2', 'fusion'} <= set(layers(two).layer) and layers(one).layer.tolist()==['stem1', 'stem2', 'entry', 'middle1', 'middle2', 'exit']
    assert {'fad.exit', 'lfs.exit'} <= set(layers(f3).layer)
    assert torch.equal(grad_cam(two, X, 'hf'), grad_cam(two, X, 'hf.exit')) and not torch.equal(grad_cam(two, X, 'hf'), grad_cam(two, X, 'rgb'))
    with pytest.raises(HffError, match="choose from hf.exit"): grad_cam(two, X, 'hf.exits')     # the nearest first
    with pytest.raises(HffError, match='no network of hff'): grad_cam(nn.Conv2d(3, 1, 1), X)


def test_a_frozen_network_and_a_batch(net):
    m = net('rgb')
    whole = grad_cam(m, X)
    for p in m.parameters(): p.requires_grad_(False)
    try:
        with torch.no_grad(): assert torch.equal(grad_cam(m, X), whole)
    finally:
        for p in m.parameters(): p.requires_grad_(True)
    assert torch.allclose(torch.cat([grad_cam(m, x[None]) for x in X]), whole, atol=1e-3)
    assert np.allclose(face_maps(m, IMAGES, batch_size=3), face_maps(m, IMAGES), atol=1e-3)


def test_targets(net):
    m = net('two_stream')
    fake, real = grad_cam(m, X), grad_cam(m, X, target='real')
    assert (fake*real).abs().max()==0 and (fake+real).amax((1, 2)).gt(0).all()
    with pytest.raises(HffError, match='fake, real'): grad_cam(m, X, target='F2F')


def test_own_maps(net):
    two, xray = net('two_stream'), net('xray')
    assert torch.equal(rsa_map(two, X), two.eval()(X).attention_map[:, 0].detach()) and predicted_map(xray, X).shape==(4, 16, 16)
    assert predicted_map(net('ffd'), X).shape==rsa_map(net('ffd'), X).shape
    for f, m, says in ((rsa_map, net('fusion'), 'fusion has no attention map'), (predicted_map, two, 'two_stream predicts no map')):
        with pytest.raises(HffError, match=says): f(m, X)
    with pytest.raises(HffError, match='selection is empty'): face_maps(two, IMAGES[:0])


@pytest.mark.parametrize('transpose', [True, False])
@pytest.mark.parametrize('into', ['hf', 'rgb'])
def test_dcma_says_what_is_read(net, transpose, into):
    m, seen = net('fusion_rsa_dcma', dcma_transpose=transpose, dcma_gamma=False).eval(), []
    d = m.dcma1
    hooks = [d.register_forward_pre_hook(lambda _, i: seen.extend(i)), d.register_forward_hook(lambda _, i, o: seen.extend(o))]
    with torch.no_grad(): m(X)
    for h in hooks: h.remove()
    w = dcma_attention(m, X, (.8, .1), 1, into)              # of 4 x 4 places: row 0, column 3
    i = int(into=='rgb')
    with torch.no_grad(): read = ((d.value_conv2, d.value_conv1)[i](seen[1-i])*w[:, None]).sum((2, 3))
    assert torch.allclose((seen[2+i]-seen[i])[..., 0, 3], read, atol=1e-5)
    assert torch.allclose(w.sum((1, 2)), torch.ones(4), atol=1e-5)==transpose


def test_dcma_refuses(net):
    for m, kw, says in ((net('rgb'), {}, 'rgb has no DCMA'), (net('two_stream'), dict(point=(2, 0)), 'shares of width'), (net('two_stream'), dict(into='srm'), 'hf, rgb'), (net('two_stream'), dict(which=2), '0, 1')):
        with pytest.raises(HffError, match=says): dcma_attention(m, X, **kw)


def table(n=6, frames=2):
    t = pd.DataFrame([dict(dataset='d', method='real' if i%2 else 'DF', quality='c23', video=str(i), frame=f, label=1-i%2, status='ok') for i in range(n) for f in range(frames)])
    z = np.linspace(-3, 3.5, len(t))
    return t.assign(logit=z, score=1/(1+np.exp(-z)), crop=[f'{i}.png' for i in range(len(t))])


def test_picks():
    t = table()
    for kind in PICKS:
        p = pick(t, kind, 2)
        assert len(p)==2 and not p.duplicated(['dataset', 'method', 'quality', 'video']).any()
        if kind!='hardest': assert (p.score.ge(.5).eq(p.label.eq(1))==(kind=='hits')).all() and p.logit.abs().is_monotonic_decreasing
    assert pick(t, 'hardest', 1).logit.abs().item()==t.logit.abs().min() and set(pick(t, 'misses', label=0).label)=={0}
    lost = t.assign(status='missing')
    for s, kw in ((lost, {}), (t, dict(n=0)), (t[t.label.eq(1)], dict(label=0)), (t.assign(label=t.score.ge(.5).astype(int)), dict(kind='misses'))):
        with pytest.raises(HffError, match='choose another of hits, misses, hardest'): pick(s, **kw)


def test_a_score_file_is_explained(net, tmp_path):
    import cv2
    from hff.scores import write_scores
    t, m = table(), net('two_stream')
    for i in range(len(t)): cv2.imwrite(str(tmp_path/f'{i}.png'), IMAGES[i%4].permute(1, 2, 0).numpy()[..., ::-1])
    write_scores(t, tmp_path/'s.parquet')
    e = explain_scores(m, tmp_path/'s.parquet', t, tmp_path, 'hits', 3, 'rsa')
    assert len(e.faces)==len(e.images)==len(e.maps)==2 and torch.equal(e.images[0], IMAGES[int(e.faces.crop[0][:-4])%4])
    assert np.allclose(e.maps, face_maps(m, e.images, 'rsa'))
    with pytest.raises(HffError, match='not among these faces'): explain_scores(m, t, t[:1], tmp_path, 'hits')
    with pytest.raises(HffError, match='No score file'): explain_scores(m, tmp_path/'none.parquet', t, tmp_path)


def test_map_scores_where_the_answer_is_known():
    masks, rng = boxes(), np.random.default_rng(0)
    three = lambda m: map_scores(m, masks)[list(MAP_SCORES)].to_numpy()
    area = (masks>0).mean((1, 2))
    assert np.allclose(three(masks/255), 1) and np.allclose(three(1-masks/255), 0)
    assert np.allclose(three(np.kron(masks/255, np.ones((1, 3, 3)))), 1)                      # a finer map of the same thing
    uniform = three(uniform_map(masks))
    assert np.allclose(uniform, np.stack([area, area, area/(2-area)], 1))
    assert np.allclose(np.mean([three(rng.random(masks.shape)) for _ in range(500)], 0), uniform, atol=.06)
    half = masks/255.; half[:, :, 8:] = 0                                                    # a part of the mask: all inside, but less of it
    assert np.allclose(three(half)[:, :2], 1) and (three(half)[:, 2]<1).all()
    assert map_scores(np.zeros((4, 2, 2)), masks)['empty'].all() and np.allclose(three(np.zeros((4, 2, 2))), uniform)
    shift = three(masks/255*7.)
    assert np.allclose(shift, 1)                                                             # scale does not count


def test_baselines():
    disc = np.hypot(*np.meshgrid(np.arange(32)-15.5, np.arange(32)-15.5))<9
    masks = np.repeat(255*disc[None].astype(np.uint8), 2, 0)
    assert (map_scores(centre_blob(masks), masks)[list(MAP_SCORES)]>.95).all(axis=None)        # unbeatable where the mask is the centre
    assert blob_like(np.ones((2, 4, 4)), masks).shape==(2, 4, 4) and (map_scores(blob_like(np.ones((2, 4, 4)), masks), masks).energy<.95).all()
    corner = np.roll(masks, 16, (1, 2))
    assert map_scores(centre_blob(corner), corner).energy.max()<.2


def bad_maps():
    m = boxes()/255.; nan = m.copy(); nan[2, 0, 0] = np.nan; inf = m.copy(); inf[1, 0, 0] = np.inf
    none = boxes(); none[3] = 0
    return [(nan, boxes(), '1 of 4 maps are not finite, the first is number 2'), (inf, boxes(), 'the first is number 1'), (m[:3], boxes(), r'maps must be \(n, h, w\)'), (m[0], boxes(), 'maps must be'),
            (m, boxes()[..., :9], 'maps must be'), (m, none, '1 of 4 faces are without a mask, the first is number 3'), (m, None, 'score file without masks'), (-m, boxes(), 'must not be negative')]


@pytest.mark.parametrize('maps, masks, says', bad_maps())
def test_what_cannot_be_scored(maps, masks, says):
    with pytest.raises(HffError, match=says): map_scores(maps, masks)


def test_means_over_videos():
    rng = np.random.default_rng(1)
    v = rng.normal(size=40)
    t = pd.DataFrame(dict(dataset='d', method=np.repeat(['A', 'B'], 80), quality='', video=np.repeat(np.arange(40), 4), frame=np.tile(range(4), 40), e=np.repeat(v, 4)))
    m = means(t, ['e']).set_index('method')
    assert m.index.tolist()==['A', 'B'] and m.videos.tolist()==[20, 20] and np.allclose(m.e, [v[:20].mean(), v[20:].mean()])
    wide, narrow = m.e_hi-m.e_lo, [4*v[:20].std()/20**.5, 4*v[20:].std()/20**.5]
    assert np.allclose(wide, narrow, rtol=.2)                                               # of 20 videos, not 80 frames
    assert video_mean(t.e, t.video, seed=3)==video_mean(t.e, t.video, seed=3)
    both = means(t, ['e'], ['dataset', 'quality'])
    assert len(both)==1 and both.faces.item()==160 and both.videos.item()==40
    with pytest.raises(HffError, match='selection is empty'): video_mean([], [])


def test_masked_fakes():
    t = table(4).assign(masked=True)
    masks = np.zeros((8, 8, 8), np.uint8); masks[:, 2:5] = 255
    assert masked_fakes(t, masks).tolist()==[0, 1, 4, 5] and masked_fakes(t, masks, 1).tolist()==[0, 4]
    t.loc[0, 'masked'] = False; masks[1] = 0
    assert masked_fakes(t, masks).tolist()==[4, 5]
    for bad in (t.drop(columns='masked'), t.assign(masked=False), t[t.label.eq(0)]):
        with pytest.raises(HffError, match='score file without masks'): masked_fakes(bad, masks[:len(bad)])
    l = located(t.iloc[[4, 5]], masks[[4, 5]]/255, masks[[4, 5]])
    assert np.allclose(l.energy, 1) and np.allclose(l.gain, 1-l.blob_energy) and np.allclose(l.share_gain, 1-l.area)
    with pytest.raises(HffError, match='2 faces but 1 maps'): located(t.iloc[[4, 5]], masks[:1], masks[[4, 5]])


@pytest.mark.parametrize('name', ['two_stream', 'xray', 'f3net', 'bayar'])
def test_everything_learnt_is_shuffled(net, name):
    m = net(name)
    parts = from_the_top(m)
    assert list(parts)[0]=='head' and [p for p in parts if p in ('exit', 'middle2', 'middle1', 'entry', 'stem2', 'stem1')]==['exit', 'middle2', 'middle1', 'entry', 'stem2', 'stem1']
    s = shuffled(m, sum(parts.values(), []))
    for (n, a), b in zip(m.named_parameters(), s.parameters()):
        if n.startswith('idle') or not a.requires_grad: assert torch.equal(a, b), n           # what was never used, and what was never learnt
        else: assert torch.equal(a.flatten().sort()[0], b.flatten().sort()[0]), n
        if a.requires_grad and a.numel()>8 and a.unique().numel()>8 and not n.startswith('idle'): assert not torch.equal(a, b), n


def test_shuffling_changes_maps(net):
    m = net('two_stream')
    with torch.no_grad(): before = [p.clone() for p in m.parameters()]
    t = cascade(m, IMAGES[:2], 'rsa')
    c = t.groupby('part', sort=False).correlation.mean()
    assert list(c.index)==list(from_the_top(m)) and np.allclose(c[['head', 'fusion', 'exit']], 1) and c.iloc[-1]<.99
    m = net('srm')
    g = cascade(m, IMAGES)
    assert g.correlation.between(-1.001, 1.001).all() and g[g.part.eq('stem1')].correlation.mean()<.9
    assert np.allclose(cascade(m, IMAGES, only_end=True).correlation, g[g.part.eq('stem1')].correlation)
    two = net('two_stream')
    assert all(torch.equal(a, b) for a, b in zip(before, two.parameters()))                 # the network is left alone
    assert np.allclose(label_flip(two, IMAGES, 'rsa'), 1) and (label_flip(two, IMAGES)<.5).all()


def test_rank_correlation():
    from scipy.stats import spearmanr
    a, b = np.random.default_rng(0).random((2, 3, 4, 4)).round(1)
    assert np.allclose(rank_correlation(a, b), [spearmanr(x.ravel(), y.ravel())[0] for x, y in zip(a, b)])
    assert rank_correlation(a, np.ones_like(a)).tolist()==[0, 0, 0]


class Corner(nn.Module):
    "Score = contrast of the upper left quarter"
    def __init__(self): super().__init__(); self.scale = nn.Parameter(torch.tensor(8.))
    def forward(self, x):
        z = self.scale*(x[..., :16, :16].abs().mean((1, 2, 3))-.25)
        return type('Out', (), dict(logits=torch.stack([-z, z], 1)))


def test_deletion_and_insertion_of_a_known_network():
    rng, toy = np.random.default_rng(0), Corner()
    images = torch.from_numpy(rng.integers(0, 256, (16, 3, 32, 32), np.uint8))
    right = np.zeros((16, 8, 8)); right[:, :4, :4] = rng.uniform(.5, 1, (16, 4, 4))
    f, w = faithful(toy, images, right, steps=4), faithful(toy, images, right[:, ::-1, ::-1], steps=4)
    assert (f.deletion<f.deletion_random).all() and (f.insertion>f.insertion_random).all()
    assert w.deletion.mean()>w.deletion_random.mean() and w.insertion.mean()<w.insertion_random.mean()
    c = curves(toy, images, right, steps=4)
    assert len(c)==16*5 and np.allclose(c[c.share.eq(0)].deletion, c[c.share.eq(1)].insertion) and areas(c).ge(0).all(axis=None) and areas(c).le(1).all(axis=None)
    s = shuffled_cells(right)
    assert np.allclose(np.sort(s.reshape(16, -1)), np.sort(right.reshape(16, -1))) and not np.allclose(s, right)
    flat = faithful(toy, images, np.zeros((16, 8, 8)), steps=4)                            # an empty map is a random order
    assert abs((flat.deletion-flat.deletion_random).mean())<.1


def test_the_rule():
    good = dict(inside=.1, locates=.1, weights=.2, label=-.5, deletion=-.1, insertion=.1)
    assert list(good)==list(RULE)
    for k, v in good.items():
        assert judge_check(k, np.full(5, v), range(5))['passes'] is True
        wide = judge_check(k, np.array([v, v, RULE[k][1]-100*(v-RULE[k][1])]), range(3))     # an interval across the limit
        assert wide['passes'] is False and wide['lo']<=wide['value']<=wide['hi']
    with pytest.raises(HffError, match='insertion'): judge_check('beauty', [1], [1])


def test_a_map_of_the_network_itself_fails_the_label_check(net):
    t = check_map(net('two_stream'), IMAGES, boxes(), range(4), 'rsa', steps=2).set_index('check')
    assert t.index.tolist()==list(RULE) and not t.passes['label'] and t.value['label']==pytest.approx(1)


def test_plots_draw_where_they_are_told(net):
    from matplotlib.figure import Figure
    axs = Figure().subplots(1, 4)
    assert show_overlay(IMAGES[0].permute(1, 2, 0).numpy(), np.eye(4), axs[0]) is axs[0] and len(axs[0].images)==2
    m = means(table(4).assign(energy=.5, blob_energy=.6), ['energy', 'blob_energy'])
    assert show_scores(m, 'energy', axs[1]) is axs[1] and len(axs[1].patches)==2
    c = pd.DataFrame(dict(face=[0, 0, 1, 1], share=[0, 1, 0, 1], deletion=[1, 0, 1, .5], insertion=0.))
    assert show_curves(c, 'deletion', axs[2]) is axs[2] and np.allclose(axs[2].lines[0].get_ydata(), [1, .25])
    assert show_cascade(pd.DataFrame(dict(part=['head', 'exit'], correlation=[.5, 0])), axs[3]) is axs[3] and np.allclose(axs[3].lines[0].get_ydata(), [1, .5, 0])
