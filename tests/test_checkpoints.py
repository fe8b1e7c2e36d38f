"Published checkpoints: the same numbers as two public implementations, and nothing loaded on trust"
import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from filling import fill, smooth_images
from safetensors.torch import save_file

from hff.checkpoints import export_state, inspect_checkpoint, load_checkpoint, save_checkpoint, to_author, to_deepfakebench
from hff.models import create_model
from hff.paths import HffError

GOLDEN = json.loads((Path(__file__).parent/'golden_two_stream.json').read_text())


@pytest.fixture(scope='module', params=['author', 'deepfakebench'])
def parity(request):
    "Schema, the filled published state dict, the loaded model, its output and intermediate tensors for two images"
    schema, seen = request.param, {}
    sd = fill(export_state(create_model(fidelity=schema, pretrained=False), schema))
    model = load_checkpoint(sd)
    names = dict(srm='srm_conv0', srm1='srm_conv1', srm2='srm_conv2', rsa='srm_sa', dcma0='dual_cma0', dcma1='dual_cma1', fusion='fusion')
    for ours, theirs in names.items():
        def note(m, i, o, n=theirs): seen.update({f'{n}.{j}': t for j, t in enumerate(o)} if isinstance(o, tuple) else {n: o})
        getattr(model, ours).register_forward_hook(note)
    with torch.no_grad(): return schema, sd, model, model(smooth_images()), seen


def test_golden_logits(parity):
    schema, _, _, out, _ = parity
    assert torch.allclose(out.logits, torch.tensor(GOLDEN[schema]['logits']), atol=1e-4, rtol=0)
    if schema == 'deepfakebench':
        assert torch.allclose(out.logits.softmax(1)[:, 1], torch.tensor(GOLDEN[schema]['prob_fake']), atol=1e-4)


def test_golden_features_and_map(parity):
    schema, _, _, out, seen = parity
    g = GOLDEN[schema]
    f = seen['fusion'] if 'feature_shape' in g else out.features
    assert [f.mean().item(), f.std().item()] == pytest.approx([g['feature_mean'], g['feature_std']], abs=1e-4)
    if 'feature_first8' in g: assert out.features[0, :8].tolist() == pytest.approx(g['feature_first8'], abs=1e-4)
    m = g['attention_map']
    assert list(out.attention_map.shape) == m['shape']
    assert [out.attention_map.mean().item(), out.attention_map.std().item()] == pytest.approx([m['mean'], m['std']], abs=1e-5)
    if 'centre' in m: assert out.attention_map[:, 0, 62, 62].tolist() == pytest.approx(m['centre'], abs=1e-5)


def test_golden_intermediates(parity):
    schema, _, _, _, seen = parity
    for name, g in GOLDEN[schema].get('intermediate', {}).items():
        t = seen[name]
        assert list(t.shape) == g['shape'], name
        assert [t.mean().item(), t.std().item(), t.abs().max().item()] == pytest.approx([g['mean'], g['std'], g['abs_max']], abs=2e-4), name


def test_published_layout(parity):
    "Names, shapes and their order are those of the public implementation"
    schema, sd, model, _, _ = parity
    text = '\n'.join(f'{k} {tuple(v.shape)}' for k, v in export_state(model, schema).items())
    assert len(sd) == GOLDEN[schema]['entries']
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN[schema]['layout_sha256']


def test_round_trip_keeps_every_live_tensor(parity):
    schema, sd, model, _, _ = parity
    again = export_state(model, schema)
    changed = [k for k in sd if not torch.equal(sd[k], again[k])]
    assert set(changed) <= set(model.report.dropped)


def test_report(parity):
    schema, sd, model, _, _ = parity
    r = model.report
    assert (r.schema, r.entries, r.kernel_order) == (schema, len(sd), 'repeat')
    assert (len(r.dropped), r.fusion) == ((15, 'z*a') if schema == 'deepfakebench' else (0, 'z + z*a'))
    assert not model.training and model.config['image_size'] == 256
    assert all(s in str(r) for s in (schema, 'repeat', r.fusion))


@pytest.fixture(scope='module')
def state():
    "A small published state dict (64 x 64 pictures)"
    torch.manual_seed(0)
    return to_author(create_model(pretrained=False, image_size=64))


def test_data_parallel_and_wrapped(state):
    assert inspect_checkpoint({f'module.{k}': v for k, v in state.items()}).config['image_size'] == 64
    assert inspect_checkpoint(dict(epoch=3, state_dict=state)).schema == 'author'


