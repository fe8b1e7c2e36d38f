"DeepfakeBench's processed release: every habit of it that would change a result in silence"
import copy, json, subprocess, sys, warnings

import numpy as np, pandas as pd, pytest
from dfb_tree import ALL, METHODS, PAIRS, build

from hff.clips import lmdb_get, lmdb_names, sample
from hff.deepfakebench import LABELS, choose_split, find_jsons, listed_path, read_landmarks, rows_deepfakebench
from hff.manifest import check_manifest, read_manifest, write_rows
from hff.paths import HffError


@pytest.fixture(scope='module')
def tree(tmp_path_factory): return build(tmp_path_factory.mktemp('dfb')/'datasets')


def read(*a, **k):
    "Manifest and the warnings that came with it"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        m = pd.DataFrame(rows_deepfakebench(*a, **k))
    return check_manifest(m).set_index('video', drop=False), [str(w.message) for w in caught]


def test_all_files_make_one_manifest(tree, tmp_path):
    m, said = read(tree/'rgb')
    assert len(m)==8+4*9+2+6+4+2+3+2 and set(m.status)=={'have'}              # each real of FaceForensics++ once, in spite of five files
    assert set(m.groupby('dataset').method.agg(lambda s: ' '.join(sorted(set(s)))).items())=={
        ('ffpp', 'DF F2F FS NT real'), ('dfd', 'DFD real'), ('celebdf_v2', 'CDF real'), ('dfdcp', 'method_A method_B real'), ('dfdc', 'DFDC real'), ('df1', 'end_to_end real'), ('uadfv', 'fake real')}
    assert (m.label==(m.method!='real')).all() and not m.path.str.contains(r'\\|datasets').any()
    assert set(m.frames)=={'000.png 001.png 002.png 010.png 1000.png'}        # by number, not by letters
    assert set(m.quality[m.dataset.isin(['ffpp', 'dfd'])])=={'c23'} and set(m.quality[~m.dataset.isin(['ffpp', 'dfd'])])=={''}
    assert m.loc[['id0_id1_0000', '1224068_643507_C_009', '006_M101', '0000_fake', '01_02__talking_against_wall__YVGY8LOK'], ['target', 'source']].values.tolist()==[
        ['id0', 'id1'], ['643507', '1224068'], ['006', 'M101'], ['0000', ''], ['01', '02']]
    assert len([s for s in said if 'record of one video' in s])==2 and len([s for s in said if 'source videos' in s])==1 and len(said)==3
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert write_rows(rows_deepfakebench(tree/'rgb'), tmp_path/'m.parquet', piece=7)==len(m)
    assert read_manifest(tmp_path/'m.parquet').frames.tolist()==m.frames.tolist()


@pytest.mark.parametrize('dataset, want', [
    ('DeepFakeDetection', dict.fromkeys(['01__talking_against_wall', '01_02__talking_against_wall__YVGY8LOK'], 'test')),
    ('Celeb-DF-v2', {'id0_0000': 'test', 'id1_0003': 'test', '00000': 'train', '00013': 'test', 'id0_id1_0000': 'test', 'id1_id0_0003': 'train'}),
    ('DFDCP', {'643507_C_009': 'train', '643508_A_001': 'test', '1224068_643508_A_001': 'test', '1224068_643507_C_009': 'train'}),
    ('DFDC', {'aaaaaaaaaa': 'test', 'bbbbbbbbbb': 'test'}),
    ('DeeperForensics-1.0', {'M101_light_down_angry_camera_front': 'unused', '000_M101': 'train', '006_M101': 'test'}),
    ('UADFV', {'0000': 'test', '0000_fake': 'test'})])
def test_splits(tree, dataset, want):
    m, _ = read(tree/'rgb', dataset=dataset)
    assert m.split.to_dict()==want and set(m.rule)<={'none:all test', 'derived:json', 'derived:json, test first', 'derived:actors left out'}


def test_official_split_of_ffpp(tree):
    m, said = read(tree/'rgb', dataset=list(METHODS))
    pairs = {v: s for s, p in PAIRS.items() for a, b in p for v in (a, b, f'{a}_{b}', f'{b}_{a}')}
    assert not said and m.split.to_dict()=={**pairs, '000_007': 'unused'} and set(m.rule)=={'official'}
    assert (m.target=='').sum()==0 and m.loc['003_000', 'source'].tolist()==['000']*4
    only, _ = read(tree/'rgb', dataset='FaceForensics++', split='test', labels=('FF-real', 'FF-NT'))
    assert sorted(only.index)==['006', '006_007', '007', '007_006']


