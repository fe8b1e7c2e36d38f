"Speed: no time is asserted, only that what is raced is the same network, and that what saves time or memory changes nothing else"
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from hff.cli import main
from hff.models import create_model
from hff.paths import HffError
from hff.recipe import Recipe, make_recipe
from hff.speed import _dcma_ways, _same, _srm_ways, curve_difference, estimate_gpu
from hff.trainer import build_model, cast, choose_precision, pieces_of, time_precisions
from hff.transcription import Cross, agree, transcribe
from filling import fill_value, smooth_images


@pytest.fixture(scope='module')
def pair():
    "Our network with nothing at rest, and its transcription"
    model = create_model(pretrained=False, image_size=64, dropout=0.).eval()
    model.load_state_dict({k: v if k.endswith('kernel') else fill_value(k, tuple(v.shape)) for k, v in model.state_dict().items()})
    return model, transcribe(model)


def test_transcription_gives_the_same_numbers(pair):
    assert agree(*pair, smooth_images(2, 64)) <= 1e-5


@pytest.mark.parametrize('fault', ['attention', 'kernels', 'injection'])
def test_a_wrong_transcription_is_rejected(pair, fault, monkeypatch):
    model, plain = pair
    if fault=='attention':                                         # R = V A instead of V A^T: no shape tells
        bmm = torch.bmm
        monkeypatch.setattr(torch, 'bmm', lambda a, b: bmm(a, b.mT) if a.shape[1]==728 else bmm(a, b))
    elif fault=='kernels': monkeypatch.setattr(plain.srm1, 'forward', lambda x, f=plain.srm1.forward: f(x.flip(1)))
    else: monkeypatch.setattr(plain.srm2, 'forward', torch.zeros_like)
    with pytest.raises(HffError, match='cannot be compared'): agree(model, plain, smooth_images(2, 64))


def test_gradients_of_both_are_close(pair):
    y, grads = torch.tensor([0, 1, 1]), []
    for m in pair:
        m.train(); m.zero_grad()
        o = m(smooth_images(3, 64))
        F.cross_entropy(getattr(o, 'logits', o), y).backward()
        grads.append([p.grad for p in m.parameters() if p.grad is not None])
        m.eval()
    assert len(grads[0])==len(grads[1])>200
    for a, b in zip(*grads): assert a.shape==b.shape and (a-b).norm() <= 2e-2*a.norm() + 1e-6


def test_only_the_released_form_is_transcribed():
    with pytest.raises(HffError, match='only two_stream'): transcribe(create_model('srm', pretrained=False, image_size=64))


def recipe(**kw):
    return Recipe(model='fusion_rsa_dcma', backbone='mobilenetv2_100', pretrained=False, image_size=64, switches=dict(dropout=0.), **kw)


def gradients(r, accumulate=1, norms=False):
    "Gradients and statistics after a batch of six that goes through in parts"
    model, x, y = build_model(r).train(), smooth_images(6, 64), torch.arange(6)%2
    for m in model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): m.train(norms)
    for p in pieces_of(6, accumulate): (F.cross_entropy(model(x[p]).logits, y[p])*len(y[p])/6).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), [v for k, v in model.state_dict().items() if 'running' in k or 'tracked' in k]


def test_accumulated_gradients_are_those_of_the_batch():
    whole, parts = gradients(recipe())[0], gradients(recipe(), 3)[0]
    assert (whole-parts).norm() < 1e-3*whole.norm()
    assert (whole-gradients(recipe(), 3, norms=True)[0]).norm() > .05*whole.norm()        # batch norm sees a part


def test_recomputed_activations_change_neither_gradients_nor_statistics():
    (a, s), (b, t) = gradients(recipe(), norms=True), gradients(recipe(checkpoint=True), norms=True)
    assert torch.equal(a, b) and all(torch.equal(u, v) for u, v in zip(s, t, strict=True))