def test_dead_weight_may_be_absent(state):
    bench = to_deepfakebench(create_model(pretrained=False, image_size=64, fidelity='deepfakebench'))
    live = {k: v for k, v in bench.items() if 'adjust_channel' not in k and not k.startswith(('blur', 'backbone_srm.last_linear'))}
    assert inspect_checkpoint(live).config['idle_head'] is False
    assert len(to_deepfakebench(load_checkpoint(live))) == 641       # the saver fills the gaps again


def test_kernel_order_is_read(state):
    tiled = to_author(create_model(pretrained=False, image_size=64, kernel_order='tile'))
    assert (inspect_checkpoint(tiled).kernel_order, inspect_checkpoint(state).kernel_order) == ('tile', 'repeat')
    with pytest.raises(HffError, match='no known layout'): load_checkpoint(state | {'srm_conv1.kernel': tiled['srm_conv1.kernel']})
    with pytest.raises(HffError, match='no known layout'): load_checkpoint(state | {'srm_sa.srm.kernel': -state['srm_sa.srm.kernel']})


def test_override_is_reported(state):
    r = inspect_checkpoint(state, fusion_residual=False)
    assert (r.fusion, r.overrides) == ('z*a', dict(fusion_residual=False))


@pytest.mark.parametrize('change, says', [
    ({'fusion.convblk.0.weight': torch.zeros(4, 4)}, r'fusion.convblk.0.weight is \(4, 4\), not \(2048, 4096, 1, 1\)'),
    ({'extra.weight': torch.zeros(1)}, 'unexpected extra.weight'),
    ({'dual_cma0.gamma1': torch.tensor([float('inf')])}, 'undefined numbers in 1 tensors: dual_cma0.gamma1'),
    ({'srm_sa_post.0.running_var': torch.zeros(64)}, 'not positive: srm_sa_post.0.running_var'),
    ({'dual_cma0.linear1.bias': torch.zeros(7)}, '7 positions'),
])
def test_wrong_tensors(state, change, says):
    with pytest.raises(HffError, match=says) as e: load_checkpoint(state | change)
    assert '\n' not in str(e.value)


def test_first_five_differences(state):
    with pytest.raises(HffError) as e: load_checkpoint({k: v for k, v in state.items() if '.block7.' not in k})
    assert str(e.value).count('missing') == 5 and ' 42 differences' in str(e.value)


def test_another_network_is_refused(state):
    theirs = {k: v for k, v in state.items() if k != 'srm_sa.srm.kernel'} | {'anglelinear.weight': torch.zeros(2048, 2)}
    with pytest.raises(HffError, match='yurizzzzz'): load_checkpoint(dict(epoch=1, state_dict=theirs))
    with pytest.raises(HffError, match='unknown checkpoint with 1 entries'): load_checkpoint({'fc.weight': torch.zeros(1)})
    for bad in ({}, {'a': 1}):
        with pytest.raises(HffError, match='not a state dict'): load_checkpoint(bad)


class Trap:
    "Touches a file when unpickled"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.touch, (self.path,)


def test_malicious_and_broken_files(tmp_path, state):
    mark = tmp_path/'executed'
    torch.save({'w': Trap(mark)}, tmp_path/'zip.pth')
    (tmp_path/'raw.pth').write_bytes(pickle.dumps(Trap(mark), protocol=2))
    torch.save({'w': torch.zeros(1000)}, tmp_path/'whole.pth')
    (tmp_path/'cut.pth').write_bytes((tmp_path/'whole.pth').read_bytes()[:2000])
    save_file({'w': torch.zeros(1000)}, tmp_path/'whole.safetensors')
    (tmp_path/'cut.safetensors').write_bytes((tmp_path/'whole.safetensors').read_bytes()[:500])
    for name, data in dict(empty=b'', text=b'not a checkpoint', html=b'<html>404</html>').items(): (tmp_path/name).write_bytes(data)
    for f in ('zip.pth', 'raw.pth', 'cut.pth', 'cut.safetensors', 'empty', 'text', 'html', 'none.pth', '.'):
        with pytest.raises(HffError) as e: load_checkpoint(tmp_path/f)
        assert '\n' not in str(e.value) and str(tmp_path/f) in str(e.value), f
    assert not mark.exists()


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(1)
    return create_model(backbone='tf_efficientnet_lite0', pretrained=False, image_size=64, fidelity='paper', dropout=.2).eval()


def test_own_round_trip(tmp_path, small):
    p = save_checkpoint(small, tmp_path/'deep/er/net.safetensors', recipe=dict(lr=1e-4))
    again, x = load_checkpoint(p), smooth_images(1, 64)
    with torch.no_grad(): assert torch.equal(again(x).logits, small(x).logits)
    assert (again.config, again.report.recipe, again.report.schema) == (small.config, dict(lr=1e-4), 'hff')
    assert again.report.sha256 == hashlib.sha256(p.read_bytes()).hexdigest() and [q.name for q in p.parent.iterdir()] == [p.name]
    q = p.rename(tmp_path/'renamed.bin')                              # recognised by content, not by name
    assert inspect_checkpoint(q).schema == 'hff'


