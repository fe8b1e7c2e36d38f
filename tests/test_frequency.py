"Spectra, regions, cuts and probes on pictures whose answer is known"
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.fft import idctn
from sklearn.metrics import roc_auc_score
from torch import nn

from hff.filters import SRM
from hff.frequency import (STREAMS, VARIANTS, auc_rows, band_auc, block_dct, colour_features, cut, fake_minus_real, fit_probe, frequencies, grey, group_means, laplace_scale, log_power, logits,
                           noise_features, power, profile_table, radial_profile, region_energy, region_noise, regions, residual_histogram, residuals, show_bands, show_dct, show_histogram,
                           show_profiles, show_spectrum, spectrum, strangers, transfer, twins, two_inputs, variant)
from hff.metrics import evaluate
from hff.models import create_model
from hff.paths import HffError
from hff.scores import score_images


def as_colours(g): return torch.from_numpy(np.array(g, float))[:, None].repeat(1, 3, 1, 1)


def table(methods=('real', 'DF', 'NT'), people=4, frames=(0, 3), quality='c23'):
    rows = [dict(dataset='t', method=m, quality=quality, video=f'{m}{p}', split='test', label=int(m not in ('real', 'touched')), target=f'{p:02d}', frame=f, status='ok', masked=True)
            for m in methods for p in range(people) for f in frames]
    return pd.DataFrame(rows)


def noisy(n, side=32, sigma=5., seed=0): return as_colours(128+sigma*np.random.default_rng(seed).standard_normal((n, side, side)))


@pytest.mark.parametrize('h,w,k,l', [(32, 32, 5, 0), (32, 48, 0, 9), (48, 32, 7, 4), (64, 64, 20, 3)])
def test_a_wave_lands_in_its_bin(h, w, k, l):
    y, x = np.mgrid[:h, :w]
    s = power(as_colours((128+30*np.cos(2*np.pi*(k*y/h+l*x/w)))[None]))[0].numpy()
    assert np.unravel_index(s.argmax(), s.shape) in [(k, l), (-k % h, -l % w)]
    n = min(h, w)
    assert abs(frequencies(n)[radial_profile(np.log10(s+1e-3)).argmax()]-np.hypot(k/h, l/w))<=1/n+1e-9


def test_parseval_and_the_level_of_white_noise():
    x = noisy(200, 32, 4.)
    w = torch.outer(*(torch.hann_window(32),)*2)
    g = grey(x)-(grey(x)*w).sum((1, 2), keepdim=True)/w.sum()
    assert torch.allclose(power(x).mean((1, 2)), (g*w).square().sum((1, 2))/w.square().sum(), rtol=1e-4)
    assert power(x)[:, 4:-4, 4:-4].mean().item()==pytest.approx(16, rel=.02)
    p = radial_profile(spectrum(x))
    assert np.abs(p[3:]-(np.log10(16)-np.euler_gamma/np.log(10))).max()<.05
    assert np.allclose(spectrum(x), log_power(x).mean(0), atol=1e-5)


@pytest.mark.parametrize('f', [power, log_power, laplace_scale, block_dct, residuals, lambda x: cut(x, .1), lambda x: cut(x, .1, 'high'), colour_features, noise_features,
                               *(lambda x, v=v: variant(x, v, x.flip(0)) for v in VARIANTS)])
def test_bytes_are_never_wrapped_round(f):
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8))
    assert np.array_equal(np.asarray(f(x)), np.asarray(f(x.double())))
    dark, light = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    dark[..., ::2] = 2; light[..., ::2] = 253
    assert torch.allclose(power(dark), power(light), atol=1e-2)              # the same small ripple on black and on white


@pytest.mark.parametrize('bad,words', [(torch.zeros(3, 32, 32), 'x\\[None\\]'), (torch.zeros(0, 3, 32, 32), 'No pictures'), (torch.zeros(1, 3, 32, 8), 'too small'), (torch.zeros(1, 1, 32, 32), 'must be'),
                                       (torch.full((2, 3, 32, 32), torch.nan), '2 of 2'), (torch.full((1, 3, 32, 32), torch.inf), 'not finite')])
