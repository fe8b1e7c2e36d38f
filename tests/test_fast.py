"Folding: equal outputs for every form of the network, and a check that rejects what is not equal"
import copy

import pytest
import torch
from filling import fill, smooth_images
from torch import nn

from hff import fast
from hff.fast import check_same_outputs, differences, fold
from hff.models import CHOICES, FIDELITY, MODELS, Output, create_model
from hff.paths import HffError


def filled(name='two_stream', backbone='tf_efficientnet_lite0', size=64, **kw):
    m = create_model(name, backbone=backbone, pretrained=False, image_size=size, **kw)
    m.load_state_dict(fill(m.state_dict()))
    return m.eval()


def compare(m, f, x):
    with torch.no_grad(): return check_same_outputs(m(x), f(x))


@pytest.fixture(scope='module')
def x(): return smooth_images(2, 64)


@pytest.fixture(scope='module')
def xception(): return filled(backbone='legacy_xception')


@pytest.mark.parametrize('fidelity', FIDELITY)
@pytest.mark.parametrize('name', [n for n in MODELS if n not in ('bayar', 'ffd', 'f3net', 'srmnet', 'xray')])
def test_rows_of_table_3(name, fidelity, x):
    m = filled(name, fidelity=fidelity)
    before = {k: v.clone() for k, v in m.state_dict().items()}
    f = fold(m)
    compare(m, f, x)
    assert f.config == m.config and f.image_size == 64 and not f.train().training and not any(p.requires_grad for p in f.parameters())
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items()), 'the network itself has changed'


@pytest.mark.parametrize('name', ('bayar', 'ffd', 'f3net', 'srmnet', 'xray'))
def test_baselines(name, x):
    m = filled(name)
    f = fold(m)
    compare(m, f, x)
    assert sum(isinstance(c, nn.BatchNorm2d) for c in f.modules()) < sum(isinstance(c, nn.BatchNorm2d) for c in m.modules())/4


@pytest.mark.parametrize('switch', [k for k in CHOICES if k not in ('dropout', 'idle_head')])
def test_each_switch(switch, x):
    m = filled(**{switch: FIDELITY['paper'][switch]})
    compare(m, fold(m), x)


@pytest.mark.parametrize('fusion_form', ('mixed', 'concat'))
def test_xception(fusion_form, x):
    "Its last point-wise convolution goes into the mixed fusion, and stays with the other"
    m = filled(backbone='legacy_xception', fusion_form=fusion_form)
    f = fold(m)
    compare(m, f, x[:1])
    gone = [isinstance(b.net.conv4.pointwise, nn.Identity) for b in (f.net.rgb, f.net.hf)]
    assert gone == [fusion_form == 'mixed']*2 and sum(isinstance(c, nn.BatchNorm2d) for c in f.modules()) == 1


def test_other_backbone_and_batches():
    m = filled(backbone='mobilenetv2_100', size=96)
    f = fold(m)
    for n in (1, 3): compare(m, f, smooth_images(n, 96, seed=n))


def test_distinct_maps_only():
    "A map more or less in a stage would be equal too, but not smaller"
    f = fold(filled()).net
    assert [len(b.kernel) for b in (f.srm1, f.srm2)] == [32+2, 16+2] and f.srm.kernel.shape == (3, 1, 5, 5)
    assert len(fold(filled(kernel_order='tile')).net.srm1.kernel) == 3*32


def test_less_work():
    from torch.utils.flop_counter import FlopCounterMode
    m = filled(backbone='legacy_xception')
    def work(net):
        with torch.no_grad(), FlopCounterMode(display=False) as c: net(torch.zeros(1, 3, 64, 64))
        return c.get_total_flops()
    assert work(fold(m)) < .93*work(m)


# -- variants that are not equal, made on the folded network; the check that all above passed must reject each


def no_bias(f): f.net.rgb.net.conv2.bias = None
def swapped_keys(f): f.net.dcma0.key1, f.net.dcma0.key2 = f.net.dcma0.key2, f.net.dcma0.key1
def swapped_values(f): f.net.dcma1.value1, f.net.dcma1.value2 = f.net.dcma1.value2, f.net.dcma1.value1
def not_transposed(f): f.net.dcma0.transpose = False
def no_fusion_residual(f): f.net.fusion.residual = False
def no_clip(f): f.net.rsa.srm.t = 1.
def one_colour(f): f.net.srm.kernel /= 3
def streams_exchanged(f): f.net.fusion.convblk[0].weight.copy_(f.net.fusion.convblk[0].weight.roll(1536, 1))
def no_map(f): f.net.rsa_post[0].running_var += .01


def shifted_spans(f):
    "The first map of the second kernel is one too late"
    (a, b), (c, d), e = f.net.srm2.spans
    f.net.srm2.spans = [(a, b), (c+1, d+1), e]


BROKEN = (no_bias, swapped_keys, swapped_values, not_transposed, no_fusion_residual, no_clip, one_colour, streams_exchanged, no_map, shifted_spans)


@pytest.mark.parametrize('change', BROKEN, ids=lambda f: f.__name__)
def test_broken_variants_are_rejected(change, xception, x):
    f = copy.deepcopy(fold(xception))
    with torch.no_grad(): change(f)
    with pytest.raises(HffError, match='gives other outputs'): compare(xception, f, x[:1])


def gamma_dropped(monkeypatch, m): m.dcma0.gamma1.data.fill_(1)
def order_exchanged(monkeypatch, m): monkeypatch.setattr(fast, 'kernel_order', lambda k: 'tile')
def epsilon_lost(monkeypatch, m): [setattr(b, 'eps', 0.) for b in m.modules() if isinstance(b, nn.BatchNorm2d)]
def share_bias_lost(monkeypatch, m): m.dcma1.key_conv_share.bias.data.zero_()


@pytest.mark.parametrize('change', (gamma_dropped, order_exchanged, epsilon_lost, share_bias_lost), ids=lambda f: f.__name__)
def test_broken_folding_is_rejected(change, monkeypatch, x):
    "The same, with the mistake made while folding"
    m = filled()
    wrong = copy.deepcopy(m)
    change(monkeypatch, wrong)
    with pytest.raises(HffError, match='gives other outputs'): compare(m, fold(wrong), x)


def test_what_the_check_sees():
    y = Output(torch.tensor([[1., -3.]]), torch.tensor([[100., 0.]]))
    assert differences(y, y) == dict(logits=0, features=0)
    assert differences(y, Output(y.logits, y.features+.01))['features'] == pytest.approx(1e-4, rel=1e-3)
    assert differences(y, Output(y.logits*float('nan'), y.features))['logits'] == float('inf')
    assert differences(y, Output(y.logits, y.features, torch.ones(1, 1, 2, 2)))['attention_map'] == float('inf')
    with pytest.raises(HffError, match='features differ by 1.0e-04; 1e-05 is allowed'): check_same_outputs(y, Output(y.logits, y.features+.01))


def test_refusals():
    with pytest.raises(HffError, match='no `config`'): fold(nn.Conv2d(3, 3, 1))
    m = filled()
    m.srm1.kernel.data[0] += 1
    with pytest.raises(HffError, match='no known order'): fold(m)
    m = filled()
    m.srm.kernel.data[0, 0] += 1
    with pytest.raises(HffError, match='differ between colours'): fold(m)
    f = fold(filled('rgb'))
    with pytest.raises(HffError, match=r'\(B, 3, 64, 64\)'): f(torch.zeros(1, 3, 32, 32))
