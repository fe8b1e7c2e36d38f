"""Every parser against input that is almost right, or damaged: an answer or an `HffError`, never another exception.

`pytest tests/test_fuzz.py` tries a few dozen cases a parser. `HFF_FUZZ=100000 pytest tests/test_fuzz.py` tries at least that many in all and writes
how they ended to `figures/bench/fuzz.csv`; other crashes are counted to the end and listed then.
"""
import contextlib, io, json, os, shutil, traceback, warnings
from collections import Counter
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

import dfb_tree
from strategies import NUMBERS, TEXTS, csvs, damaged, documents, list_files, odd, parquet, parquets, tables, tampered, texts
from test_defects import scores
from trees import put

from hff import calibration, checkpoints, clips, cli, deepfakebench, exchange, extract, manifest, page, readers, recipe, reproduce, results, scores as score_files, sources, splits, trainer, verify, video
from hff.backbones import read_weights
from hff.datasets import FaceDataset
from hff.inference import cropping_of, list_files as files_to_look_at
from hff.metrics import pool_videos
from hff.models import create_model
from hff.overlays import overlay_names
from hff.paths import HffError, read_json, root

QUICK, CAMPAIGN, EACH = 40, int(os.environ.get('HFF_FUZZ', 0)), 2000   # cases a parser; cases in all; cases in one go of a campaign
PARSERS, COUNTS = {}, {}
BLANK = {'cases': 0, 'own errors': 0, 'accepted': 0, 'other crashes': 0}


def parser(name, strategy, share=1.):
    "Register a reader with a strategy for what it is given; `share` is smaller where a case is slow"
    def add(f): PARSERS[name] = strategy, f, share; return f
    return add


def try_one(f, case, folder, count):
    "Read one case"
    count['cases'] += 1
    try:
        with warnings.catch_warnings(action='ignore', category=UserWarning): f(case, folder)
    except HffError as e:
        count['own errors'] += 1
        assert str(e).strip()
    except (Exception, BaseException) as e:      # also a panic of a compiled part, which is no Exception
        if isinstance(e, KeyboardInterrupt) or not CAMPAIGN: raise
        count['other crashes'] += 1
        count.setdefault('seen', Counter())[f'{type(e).__name__} at '+' < '.join(f'{Path(s.filename).name}:{s.lineno}' for s in traceback.extract_tb(e.__traceback__)[:0:-1][:4])+f': {str(e)[:120]}'] += 1
    else: count['accepted'] += 1


def wanted(share): return int(np.ceil(CAMPAIGN*share/sum(s for _, _, s in PARSERS.values()))) if CAMPAIGN else max(4, round(QUICK*share))


# ---- lists and JSON of the data sets

ROOTS = {f'{f}/c23/videos/{v}.mp4': b'' for f, vs in {'original_sequences/youtube': ('000', '001'), 'manipulated_sequences/Deepfakes': ('000_001',)}.items() for v in vs}
SPLITS = dict(train=[['000', '001']], val=[['002', '003']], test=[['004', '005']])
SPLIT_FILES = {f'splits/{s}.json': json.dumps(p) for s, p in SPLITS.items()} | {'conversion_dict.json': '{}'}


def tree(folder, files, name, data):
    "Files of a data set, one of which is the case"
    put(folder, files | {name: data})
    return folder


def one_of(files): return st.one_of(*[st.tuples(st.just(n), s) for n, s in files.items()])


@parser('FaceForensics++ splits', one_of({f'splits/{s}.json': documents(p+[['010', '011']]) for s, p in SPLITS.items()} | {'conversion_dict.json': documents({'000': 'abc 0', '004': 'abc 1', '005': 'd 2'})}))
def _(case, d): list(sources.rows_ffpp(tree(d, ROOTS | SPLIT_FILES, *case), exclude_shared_sources=True))


CELEB = ['1 Celeb-real/id0_0000.mp4', '1 YouTube-real/00000.mp4', '0 Celeb-synthesis/id0_id1_0000.mp4']

@parser('Celeb-DF list', list_files(CELEB))
def _(case, d): list(readers.rows_celebdf(tree(d, {'Celeb-real/id0_0000.mp4': b'', 'Celeb-synthesis/id0_id1_0000.mp4': b''}, readers.CELEBDF_LIST, case)))