def test_actors_are_reals_only_when_named(tree):
    m, said = read(tree/'rgb', dataset='DeeperForensics-1.0', labels=('DF_real', 'DF_fake'))
    assert m.split['M101_light_down_angry_camera_front']=='test' and not said


def test_masks_belong_to_their_video(tree):
    m, _ = read(tree/'rgb', dataset='FF-FS')
    fakes = m[m.label==1]
    assert fakes.index[fakes['mask']==''].tolist()==['003_000'] and set(m['mask'][m.label==0])=={''}
    assert (fakes['mask'][fakes['mask']!='']==fakes.path[fakes['mask']!=''].str.replace('/frames/', '/masks/')).all()


def test_masks_of_another_quality_lie_below_c23(tree, tmp_path):
    copy_ = json.loads((tree/'dataset_json/FF-DF.json').read_text().replace('c23', 'c40'))
    (tmp_path/'FF-DF.json').write_text(json.dumps(copy_))
    m, said = read(tree/'rgb', tmp_path, dataset='FF-DF_c40')
    assert set(m.quality)=={'c40'} and set(m.status)=={'missing'}             # every row stays
    assert m['mask']['000_003']=='FaceForensics++/manipulated_sequences/Deepfakes/c23/masks/000_003' and m['mask']['003_000']==''


def test_lmdb(tree):
    m, _ = read(tree/'lmdb', dataset=['FF-FS', 'Celeb-DF-v2', 'DFDCP'])
    gone = m.index[m.status=='missing'].tolist()
    assert gone==['643507_C_009', '643508_A_001']                              # the builder skips every path with `video` in it
    assert m.path['006_007']=='FaceForensics++_lmdb/manipulated_sequences/FaceSwap/c23/frames/006_007' and m['mask']['006_007'].endswith('masks/006_007')
    numbers, got = sample(tree/'lmdb'/m.path['006_007'], 9, lambda i, im: int(im[0, 0, 0]), m.frames['006_007'].split())
    assert numbers.tolist()==[0, 1, 2, 10, 1000] and isinstance(got[3], HffError) and got[:3]+got[4:]==[0, 1, 2, 1000%256]
    for base, inside in (('FaceForensics++_lmdb', 'original_sequences/youtube/c23/landmarks/000/002.npy'), ('Celeb-DF-v2_lmdb', 'Celeb-real/landmarks/id0_0000/002.npy')):
        assert (read_landmarks(lmdb_get(tree/'lmdb'/base, inside))==np.arange(162).reshape(81, 2)+2).all()


