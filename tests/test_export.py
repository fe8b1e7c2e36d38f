"Exported files: the same outputs, whole or not at all, and nothing else is taken for one"
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from filling import fill, smooth_images

from hff import export
from hff.checkpoints import load_checkpoint, save_checkpoint
from hff.cli import main
from hff.export import compare_engines, export_model, open_engine, probe_images
from hff.extract import write_png
from hff.fast import check_same_outputs, differences, fold
from hff.inference import open_model, predict
from hff.models import create_model
from hff.overlays import heat_map
from hff.paths import HffError, asset, root
from hff.scores import score_images

onnx = pytest.importorskip('onnx')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A checkpoint, its network, and both files; run once"
    d = tmp_path_factory.mktemp('export')
    m = create_model(backbone='tf_efficientnet_lite0', pretrained=False, image_size=64)
    m.load_state_dict(fill(m.state_dict()))
    path = save_checkpoint(m, d/'net.safetensors', dict(seed=3), 'miniff', dict(margin=1.2))
    return dict(model=load_checkpoint(path), onnx=export_model(path, d/'onnx/net.onnx'), openvino=export_model(path, d/'ov/net.xml', 'openvino'))


@pytest.mark.parametrize('engine', ('onnx', 'openvino'))
def test_same_outputs_and_origin(engine, made):
    e = open_engine(made[engine], engine, threads=1)
    for n in (1, 3):
        x = smooth_images(n, 64, seed=n)
        with torch.no_grad(): check_same_outputs(made['model'](x), e(x), 2e-5)
    assert e.config == made['model'].config and (e.report.trained_on, e.report.cropping, e.report.recipe) == ('miniff', dict(margin=1.2), dict(seed=3))
    assert e.origin == made[engine].name and not e.train().training and open_model(e) is e
    names = sorted(p.name for p in made[engine].parent.iterdir())
    assert names == (['net.onnx'] if engine == 'onnx' else ['net.bin', 'net.json', 'net.xml'])
    with pytest.raises(HffError, match=r'\(B, 3, 64, 64\)'): e(torch.zeros(1, 3, 96, 96))
    with pytest.raises(HffError, match='runs on the CPU'): e.to('cuda')


def test_openvino_reads_onnx(made):
    u = (smooth_images(2, 64)*127.5+127.5).round().byte()
    assert np.allclose(score_images(open_engine(made['onnx'], 'openvino'), u), score_images(made['model'], u), atol=1e-5)


def test_no_trace_of_this_machine(made):
    for p in [made['onnx'], *made['openvino'].parent.iterdir()]:
        data = p.read_bytes()
        assert not any(w.encode() in data for w in ('.py"', 'stack_trace', str(root()), str(p.parent)))


def test_bfloat16(made):
    "Within what rounding explains, in both runtimes; less of it when the early layers stay in float32"
    x = probe_images(64, 3, 9)
    with torch.no_grad():
        want = made['model'](x)
        for engine, source in (('torch', made['model']), ('openvino', made['openvino'])):
            d = {p: differences(want, open_engine(source, engine, p)(x)) for p in ('mixed', 'bf16')}
            assert 1e-5 < max(d['mixed'].values()) and max(d['bf16'].values()) < .02, d
            assert d['mixed']['attention_map'] < 1e-5 < 1e-3 < d['bf16']['attention_map'], d
    xml = made['openvino'].read_bytes()
    noise, early = (export._mark_precise(xml, k).count(b'name="precise"') for k in (('noise.',), ('noise.', 'early.')))
    assert 6 <= noise <= 12 and early > 2*noise, (noise, early)


def test_wrong_runtime_is_refused(made, monkeypatch):
    "A runtime that computes something else, as one did: the kept answer tells"
    right = export._openvino_run
    def wrong(*a):
        run = right(*a)
        return lambda x: [y*1.06 if i == 1 else y for i, y in enumerate(run(x))]
    monkeypatch.setattr(export, '_openvino_run', wrong)
    for precision in ('f32', 'bf16'):
        with pytest.raises(HffError, match='other features.*off by [56]'): open_engine(made['openvino'], 'openvino', precision)


