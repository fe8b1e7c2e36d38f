"Stand-ins for other test sets: official layouts, right labels, other people, the same bytes, nothing half made"
from pathlib import Path

import numpy as np, pandas as pd, pytest, yaml

import hff.miniff.standins as standins
from hff.cli import main
from hff.extract import extract_faces, read_faces
from hff.miniff.build import _code, build, content_id, verify
from hff.miniff.standins import LEVELS, STANDINS, build_standin, distorted, plan_standin, standin_leaks, standin_settings
from hff.paths import HffError, read_json, sha256
from hff.readers import read_source
from hff.verify import unexpected_files, verify_manifest
from hff.video import read_mask_video, read_video

TINY = dict(preset='smoke', people=6, steps=2, frames=2, size=128)
COUNTS = dict(dfd=(6, 18), celebdf_v1=(6, 4), dfdcp=(6, 12), df1=(4, 16))       # real, fake


@pytest.fixture(scope='module')
def mini(tmp_path_factory):
    "A MiniFF that lends its four test people"
    return build(tmp_path_factory.mktemp('s')/'mini', jobs=2, people=[2,2,4], frames=2, size=128, deepfakes_steps=4, textures_steps=4, qualities=['c23'])


@pytest.fixture(scope='module')
def sets(mini, tmp_path_factory):
    top = tmp_path_factory.mktemp('s')
    return {n: build_standin(n, top/n, ffpp=mini if n=='df1' else None, **TINY) for n in STANDINS}


@pytest.fixture
def read(sets, mini): return lambda name, **o: read_source(name, sets[name], **(dict(ffpp=mini) if name=='df1' else {}), **o)


def used(m): return m[m.split=='test'].reset_index(drop=True)


@pytest.mark.parametrize('name', STANDINS)
def test_from_layout_to_faces(name, sets, mini, read, tmp_path):
    m, bases = read(name), {'': sets[name], 'ffpp': mini}
    assert name=='df1' or set(m.split)=={'test'}                                  # MiniFF's other people stay what they are
    m = used(m)
    assert tuple(m.groupby('label').size())==COUNTS[name] and set(m.dataset)=={name}
    v = verify_manifest(m, bases, jobs=1, deep=True)
    assert v.status.eq('have').all() and v.packets.eq(2).all()
    assert not unexpected_files(m, sets[name]) and verify(sets[name])==[]
    assert set(m[m.label==1].target)<=set(m[m.label==0].target) and m[m.label==1].source.ne('').all() and (m.target!=m.source).all()
    extract_faces(m, bases, tmp_path/'faces', frames=2, size=64, jobs=1)
    t = read_faces(tmp_path/'faces')
    assert t.status.eq('ok').all() and t.groupby('label').size().tolist()==[2*n for n in COUNTS[name]]


def test_every_set_changes_the_face_and_little_else(sets, mini, read):
    for name in STANDINS:
        m, bases = used(read(name)), {'': sets[name], 'ffpp': mini}
        fakes = m[(m.label==1)&m.method.isin(['DFD','CDF','method_A','method_B','end_to_end'])]
        target = read_json(sets[name]/'miniff.json')['targets']
        for r in fakes.itertuples():
            real = next(q for q in m[m.label==0].itertuples() if q.target==r.target)
            a, b = (read_video(bases[q.base]/q.path).astype(int) for q in (r, real))
            p = np.load(bases[real.base]/f'landmarks/{target[r.path]}.npz')['landmarks'][0]
            (x0, y0), (x1, y1) = p.min(0).astype(int), p.max(0).astype(int)
            d = np.abs(a-b).mean((0, -1)); inside = d[y0:y1,x0:x1].mean(); d[max(y0-6, 0):y1+6,max(x0-6, 0):x1+6] = np.nan
            assert inside>1.5*np.nanmean(d) and np.nanmean(d)<4, (name, r.path, inside, np.nanmean(d))


def test_people_stand_in_one_set_only(sets, mini):
    seeds = {n: read_json(p/'miniff.json')['people'] for n, p in sets.items()}
    own = {v for n, d in seeds.items() for k, v in d.items() if n!='df1' or not k.isdigit()}
    assert len(own)==6*3+2 and min(own)>=10**9
    assert {k: v for k, v in seeds['df1'].items() if k.isdigit()}=={f'{i:03d}': i for i in range(4, 8)}   # the targets are MiniFF's test people
    big, other = ({a.seed for n in STANDINS for a in plan_standin(n, standin_settings(n, 'mini'), s, [('080', 80), ('081', 81), ('082', 82)]).cast if a.look} for s in (0, 1))
    assert not big & other                                                          # nor do two seeds share anybody


def test_lists_say_what_the_folders_say(sets, mini, read):
    lines = (sets['celebdf_v1']/'List_of_testing_videos.txt').read_text().splitlines()
    assert len(lines)==10 and all((s[0]=='0')==('Celeb-synthesis' in s) for s in lines)
    entries = read_json(sets['dfdcp']/'dataset.json')
    assert all((e['label']=='real')==k.startswith('original') and (sets['dfdcp']/k).is_file() for k, e in entries.items())
    assert set(read('df1', test='own').query('label==1').split)=={'train','val','test'}
    metas = sorted((sets['df1']/'lists/manipulated_videos_distortions_meta').iterdir())
    assert len(metas)==3 and all(len(w := s.split())>1 and (sets['df1']/w[0]).is_file() and all(x.split(':')[0] in LEVELS for x in w[1:]) for p in metas for s in p.read_text().splitlines())
    for r in read('dfd').query("mask!=''").itertuples(): assert read_mask_video(sets['dfd']/r.mask).any()


