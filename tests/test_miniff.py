"MiniFF: the same bytes, splits that keep people apart, no easy way to cheat"
import os, shutil, signal, subprocess, sys, threading, time
from pathlib import Path

import cv2, numpy as np, pytest
from filelock import FileLock

from hff.datasets import FaceDataset, face_hull
from hff.extract import extract_faces, read_faces
from hff.manifest import identity_leaks
from hff.miniff.build import FAKES, _finish, build, content_id, leaks, one_builder, verify
from hff.paths import HffError, read_json, sha256, write_json
from hff.sources import FFPP_FOLDERS, read_ffpp
from hff.video import count_frames, read_mask_video

TINY = dict(people=[2,2,2], frames=2, size=128, deepfakes_steps=4, textures_steps=4)
PORTRAITS = Path(__file__).parent/'data/portraits'


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return build(tmp_path_factory.mktemp('m')/'tiny', jobs=2, **TINY)


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    "Enough people for a rough AUC"
    return build(tmp_path_factory.mktemp('m')/'small', people=[8,4,4], frames=2, size=160, deepfakes_steps=60, textures_steps=60, qualities=['c23'])


def test_killed_build_goes_on_to_the_same_bytes(tiny, tmp_path):
    code = f"from hff.miniff.build import build; build({str(tmp_path/'again')!r}, jobs=1, **{TINY!r})"
    env = os.environ | dict(TQDM_DISABLE='1', PYTHONPATH=str(Path(__file__).parent.parent))
    for want in ('.work/clips/003.npz', 'manipulated_sequences/FaceSwap/c23/videos'):   # while filming, while forging
        p = subprocess.Popen([sys.executable, '-c', code], env=env)
        until = time.time()+120
        while not (tmp_path/'again'/want).exists() and p.poll() is None and time.time()<until: time.sleep(.01)
        assert p.poll() is None, 'the build ended before it could be killed'
        p.send_signal(signal.SIGKILL); p.wait()
        with pytest.raises(HffError, match='unfinished'): read_ffpp(tmp_path/'again')
    kept = {f:f.stat().st_mtime_ns for f in (tmp_path/'again').rglob('*.mp4') if not f.name.startswith('.')}
    build(tmp_path/'again', jobs=2, **TINY)
    assert kept and all(f.stat().st_mtime_ns==t for f, t in kept.items())      # finished files are not made twice
    assert sha256(tmp_path/'again')==sha256(tiny) and content_id(tmp_path/'again')==content_id(tiny)
    assert not [f for f in (tmp_path/'again').rglob('*') if f.name.startswith('.')]


def test_killed_over_the_end_the_build_is_finished(tiny, tmp_path, monkeypatch):
    "While the working folder is removed; nothing is made again, nothing stays"
    shutil.copytree(tiny, again := tmp_path/'again')
    about = read_json(again/'miniff.json')
    write_json(about['asked'], again/'building.json'); write_json({}, again/'.work/clips/a.json'); (again/'miniff.json').unlink()
    def killed(*a, **k): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr('hff.miniff.build.shutil.rmtree', killed)
        with pytest.raises(KeyboardInterrupt): _finish(again, about['asked'], about['versions']['miniff_code'], people={}, skipped={})
    with pytest.raises(HffError, match='unfinished'): read_ffpp(again)
    monkeypatch.setattr('hff.miniff.build._cast', killed)
    assert build(again, jobs=1, **TINY)==again and sha256(again)==sha256(tiny) and not (again/'.work').exists()


def test_killed_over_the_beginning_the_folder_is_taken(tmp_path, monkeypatch):
    (tmp_path/'x').mkdir(); (tmp_path/'x/.building.123.tmp.json').write_text('{')
    monkeypatch.setattr('hff.miniff.build._cast', lambda *a: pytest.fail('begun', pytrace=False))
    with pytest.raises(pytest.fail.Exception, match='begun'): build(tmp_path/'x', **TINY)


def test_whoever_waits_says_so(tmp_path, capsys):
    def second():
        with one_builder(tmp_path/'x'): pass
    (lock := FileLock(tmp_path/'.x.lock')).acquire()
    t = threading.Thread(target=second, daemon=True); t.start(); t.join(.5)
    assert t.is_alive() and capsys.readouterr().err==f"hff: waiting for another process that builds in {tmp_path/'x'}\n"
    lock.release(); t.join(20)
    assert not t.is_alive()
    second()
    assert not capsys.readouterr().err