def test_file_that_differs_is_not_left_behind(made, monkeypatch, tmp_path):
    "The network is folded wrongly; or the file is not the folded network"
    def wrong(m):
        f = fold(m)
        f.net.dcma0.key1, f.net.dcma0.key2 = f.net.dcma0.key2, f.net.dcma0.key1
        return f
    monkeypatch.setattr(export, 'fold', wrong)
    with pytest.raises(HffError, match='the folded network .batch of 1. gives other outputs'): export_model(made['model'], tmp_path/'a.onnx')
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    right = export._onnx_run
    def rounded(*a):
        run = right(*a)
        return lambda x: [y.astype(np.float16) for y in run(x)]           # near enough for the kept answer, too far for the comparison
    monkeypatch.setattr(export, '_onnx_run', rounded)
    with pytest.raises(HffError, match='the exported file .batch of 1. gives other outputs'): export_model(made['model'], tmp_path/'a.onnx')
    assert not list(tmp_path.iterdir())


def altered(path, out, change):
    p = onnx.load(path)
    change(p)
    out.write_bytes(p.SerializeToString())
    return out


def outside(p):
    t = p.graph.initializer[0]
    t.ClearField('raw_data')
    t.data_location = onnx.TensorProto.EXTERNAL
    t.external_data.add(key='location', value='../secret.bin')