def test_same_seed_same_bytes(sets, mini, tmp_path):
    for n in ('celebdf_v1', 'df1'):
        again = build_standin(n, tmp_path/n, jobs=1, ffpp=mini if n=='df1' else None, **TINY)
        assert sha256(again)==sha256(sets[n]) and not [f for f in again.rglob('*') if f.name.startswith('.')]
    assert content_id(build_standin('celebdf_v1', tmp_path/'other', seed=1, **TINY))!=content_id(sets['celebdf_v1'])


def test_broken_off_build_goes_on(sets, tmp_path, monkeypatch):
    made, make = [], standins._make
    def tired(job):
        if len(made)==11: raise KeyboardInterrupt
        make(job); made.append(tmp_path/'dfd'/job[2][0].path)
    monkeypatch.setattr(standins, '_make', tired)
    with pytest.raises(KeyboardInterrupt): build_standin('dfd', tmp_path/'dfd', jobs=1, **TINY)
    kept = {p: p.stat().st_mtime_ns for p in made}
    assert len(kept)==11
    with pytest.raises(HffError, match='is unfinished'): read_source('dfd', tmp_path/'dfd')
    with pytest.raises(HffError, match='unfinished MiniFF with other settings'): build_standin('dfd', tmp_path/'dfd', seed=1, **TINY)
    monkeypatch.setattr(standins, '_make', make)
    assert sha256(build_standin('dfd', tmp_path/'dfd', **TINY))==sha256(sets['dfd'])
    assert all(p.stat().st_mtime_ns==t for p, t in kept.items())                    # finished files are not made twice


def test_other_requests_are_refused(sets, mini, tmp_path):
    assert build_standin('dfd', sets['dfd'], **TINY)==sets['dfd']
    with pytest.raises(HffError, match='other settings'): build_standin('dfdcp', sets['dfd'], **TINY)
    (tmp_path/'mine').mkdir(); (tmp_path/'mine/a.txt').write_text('x')
    with pytest.raises(HffError, match='is no MiniFF'): build_standin('dfd', tmp_path/'mine', **TINY)
    assert [p.name for p in (tmp_path/'mine').iterdir()]==['a.txt']
    with pytest.raises(HffError, match='no complete MiniFF'): build_standin('df1', tmp_path/'x', ffpp=tmp_path/'mine', **TINY)
    with pytest.raises(HffError, match='no stand-in for uadfv'): build_standin('uadfv', tmp_path/'x')
    with pytest.raises(HffError, match="wants your own data"): build_standin('dfd', tmp_path/'x', preset='paper')
    with pytest.raises(HffError, match='people = 5'): build_standin('dfd', tmp_path/'x', preset='smoke', people=5)
    assert not (tmp_path/'x').exists()


def test_nothing_to_tell_outside_the_face(sets, mini):
    t = pd.concat({n: standin_leaks(n, sets[n], mini if n=='df1' else None) for n in STANDINS})
    assert t.index.get_level_values(0).unique().tolist()==list(STANDINS) and t.notna().all().all()
    away = (t-.5).abs()
    assert away.loc[['dfd','celebdf_v1','dfdcp'], ['outside','brightness']].max().max()<.2, t


def test_distortions_keep_shape_and_grow():
    frames = np.random.default_rng(0).integers(40, 200, (2, 64, 64, 3), dtype=np.uint8)
    for k in LEVELS:
        if k=='VC': continue
        d = [np.abs(distorted(frames, k, l, np.random.default_rng(1), '').astype(int)-frames).mean() for l in (1, 3, 5)]
        assert 0<d[0]<d[1]<d[2], (k, d)


def test_miniff_does_not_depend_on_them(): assert _code()!=_code(without=())       # its digest leaves these modules out


def test_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('HFF_DATA', str(tmp_path/'data')); monkeypatch.setenv('TQDM_DISABLE', '1')
    preset = dict(miniff=dict(people=[2,2,4], frames=2, size=96), standins=dict(people=6, steps=1), recipe={})
    (tmp_path/'tiny.yaml').write_text(yaml.safe_dump(preset))
    assert main(['miniff', 'build', '--set', 'celebdf_v1', '--preset', str(tmp_path/'tiny.yaml'), '--jobs', '2'])==0
    root = Path(capsys.readouterr().out.split()[-1])
    assert root.parent==tmp_path/'data' and root.name.startswith('miniff-celebdf_v1-tiny-s0-')
    assert main(['miniff', 'verify', str(root)])==0 and main(['data', 'verify', 'celebdf_v1', str(root)])==0
    for bad, word in ((['--set', 'uadfv'], 'no stand-in'), (['--set', 'dfd', '--faces', 'x'], '--faces goes'), (['--set', 'dfd', '--ffpp-root', 'x'], '--set df1'), (['--ffpp-root', 'x'], '--set df1')):
        capsys.readouterr()
        assert main(['miniff', 'build', *bad])!=0 and word in capsys.readouterr().err
