"Faces of a whole manifest: killed, shared, spoilt and awkward"
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest

import hff.extract
from hff.clips import list_frames, read_picture, sample
from hff.extract import Cropping, clip_faces, extract_faces, face_counts, in_shard, read_faces, roots_of
from hff.faces import DETECTORS, eyes, find_landmarks, plugin
from hff.paths import HffError, read_json, sha256, write_json
from hff.video import frame_indices, write_mask_video, write_video

PORTRAITS = Path(__file__).parent/'data/portraits'


def portrait(name, size=192): return cv2.resize(read_picture(PORTRAITS/f'{name}.jpg'), (size, size))


def pan(image, frames=6): return np.stack([np.roll(image, 2*t, 1) for t in range(frames)])


def manifest(paths, **more):
    rows = [dict(dataset='toy', method='real', quality='', video=Path(p).stem, split='test', label=0, path=p, source='', target='') for p in paths]
    return pd.DataFrame(rows).assign(**more)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
    "Six clips of two people"
    d = tmp_path_factory.mktemp('clips')
    for i in range(6): write_video(d/f'{i}.mp4', pan(portrait(('female_14', 'male_20')[i%2]), 6+i))
    return d


@pytest.fixture(scope='module')
def whole(clips, tmp_path_factory):
    return extract_faces(manifest(sorted(p.name for p in clips.iterdir())), clips, tmp_path_factory.mktemp('whole')/'faces', frames=4, size=64, jobs=1)


script = '''
import sys, time, pandas as pd, hff.extract as e
slow, real = float(sys.argv[4]), e.clip_faces
def one(row, roots, c):
    out = real(row, roots, c); time.sleep(slow); return out
e.clip_faces = one
e.extract_faces(pd.read_parquet(sys.argv[1]), sys.argv[2], sys.argv[3], jobs=2, frames=4, size=64)
'''


@pytest.mark.parametrize('after', [.2, 1.2])
def test_killed_extraction_ends_the_same(clips, whole, tmp_path, after):
    manifest(sorted(p.name for p in clips.iterdir())).to_parquet(tmp_path/'m.parquet')
    p = subprocess.Popen([sys.executable, '-c', script, tmp_path/'m.parquet', clips, tmp_path/'faces', '.6'], env=os.environ | dict(TQDM_DISABLE='1'), start_new_session=True)
    while not (tmp_path/'faces/parts').is_dir(): time.sleep(.02); assert p.poll() is None
    time.sleep(after)
    os.killpg(p.pid, signal.SIGKILL); p.wait()
    assert not (tmp_path/'faces/faces.parquet').exists()
    with pytest.raises(HffError, match='unfinished'): read_faces(tmp_path/'faces')
    done = extract_faces(pd.read_parquet(tmp_path/'m.parquet'), clips, tmp_path/'faces', frames=4, size=64, jobs=2)
    assert sha256(done)==sha256(whole)


def test_shares_of_the_work_make_the_same_table(clips, whole, tmp_path):
    m = manifest(sorted(p.name for p in clips.iterdir()))
    for k in (3, 1, 2): extract_faces(m, clips, tmp_path/'faces', frames=4, size=64, jobs=1, shard=(k, 3))
    assert len(list((tmp_path/'faces/parts').rglob('*.npz')))==6
    assert sha256(extract_faces(m, clips, tmp_path/'faces', frames=4, size=64, jobs=1))==sha256(whole)


