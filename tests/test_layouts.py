"Every official layout, from the files as downloaded to a table of metrics: info, index, verify, faces, train, evaluate"
import warnings
from pathlib import Path

import pandas as pd
import pytest
import yaml

import dfb_tree
import trees
from hff.cli import main
from hff.extract import read_faces
from hff.manifest import check_manifest, read_manifest, write_manifest
from hff.paths import read_json
from hff.scores import read_scores

RECIPE = dict(crop=dict(size=64, margin=1.3), recipe=dict(backbone='mobilenetv2_100', pretrained=False, image_size=64, frames=3, epochs=1, batch_size=4, lr=1e-3,
                                                          optimizer='adamw', schedule='one_cycle', switches=dict(head='cosine')))
FAKE = dict(ffpp='DF', dfd='DFD', celebdf_v1='CDF', celebdf_v2='CDF', dfdc='DFDC', dfdcp='method_A', df1='end_to_end', uadfv='fake', ffiw='fake', folder='fake', deepfakebench='DF')


@pytest.fixture
def hff(tmp_path, monkeypatch, capsys):
    "The command line in this process, with folders of its own"
    monkeypatch.setenv('HFF_RUNS', str(tmp_path/'runs')); monkeypatch.setenv('HFF_DATA', str(tmp_path/'data')); monkeypatch.setenv('TQDM_DISABLE', '1')
    (tmp_path/'tiny.yaml').write_text(yaml.safe_dump(RECIPE))
    def run(*args, code=0):
        with warnings.catch_warnings():
            warnings.simplefilter('default')
            got = main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert got==code, f'{args}: {got}\n{out}{err}'
        return out+err
    return run


def tree(name, folder):
    if name=='deepfakebench': dfb_tree.build(folder); return folder/'rgb', ['--files', 'FF-DF'], ['--detector', 'whole']
    t = trees.make_tree(name, folder)
    o = {k.replace('ffpp', 'ffpp_root').replace('_', '-'): v for k, v in t['options'].items()}
    return t['root'], [w for k, v in o.items() for w in (f'--{k}', ','.join(v) if isinstance(v, tuple) else v)], []


def trainable(m):
    "The manifest with real and fake clips in every split; tiny trees have too few people for that, so some are moved by hand"
    m = m.copy()
    for split in ('train', 'val', 'test'):
        for label in (0, 1):
            rows = m[m.label.eq(label)]
            if not rows.split.eq(split).any(): m.loc[rows[rows.duplicated('split', keep=False) | rows.split.eq('unused')].index[0], ['split', 'rule']] = split, 'derived:by hand'
    return check_manifest(m)


@pytest.mark.parametrize('name', FAKE)
def test_from_download_to_metrics(name, hff, tmp_path):
    root, options, whole = tree(name, tmp_path/'tree')
    before = {p: p.stat().st_mtime_ns for p in Path(root).rglob('*')}
    assert 'Access' in hff('data', 'info', name)
    manifest = tmp_path/f'{name}.parquet'
    text = hff('data', 'index', name, root, '--out', manifest, *options)
    m = read_manifest(manifest)
    assert f'{len(m)} videos, 0 of them not there' in text and set(m.label)=={0, 1}
    assert 'coverage 100.00%' in hff('data', 'verify', name, root, '--deep', *options)
    base = [w for k, w in zip(options[::2], options[1::2]) if k=='--ffpp-root']
    roots = ['--root', root, *(['--ffpp-root', base[0]] if base else [])]
    write_manifest(trainable(m), manifest)
    text = hff('faces', manifest, *roots, '--preset', tmp_path/'tiny.yaml', '--out', tmp_path/'faces', '--jobs', 2, *whole)
    t = read_faces(tmp_path/'faces')
    assert set(t.video)==set(read_manifest(manifest).query("split!='unused'").video)
    if name in ('dfd', 'ffiw'):                                                 # the smaller face on the right is the forged one, and the first frame's mask is empty
        fake = t[t.label.eq(1)]
        assert fake[fake.frame.eq(0)].reason.eq('empty mask').all() and fake[fake.frame.gt(0)].choice.eq('mask').all() and fake[fake.frame.gt(0)].x0.gt(trees.SIZE-30).all()
        assert t[t.label.eq(0)].choice.eq('largest').all() and t.found.ge(2).all()
    else: assert t.status.eq('ok').all() and t.choice.eq('only').all()
    quality = t.quality.iloc[0] or 'none'
    run = Path(hff('train', '--preset', tmp_path/'tiny.yaml', '--faces', tmp_path/'faces', '--methods', FAKE[name], '--model', 'rgb', '--quality', quality).splitlines()[0])
    s = read_scores(run/'scores.parquet')
    assert len(s)==len(t[t.split.eq('test')]) and read_json(run/'recipe.json')['crop']['size']==64
    text = hff('evaluate', run, '--faces', tmp_path/'faces', '--split', 'test', '--scores-out', tmp_path/'again.parquet', '--policy', 'ok_only')
    assert 'scored' in text and 'frame level' in text and f'{FAKE[name]}:' in text
    assert (read_scores(tmp_path/'again.parquet').logit-s.logit).abs().max()<1e-4
    assert before=={p: p.stat().st_mtime_ns for p in Path(root).rglob('*')}     # a data set is only read