def test_less_is_kept_when_activations_are_recomputed():
    kept = []
    for r in (recipe(), recipe(checkpoint=True)):
        seen, model = {}, build_model(r).train()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.setdefault(t.untyped_storage().data_ptr(), t) if t.requires_grad or t.grad_fn else t, lambda t: t): out = model(smooth_images(2, 64))
        kept.append(sum(t.untyped_storage().nbytes() for t in seen.values()))
        out.logits.sum()
    assert kept[1] < .6*kept[0]


def test_a_default_recipe_is_saved_as_before():
    r, new = recipe(seed=3), {'precision', 'accumulate', 'checkpoint'}
    assert set(asdict(r))-set(r.settings)==new and make_recipe(**r.settings)==r
    assert Recipe().name=='two_stream-F2F-c23-s0-44136fa3'                                # the digest of no change at all
    other = [replace(r, precision='bfloat16'), replace(r, accumulate=2), replace(r, checkpoint=True)]
    assert len({x.hash for x in (r, *other)})==4 and all(make_recipe(**x.settings)==x for x in other)
    for k, v in (('precision', 'float16'), ('accumulate', 0)):
        with pytest.raises(HffError, match=k): replace(r, **{k: v})


def test_timing_precisions_leaves_network_and_randomness_alone():
    model = build_model(recipe())
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    t = time_precisions(model, 2, steps=1)
    assert set(t)=={'float32', 'bfloat16'} and min(t.values())>0 and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and all(p.grad is None for p in model.parameters())
    assert choose_precision(dict(float32=1., bfloat16=.91))=='float32' and choose_precision(dict(float32=1., bfloat16=.8))=='bfloat16'
    with cast('bfloat16', torch.device('cpu')): assert (torch.ones(2, 2)@torch.ones(2, 2)).dtype==torch.bfloat16
    with cast('float32', torch.device('cpu')): assert (torch.ones(2, 2)@torch.ones(2, 2)).dtype==torch.float32
    for word in ('bf16', 'auto', 'float16', ''):
        with pytest.raises(HffError, match='float32 and bfloat16'): cast(word, torch.device('cpu'))


def test_parts_agree_or_are_not_raced():
    ways = _srm_ways(6)
    x = 3*torch.randn(1, 6, 9, 9)
    _same(ways, x)
    with pytest.raises(HffError, match='other'): _same(ways | dict(other=lambda x: ways['full matrix of kernels'](x)+.01), x)
    two, maps = _dcma_ways(16, 9), [torch.randn(1, 16, 3, 3) for _ in range(2)]
    with torch.no_grad():
        _same(two, *maps)
        swapped = Cross(16, 9).eval()
        with pytest.raises(HffError, match='swapped'): _same(two | dict(swapped=swapped), *maps)


@pytest.mark.parametrize('what', ['srm', 'dcma'])
def test_command_writes_its_rows(what, tmp_path, capsys):
    assert main(['bench', what, '--quick', '--out', str(tmp_path/'t.csv')])==0
    t = pd.read_csv(tmp_path/'t.csv')
    assert [*t][:7]==['candidate', 'batch', 'median', 'fastest', 'slowest', 'per_second', 'ratio'] and {'threads', 'load', 'allocator', 'cpu', 'cores', 'torch', 'quick'} <= set(t)
    assert t.quick.all() and t.threads.nunique()==1 and (t.fastest<=t['median']).all() and (t['median']<=t.slowest).all() and t.candidate[0] in capsys.readouterr().out


def test_estimate_is_labelled_and_scales():
    a, b = estimate_gpu(batch=32), estimate_gpu(batch=64)
    assert a.how.str.contains('not measured').all() and np.allclose(b.compute_ms, 2*a.compute_ms) and (b.images_s>=a.images_s).all()
    assert np.allclose(a.bound_ms, a[['compute_ms', 'memory_ms']].max(axis=1))


def test_difference_of_curves_is_read_beside_the_seeds():
    rows = [dict(seed=s, precision=p, epoch=e, test_auc=np.nan if e==1 else .8+.02*s-(p=='bfloat16')*(.2+.01*s)) for s in range(3) for p in ('float32', 'bfloat16') for e in (1, 2)]
    assert not curve_difference(pd.DataFrame(rows))['within']
    assert np.isclose(curve_difference(pd.DataFrame(rows))['seed_sd'], .02)