def test_own_file_with_wrong_header(tmp_path, small):
    sd = {k: v.contiguous() for k, v in small.state_dict().items()}
    headers = dict(none=None, json=dict(hff='{'), config=dict(hff='{"config": 3}'), other=dict(hff=json.dumps(dict(config=small.config | dict(image_size=128)))),
        name=dict(hff=json.dumps(dict(config=small.config | dict(name='nonsense')))), arg=dict(hff=json.dumps(dict(config=small.config | dict(pretrained=True)))))
    for k, meta in headers.items():
        save_file(sd, tmp_path/f'{k}.safetensors', meta)
        with pytest.raises(HffError) as e: load_checkpoint(tmp_path/f'{k}.safetensors')
        assert '\n' not in str(e.value), k


def test_own_file_with_a_crafted_header(tmp_path, small):
    "Nested without end, pictures that fill the memory, numbers of another kind, a recipe that is none"
    sd = {k: v.contiguous() for k, v in small.state_dict().items()}
    one = create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=False, image_size=64)
    header = lambda m, **kw: json.dumps(dict(config=m.config) | kw)
    cases = [(sd, '['*100_000, 'damaged metadata'), (sd, header(small, cropping=json.loads('{"a":'*200+'1'+'}'*200)), 'damaged metadata'),
             (one.state_dict(), header(one, config=one.config | dict(image_size=30016)), 'up to 1024'), (sd, header(small, config=small.config | dict(image_size=2**31)), 'up to 1024'),
             (sd, header(small, config=small.config | dict(num_classes=2**62)), 'create_model does not take'),
             (sd | {'head.1.weight': sd['head.1.weight'].to(torch.float8_e4m3fn)}, header(small), r'head.1.weight .torch.float8_e4m3fn')]
    for i, (tensors, text, says) in enumerate(cases):
        save_file(tensors, tmp_path/f'{i}.safetensors', dict(hff=text))
        with pytest.raises(HffError, match=says) as e: load_checkpoint(tmp_path/f'{i}.safetensors')
        assert '\n' not in str(e.value), i
    two = create_model(backbone='tf_efficientnet_lite0', pretrained=False, image_size=64)
    save_file(two.state_dict(), tmp_path/'short.safetensors', dict(hff=json.dumps(dict(config={k: v for k, v in two.config.items() if k != 'name'}))))
    assert load_checkpoint(tmp_path/'short.safetensors').report.fusion == 'z + z*a'                       # the default's name need not be written


def test_save_refuses(tmp_path, small):
    with pytest.raises(HffError, match='.safetensors'): save_checkpoint(small, tmp_path/'a.pth')
    with pytest.raises(HffError, match='no `config`'): save_checkpoint(torch.nn.Linear(1, 1), tmp_path/'a.safetensors')
    (tmp_path/'file').write_text('')
    with pytest.raises(HffError, match='Cannot write'): save_checkpoint(small, tmp_path/'file/a.safetensors')


def test_export_refuses_what_a_schema_cannot_say(small):
    with pytest.raises(HffError, match='only two_stream with legacy_xception'): to_author(small)
    with pytest.raises(HffError, match='fusion_residual=True'): to_deepfakebench(create_model(pretrained=False, image_size=64))
    with pytest.raises(HffError, match='unknown schema'): export_state(small, 'theirs')


@pytest.mark.skipif('HFF_SRM_BEST' not in os.environ, reason='set HFF_SRM_BEST to DeepfakeBench\'s srm_best.pth, fetched under its own licence')
def test_released_file():
    model = load_checkpoint(os.environ['HFF_SRM_BEST'])
    with torch.no_grad(): out = model(smooth_images())
    assert model.report.schema == 'deepfakebench' and model.report.size == 222_088_575 and out.logits.isfinite().all()


def test_dead_channels_are_only_ours():
    "A variance of zero is a dead channel of a network trained here, and a damaged file anywhere else; below zero is always damage"
    from hff.checkpoints import check_values
    zero, below = {'bn.running_var': torch.tensor([0., 1.])}, {'bn.running_var': torch.tensor([-1., 1.])}
    check_values(zero, dead=True)
    for sd, dead in ((zero, False), (below, True), (below, False)):
        with pytest.raises(HffError, match='batch-norm variances'): check_values(sd, dead=dead)