def test_verify_notices(tiny, tmp_path):
    assert verify(tiny)==[]
    p = tiny/FFPP_FOLDERS['FS']/'c23/videos/000_001.mp4'; data = p.read_bytes()
    p.write_bytes(data[:-1]+b'x'); assert verify(tiny)==[p.relative_to(tiny).as_posix()]
    p.write_bytes(data); assert verify(tiny)==[]


def test_people_and_donors_stay_in_their_split(tiny):
    m = read_ffpp(tiny)
    assert not len(identity_leaks(m)) and set(m.split)=={'train','val','test'}
    assert m[m.method=='touched'].split.unique().tolist()==['test'] and not m[m.method=='touched'].label.any()


def test_real_and_fake_are_encoded_alike(tiny):
    import av
    m, seen = read_ffpp(tiny), set()
    for r in m.itertuples():
        assert count_frames(tiny/r.path)==TINY['frames']
        with av.open(str(tiny/r.path)) as c: s = c.streams.video[0]; seen.add((s.width, s.height, s.pix_fmt, str(s.average_rate), s.profile))
        options = (tiny/r.path).read_bytes().partition(b'x264 - core')[2].partition(b'\0')[0]
        seen.add((r.quality, options[:600]))
    assert len(seen)==3, seen                                                  # one geometry, one set of options for each quality


def test_other_requests_are_refused(tiny, tmp_path):
    assert build(tiny, jobs=1, **TINY)==tiny
    with pytest.raises(HffError, match='other settings'): build(tiny, seed=1, **TINY)
    with pytest.raises(HffError, match='No preset'): build(tmp_path/'x', preset='huge')
    (tmp_path/'file').write_text('')
    with pytest.raises(HffError, match='Cannot write'): build(tmp_path/'file/below', **TINY)
    with pytest.raises(HffError, match='is no MiniFF'): build(tmp_path, **TINY)


def test_nothing_to_tell_without_learning(small):
    away = (leaks(small)-.5).abs()
    assert away.loc[['F2F','FS','NT'], 'sharpness'].max() < .35                # blur detector below .85
    assert away.loc[list(FAKES), ['outside','brightness','tint']].max().max() < .1
    assert away.loc[['F2F','FS','NT'], 'file_size'].max() < .1                 # 30 steps leave Deepfakes too smooth for both; see the notebook


def test_blank_face_hides_the_forgery(small):
    m = read_ffpp(small)
    for r in m[m.label==1].itertuples():
        points = np.load(small/f'landmarks/{r.target}.npz')['landmarks']
        for mask, p in zip(read_mask_video(small/FFPP_FOLDERS[r.method]/f'masks/videos/{r.video}.mp4'), points):
            assert mask.any() and not mask[face_hull(p, mask.shape)==0].any()
    out = extract_faces(m[m.split=='test'], small, small.parent/'faces', frames=2, size=96, jobs=1)
    x = FaceDataset(read_faces(out), out, blank_face=True)[0][0]
    assert .25 < (x==128).float().mean() < .9


def test_own_pictures(tmp_path):
    (own := tmp_path/'own').mkdir()
    for p in PORTRAITS.glob('*.jpg'):
        for i in range(2 if p.stem!='no_face' else 1): (own/f'{i}{p.name}').write_bytes(p.read_bytes())
    (own/'broken.jpg').write_bytes((PORTRAITS/'male_20.jpg').read_bytes()[:3000]); (own/'notes.txt').write_text('not a picture')
    cv2.imwrite(str(own/'line.png'), np.zeros((1, 20000, 3), np.uint8))
    for p in list(own.glob('0*.jpg')): p.rename(own/os.fsdecode(b'\xe4'+p.name.encode()))                      # Latin-1
    info = read_json(build(tmp_path/'m', faces=own, **(TINY | dict(qualities=['c23'])))/'miniff.json')
    assert sorted(info['skipped'])==['broken.jpg', 'line.png', '\udce40no_face.jpg'] and len(info['people'])==6 and any('\udce4' in v for v in info['people'].values())
    assert info['skipped']['line.png']=='no face'
    assert not any(str(tmp_path) in v for v in [*info['skipped'].values(), *info['people'].values()])
    assert verify(tmp_path/'m')==[]