def test_bad_pictures(bad, words):
    for f in (spectrum, laplace_scale, residuals, lambda x: cut(x, .1), lambda x: variant(x, 'grey'), noise_features):
        with pytest.raises(HffError, match=words): f(bad)


def test_fake_minus_real_is_the_paired_mean():
    t, rng = pd.concat([table(), table(quality='c40'), table(('touched',))], ignore_index=True), np.random.default_rng(0)
    v = rng.standard_normal((len(t), 3))
    got = fake_minus_real(t, v, draws=200)
    assert set(zip(got.quality, got.method))=={('c23', 'DF'), ('c23', 'NT'), ('c40', 'DF'), ('c40', 'NT')} | ({('c23', 'touched')})
    m = t.assign(v=v[:, 1]).groupby(['quality', 'method', 'target']).v.mean()
    for r in got[got['at'].eq(1)].itertuples():
        gap = m[r.quality, r.method]-m[r.quality, 'real']
        assert r.difference==pytest.approx(gap.mean()) and r.fake==pytest.approx(m[r.quality, r.method].mean()) and r.lo<=r.difference<=r.hi and r.videos==4 and r.unpaired==0
        assert gap.min()-1e-9<=r.lo and r.hi<=gap.max()+1e-9                  # a mean of resampled pairs stays among them
    assert fake_minus_real(t, v, draws=200).equals(got)


def test_unpaired_and_repeated_reals():
    t = table(('real', 'DF'))
    t.loc[t.method.eq('DF') & t.target.eq('00'), 'target'] = 'nobody'
    v = np.where(t.label, 3., 1.)[:, None]
    got = fake_minus_real(t, v).iloc[0]
    assert (got.videos, got.unpaired, got.difference, got.lo, got.hi)==(3, 1, 2, 2, 2)
    twice = pd.concat([t, t[t.label.eq(0)].assign(video=lambda d: d.video+'b')], ignore_index=True)
    assert fake_minus_real(twice, np.r_[v[:, 0], np.full(8, 2.)][:, None]).iloc[0].difference==1.5            # a person's reals are averaged
    for bad, words in ((t[t.label.eq(1)], '0 real'), (t[t.label.eq(0)], 'needs real and fake')):
        with pytest.raises(HffError, match=words): fake_minus_real(bad, np.zeros((len(bad), 1)))
    with pytest.raises(HffError, match='16 faces but 3'): group_means(t, np.zeros(3))
    with pytest.raises(HffError, match='No faces'): group_means(t[:0], np.zeros((0, 2)))


def test_profiles_find_what_was_blurred():
    t = table(('real', 'DF'))
    x = noisy(16); x = torch.cat([x[:8], cut(x[:8], .25)])
    p = profile_table(t, x, draws=200)
    assert np.abs(p.difference[p.frequency<.15]).max()<.03 and p.hi[p.frequency>.3].max()<-.5
    ax = show_profiles(p)
    assert len(ax.lines)==2 and show_spectrum(spectrum(x)).get_xlabel() and show_dct(np.zeros((8, 8))).images
    with pytest.raises(HffError, match='too small'): radial_profile(np.ones((4, 4)))


def test_block_dct_goes_back_and_the_scale_is_found():
    x = noisy(2, 40)
    back = idctn(block_dct(x), axes=(-2, -1), norm='ortho').reshape(2, 5, 5, 8, 8).transpose(0, 1, 3, 2, 4).reshape(2, 40, 40)
    assert np.abs(back-grey(x).numpy()).max()<1e-3
    assert block_dct(x[..., :39, :]).shape==(2, 20, 8, 8)                     # the rest of a block is left out
    c = np.random.default_rng(0).laplace(0, [[3]*8]*4+[[9]*8]*4, (1, 900, 8, 8))
    im = idctn(c, axes=(-2, -1), norm='ortho').reshape(30, 30, 8, 8).transpose(0, 2, 1, 3).reshape(1, 240, 240)
    s = 10**laplace_scale(as_colours(im))[0]
    assert s[:4].mean()==pytest.approx(3, rel=.02) and s[4:].mean()==pytest.approx(9, rel=.02)