def test_a_share_has_one_process_and_the_table_waits_for_all(clips, whole, tmp_path):
    "While one share is at work in another process; another share goes on beside it, and what is killed is no longer in the way"
    m, out = manifest(sorted(p.name for p in clips.iterdir())), tmp_path/'faces'
    m.to_parquet(tmp_path/'m.parquet')
    go = lambda shard: extract_faces(m, clips, out, frames=4, size=64, jobs=1, shard=shard)
    p = subprocess.Popen([sys.executable, '-c', script.replace('size=64', 'size=64, shard=(1, 2)'), tmp_path/'m.parquet', clips, out, '300'], env=os.environ | dict(TQDM_DISABLE='1'), start_new_session=True)
    try:
        while not (busy := list(out.glob('parts/*/*.busy'))): time.sleep(.02); assert p.poll() is None
        for shard in ((1, 2), None, (1, 3)):
            with pytest.raises(HffError, match=f'shard 1/2 of {out} is still at work'): go(shard)
        assert not list(out.glob('parts/*/*.npz')) and all(b.is_file() for b in busy)
        go((2, 2))
        assert len(list(out.glob('parts/*/*.npz')))==sum(in_shard(r, (2, 2)) for r in m.to_dict('records'))
    finally: os.killpg(p.pid, signal.SIGKILL); p.wait()
    go((1, 2))
    assert sha256(go(None))==sha256(whole)


def test_a_share_does_not_begin_while_the_table_is_made(clips, tmp_path, monkeypatch):
    "And after it there is nothing to do"
    m, late = manifest(['0.mp4', '1.mp4']), []
    real, held = hff.extract._assemble, hff.extract.locked
    monkeypatch.setattr(hff.extract, 'locked', lambda *a, **kw: held(*a, **kw | dict(wait=0)))
    def assemble(*a):
        with pytest.raises(HffError, match='in use by another process'): extract_faces(m, clips, tmp_path/'faces', frames=1, size=64, jobs=1, shard=(1, 2))
        late.append(1); real(*a)
    monkeypatch.setattr(hff.extract, '_assemble', assemble)
    out = extract_faces(m, clips, tmp_path/'faces', frames=1, size=64, jobs=1)
    assert late and extract_faces(m, clips, out, frames=1, size=64, jobs=1, shard=(1, 2))==out and not list(out.glob('.shard*'))


@pytest.mark.parametrize('shard', [None, (1, 2)])
def test_two_that_begin_at_once_do_not_mix(shard, clips, tmp_path, monkeypatch):
    "The other, with another size, says so after our first look and before we hold the folder"
    m, held, out = manifest(['0.mp4']), hff.extract.locked, tmp_path/'faces'
    def late(*a, **kw):
        write_json(dict(id='another', size=32), out/'faces.json')
        return held(*a, **kw)
    monkeypatch.setattr(hff.extract, 'locked', late)
    with pytest.raises(HffError, match=f'{out} holds the faces of other data or settings .another,'): extract_faces(m, clips, out, frames=1, size=64, jobs=1, shard=shard)
    assert read_json(out/'faces.json')==dict(id='another', size=32) and not (out/'parts').exists()


def test_a_kill_before_anything_was_written_leaves_a_folder_that_can_be_used(clips, tmp_path):
    (out := tmp_path/'faces').mkdir()
    (out/'.faces.99-0a1b2c3d.tmp.json').write_text('{'); (out/'.shard-1-2').mkdir()
    extract_faces(manifest(['0.mp4']), clips, out, frames=1, size=64, jobs=1)
    assert sorted(p.name for p in out.iterdir())==['.lock', 'faces.json', 'faces.parquet', 'landmarks.npy', 'toy']


def test_names_that_are_no_utf8(tmp_path):
    "A stray file among frames, masks and landmarks costs nothing"
    stray = os.fsdecode(b'Thumbs\xe9.db')
    for d in ('clip', 'mask', 'landmarks'): (tmp_path/d).mkdir(); (tmp_path/d/stray).touch()
    (tmp_path/'landmarks'/os.fsdecode(b'\xe9.npz')).touch()
    for d in ('clip', 'mask'): cv2.imwrite(str(tmp_path/d/'000.png'), portrait('male_20')[..., ::-1])
    t = read_faces(extract_faces(manifest(['clip']).assign(mask='mask'), tmp_path, tmp_path/'faces', frames=1, size=64, jobs=1))
    assert t.status.tolist()==['ok'] and len(sha256(tmp_path/'clip'))==64


def test_counts_without_reasons():
    t = pd.DataFrame(dict(dataset='toy', method='real', status='ok', reason=['', None, np.nan], frame=[0, 1, 2], video='a'))
    for q in (t, t.drop(columns='reason'), t.assign(reason=np.nan)): assert face_counts(q)[['reason', 'frames']].values.tolist()==[['', 3]]