DFDC = {'aaaaaaaaaa.mp4': dict(label='REAL', split='train'), 'bbbbbbbbbb.mp4': dict(label='FAKE', split='train', original='aaaaaaaaaa.mp4')}
META = {'test/metadata.json': json.dumps({'aaaaaaaaaa.mp4': dict(is_fake=0), 'bbbbbbbbbb.mp4': dict(is_fake=1)}), 'test/labels.csv': 'filename,label\naaaaaaaaaa.mp4,0\nbbbbbbbbbb.mp4,1\n',
        'train/dfdc_train_part_0/metadata.json': json.dumps(DFDC), 'ids.txt': 'aaaaaaaaaa.mp4\n'}

@parser('DFDC lists', one_of({'train/dfdc_train_part_0/metadata.json': documents(DFDC), 'test/metadata.json': documents({'aaaaaaaaaa.mp4': dict(is_fake=0), 'bbbbbbbbbb.mp4': dict(is_fake=1)}),
                              'test/labels.csv': list_files(['filename,label', 'aaaaaaaaaa.mp4,0', 'bbbbbbbbbb.mp4,1']), 'ids.txt': list_files(['aaaaaaaaaa.mp4', 'bbbbbbbbbb'])}))
def _(case, d): list(readers.rows_dfdc(tree(d, META, *case), subset=d/'ids.txt'))


DFDCP = {'original_videos/1/1_A_000.mp4': dict(label='real', set='train'), 'method_A/1/1_A/2_1_A_000.mp4': dict(label='fake', set='test', swapped_id='2', target_id='1')}

@parser('DFDC preview JSON', documents(DFDCP))
def _(case, d): list(readers.rows_dfdcp(tree(d, {}, 'dataset.json', case)))


DF1 = {f'lists/splits/{s}.txt': f'{SPLITS[s][0][0]}_M00{i}.mp4\n' for i, s in enumerate(SPLITS)}

@parser('DeeperForensics lists', one_of({n: list_files([text.strip(), '010_W001.mp4', '011_W002']) for n, text in DF1.items()}))
def _(case, d):
    (d/'manipulated_videos/end_to_end').mkdir(parents=True, exist_ok=True)
    list(readers.rows_df1(tree(d, DF1 | ROOTS | SPLIT_FILES, *case), ffpp=d))


@parser('people and splits', st.lists(tampered(dict(dataset='a', method='real', quality='', video='000', split='train', label=0, path='a.mp4', source='', target='000', rule='official'), texts), max_size=6))
def _(case, d):
    rows = [r for r in case if {'dataset', 'video', 'split', 'rule', 'source', 'target'}<=set(r)]
    for f in (splits.split_people, lambda read: splits.split_people(read, apart=False), splits.split_videos):
        with contextlib.suppress(HffError): list(f(lambda: iter(rows)))


@parser('names of files', st.lists(st.tuples(st.sampled_from(['real', 'fake/x', 'train/real', 'source/train', 'target', 'original_sequences/actors/c23/videos', 'manipulated_sequences/DeepFakeDetection/raw/videos']),
                                             st.sampled_from([t for t in TEXTS if '/' not in t and '\0' not in t and t not in ('', '.', '..')]) | st.text(st.characters(exclude_characters='/\0'), min_size=1, max_size=6).filter(lambda t: t not in '..'),
                                             st.sampled_from(['.mp4', '.png', '', '.MP4']), st.sampled_from(['file', 'file', 'folder', 'nowhere', 'itself', 'up'])), min_size=1, max_size=4), share=.6)
def _(case, d):
    shutil.rmtree(d); d.mkdir()
    for folder, name, end, kind in case:
        with contextlib.suppress(OSError, UnicodeError):                       # names that no disk takes
            (p := d/folder/f'{name}{end}').parent.mkdir(parents=True, exist_ok=True)
            {'file': p.touch, 'folder': p.mkdir, 'nowhere': lambda: p.symlink_to('nothing'), 'itself': lambda: p.symlink_to(p), 'up': lambda: p.symlink_to(d)}[kind]()
    for name in ('folder', 'uadfv', 'ffiw', 'dfd'):
        with contextlib.suppress(HffError): readers.read_source(name, d); readers.source_report(name, d)
    table = pd.DataFrame(dict(file=list(files_to_look_at(d)[0])))
    assert all((d/n).is_relative_to(d) and '..' not in Path(n).parts for n in overlay_names(table.file.tolist()).values())


# ---- DeepfakeBench

@cache
def dfb(): return {name: {name: d} for name, d in dfb_tree.others(_Nowhere()).items()} | {'FaceForensics++': {'FaceForensics++': {'FF-real': _real()}}}

class _Nowhere(type(Path())):
    "A folder in which nothing is written"
    def mkdir(self, *a, **k): pass
    def write_bytes(self, b): pass