def test_residuals_are_those_of_the_network_inside():
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8))
    assert torch.allclose(residuals(x)[..., 2:-2, 2:-2], SRM()(x/127.5-1)[..., 2:-2, 2:-2], atol=1e-5)
    assert residuals(x*0+255).abs().max()<1e-4 and residuals(x, .1).abs().max()==pytest.approx(.1)


def test_regions_follow_the_mask():
    m = np.zeros((2, 32, 32), np.uint8); m[:, 8:24, 8:24] = 255
    w = regions(m, 128)
    assert w.shape==(2, 128, 128) and (w[0, 64, 64], w[0, 32, 64], w[0, 4, 4])==(2, 1, 0)
    assert (w[0]==1).sum()==pytest.approx(4*64*10, rel=.1)                    # a band of 2 x .04 x 128 about the border
    assert not (regions(m, 128, 0)==1).any()
    with pytest.raises(HffError, match='1 of 2 faces have no mask'): regions(m*np.array([1, 0], np.uint8)[:, None, None], 64)
    with pytest.raises(HffError, match='No masks'): regions(m[:0], 64)


def test_twins_show_one_person_at_the_nearest_frame():
    t = pd.concat([table(('DF',), frames=(1, 9, 20)), table(('real', 'touched'), frames=(0, 10))], ignore_index=True)
    t = t.sample(frac=1, random_state=0)                                     # whatever the order of the rows and their index
    i, j = twins(t, 'DF')
    a, b = t.iloc[i], t.iloc[j]
    assert len(i)==12 and a.method.eq('DF').all() and b.method.eq('real').all() and (a.target.to_numpy()==b.target.to_numpy()).all()
    assert (b.frame.to_numpy()==np.where(a.frame.to_numpy()<5, 0, 10)).all()
    some = t.assign(masked=t.frame.eq(9) | t.label.eq(0))
    assert len(twins(some, 'DF')[0])==4
    for bad in (t.assign(masked=False), t[t.label.eq(1)], t.assign(target=t.target+t.method)):
        with pytest.raises(HffError): twins(bad, 'DF')


def test_noise_and_energy_by_region():
    m = np.zeros((3, 16, 16), np.uint8); m[:, 4:12, 4:12] = 255
    w, x = regions(m, 96), noisy(3, 96, 3.)
    x[..., 24:72, 24:72] = (x[..., 24:72, 24:72]-128)*2+128
    n = region_noise(x, w)
    assert n[:, 0]==pytest.approx(3, rel=.05) and n[:, 2]==pytest.approx(6, rel=.07)
    e = region_energy(x, w)
    assert e.shape==(3, 3, 3) and (e[:, 2]>e[:, 0]+.3).all()
    assert np.allclose(e[0, 0], np.log10((residuals(x[:1])[0].numpy()[:, w[0]==0]**2).mean(1)+1e-8))
    assert np.isnan(region_noise(x, w*0)[:, 1:]).all()
    with pytest.raises(HffError, match='regions of 2'): region_noise(x, w[:2])
    h = residual_histogram(x, w==2)
    assert h.groupby('kernel').share.sum().add(h.groupby('kernel').beyond.first()).to_numpy()==pytest.approx(1) and len(show_histogram(h[h.kernel.eq('h1')]).lines)==1
    for chosen, words in ((w==9, 'No pixel'), (w[:2]==0, 'pixels are chosen')):
        with pytest.raises(HffError, match=words): residual_histogram(x, chosen)


@pytest.mark.parametrize('radius', [.03, .1, .3, .7])
def test_low_and_high_are_complements(radius):
    x = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 3, 40, 32), np.uint8))
    low, high, mean = cut(x, radius), cut(x, radius, 'high'), x.float().mean((2, 3), keepdim=True)
    assert torch.allclose(low+high-mean, x.float(), atol=1e-2)
    for part in (low, high): assert torch.allclose(part.mean((2, 3), keepdim=True), mean, atol=1e-2) and part.var()<=x.float().var()
    assert torch.allclose(cut(x.flip(3), radius), low.flip(3), atol=1e-2)     # no side is favoured


def test_cut_refuses():
    x = noisy(1)
    for args, words in (((0,), 'between 0'), ((.8,), 'between 0'), ((.1, 'mid'), 'low or high')):
        with pytest.raises(HffError, match=words): cut(x, *args)