def test_a_worker_that_dies_costs_one_row(clips, whole, tmp_path, monkeypatch):
    "The clip that kills its process gets a row; the others are as if it had not been there"
    real = hff.extract.clip_faces
    monkeypatch.setattr(hff.extract, 'clip_faces', lambda row, roots, c: os.kill(os.getpid(), signal.SIGKILL) if row['video']=='2' else real(row, roots, c))
    t = read_faces(extract_faces(manifest(sorted(p.name for p in clips.iterdir())), clips, tmp_path/'faces', frames=4, size=64, jobs=2))
    assert t[t.video=='2'][['status', 'reason']].values.tolist()==[['error', 'worker ended: SIGKILL']]
    rest, want = t[t.video!='2'].reset_index(drop=True), read_faces(whole)
    pd.testing.assert_frame_equal(rest, want[want.video!='2'].reset_index(drop=True))


def spoil(d):
    "One clip of every kind of trouble: name -> reason"
    good = write_video(d/'good.mp4', pan(portrait('female_14'))).read_bytes()
    (d/'zero.mp4').touch()
    (d/'cut.mp4').write_bytes(good[:len(good)//2])
    (d/'junk.mp4').write_bytes(b'\x00\xff'*3000)
    (d/'text.mp4').write_text('<html>404</html>')
    with av.open(str(d/'sound.mp4'), 'w') as out:
        s = out.add_stream('aac', rate=8000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), 'float32'), format='fltp', layout='mono'); frame.sample_rate = 8000
        out.mux(s.encode(frame)); out.mux(s.encode(None))
    (d/'folder.mp4').mkdir()
    (d/'loop.mp4').symlink_to(d/'loop.mp4')
    (d/'nobody.mp4').write_bytes(write_video(d/'n.mp4', pan(portrait('no_face'))).read_bytes())
    (d/'n.mp4').unlink()
    return dict(good='', zero='empty file', cut='cannot decode', junk='cannot decode', text='cannot decode', sound='no video stream', folder='no frame', loop='no file', nobody='no face', absent='no file')


def test_every_trouble_is_a_row_with_a_reason(tmp_path):
    (data := tmp_path/'data').mkdir()
    want = spoil(data)
    t = read_faces(extract_faces(manifest([f'{v}.mp4' for v in want]), data, tmp_path/'faces', frames=2, size=64, jobs=2))
    got = t.groupby('video').reason.first().to_dict()
    assert got==want
    assert t.groupby('video').status.first().to_dict()=={v: 'ok' if not r else 'missing' if r in ('no file', 'no face') else 'error' for v, r in want.items()}
    assert face_counts(t).frames.sum()==len(t)