def _real(): return dfb_tree.part(_Nowhere(), 'FF-real', 'FaceForensics++/original_sequences/youtube', {'000': ['train'], '001': ['test']})


def _np_save(monkeypatch): monkeypatch.setattr(np, 'save', lambda *a, **k: None)

def _dfb_json():
    with pytest.MonkeyPatch.context() as m: _np_save(m); return dfb()


@parser('DeepfakeBench JSON', st.sampled_from(['DFDC', 'UADFV', 'DFDCP', 'FaceForensics++']).flatmap(lambda n: documents(_dfb_json()[n])))
def _(case, d):
    rows = list(deepfakebench.rows_deepfakebench(tree(d, {'rgb/DFDC/test/frames/aaaaaaaaaa/000.png': b''}, 'a.json', case)/'rgb', json=d/'a.json'))
    assert not any(Path(r['path']).is_absolute() or '..' in r['path'].split('/') for r in rows)


@parser('DeepfakeBench rgb names', st.tuples(texts, texts, st.sampled_from(['.png', '.npy', '']), texts))
def _(case, d):
    for text in (case[0], f'datasets/rgb/DFDC/{case[1]}', '\\'.join(case)):
        with contextlib.suppress(HffError): assert '..' not in deepfakebench.listed_path(text).split('/') and not deepfakebench.listed_path(text).startswith('/')
        with contextlib.suppress(HffError): sources.posix_path(text, 'x'); sources.listed_stem(text, 'x')
        clips.frame_number(text)
    video = {'label': 'UADFV_Real', 'frames': [f'datasets\\rgb\\UADFV\\real\\frames\\{case[0]}\\{case[1]}{case[2]}', f'UADFV/real/frames/{case[0]}/001.png']}
    list(deepfakebench.rows_deepfakebench(tree(d, {'rgb/UADFV/real/frames/0000/001.png': b''}, 'a.json', json.dumps({'UADFV': {'UADFV_Real': {'test': {case[3]: video}}}}))/'rgb', json=d/'a.json'))


KEYS = st.sampled_from([b'X\\a\\b\\001.png', b'X/a/b/1.png', b'X\\a/b/002.png', b'X\\a\\b\\', b'\xff\xfe', b'X\\a\\b\\\xff.png', b'X\\a\\b\\\0', b'X\\a\\b\\..\\..\\c.png', b'X\\a\\b\\'+b'9'*300+b'.png']) | st.binary(min_size=1, max_size=20)

@parser('LMDB keys and values', st.dictionaries(KEYS, st.binary(max_size=30) | damaged(dfb_tree.png(3), 1), max_size=5), share=.5)
def _(case, d):
    import lmdb
    clips._env.cache_clear()
    shutil.rmtree(d/'X_lmdb', ignore_errors=True); (d/'X_lmdb').mkdir()
    with lmdb.open(str(d/'X_lmdb'), map_size=1<<20, sync=False) as env, env.begin(write=True) as t:
        for k, v in case.items(): t.put(k, v)
    clip = d/'X_lmdb/a/b'
    verify.check_clip(clip, deep=True); clips.kind_of(clip)
    numbers, found = clips.sample(clip, 3)
    assert all(isinstance(f, (np.ndarray, HffError)) for f in found)


@parser('LMDB files', st.sampled_from([b'', b'\0'*4096, b'x'*8192]) | st.binary(max_size=200))
def _(case, d):
    clips._env.cache_clear()
    clips.sample(tree(d, {}, 'Y_lmdb/data.mdb', case)/'Y_lmdb/a/b', 3)


def npy(a, **k):
    np.save(b := io.BytesIO(), a, **k)
    return b.getvalue()

def npz(**arrays):
    np.savez(b := io.BytesIO(), **arrays)
    return b.getvalue()

POINTS = np.arange(162, dtype=np.int64).reshape(81, 2)

@parser('landmarks', st.one_of(damaged(npy(POINTS)), st.sampled_from([b'', POINTS.tobytes(), b'\xff'*1296, npy(POINTS.astype(complex)), npy(POINTS.astype('M8[s]')), npy(POINTS[:5]), npy(POINTS*np.nan)]), st.binary(max_size=40)))
def _(case, d): deepfakebench.read_landmarks(case)