def hidden_outside(p):
    "In an attribute of a node, where a look at the initializers alone would miss it"
    t = onnx.TensorProto(name='x', dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    t.external_data.add(key='location', value='/etc/passwd')
    p.graph.node.append(onnx.helper.make_node('Constant', [], ['unused'], value=t))


@pytest.mark.parametrize('change, says', [
    (outside, 'keeps weights in other files'), (hidden_outside, 'keeps weights in other files'),
    (lambda p: p.opset_import.add(domain='com.example', version=1), "not ONNX's own"),
    (lambda p: p.ClearField('metadata_props'), 'not written by hff export'),
    (lambda p: setattr(p.metadata_props[0], 'value', '{'), 'damaged note'), (lambda p: setattr(p.metadata_props[0], 'value', '[1]'), 'not written by hff export'),
    (lambda p: setattr(p.graph.node[3], 'op_type', 'Relu'), 'changed after it was written'),
    (lambda p: p.graph.initializer[2].dims.append(1), 'changed after it was written')])
def test_altered_onnx_is_refused(change, says, made, tmp_path):
    with pytest.raises(HffError, match=says) as e: open_engine(altered(made['onnx'], tmp_path/'x.onnx', change), 'onnx')
    assert '\n' not in str(e.value)


def test_damaged_files_are_refused(made, tmp_path):
    data = made['onnx'].read_bytes()
    for name, content, says in (('cut', data[:len(data)//3], 'not a readable ONNX file'), ('text', b'hello', 'not a readable|not written by'), ('empty', b'', 'not written by')):
        (tmp_path/f'{name}.onnx').write_bytes(content)
        with pytest.raises(HffError, match=says): open_engine(tmp_path/f'{name}.onnx', 'onnx')
    for p in made['openvino'].parent.iterdir(): (tmp_path/p.name).write_bytes(p.read_bytes())
    xml, weights, note = (tmp_path/f'net.{s}' for s in ('xml', 'bin', 'json'))
    for p, change, says in ((weights, lambda b: b[:-1], 'net.bin was changed'), (xml, lambda b: b.replace(b'Sigmoid', b'Softmax', 1), 'net.xml was changed'),
                            (note, lambda b: b[:99], 'damaged note'), (note, lambda b: b'{}', 'not written by hff export')):
        kept = p.read_bytes()
        assert change(kept) != kept
        p.write_bytes(change(kept))
        with pytest.raises(HffError, match=says): open_engine(xml, 'openvino')
        p.write_bytes(kept)
    about = json.loads(note.read_text())
    about['answer']['logits'][0][0] += .1
    note.write_text(json.dumps(about))
    with pytest.raises(HffError, match='gives other logits'): open_engine(xml, 'openvino')
    note.unlink()
    with pytest.raises(HffError, match='needs net.json beside it'): open_engine(xml, 'openvino')


def put(keys, value):
    def change(about):
        for k in keys[:-1]: about = about[k]
        if value is None: del about[keys[-1]]
        else: about[keys[-1]] = value
    return change


CHANGES = [put(('report',), {}), put(('report', 'new'), 1), put(('report', 'recipe'), [1]), put(('report', 'trained_on'), 5), put(('report', 'schema'), None), put(('answer',), {}), put(('answer', 'logits'), 'x'),
           put(('answer', 'logits'), [[1], 2]), put(('answer', 'features'), None), put(('answer', 'map'), [[0]]), put(('rounding', 'logits'), None), put(('rounding', 'logits'), '1'), put(('rounding', 'logits'), float('nan')),
           put(('config', 'image_size'), -1), put(('config', 'image_size'), 10**6), put(('config', 'image_size'), True), put(('config', 'num_classes'), None), put(('config', 'num_classes'), 3), put(('config', 'name'), 5),
           put(('report', 'cropping'), json.loads('{"a":'*200+'1'+'}'*200)), put(('files',), [1])]


@pytest.mark.parametrize('change', CHANGES)
def test_changed_note_is_refused(change, made, tmp_path):
    "The digest of a file is not that of its note"
    p = onnx.load(made['onnx'], load_external_data=False)
    about = json.loads(p.metadata_props[0].value)
    change(about)
    p.metadata_props[0].value = json.dumps(about)
    (tmp_path/'x.onnx').write_bytes(p.SerializeToString())
    for engine, precision in (('onnx', 'f32'), ('openvino', 'bf16')):
        with pytest.raises(HffError, match='or its note was changed') as e: open_engine(tmp_path/'x.onnx', engine, precision)
        assert '\n' not in str(e.value)


def test_deep_note_is_refused(made, tmp_path):
    with pytest.raises(HffError, match='damaged note'): open_engine(altered(made['onnx'], tmp_path/'x.onnx', lambda p: setattr(p.metadata_props[0], 'value', '['*100_000)), 'onnx')


def test_wrong_words(made, tmp_path, monkeypatch):
    m = made['model']
    for call, says in ((lambda: open_engine(m, 'tensorrt'), 'torch, onnx, openvino'), (lambda: open_engine(m, precision='f16'), 'f32, mixed, bf16'),
                       (lambda: open_engine(m, 'onnx', 'bf16'), 'no bfloat16'), (lambda: open_engine(made['onnx']), 'torch reads checkpoints'),
                       (lambda: open_engine(made['openvino'], 'onnx'), 'is for OpenVINO'), (lambda: open_engine(tmp_path/'no.onnx', 'onnx'), 'Cannot read'),
                       (lambda: open_engine(tmp_path/'no.xml', 'openvino'), 'No exported file'), (lambda: export_model(m, tmp_path/'a.xml'), 'ends in .onnx'),
                       (lambda: export_model(m, tmp_path/'a.onnx', 'tflite'), 'onnx, openvino'), (lambda: open_model(made['onnx']), 'another runtime'),
                       (lambda: export_model(open_engine(made['onnx'], 'onnx'), tmp_path/'a.onnx'), 'exported file already')):
        with pytest.raises(HffError, match=says): call()
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(HffError, match=r"pip install 'hff\[export\]'"): export_model(m, tmp_path/'a.onnx')
    with pytest.raises(HffError, match=r"pip install 'hff\[export\]'"): open_engine(made['onnx'], 'onnx')
    assert not list(tmp_path.iterdir())


def test_prediction_and_heat(made, tmp_path, capsys):
    "The same table from each engine; no Grad-CAM where there are no gradients, and the other map all the same"
    source = root()/'tests/data/portraits/female_14.jpg'
    want = predict(source, made['model'])
    for e in (open_engine(made['onnx'], 'onnx'), open_engine(made['model'])):
        t = predict(source, e)
        assert np.allclose(t.logit, want.logit, atol=1e-5) and t.attrs['note'] == want.attrs['note'] and t.attrs['settings']['engine'] == e.engine
        with pytest.raises(HffError, match='Grad-CAM needs gradients'): heat_map(e, smooth_images(1, 64))
        assert torch.allclose(heat_map(e, smooth_images(1, 64), 'attention'), heat_map(made['model'], smooth_images(1, 64), 'attention'), atol=1e-5)
    file = str(made['onnx'])
    assert main(['predict', str(source), '--checkpoint', file, '--csv', str(tmp_path/'t.csv'), '--overlay', str(tmp_path/'o'), '--heat', 'attention']) == 0
    assert pd.read_csv(tmp_path/'t.csv').logit[0] == pytest.approx(want.logit[0], abs=1e-5) and (tmp_path/'o/female_14.png').is_file()
    for words, says in ((['--checkpoint', file, '--overlay', str(tmp_path/'p')], 'Grad-CAM needs gradients'), (['--precision', 'bf16'], 'goes with --engine'),
                        (['--engine', 'torch', '--device', 'cuda'], 'runs on the CPU'), (['--engine', 'tvm'], 'torch, onnx, openvino')):
        assert main(['predict', str(source), *words]) == 1
        assert says in capsys.readouterr().err
    assert main(['export', file, '--out', str(tmp_path/'again.onnx')]) == 1 and main(['export', '--to', 'tflite']) == 1


def test_same_detector(tmp_path):
    "AUC of the network that ships, folded and in bfloat16, on crops of any kind"
    x = probe_images(128, 12, 4)
    for i, im in enumerate(((x+1)*127.5).round().byte().permute(0, 2, 3, 1).numpy()): write_png(tmp_path/f'{i}.png', im)
    rows = pd.DataFrame(dict(dataset='d', method=['real', 'DF']*6, quality='c23', video=[f'v{i//3}' for i in range(12)], frame=range(12), label=[0, 1]*6, split='test', target='v',
                             crop=[f'{i}.png' for i in range(12)], status='ok'))
    rows['video'] = rows.method+rows.video
    rows.to_parquet(tmp_path/'faces.parquet')
    t = compare_engines(None, tmp_path, [('torch', 'f32'), ('torch', 'bf16')])
    assert t.engine.tolist() == ['plain', 'torch', 'torch'] and t.frames.eq(12).all() and t.frame_auc.between(0, 1).all()
    assert t.logit_change[0] == 0 and t.logit_change[1] < 1e-5 < t.logit_change[2] < .1 and t.frame_auc_change[1] == 0
    assert compare_engines(None, tmp_path, [], methods=('DF',)).frames.tolist() == [12]
    with pytest.raises(HffError, match='needs real'): compare_engines(None, tmp_path, [], methods=('NT',))
    with pytest.raises(HffError, match='no faces of the split val'): compare_engines(None, tmp_path, split='val')


@pytest.fixture(scope='module')
def crops(tmp_path_factory):
    "Waves as real faces, noise as fakes, of three splits; and a network whose head knows their mean features"
    d, n = tmp_path_factory.mktemp('crops'), 24
    waves, noise = ((probe_images(64, n)+1)*127.5).byte().permute(0, 2, 3, 1).numpy(), np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)
    rows = [dict(dataset='toy', method='DF' if i%2 else 'real', quality='c23', video=f'{i:03}', split=('train', 'val', 'test')[i//2%3], label=i%2, source='', target=f'{i:03}', frame=0, crop=f'{i}.png', status='ok') for i in range(n)]
    for i, r in enumerate(rows): write_png(d/r['crop'], (noise if r['label'] else waves)[i])
    pd.DataFrame(rows).to_parquet(d/'faces.parquet')
    torch.manual_seed(0)
    m = create_model('rgb', backbone='tf_efficientnet_lite0', image_size=64, head='cosine').eval()
    with torch.no_grad():
        for k, x in enumerate((waves, noise)): m.head[1].weight[k] = m(torch.from_numpy(x).permute(0, 3, 1, 2)/127.5-1).features.mean(0)
    return d, m


@pytest.mark.parametrize('to', ('onnx', 'openvino'))
def test_eight_bits(to, crops, tmp_path):
    "A quarter of the size, close logits, the same answers in either runtime, and the image filters as they were"
    faces, m = crops
    path = export_model(m, tmp_path/f'net{export.SUFFIXES[to]}', to, faces)
    assert sum(path.with_suffix(s).stat().st_size for s in export.PARTS[to] if s in ('.onnx', '.bin')) < .35*sum(4*p.numel() for p in m.parameters())
    u = ((probe_images(64, 4, 3)+1)*127.5).byte()
    want, e = score_images(m, u), open_engine(path, to)
    assert e.precision == 'int8, f32' and 1e-5 < np.abs(score_images(e, u)-want).max() < .15
    assert np.allclose(score_images(open_engine(path, 'openvino'), u), score_images(e, u), atol=.02)
    t = compare_engines(m, faces, {('openvino', 'int8'): lambda: open_engine(path, 'openvino')})
    assert t.frame_auc.tolist() == [1, 1] and t.logit_change.iloc[1] > 1e-5


def test_eight_bits_of_two_streams_spare_what_comes_before_the_first_exchange(tmp_path):
    torch.manual_seed(0)
    m = create_model(backbone='tf_efficientnet_lite0', image_size=64).eval()
    proto, about, _ = export.folded_graph(m)
    out, about = export.eight_bits(proto, about, ((probe_images(64, 8)+1)*127.5).byte())
    made = {o: n.op_type for n in out.graph.node for o in n.output}
    convs = [n for n in out.graph.node if n.op_type == 'Conv']
    apart = [n for n in convs if n.name.startswith(('noise.', 'early.'))]
    assert 10 < len(apart) < len(convs)/2 and all(made.get(i) != 'DequantizeLinear' for n in apart for i in n.input)
    assert all([made.get(i) for i in n.input[:2]] == ['DequantizeLinear']*2 for n in convs if n not in apart) and about['int8'] is True
    path = export.write_graph(out, about, tmp_path/'net.xml', 'openvino', lambda got: None)
    x = probe_images(64, 3, 9)
    with torch.no_grad(): d = {p: differences(m(x), open_engine(path, 'openvino', p)(x)) for p in ('f32', 'mixed', 'bf16')}
    assert all(1e-5 < v['logits'] < .3 for v in d.values()) and max(d['f32']['attention_map'], d['mixed']['attention_map']) < 1e-5 < 1e-4 < d['bf16']['attention_map'], d


def test_eight_bits_that_change_the_detector_are_refused(crops, tmp_path, monkeypatch, capsys):
    faces, m = crops
    real = export._load
    def turned(*a):
        e = real(*a); run = e.run
        e.run = lambda x: [-y for y in run(x)]
        return e
    monkeypatch.setattr(export, '_load', turned)
    with pytest.raises(HffError, match=r'\(B, 3, 96, 96\)'): export_model(create_model('rgb', backbone='tf_efficientnet_lite0', pretrained=False, image_size=96), tmp_path/'net.onnx', faces=faces)
    with pytest.raises(HffError, match=r'frame AUC of 8 validation crops is 0.0000 and not 1.0000.*nothing was written'): export_model(m, tmp_path/'net.onnx', faces=faces)
    monkeypatch.undo()
    t = pd.read_parquet(faces/'faces.parquet')
    for i, (part, why) in enumerate([(t[t.split.ne('train')], 'no crops of the split train'), (t[t.split.ne('val')], 'no crops of the split val')]):
        (tmp_path/str(i)).mkdir(); part.to_parquet(tmp_path/str(i)/'faces.parquet')
        for c in part.crop: (tmp_path/str(i)/c).symlink_to(faces/c)
        with pytest.raises(HffError, match=why): export_model(m, tmp_path/'net.onnx', faces=tmp_path/str(i))
    assert main(['export', str(save_checkpoint(m, tmp_path/'net.safetensors')), '--int8', str(tmp_path/'none'), '--out', str(tmp_path/'net.onnx')]) == 1
    assert not list(tmp_path.glob('*.onnx')) and str(tmp_path/'none') in capsys.readouterr().err
    assert main(['export', str(tmp_path/'net.safetensors'), '--int8', str(faces), '--out', str(tmp_path/'net.onnx')]) == 0
    assert 'the same AUC to .005' in capsys.readouterr().out