def test_verify_fails_below_the_coverage_asked_for(hff, tmp_path):
    root, options, _ = tree('celebdf_v2', tmp_path/'tree')
    clips = sorted(Path(root).rglob('*.mp4'))
    clips[0].unlink(); clips[1].write_bytes(clips[1].read_bytes()[:900])
    text = hff('data', 'verify', 'celebdf_v2', root, '--out', tmp_path/'t.csv', code=1)
    assert 'unreadable: ' in text and 'fewer than published' in text and text.splitlines()[-1].startswith('hff: ')
    assert pd.read_csv(tmp_path/'t.csv').status.value_counts().to_dict()['unreadable']==1
    hff('data', 'verify', 'celebdf_v2', root, '--min-coverage', '.5')


@pytest.mark.parametrize('args,words', [
    (['data', 'info', 'Celeb-DF'], 'celebdf_v1 or celebdf_v2'),
    (['data', 'info', 'imagenet'], 'choose from'),
    (['data', 'index', 'celebdf_v2', '{tmp}'], 'List_of_testing_videos.txt'),
    (['data', 'index', 'dfd', '{tmp}/none'], 'none'),
    (['data', 'index', 'dfdc', '{tmp}', '--methods', 'DF'], 'No option methods'),
    (['data', 'index', 'df1', '{tmp}'], 'FaceForensics++'),
    (['data', 'verify', 'uadfv', '{tmp}', '--min-coverage', '3'], 'min-coverage'),
    (['faces', '{tmp}/none.parquet', '--root', '{tmp}'], 'none.parquet'),
    (['faces', '{tmp}/m.parquet', '--root', '{tmp}/none'], 'none'),
    (['faces', '{tmp}/m.parquet', '--root', '{tmp}', '--shard', '5/4'], 'k/n'),
    (['faces', '{tmp}/m.parquet', '--root', '{tmp}', '--detector', 'yolo'], 'yolo'),
    (['faces', '{tmp}/m.parquet', '--root', '{tmp}', '--splits', 'exam'], 'exam'),
    (['train', '--faces', '{tmp}/none'], 'none'),
    (['evaluate', '{tmp}/x.safetensors'], 'give --faces'),
    (['scores', 'import', '{tmp}/none.csv', '--out', '{tmp}/o.parquet'], 'fake'),
    (['scores', 'compare', '{tmp}/a', '{tmp}/a'], 'named twice'),
    (['bench', 'everything'], 'choose from'),
])
def test_bad_input_is_one_clear_line(args, words, hff, tmp_path):
    row = dict(dataset='toy', method='real', quality='', video='a', split='test', label=0, path='a.mp4', source='', target='')
    write_manifest(pd.DataFrame([row]), tmp_path/'m.parquet')
    text = hff(*(a.format(tmp=tmp_path) for a in args), code=1)
    assert words in text and text.startswith('hff: ') and text.count('\n')==1