@parser('landmarks of a clip', damaged(npz(landmarks=np.zeros((4, 468, 2), 'f4'))) | st.sampled_from([npz(landmarks=np.zeros(3)), npz(x=np.zeros(3)), npz(landmarks=np.array('x')), npz(landmarks=np.zeros((4, 468, 2), complex)), npy(POINTS), b'']))
def _(case, d):
    row = dict(dataset='a', method='real', quality='', video='a', path='a.mp4', target='a', label=0)
    numbers, found = extract.clip_faces(row, extract.roots_of(tree(d, {'a.mp4': clip()}, 'landmarks/a.npz', case)), extract.Cropping(frames=1, size=32, detector='whole'))
    assert found[0]['status'] in ('ok', 'error')


# ---- tables

MANIFEST = pd.DataFrame([dict(dataset='a', method=m, quality='c23', video=v, split='test', label=int(m!='real'), path=f'{m}/{v}.mp4', source='', target=v, status='have', mask='', base='', rule='official')
                         for m in ('real', 'DF') for v in ('000', '001')])

@parser('manifest', parquets(MANIFEST))
def _(case, d):
    m = manifest.read_manifest(tree(d, {}, 'm.parquet', case)/'m.parquet')
    manifest.counts(m); manifest.identity_leaks(m)


@parser('manifest rows', tables(MANIFEST))
def _(case, d):
    m = manifest.check_manifest(case)
    for r in m.to_dict('records'): assert (d/extract.clip_key(r)).resolve().is_relative_to(d.resolve())


@cache
def few(): return scores(methods=('DF',), people=2, frames=2).assign(face=0, reason='')

@parser('score table', parquets(few()))
def _(case, d): pool_videos(score_files.read_scores(tree(d, {}, 's.parquet', case)/'s.parquet'), 'mean')


def _video_file():
    v = exchange.video_file(few(), 'mean')
    return v, exchange.file_meta(v, 'mean', 'rgb', 'test')

@parser('video score file', one_of({'a.scores.csv': csvs(_video_file()[0]), 'a.scores.meta.json': documents(_video_file()[1])}))
def _(case, d):
    v, meta = _video_file()
    exchange.import_videos(tree(d, {'a.scores.csv': v.to_csv(index=False), 'a.scores.meta.json': json.dumps(meta)}, *case)/'a.scores.csv')


FRAMES = pd.DataFrame(dict(path=[f'UADFV/{k}/frames/{v}/{f}.png' for k in ('real', 'fake') for v in ('0000', '0001') for f in (0, 1)], label=[0]*4+[1]*4, score=[.1, .2, .3, .4, .5, .6, .7, .8]))

@parser('frame score file', st.tuples(csvs(FRAMES), st.booleans(), st.booleans()))
def _(case, d): exchange.import_frames(tree(d, {}, 'f.csv', case[0])/'f.csv', fake=int(case[1]), logit=case[2])


CALIBRATION = dict(method='temperature', params=dict(temperature=2.), pool='', fitted_on=dict(split='val', sha256='0'*64), videos=['a/b/c/d'])

@parser('calibration', documents(CALIBRATION) | documents(CALIBRATION | dict(method='isotonic', params=dict(logit=[-1., 1.], score=[.1, .9]))) | documents(CALIBRATION | dict(method='platt', params=dict(slope=1., offset=0.))))
def _(case, d): calibration.read_calibration(tree(d, {}, 'c.json', case)/'c.json')(np.array([0., np.nan]))


FACES = pd.DataFrame([dict(dataset='toy', method=m, quality='c23', video=f'{s}0', split=s, label=int(m!='real'), source='', target=f'{s}0', frame=f, crop=f'{m}.png', x0=0., y0=0., x1=32., y1=32., angle=0.,
                           found=1, choice='only', status='ok', reason='') for s in ('train', 'val', 'test') for m in ('real', 'F2F') for f in (0, 1)])
FACES_JSON = dict(id='0'*12, frames=2, size=32, margin=1.3, align=False, detector='whole', landmarks='mesh')

@parser('faces', one_of({'faces.parquet': parquets(FACES), 'faces.json': documents(FACES_JSON), 'real.png': damaged(dfb_tree.png(3, 32))}))
def _(case, d):
    f = tree(d, {f'{m}.png': dfb_tree.png(9, 32) for m in ('real', 'F2F')} | {'faces.json': json.dumps(FACES_JSON), 'faces.parquet': faces_file()}, *case)
    extract.face_counts(extract.read_faces(f)); cli._crops_of(f, ('F2F',)); trainer._cropping(f)
    trainer._open(RECIPE, f)

@cache
def faces_file(): FACES.to_parquet(b := io.BytesIO()); return b.getvalue()

RECIPE = recipe.Recipe(model='rgb', backbone='mobilenetv2_100', pretrained=False, image_size=32, frames=2, epochs=1, crop=dict(size=32, margin=1.3))


