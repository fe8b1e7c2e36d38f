"Baselines: each does what its paper says, learns everywhere, comes back from a file, and says clearly what it will not take"

import math

import pytest
import torch
import torch.nn.functional as F
from filling import smooth_images

from hff.backbones import TESTED, Backbone
from hff.baselines import BASELINES, FAD, LFS, NETWORKS, ConstrainedConv, Mix, PixelSRM, boundary_map, dct_matrix, squash, widen_stem
from hff.checkpoints import inspect_checkpoint, load_checkpoint, save_checkpoint
from hff.filters import srm_residual
from hff.losses import am_softmax, map_loss
from hff.models import MODELS, cost, create_model
from hff.paths import HffError

NAMES = tuple(NETWORKS)
MAPS = dict(xray=16, ffd=4)   # side of the predicted map for pictures of 64 x 64


def small(name, backbone='tf_efficientnet_lite0', size=64, **kw):
    torch.manual_seed(0)
    return create_model(name, backbone=backbone, pretrained=False, image_size=size, **kw)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "Small networks are quicker on one thread, above all where other programs run"
    threads = torch.get_num_threads(); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def x(): return smooth_images(4, 64)


def test_registry():
    assert set(NAMES) == set(BASELINES) and NAMES == tuple(MODELS)[6:]
    assert all(isinstance(v, str) and v for b in BASELINES.values() for v in b.values())


@pytest.mark.parametrize('name', NAMES)
def test_output(name, x):
    m = small(name).eval()
    with torch.no_grad(): y, again, one = m(x), m(x), m(x[:1])
    assert y.logits.shape == (4, 2) and y.features.shape[0] == 4 and y.features.ndim == 2 and y.logits.isfinite().all()
    assert torch.equal(y.logits, again.logits) and torch.allclose(y.logits[:1], one.logits, atol=1e-5)
    assert (y.mask_logits is None) == (name not in MAPS)
    if name in MAPS: assert y.mask_logits.shape == (4, 1, MAPS[name], MAPS[name])
    if name == 'ffd': assert torch.equal(y.attention_map, y.mask_logits.sigmoid())