@pytest.mark.parametrize('fault', ['whole', 'cut', 'one page', 'zeros', 'mixed'])
def test_a_damaged_lmdb_is_one_line(fault, tmp_path):
    "In a process of its own: to read beyond the end would kill it"
    import lmdb
    (d := tmp_path/'X_lmdb').mkdir()
    with lmdb.open(str(d), map_size=1<<24) as env, env.begin(write=True) as t:
        for i in range(300): t.put(b'X\\a\\%03d.png' % i, bytes(3000))
    b = (d/'data.mdb').read_bytes()
    (d/'data.mdb').write_bytes(dict(whole=b, cut=b[:len(b)//2], zeros=b[:8192]+bytes(len(b)-8192), mixed=b[:8192]+b[12288:]+b[8192:12288]).get(fault, b[:-4096]))
    code = ('import sys\nfrom hff.clips import lmdb_get, lmdb_names\nfrom hff.paths import HffError\n'
            'for f in lambda: len(lmdb_names(sys.argv[1], "a")), lambda: sum(len(lmdb_get(sys.argv[1], f"a/{i:03d}.png")) for i in range(300)):\n'
            '    try: print(f())\n    except HffError as e: print("no readable LMDB" in str(e) and ("breaks off" in str(e) or "MDB_CORRUPTED" in str(e)))\n')
    r = subprocess.run([sys.executable, '-c', code, str(d)], capture_output=True, text=True)
    assert r.stdout.split()==(['300', '900000'] if fault=='whole' else ['True']*2), (r.returncode, r.stderr[-300:])


def test_an_lmdb_may_lack_free_pages_at_its_end(tmp_path):
    "What was written and deleted again at once need not be in the file"
    import lmdb
    (d := tmp_path/'X_lmdb').mkdir()
    with lmdb.open(str(d), map_size=1<<24) as env:
        for i in range(4):
            with env.begin(write=True) as t: t.put(b'X\\a\\%03d.png' % i, bytes(5000))
        with env.begin(write=True) as t:
            for i in range(30): t.put(b'X\\b\\%03d.png' % i, bytes(5000))
            for i in range(30): t.delete(b'X\\b\\%03d.png' % i)
        short = (d/'data.mdb').stat().st_size < (env.info()['last_pgno']+1)*env.stat()['psize']
    assert short and len(lmdb_names(d, 'a'))==4 and lmdb_get(d, 'a/003.png')==bytes(5000)


def test_the_root_may_be_the_folder_above(tree):
    a, b = read(tree, dataset='UADFV')[0], read(tree/'rgb', dataset='UADFV')[0]
    assert a.path.tolist()==['rgb/'+p for p in b.path] and find_jsons(tree)==find_jsons(tree/'rgb')


def test_unlisted_folders_are_told(tree):
    (new := tree/'rgb/UADFV/real/frames/0049').mkdir()
    try: assert ['0049' in s for s in read(tree/'rgb', dataset='UADFV')[1]]==[True]
    finally: new.rmdir()


def test_a_video_without_frames_keeps_its_row(tree, tmp_path):
    data = json.loads((tree/'dataset_json/UADFV.json').read_text())
    data['UADFV']['UADFV_Fake']['test']['0001_fake'] = dict(label='UADFV_Fake', frames=[])
    (tmp_path/'UADFV.json').write_text(json.dumps(data))
    m, _ = read(tree/'rgb', tmp_path/'UADFV.json')
    assert m.loc['0001_fake', ['path', 'status', 'frames', 'rule']].tolist()==['UADFV/fake/frames/0001_fake', 'missing', '', 'derived:json']


def test_windows_made_a_path_of_the_name(tree, tmp_path):
    text = (tree/'dataset_json/DeeperForensics-1.0.json').read_text().replace('"M101_light', '"D:\\\\data\\\\frames\\\\M101_light')
    (tmp_path/'x.json').write_text(text)
    assert 'M101_light_down_angry_camera_front' in read(tree/'rgb', tmp_path/'x.json', labels='DF_real')[0].index


@pytest.mark.parametrize('change, words', [
    (lambda d: d['UADFV'].update(UADFV_fake=d['UADFV'].pop('UADFV_Fake')), "unknown label 'UADFV_fake'; known are FF-real"),
    (lambda d: d['UADFV']['UADFV_Real']['train']['0000'].update(label='UADFV_Fake'), "'UADFV_Fake' stands below 'UADFV_Real'"),
    (lambda d: d['UADFV']['UADFV_Real']['train']['0000'].update(frames=d['UADFV']['UADFV_Fake']['train']['0000_fake']['frames']), 'no folder of UADFV_Real'),
    (lambda d: d['UADFV']['UADFV_Real'].update(train=d['UADFV']['UADFV_Real']['train']['0000']), 'expected a dictionary, got str'),
    (lambda d: d['UADFV']['UADFV_Real']['train']['0000'].update(frames=['../../etc/passwd']), 'no path inside'),
    (lambda d: d['UADFV']['UADFV_Real']['train']['0000'].pop('frames'), 'label and frames'),
    (lambda d: d['UADFV']['UADFV_Real']['train'].update({'0000': {'label': 'UADFV_Real', 'frames': ['UADFV/real/other/0000/0.png']}}), 'are both called 0000'),
    (lambda d: d['UADFV']['UADFV_Real'].update(dev={}), "split 'dev'")])
def test_faults_are_named_with_their_place(tree, tmp_path, change, words):
    data = json.loads((tree/'dataset_json/UADFV.json').read_text())
    change(data); (tmp_path/'UADFV.json').write_text(json.dumps(data))
    with pytest.raises(HffError, match=words): list(rows_deepfakebench(tree/'rgb', tmp_path))


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '7', '{"a": '*5000, '['*200_000, '{"UADFV": {}}', '{}', '\ufeff{}', '1'*10_000])
def test_no_json_at_all(tree, tmp_path, text):
    (tmp_path/'x.json').write_text(text, encoding='utf-8')
    with pytest.raises(HffError): list(rows_deepfakebench(tree/'rgb', tmp_path/'x.json'))


WRONG = [None, 7, -1, 1e308, True, '', 'x', '..', '../../x/0.png', '/etc/passwd', 'C:\\x\\y\\0.png', 'UADFV/real', 'a\0b/c/d.png', '\ud800', 'x'*5000, 'é/ü/0.png', [], [[]], [None], ['x y/z/0 1.png'], {}, {'label': 'UADFV_Real'},
         {'label': [], 'frames': {}}, {'label': 'FF-real', 'frames': ['x/y/0.png']}, {'c23': {}}, {'c23': 7, 'raw': []}]


def _mutate(x, g):
    "One random fault somewhere in `x`"
    x = copy.deepcopy(x); at = x
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys: return x
        k = keys[g.integers(len(keys))]
        if isinstance(at[k], (dict, list)) and len(at[k]) and g.random()<.75: at = at[k]; continue
        how, value = g.integers(4), WRONG[g.integers(len(WRONG))]
        if how==0: del at[k]
        elif how==1 and isinstance(at, dict): at[value if isinstance(value, str) else str(value)] = at.pop(k)
        elif how==2 and isinstance(at[k], str): at[k] = at[k][:g.integers(len(at[k])+1)]+'/\\.:\0 é'[g.integers(7)]+at[k][g.integers(len(at[k])+1):]
        else: at[k] = value
        return x


def test_spoilt_jsons_give_rows_or_a_clear_error(tree, tmp_path):
    g, ends = np.random.default_rng(0), dict(rows=0, error=0)
    names = ['UADFV', 'FF-FS', 'DFDC', 'DeeperForensics-1.0', 'Celeb-DF-v2']
    whole = {n: json.loads((tree/f'dataset_json/{n}.json').read_text()) for n in names}
    for i in range(600):
        name = names[i%5]; data = whole[name]
        for _ in range(g.integers(1, 4)): data = _mutate(data, g) if isinstance(data, (dict, list)) else data
        (tmp_path/f'{name}.json').write_text(json.dumps(data))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                check_manifest(pd.DataFrame(rows_deepfakebench(tree/('lmdb' if i%2 else 'rgb'), tmp_path/f'{name}.json')))
            ends['rows'] += 1
        except HffError as e:
            assert '\n' not in str(e) and len(str(e))<1500
            ends['error'] += 1
    assert min(ends.values())>50, ends


def test_official_files_must_be_whole(tree, tmp_path):
    build(tmp_path/'d', packed=False); (tmp_path/'d/rgb/FaceForensics++/val.json').unlink()
    with pytest.raises(HffError, match='val.json'): list(rows_deepfakebench(tmp_path/'d/rgb', dataset='FF-DF'))
    for s in ('train', 'test'): (tmp_path/f'd/rgb/FaceForensics++/{s}.json').unlink()
    m, _ = read(tmp_path/'d/rgb', dataset='FF-DF')
    assert m.split['000_007']=='unused' and m.rule.value_counts().to_dict()=={'derived:json': 16, 'derived:in no split': 1}
    assert choose_split('ffpp', '000_007', set(ALL))==('unused', 'derived:in no split')


def test_paths():
    assert {listed_path(p+t) for p in ('', './datasets\\', 'datasets/rgb/', '/workspace/datasets/rgb/', 'D:\\x\\') for t in ('UADFV/fake\\frames/0/1.png', 'UADFV//fake/./frames/0/1.png')}=={'UADFV/fake/frames/0/1.png'}
    assert all(len(v)==3 for v in LABELS.values())


def test_landmarks_from_hostile_bytes(tmp_path):
    np.save(p := tmp_path/'p.npy', np.zeros((81, 2), 'int64'))
    g, whole, good = np.random.default_rng(0), p.read_bytes(), 0
    for i in range(400):
        b = bytearray(whole)
        for k in g.integers(0, 128, 3): b[k] = g.integers(256)
        try: good += read_landmarks(bytes(b[:None if i%2 else g.integers(len(b))])).shape==(81, 2)
        except HffError: pass
    assert good<400 and (read_landmarks(p)==0).all()
    with pytest.raises(HffError, match='in pixels'): read_landmarks(np.full((81, 2), np.nan).tobytes())