# ---- recipes, plans and results

PLAIN = json.loads(json.dumps(asdict(RECIPE)))

@parser('recipe settings', tampered(PLAIN))
def _(case, d):
    r = recipe.from_settings(recipe.Recipe, 'Recipe', case)
    assert len(r.hash)==8 and r.name and '/' not in r.name


@parser('recipe JSON', documents(PLAIN))
def _(case, d): recipe.load_recipe(tree(d, {}, 'recipe.json', case)/'recipe.json').name


PRESET = yaml.safe_load((Path(recipe.__file__).parent/'presets/smoke.yaml').read_text())
YAMLS = st.sampled_from([b'!!python/object/apply:os.system [x]', b'recipe: !!python/name:os.system', b'a: &a [*a]', b'recipe: &r {model: rgb, crop: *r}', b'recipe: {1: 2}', b'recipe: {epochs: 1_0, lr: .nan}', b'- '*600, b'{'*600, b'recipe: {? [1, 2] : 3}', b'\xff', b'a: b: c'])

@parser('preset YAML', documents(PRESET, lambda v: yaml.safe_dump(v, allow_unicode=True).encode('utf-8', 'surrogatepass'), YAMLS))
def _(case, d): recipe.preset_recipe(tree(d, {}, 'p.yaml', case)/'p.yaml').name


@parser('settings of crops', tampered(dict(frames=4, size=96, margin=1.3, align=True, detector='whole', landmarks='mesh', policy='auto')))
def _(case, d): recipe.from_settings(extract.Cropping, 'Crops', case)


PLAN = dict(preset='smoke', seeds=[0], tables=['table1'], data_root='data', cross={}, faces={'c23-96': 'faces'}, runs={'a': dict(recipe=PLAIN, faces='faces', cross={}, tables=['table1'])}, folders={'a': 'a'}, given=dict(data_root='', cross={}))

@parser('plan', documents(PLAN))
def _(case, d):
    with pytest.MonkeyPatch.context() as m:
        m.setenv('HFF_RUNS', str(d))
        tree(d, {}, 'smoke/plan.json', case)
        todo = reproduce.read_plan('smoke')
        with contextlib.suppress(HffError): reproduce.train_planned(todo, 0, ('nobody',))


@cache
def packed():
    run = few().assign(run='a')
    r = results.Results(pd.DataFrame([dict(run='a', state='finished', epoch=0., seconds=1., error='', recipe=json.dumps(PLAIN))]), run[['run', *score_files.SCORE_COLUMNS]],
                        run[['run', *score_files.SCORE_COLUMNS]], pd.DataFrame(dict(run=['a'], epoch=[0], loss=[.5])), dict(preset='smoke', seeds=[0], samples=[dict(dataset='toy', quality='c23', method='real', person='0', file='samples/a.png')]))
    import tempfile
    with tempfile.TemporaryDirectory() as d: return {n: (results.write_results(r, d)/n).read_bytes() for n in results.PACKED}, results._lean(run), r

PACKED, LEAN, RESULTS = packed()

@parser('packed results', one_of({'scores.parquet': parquets(LEAN), 'val.parquet': parquets(LEAN), 'runs.csv': csvs(RESULTS.runs), 'logs.csv': csvs(RESULTS.logs), 'facts.json': documents(RESULTS.facts)}))
def _(case, d): results.read_results(tree(d, PACKED, *case))


RUN = {'recipe.json': json.dumps(PLAIN).encode(), 'done.json': b'{"kept": {"epoch": 0}, "seconds": 1.5}', 'log.csv': b'epoch,loss\n0,0.5\n'}

@parser('run folder', one_of({'recipe.json': documents(PLAIN), 'done.json': documents(dict(kept=dict(epoch=0), seconds=1.5)), 'log.csv': csvs(pd.DataFrame(dict(epoch=[0], loss=[.5]))),
                              'scores.parquet': parquets(few()), 'val_scores.parquet': parquets(few()), 'error.txt': st.binary(max_size=9)}))
def _(case, d):
    files = RUN | {n: score_bytes() for n in ('scores.parquet', 'val_scores.parquet')}
    results.gather({'a': (tree(d, files, *case), ()), 'b': (whole_run(d), ())}, {})

@cache
def score_bytes(): few().to_parquet(b := io.BytesIO()); return b.getvalue()

def whole_run(d): return tree(d/'whole', RUN, 'scores.parquet', score_bytes())


# ---- the page