@pytest.mark.parametrize('name', ['fusion', 'fusion_rsa', 'two_stream'])
def test_streams_see_their_own_picture(name):
    torch.manual_seed(0)
    m = create_model(name, backbone='tf_efficientnet_lite0', pretrained=False, image_size=32).eval()
    a, b = torch.rand(2, 2, 3, 32, 32)*2-1
    with torch.no_grad():
        assert torch.equal(two_inputs(m, a, a).logits, m(a).logits)
        mixed = two_inputs(m, a, b)
        assert not torch.allclose(mixed.logits, m(a).logits) and not torch.allclose(mixed.logits, m(b).logits)
        if name=='fusion':                                                   # without attention: two networks side by side
            half = m.fusion(m.rgb(a), m.hf(m.srm(b))).relu().mean((2, 3))
            assert torch.allclose(mixed.features, half, atol=1e-5)
        with pytest.raises(RuntimeError): two_inputs(m, a, torch.full((2, 3, 32, 32), 1.).to(torch.complex64))
        assert torch.equal(m(a).logits, two_inputs(m, a, a).logits) and not m.srm._forward_pre_hooks      # no hook stays, not even after an error
    with pytest.raises(HffError, match='no second stream'): two_inputs(create_model('srm', backbone='tf_efficientnet_lite0', pretrained=False, image_size=32), a, b)


def test_logits_equal_the_scores_of_a_run():
    torch.manual_seed(0)
    m = create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=False, image_size=32).eval()
    x = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8); f = x.float(); before = f.clone()
    assert np.allclose(logits(m, x, batch_size=2), score_images(m, x), atol=1e-5) and np.allclose(logits(m, f), logits(m, x), atol=1e-5) and torch.equal(f, before)


class Ears(nn.Module):
    "A detector with two streams of which only the residual counts"
    def __init__(self):
        super().__init__()
        self.srm, self.hf = SRM(), nn.Identity()
    def forward(self, x):
        e = self.hf(self.srm(x))[..., 2:-2, 2:-2].square().mean((1, 2, 3)).log()
        return type('Out', (), dict(logits=torch.stack([e, -e], 1)))


def test_the_stream_that_counts_is_found():
    t = table(('real', 'DF')); x = noisy(16); x = torch.cat([x[:8], cut(x[:8], .3)])
    auc = {s: band_auc(Ears(), x, t, (.05,), (.3,), s, draws=50).set_index(['keep', 'radius']).auc for s in STREAMS}
    assert all(a['all'].iloc[0]==1 for a in auc.values())
    assert auc['rgb']['low', .05]==1 and auc['hf']['low', .05]<1 and auc['both']['low', .05]==auc['hf']['low', .05] and auc['both']['high', .3]==1
    b = band_auc(Ears(), x, t, (.05, .3), (), whole=False, draws=50)
    assert b.keep.eq('low').all() and len(b)==2 and len(show_bands(b, 'low').lines)>=2
    with pytest.raises(HffError, match='both, rgb, hf'): band_auc(Ears(), x, t, stream='left')
    with pytest.raises(HffError, match='no second stream'): band_auc(create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=False, image_size=32).eval(), x, t, (.1,), (), 'hf')


def test_auc_rows_agree_with_the_metrics():
    t = pd.concat([table(people=9), table(people=9, quality='c40'), table(('touched',), people=9)], ignore_index=True)
    z = np.random.default_rng(0).normal(size=len(t))+t.label
    got = auc_rows(t, z, draws=300)
    s = t[t.columns[:4].tolist()+['frame', 'label', 'status']].assign(score=1/(1+np.exp(-z)), logit=z)
    e = evaluate(s, draws=300, together=True).set_index(['quality', 'method'])
    for r in got.itertuples():
        assert (r.auc, r.lo, r.hi)==pytest.approx(tuple(e.loc[(r.quality, r.method), ['frame_auc', 'frame_lo', 'frame_hi']])) and (r.real, r.fake)==(9, 18 if r.method=='all' else 9)
    d = t.quality.eq('c40') & t.method.isin(['real', 'NT'])
    assert got[got.quality.eq('c40') & got.method.eq('NT')].auc.item()==pytest.approx(roc_auc_score(t.label[d], z[d]))
    for bad, words in ((z[:3], '3 scores'), (z*np.nan, 'not finite')):
        with pytest.raises(HffError, match=words): auc_rows(t, bad)