def test_one_bad_file_in_many_never_stops_a_run(tmp_path):
    "Four hundred clips, every tenth spoilt in one of three ways; all have their rows"
    (data := tmp_path/'data').mkdir()
    good = write_video(tmp_path/'g.mp4', pan(portrait('no_face', 64), 2)).read_bytes()
    for i in range(400): (data/f'{i:03d}.mp4').write_bytes((b'', good[:200], b'junk'*99)[i//10%3] if i%10==0 else good)
    t = read_faces(extract_faces(manifest([f'{i:03d}.mp4' for i in range(400)]), data, tmp_path/'faces', frames=1, size=64, jobs=2))
    assert t.video.tolist()==[f'{i:03d}' for i in range(400)]
    assert t.reason.value_counts().to_dict()=={'no face': 360, 'empty file': 14, 'cannot decode': 26}


def test_long_strange_and_hostile_names(tmp_path):
    (data := tmp_path/'data').mkdir()
    clip = write_video(tmp_path/'c.mp4', pan(portrait('male_20'), 2)).read_bytes()
    names = ['ö'*120, 'x'*250, 'a b;rm -rf $HOME', "it's \"quoted\"", '顔', '...', '-dash']
    for n in names: (data/f'{n[:251]}.mp4').write_bytes(clip)
    m = manifest([f'{n[:251]}.mp4' for n in names]).assign(video=names)
    t = read_faces(extract_faces(m, data, tmp_path/'faces', frames=1, size=64, jobs=2))
    assert (t.status=='ok').all() and t.video.tolist()==names
    assert all(read_picture(tmp_path/'faces'/c).shape==(64, 64, 3) for c in t.crop)
    for bad in ('../out', 'a/../../out', '/out', 'a\\b', '.'):
        with pytest.raises(HffError): extract_faces(m[:1].assign(video=bad), data, tmp_path/'evil', frames=1, size=64)
    assert not list(tmp_path.glob('out*'))


def test_whole_clip_is_sampled_and_short_ones_are_taken_whole(tmp_path):
    "Frame numbers span the clip; a clip with fewer frames than asked gives what it has"
    face = portrait('female_44', 96)
    write_video(tmp_path/'long.mp4', np.stack([face]*70)); write_video(tmp_path/'short.mp4', np.stack([face]*3))
    t = read_faces(extract_faces(manifest(['long.mp4', 'short.mp4']), tmp_path, tmp_path/'faces', frames=8, size=64, jobs=1))
    assert t[t.video=='long'].frame.tolist()==frame_indices(70, 8).tolist() and t[t.video=='long'].frame.iloc[-1]==69
    assert t[t.video=='short'].frame.tolist()==[0, 1, 2]


def test_a_turned_video_gives_the_same_faces(tmp_path):
    write_video(tmp_path/'a.mp4', pan(portrait('female_44', 256), 3), crf=10)
    write_video(tmp_path/'b.mp4', np.rot90(pan(portrait('female_44', 256), 3), -1, (1, 2)), crf=10)
    with av.open(str(tmp_path/'b.mp4')) as a, av.open(str(tmp_path/'turned.mp4'), 'w') as b:
        s = b.add_stream_from_template(a.streams.video[0]); s.set_display_rotation(90)
        for p in a.demux(a.streams.video[0]):
            if p.dts is not None: p.stream = s; b.mux(p)
    t = read_faces(extract_faces(manifest(['a.mp4', 'turned.mp4']), tmp_path, tmp_path/'faces', frames=1, size=64, jobs=1))
    upright, turned = (t[t.video==v].iloc[0] for v in ('a', 'turned'))
    assert turned.status=='ok' and abs(upright.x0-turned.x0)<6 and abs(upright.y1-turned.y1)<6


def test_one_clip_without_masks_does_not_switch_masks_off(tmp_path):
    "Two people in a frame; masks are looked for clip by clip"
    two = np.stack([np.hstack([portrait('female_14'), portrait('male_20')])]*2)
    for v in ('a', 'b', 'c'): write_video(tmp_path/f'{v}.mp4', two)
    mask = np.zeros(two.shape[:3], np.uint8); mask[:, 60:140, 260:330] = 255
    write_mask_video(tmp_path/'am.mp4', mask); write_mask_video(tmp_path/'cm.mp4', mask)
    m = manifest(['a.mp4', 'b.mp4', 'c.mp4']).assign(dataset='dfd', method='DFD', label=1, mask=['am.mp4', '', 'cm.mp4'])
    t = read_faces(extract_faces(m, tmp_path, tmp_path/'faces', frames=2, size=64, jobs=1))
    assert t[t.video!='b'].choice.eq('mask').all() and t[t.video!='b'].x0.gt(150).all()
    assert t[t.video=='b'].reason.eq('several faces, no mask').all()
    real = read_faces(extract_faces(m.assign(method='real', label=0), tmp_path, tmp_path/'reals', frames=2, size=64, jobs=1))
    assert real.choice.eq('largest').all() and real.found.eq(2).all()


def test_settings_decide_the_crop(tmp_path):
    turned = cv2.warpAffine(portrait('female_44', 288), cv2.getRotationMatrix2D((144, 144), 20, 1), (288, 288), borderMode=cv2.BORDER_REPLICATE)
    cv2.imwrite(str(tmp_path/'a.png'), turned[..., ::-1])
    row, roots = manifest(['a.png']).iloc[0].to_dict(), roots_of(tmp_path)
    get = lambda **k: clip_faces(row, roots, Cropping(size=128, **k))[1][0]
    plain, wide, level = get(), get(margin=2.), get(align=True)
    assert wide['box'][2]-wide['box'][0] == pytest.approx(2/1.3*(plain['box'][2]-plain['box'][0]), abs=2)
    slope = lambda f: np.degrees(np.arctan2(*np.diff(eyes(f['points']), axis=0)[0][::-1]))
    assert abs(slope(plain)+20)<5 and abs(slope(level))<.1 and abs(level['angle']+20)<5
    assert abs(slope(dict(points=find_landmarks(level['crop']))))<4                  # and it is so in the pixels


@pytest.mark.skipif(importlib.util.find_spec('dlib') is None, reason='dlib is not installed')
def test_another_detector_finds_the_same_face(clips):
    im = portrait('female_44', 256)
    a, b = (plugin(n, DETECTORS)(im) for n in ('mtcnn', 'dlib'))
    assert len(a)==len(b)==1
    x0, y0, x1, y1 = a[0]['box']; u0, v0, u1, v1 = b[0]['box']
    over = max(0, min(x1, u1)-max(x0, u0))*max(0, min(y1, v1)-max(y0, v0))
    assert over/((x1-x0)*(y1-y0)+(u1-u0)*(v1-v0)-over) > .5
    row = manifest(['0.mp4']).iloc[0].to_dict()
    assert [f['status'] for f in clip_faces(row, roots_of(clips), Cropping(detector='dlib', frames=2))[1]]==['ok', 'ok']


def own_detector(image): return [dict(box=np.array([40., 40, 150, 150]))]


def own_landmarks(image, face):
    x0, y0, x1, y1 = face['box']
    return np.array([[x0, y0], [x1, y0], [(x0+x1)/2, (y0+y1)/2], [x0, y1], [x1, y1]], np.float32)


def test_plugins_of_ones_own(clips, tmp_path):
    "Five landmarks instead of 468 are stored as five"
    sys.modules['my_faces'] = sys.modules[__name__]
    t = extract_faces(manifest(['0.mp4', '9.mp4']), clips, tmp_path/'faces', frames=2, size=64, jobs=1, detector='my_faces:own_detector', landmarks='my_faces:own_landmarks', align=True)
    assert np.load(t/'landmarks.npy').shape==(3, 5, 2) and read_faces(t).status.tolist()==['ok', 'ok', 'missing']
    assert read_json(t/'faces.json')['detector']=='my_faces:own_detector'
    with pytest.raises(HffError, match='Cannot load'): extract_faces(manifest(['0.mp4']), clips, tmp_path/'x', detector='no_such_module:f')


def test_data_are_only_read(clips, tmp_path):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in clips.iterdir()}
    extract_faces(manifest(['0.mp4']), clips, tmp_path/'faces', frames=1, size=64, jobs=1)
    assert before=={p: (p.stat().st_mtime_ns, p.stat().st_size) for p in clips.iterdir()}


def test_an_unreadable_frame_keeps_its_place(tmp_path):
    "It is neither frame 0 again nor gone"
    (tmp_path/'clip').mkdir()
    for i in range(5): cv2.imwrite(str(tmp_path/f'clip/{i:03d}.png'), portrait(('female_14', 'male_20')[i%2])[..., ::-1])
    (tmp_path/'clip/000.png').write_bytes(b'spoilt'); (tmp_path/'clip/003.png').write_bytes(b'')
    t = read_faces(extract_faces(manifest(['clip']).assign(video='clip'), tmp_path, tmp_path/'faces', frames=8, size=64, jobs=1))
    assert t.frame.tolist()==[0, 1, 2, 3, 4] and t.status.tolist()==['error', 'ok', 'ok', 'error', 'ok']
    assert t.reason[0]=='unreadable frame' and t.crop[0]==''