@parser('tables of the page', one_of({'table1.csv': csvs(pd.DataFrame(dict(row=['a', 'b'], paper=[.5, .6], seeds=[1, 2]))), 'summary_claims.csv': csvs(pd.DataFrame(dict(claim=['a', 'b'], verdict=['holds', 'does not hold']))),
                                      'a.csv': list_files(['a,b', '1,2', '3,4'])}))
def _(case, d):
    p = page.index_page(tree(d, {}, *case), [dict(stem='table1', title='T', ok=True, seconds=1)], dict(command='x', times=dict(a=1.)), 'Page')
    assert b'<script' not in p.read_bytes()


BOOK = dict(cells=[dict(cell_type='markdown', source=['# Title\n', '> promise'], metadata={})], metadata={}, nbformat=4, nbformat_minor=5)

@parser('notebook heading', documents(BOOK))
def _(case, d): page.heading(tree(d, {}, 'a.ipynb', case)/'a.ipynb')


# ---- weights

SMALL = {'rgb.net.a.weight': torch.zeros(2, 3), 'rgb.net.b.running_var': torch.ones(2)}
HFF = dict(config=dict(name='rgb', backbone='mobilenetv2_100', fidelity='author', image_size=64, num_classes=2, dropout=.5), recipe=PLAIN, trained_on='miniff', cropping=dict(margin=1.3, align=False, detector='whole', landmarks='mesh'))

def torch_bytes(x, **k):
    torch.save(x, b := io.BytesIO(), **k)
    return b.getvalue()

ZIPPED, LEGACY = torch_bytes(dict(state_dict=SMALL)), torch_bytes(dict(state_dict=SMALL), _use_new_zipfile_serialization=False)
TENSORS = st.sampled_from([torch.zeros(2, 3), torch.zeros(0), torch.tensor(1.), torch.full((2,), float('nan')), torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.bool),
                           torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 3).to_sparse(), torch.empty(2, device='meta')])

@parser('torch weights', st.one_of(damaged(ZIPPED), damaged(LEGACY), tampered(dict(state_dict=dict(a=1, b=[2], c=dict(d=3)))).map(torch_bytes), st.binary(max_size=60)))
def _(case, d): checkpoints.open_checkpoint(tree(d, {}, 'w.pth', case)/'w.pth')


@st.composite
def headers(draw):
    "A safetensors file whose header was changed: names, types, shapes, offsets and metadata"
    b = save(SMALL, dict(hff=json.dumps(HFF)))
    n = int.from_bytes(b[:8], 'little')
    text = json.dumps(draw(tampered(json.loads(b[8:8+n])))).encode()
    size = draw(st.sampled_from([len(text)]*6+[0, 2**63, len(text)+1, len(text)-1]))
    return (size%2**64).to_bytes(8, 'little')+text+b[8+n:]

@parser('safetensors', headers() | damaged(save(SMALL, dict(hff=json.dumps(HFF)))))
def _(case, d): checkpoints.open_checkpoint(tree(d, {}, 'w.safetensors', case)/'w.safetensors')


@cache
def network():
    net = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    return {k: v.detach() for k, v in net.state_dict().items()}

@parser('configurations of checkpoints', tampered(HFF), share=.15)
def _(case, d):
    (d/'w.safetensors').write_bytes(save(network(), dict(hff=json.dumps(case))))
    r = checkpoints.inspect_checkpoint(d/'w.safetensors')
    str(r)
    cropping_of(type('Network', (), dict(report=r, image_size=r.config['image_size']))())


@st.composite
def states(draw):
    "A state dict of published names in which some tensors were exchanged"
    sd = dict(published())
    for _ in range(draw(st.integers(1, 3))):
        k, how = sorted(sd, key=str)[draw(st.integers(0, 10**6))%len(sd)], draw(st.sampled_from(['tensor', 'other', 'drop', 'rename', 'shape']))
        if how=='tensor': sd[k] = draw(TENSORS)
        elif how=='other': sd[k] = draw(odd)
        elif how=='shape': sd[k] = sd[k][None] if hasattr(sd[k], 'ndim') else 0
        elif how=='rename': sd[draw(st.sampled_from([*TEXTS, *NUMBERS, 'dual_cma0.linear1.bias']))] = sd.pop(k)
        else: del sd[k]
    return sd

@cache
def published():
    return checkpoints.to_author(create_model(pretrained=False, image_size=32))

@parser('state dicts', states(), share=.05)
def _(case, d): checkpoints.inspect_checkpoint(case)


STATE = dict(model=SMALL, optimizer=dict(state={}, param_groups=[]), epoch=1, log=[dict(epoch=0)], best=dict(epoch=0))