def test_strangers_are_real_and_of_the_same_quality():
    t = pd.concat([table(), table(quality='c40'), table(('touched',))], ignore_index=True).sample(frac=1, random_state=1)
    o = t.iloc[strangers(t)]
    assert o.method.eq('real').all() and (o.quality.to_numpy()==t.quality.to_numpy()).all() and (o.target.to_numpy()!=t.target.to_numpy()).all()
    by = pd.Series(o.target.to_numpy()).groupby(t.target.to_numpy()).nunique()
    assert by.eq(1).all() and o.target.nunique()==4                           # real and forged clips of a person have one stranger
    with pytest.raises(HffError, match='at least two'): strangers(t[t.target.eq('00')])


def test_variants_keep_what_they_say():
    x = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (2, 3, 32, 32), np.uint8)); y = x.flip(0)
    v = {n: variant(x, n, y) for n in VARIANTS}
    assert all(p.shape==x.shape and p.dtype==torch.float32 for p in v.values()) and torch.equal(v['whole'], x.float())
    assert torch.allclose(v['grey'][:, 0], grey(x)) and grey(v['colour']).flatten(1).std(1).max()<1e-2
    assert torch.allclose(v['noise'].mean((1, 2, 3)), torch.full((2,), 127.5), atol=1e-2)
    assert torch.allclose(v['fine of a stranger'], cut(x, .06)+cut(y, .06, 'high')-y.float().mean((2, 3), keepdim=True), atol=1e-2)
    assert torch.allclose(v['smooth of a stranger'], variant(y, 'fine of a stranger', x), atol=1e-2)
    assert torch.allclose(v['noise'][:, 0]-127.5+grey(v['smooth']), grey(x), atol=1e-2)             # noise and smooth make up the luma
    with pytest.raises(HffError, match='strangers'): variant(x, 'smooth of a stranger')


def test_probes_see_their_own_half():
    "Fakes that differ in noise alone are found by the noise probe alone, and the other way round"
    rng = np.random.default_rng(0)
    t = table(('real', 'DF', 'NT'), people=12, frames=(0,)); learn = t.target.lt('06').to_numpy(copy=True)
    tone = as_colours(np.broadcast_to(rng.uniform(90, 160, (36, 1, 1)), (36, 32, 32)))
    grain = lambda s: as_colours(rng.standard_normal((36, 32, 32))*s)
    fake = t.label.to_numpy(float)[:, None, None]
    noise, colour = tone+grain(6-3*fake), tone*1.+grain(6+0*fake); colour[:, 0] += torch.from_numpy(40*t.label.to_numpy(float))[:, None, None]
    for f, x, best in ((noise_features, noise, True), (colour_features, colour, True), (noise_features, colour, False)):
        v = f(x)
        assert v.shape==(36, 96)
        cells, draws = transfer(t[~learn], {'DF': fit_probe(t[learn], v[learn], 'DF').decision_function(v[~learn])}, draws=100)
        assert cells.auc.gt(.9).all()==best and set(cells.test)=={'DF', 'NT'} and draws.shape==(100,)
        assert draws.mean()==pytest.approx(cells.auc[cells.test.eq('NT')].item(), abs=.05)      # NT is the method that was not learnt
    with pytest.raises(HffError, match='Training faces of FS'): fit_probe(t, colour_features(colour), 'FS')


def test_only_unseen_methods_enter_the_mean():
    t = table(people=6)
    z = {'DF': np.where(t.method.eq('DF'), 1., 0.), 'NT': t.label.to_numpy(float)}
    cells, draws = transfer(t, z, draws=50)
    assert cells.set_index(['train', 'test']).auc.to_dict()=={('DF', 'DF'): 1, ('DF', 'NT'): .5, ('NT', 'DF'): 1, ('NT', 'NT'): 1} and set(draws)=={.75}
    assert np.isnan(transfer(t[t.method.ne('NT')], {'DF': z['DF'][t.method.ne('NT')]}, draws=50)[1]).all()      # nothing unseen