@pytest.mark.parametrize('name', NAMES)
def test_every_weight_learns(name, x):
    m = small(name, head='cosine').train()
    y = m(x)
    loss = am_softmax(y.logits, torch.tensor([0, 1, 0, 1]))
    if y.mask_logits is not None: loss = loss + map_loss(y.mask_logits, torch.rand(4, 1, 64, 64))
    loss.backward()
    idle = [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    assert {n for n, p in m.named_parameters() if not p.requires_grad} == ({'srm.kernel'} if name == 'srmnet' else set())


@pytest.mark.parametrize('name', NAMES)
def test_comes_back_from_a_file(name, x, tmp_path):
    m = small(name, num_classes=3, dropout=.2).eval()
    with torch.no_grad(): m(x)
    save_checkpoint(m, tmp_path/'m.safetensors', trained_on='nothing')
    again = load_checkpoint(tmp_path/'m.safetensors')
    with torch.no_grad(): assert torch.equal(again(x).logits, m(x).logits)
    assert again.config == m.config and inspect_checkpoint(tmp_path/'m.safetensors').config['name'] == name
    sd = m.state_dict(); sd.pop(next(iter(sd)))
    with pytest.raises(HffError): load_checkpoint(sd)
    assert not [k for k in sd if k.endswith(('.dct', '.base'))]          # fixed tables are built, not stored


@pytest.mark.parametrize('name', NAMES)
def test_wrong_pictures(name):
    m = small(name)
    for shape in ((3, 64, 64), (1, 3, 96, 96), (1, 1, 64, 64)):
        with pytest.raises(HffError, match=r'\(B, 3, 64, 64\)'): m(torch.zeros(shape))
    with pytest.raises(HffError, match='multiple of 32'): create_model(name, image_size=100, pretrained=False)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('backbone', TESTED)
@pytest.mark.parametrize('size', (32, 96))
def test_backbones_and_sizes(name, backbone, size):
    "Shapes fit for every backbone and size; nothing is computed"
    with torch.device('meta'):
        y = small(name, backbone, size).eval()(torch.zeros(2, 3, size, size))
    assert y.logits.shape == (2, 2)
    if name == 'xray': assert y.mask_logits.shape == (2, 1, size//4, size//4)


def test_cost_of_two_streams():
    one, two = (cost(n, backbone='tf_efficientnet_lite0', image_size=64) for n in ('rgb', 'f3net'))
    assert 1.9 < two['parameters']/one['parameters'] < 2.2


def test_boundary_map():
    m = torch.linspace(0, 1, 101)
    b = boundary_map(m)
    assert b[0] == b[-1] == 0 and b.max() == b[50] == 1 and (b >= 0).all() and torch.allclose(b, b.flip(0), atol=1e-6)


def test_xray_judges_by_its_map_alone(x):
    m = small('xray').eval()
    with torch.no_grad():
        assert not torch.allclose(m(x).logits[0], m(x).logits[1])
        torch.nn.init.zeros_(m.map.weight)
        y = m(x).logits
        m.map.bias += 1
        more = m(x).logits
    assert torch.allclose(y, y[:1].expand_as(y)) and (more[:, 1]-more[:, 0] > y[:, 1]-y[:, 0]).all()


def test_constraint_survives_training(x):
    m = small('bayar').train()
    opt = torch.optim.Adam(m.parameters(), lr=.05)
    first = m.srm.kernel().detach()
    for _ in range(3):
        opt.zero_grad(); am_softmax(m(x).logits, torch.tensor([0, 1, 0, 1])).backward(); opt.step()
        k = m.srm.kernel()
        assert torch.equal(k[..., 2, 2], -torch.ones(3, 3)) and torch.allclose(k.sum((-1, -2)), torch.zeros(3, 3), atol=1e-5)
    assert (k-first).abs().max() > .05


def test_constraint_is_the_nearest_kernel():
    "A kernel that obeys stays; a shift of all free numbers changes nothing, not even where their sum is 0"
    c = ConstrainedConv()
    k = c.kernel().detach().flatten(2)
    with torch.no_grad():
        c.free.copy_(torch.cat([k[..., :12], k[..., 13:]], -1)); assert torch.allclose(c.kernel().flatten(2), k, atol=1e-6)
        c.free -= c.free.mean(-1, keepdim=True); assert torch.allclose(c.kernel().flatten(2), k, atol=1e-6)


def test_pixel_srm(x):
    p = PixelSRM()
    assert torch.allclose(p(x), srm_residual(127.5*x, t=math.inf), atol=1e-2) and p(x).abs().max() > 3
    assert not any(q.requires_grad for q in p.parameters())


def test_cosine_transform():
    for n in (10, 64):
        c = dct_matrix(n)
        assert torch.allclose(c @ c.T, torch.eye(n), atol=1e-5) and torch.allclose(c[0], torch.full((n,), n**-.5))
    assert torch.allclose(squash(torch.tensor([0., 30., -30.])), torch.tensor([0., 1., -1.]))


def test_fad_bands_add_up(x):
    fad = FAD(64)
    with torch.no_grad(): y = fad(x).view(4, 4, 3, 64, 64)               # picture, band, colour
    assert torch.allclose(y[:, :3].sum(1), x, atol=1e-5) and torch.allclose(y[:, 3], x, atol=1e-5)
    with torch.no_grad():
        fad.filters[0] = -40.                                             # 1 - 1: the low band is switched off inside, and is -1 outside
        low = fad(x).view(4, 4, 3, 64, 64)[:, 0]
    assert torch.allclose(low, y[:, 0]-x, atol=1e-4)


def test_lfs_sees_the_pitch_of_a_wave():
    "A wave of pitch u lights the band of u, and a stronger one lights it more"
    l = LFS(64, 32)
    torch.nn.init.zeros_(l.filters)
    i = torch.arange(64.)
    def q(u, s=.5): return l((s*(math.pi*u*i/10).cos()).expand(1, 3, 64, 64))[0, :, 8:24, 8:24].mean((1, 2))   # pitch of coefficient u in 10 pixels
    with torch.no_grad():
        assert [q(u).argmax().item() for u in (2, 5, 8)] == [0, 1, 2]
        assert (q(5) > q(5, .1)).all() and torch.equal(q(5, 0.), torch.zeros(6))


def test_widened_stem_keeps_its_response(x):
    for name in TESTED[1:]:
        torch.manual_seed(0); a = Backbone(name, image_input=False).eval()
        torch.manual_seed(0); b = widen_stem(Backbone(name), 6, gain=2, stride=1).eval()
        k = a.net.get_submodule(a.cut[0][0]).weight
        w = b.net.get_submodule(b.cut[0][0]).weight
        with torch.no_grad(): assert torch.allclose(w[:, :3]+w[:, 3:], 2*k, atol=1e-6) and b.part(0, x.repeat(1, 2, 1, 1)).shape[2:] == (64, 64)
    with pytest.raises(HffError, match='multiple of 3'): widen_stem(a, 5)


def test_mix_exchanges_both_ways():
    f, l = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    m = Mix(8).eval()
    with torch.no_grad():
        (a, b), (c, d) = m(f, l), m(f, l+1)
        assert not torch.equal(a, c) and not torch.equal(b, d)           # each stream feels the other
        torch.nn.init.constant_(m.gate.bias, -60.)
        a, b = m(f, l)
    assert torch.allclose(a, f, atol=1e-6) and torch.allclose(b, l, atol=1e-6)


def test_map_loss_by_hand():
    m = torch.tensor([[0., 2.], [-1., 4.]])[None, None]
    t = torch.zeros(1, 1, 4, 4); t[..., :2, :2] = 1; t[..., 2, 2] = 1    # 1, 0, 0, 1/4 after averaging
    p = [1/(1+math.exp(-v)) for v in (0, 2, -1, 4)]
    want = -(math.log(p[0]) + math.log(1-p[1]) + math.log(1-p[2]) + .25*math.log(p[3]) + .75*math.log(1-p[3]))/4
    assert map_loss(m, t).item() == pytest.approx(want, abs=1e-6)
    assert map_loss(m, F.interpolate(t, size=2, mode='area')).item() == pytest.approx(want, abs=1e-6)


def test_map_loss_without_maps():
    m = torch.randn(3, 1, 4, 4, requires_grad=True)
    t = torch.rand(3, 1, 8, 8)
    part = t.clone(); part[1, 0, 0, 0] = torch.nan
    map_loss(m, part).backward()
    assert not m.grad[1].any() and m.grad[0].any() and m.grad[2].any() and m.grad.isfinite().all()
    assert torch.allclose(map_loss(m, part), map_loss(m[[0, 2]], t[[0, 2]]))
    m.grad = None; map_loss(m, torch.full_like(t, torch.nan)).backward()
    assert not m.grad.any()


@pytest.mark.parametrize('target, says', [(torch.zeros(2, 1, 8, 8), 'one map a picture'), (torch.zeros(3, 8, 8), 'one map a picture'),
    (torch.full((3, 1, 8, 8), 255.), 'divide 8-bit maps by 255'), (torch.full((3, 1, 8, 8), -1.), r'\[0, 1\]')])
def test_map_loss_refuses(target, says):
    with pytest.raises(HffError, match=says): map_loss(torch.zeros(3, 1, 4, 4), target)


def test_heat_maps_find_the_last_features(x):
    from hff.overlays import heat_map
    for name in NAMES:
        assert heat_map(small(name), x, 'gradcam').shape[0] == 4
    assert heat_map(small('ffd'), x, 'attention').shape == (4, 4, 4)