@parser('states of runs', damaged(torch_bytes(STATE)) | tampered({k: v for k, v in STATE.items() if k!='model'} | dict(model={})).map(torch_bytes))
def _(case, d): trainer.load_state(tree(d, {}, 's.pt', case)/'s.pt')


# ---- pictures and videos

@cache
def clip():
    "Four frames of 32 x 32"
    import tempfile
    with tempfile.TemporaryDirectory() as d: return video.write_video(Path(d)/'a.mp4', np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)).read_bytes()

@parser('videos', damaged(clip()), share=.6)
def _(case, d):
    p = tree(d, {}, 'a.mp4', case)/'a.mp4'
    verify.check_clip(p, deep=True)
    video.probe_video(p); video.sample_video(p, 2); video.read_video(p)


def pictures(kind, mode='RGB', **k):
    Image.effect_noise((16, 12), 30).convert(mode).save(b := io.BytesIO(), kind, **k)
    return b.getvalue()

KINDS = [pictures('png'), pictures('png', 'I;16'), pictures('jpeg'), pictures('webp'), pictures('bmp'), pictures('tiff'), pictures('tiff', 'F'), pictures('gif', 'P'), pictures('png', 'LA')]

@parser('pictures', st.tuples(st.sampled_from(KINDS).flatmap(damaged), st.sampled_from(['.png', '.jpg', '.tif'])))
def _(case, d):
    from hff.datasets import read_crop
    im = read_crop(tree(d, {}, f'a{case[1]}', case[0])/f'a{case[1]}')
    assert im.dtype==np.uint8 and im.ndim==3 and im.shape[2]==3


# ---- the command line

COMMANDS = [['data', 'info', 'dfd'], ['data', 'index', 'dfd', 'nothing', '--out', 'm.parquet'], ['evaluate', 'nothing.scores.csv'], ['scores', 'import', 'f.csv', '--fake', '1', '--out', 's.parquet'],
            ['faces', 'm.parquet', '--root', 'nothing', '--out', 'o', '--shard', '1/2'], ['predict', 'nothing.png'], ['scores', 'compare', 'a.parquet', 'b.parquet'], ['data', 'verify', 'm.parquet', '--root', 'nothing']]   # none that builds or trains

@parser('command line', st.sampled_from(COMMANDS).flatmap(lambda c: st.tuples(st.just(c), tampered(c[1:], texts.filter(lambda t: '\0' not in t)))), share=.25)
def _(case, d):
    with contextlib.chdir(d), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert cli.main([case[0][0], *map(str, case[1])]) in (0, 1, 2, None)


@pytest.mark.parametrize('name', PARSERS)
def test_parser(name, tmp_path):
    "Quick: a failure is made small and shown. Campaign: failures are counted"
    strategy, f, share = PARSERS[name]
    COUNTS[name] = count = dict(BLANK)
    n, start = wanted(share), 0
    while count['cases']<n:
        todo = settings(max_examples=min(n-count['cases'], EACH), deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink])
        before = count['cases']
        @todo
        @seed(start)
        @given(strategy)
        def go(case): try_one(f, case, tmp_path, count)
        go()
        start += 1
        assert count['cases']>before
    assert not count['other crashes'], '\n'.join(f'{k} x {v}' for v, k in count['seen'].most_common(20))
    assert count['own errors'] or count['accepted']


def grey(value): Image.fromarray(np.full((4, 4), value, 'f4')).save(b := io.BytesIO(), 'tiff'); return b.getvalue()

DEEP = b'['*4_000
FOUND = [     # what once crashed: parser, case, is it refused?
    ('FaceForensics++ splits', ('splits/train.json', DEEP), True), ('FaceForensics++ splits', ('splits/train.json', b'1'*5000), True), ('FaceForensics++ splits', ('conversion_dict.json', b'{"000": " "}'), True), ('DFDC lists', ('train/dfdc_train_part_0/metadata.json', b'{"\\ud800.mp4": {"label": "REAL"}}'), True),
    ('DeepfakeBench JSON', DEEP, True), ('LMDB keys and values', {b'X\\a\\b\\\xff1.png': b''}, False), ('landmarks of a clip', npz(landmarks=np.zeros(())), False), ('landmarks of a clip', npz(landmarks=np.array('x')), False),
    ('manifest rows', pd.concat([MANIFEST, MANIFEST[['label']]], axis=1), True), ('manifest', parquet(MANIFEST, {b'pandas': b'{}'}), True), ('manifest', parquet(MANIFEST.assign(target=[['x']]*4), {b'hff': b'checked manifest'}), True),
    ('score table', parquet(few(), {b'pandas': b'[]'}), True), ('score table', parquet(few().assign(video=[['x']]*len(few()))), True), ('score table', parquet(few().assign(status=[{'a': 'x'}]*len(few()))), True),
    ('manifest', parquet(MANIFEST.assign(path=[b'x']*4)), True), ('manifest rows', MANIFEST.iloc[:0].assign(video=pd.to_datetime([])), False), ('faces', ('faces.parquet', parquet(FACES.drop(columns='reason', errors='ignore'))), False),
    ('calibration', json.dumps(CALIBRATION | dict(params=dict(temperature=0.))).encode(), True), ('manifest', parquet(MANIFEST.set_index(pd.Index(MANIFEST.method, name='method'))), False),
    ('score table', parquet(few().assign(status=['x', None]*(len(few())//2))), True), ('run folder', ('recipe.json', json.dumps(PLAIN | dict(epochs=2**31)).encode()), True),
    ('packed results', ('facts.json', b'{"samples": [1]}'), True), ('packed results', ('facts.json', b'[]'), True), ('packed results', ('runs.csv', RESULTS.runs.assign(seconds='x').to_csv(index=False).encode()), True),
    ('manifest rows', MANIFEST.assign(mask=b'\xff'), True), ('state dicts', {5: torch.zeros(1)}, True),
    ('calibration', DEEP, True), ('calibration', b'[]', True), ('calibration', json.dumps(CALIBRATION | dict(method=['platt'])).encode(), True), ('calibration', json.dumps(CALIBRATION | dict(method='isotonic', params=dict(logit=[[1]], score=[1]))).encode(), True),
    ('faces', ('faces.json', b'5'), True), ('faces', ('faces.json', b'{}'), True), ('faces', ('faces.parquet', parquet(FACES.assign(label='True'))), True), ('faces', ('faces.parquet', parquet(FACES.drop(columns='quality'))), True),
    ('faces', ('faces.parquet', parquet(FACES.assign(frame=.5))), True), ('faces', ('faces.parquet', parquet(FACES.assign(video=[{'a': 1}]*len(FACES)))), True), ('recipe settings', 5, True), ('recipe settings', PLAIN | dict(lr=None), True),
    ('recipe settings', PLAIN | dict(augment=[['flip']]), True), ('recipe JSON', b'null', True), ('recipe JSON', b'{"image_size": "x"}', True), ('preset YAML', b'\xff', True), ('preset YAML', b'{'*600, True), ('preset YAML', b'recipe: {1: 2}', True),
    ('preset YAML', b'recipe: {seed: '+b'1'*5000+b'}', True), ('preset YAML', b'recipe: &r {crop: *r}', True), ('settings of crops', dict(detector=':x'), True), ('settings of crops', dict(detector=['whole']), True), ('plan', b'{}', True), ('plan', b'5', True),
    ('notebook heading', b'[]', True), ('notebook heading', b'{"cells": [{"source": [1]}]}', True), ('states of runs', torch_bytes(5), True), ('pictures', (grey(np.nan), '.tif'), False), ('pictures', (KINDS[5], '.png'), False)]

@pytest.mark.parametrize('name,case,refused', FOUND, ids=[f'{i} {name}' for i, (name, *_) in enumerate(FOUND)])
def test_found_before(name, case, refused, tmp_path):
    count = dict(BLANK)
    try_one(PARSERS[name][1], case, tmp_path, count)
    assert count==BLANK | {'cases': 1, 'own errors': int(refused), 'accepted': int(not refused)}


def test_a_parser_that_crashes_would_be_noticed(tmp_path):
    count = dict(BLANK)
    def broken(case, d): return json.loads(case)[0]['x']
    with pytest.raises(Exception):      # noqa: B017  (whatever comes first)
        for c in (b'{', b'[]', b'[{}]'): try_one(broken, c, tmp_path, count)
        assert not count['other crashes']


@pytest.mark.skipif(not CAMPAIGN, reason='set HFF_FUZZ to the number of cases')
def test_campaign_is_written():
    "After all others of this file"
    t = pd.DataFrame([dict(parser=k, **{c: v[c] for c in BLANK}) for k, v in COUNTS.items()])
    assert set(t.parser)==set(PARSERS) and t.cases.sum()>=CAMPAIGN
    (p := root(Path(__file__).parent)/'figures/bench/fuzz.csv').parent.mkdir(parents=True, exist_ok=True)
    t.to_csv(p, index=False, lineterminator='\n')
    assert not t['other crashes'].any()
