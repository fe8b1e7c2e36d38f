"Every kind of bad file keeps its row and its reason, and none stops the others"
import os, shutil
from fractions import Fraction

import av, numpy as np, pandas as pd, pytest
from PIL import Image

from dfb_tree import build
from hff.deepfakebench import rows_deepfakebench
from hff.manifest import COLUMNS
from hff.paths import HffError
from hff.verify import check_clip, coverage_of, summary, unexpected_files, verify_lines, verify_manifest
from hff.video import BadVideo, count_frames, write_mask_video, write_video

NOISE = np.random.default_rng(0).integers(0, 255, (10, 8, 8, 3)).astype('uint8').repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope='module')
def whole(tmp_path_factory): return write_video(tmp_path_factory.mktemp('v')/'whole.mp4', NOISE)


def manifest(names, **more):
    return pd.DataFrame([('toy', 'DF', 'c23', f'v{i}', 'test', 1, n, '', '') for i, n in enumerate(names)], columns=COLUMNS).assign(**more)


def fast(path, whole):
    "The same stream with its index in front"
    with av.open(str(whole)) as a, av.open(str(path), 'w', options=dict(movflags='faststart')) as b:
        s = b.add_stream_from_template(a.streams.video[0]); b.metadata['title'] = 'Cafe'
        for p in a.demux(a.streams.video[0]):
            if p.dts is not None: p.stream = s; b.mux(p)
    return path


def sound(path, codec):
    "A second of silence"
    with av.open(str(path), 'w') as c:
        s = c.add_stream(codec, rate=16000)
        f = av.AudioFrame.from_ndarray(np.zeros((1, 16000), 'int16'), format='s16', layout='mono')
        f.sample_rate, f.time_base, f.pts = 16000, Fraction(1, 16000), 0
        for p in [*s.encode(f), *s.encode(None)]: c.mux(p)
    return path


def joined(path, sizes=((64, 64), (96, 48))):
    "One stream whose picture changes its size on the way"
    with av.open(str(path), 'w') as out:
        s = out.add_stream('mjpeg', rate=25); s.width, s.height, s.pix_fmt = *sizes[0], 'yuvj420p'
        for t, a in enumerate(NOISE):
            c = av.CodecContext.create('mjpeg', 'w')
            c.width, c.height, c.pix_fmt, c.time_base = *sizes[t//5], 'yuvj420p', Fraction(1, 25)
            h, w = c.height, c.width
            for p in [*c.encode(av.VideoFrame.from_ndarray(np.resize(a, (h, w, 3)), format='rgb24').reformat(format='yuvj420p')), *c.encode(None)]:
                p.stream, p.pts, p.dts, p.time_base = s, t, t, Fraction(1, 25); out.mux(p)
    return path


def spoil(d, whole):
    "name -> status it must get, with a file of that name in `d`"
    b, f = whole.read_bytes(), fast(d/'fast.mp4', whole).read_bytes()
    bad = {'empty.mp4': b'', 'end.mp4': b[:-200], 'half.mp4': b[:len(b)//2], 'front.mp4': f[:len(f)*6//10], 'junk.mp4': os.urandom(5000), 'text.mp4': b'not found\n', 'zeros.mp4': bytes(4000), 'video.png': b}
    for n, data in bad.items(): (d/n).write_bytes(data)
    Image.fromarray(NOISE[0]).save(d/'p.png'); shutil.copy(d/'p.png', d/'picture.mp4')
    sound(d/'aac.mp4', 'aac'); shutil.move(sound(d/'pcm.wav', 'pcm_s16le'), d/'wav.mp4')
    (d/'folder.mp4').mkdir(); os.symlink(d/'nowhere.mp4', d/'dangling.mp4'); os.symlink(d/'loop.mp4', d/'loop.mp4'); os.mkfifo(d/'pipe.mp4')
    assert f.count(b'Cafe')==1; (d/'latin.mp4').write_bytes(f.replace(b'Cafe', b'Caf\xe9'))         # a title that is no UTF-8
    good = ['whole.mp4', 'fast.mp4', 'latin.mp4', 'p.png', 'é ü 中 𝄞.mp4', 'x'*246+'.mp4', 'linked.mp4']
    for n in good[4:6]: shutil.copy(whole, d/n)
    shutil.copy(whole, d/'whole.mp4'); os.symlink(d/'whole.mp4', d/'linked.mp4')
    unreadable = [*bad, 'picture.mp4', 'aac.mp4', 'wav.mp4', 'folder.mp4']
    return dict.fromkeys(good, 'have') | dict.fromkeys(unreadable, 'unreadable') | dict.fromkeys(['dangling.mp4', 'loop.mp4', 'pipe.mp4', 'none.mp4', 'no/such/folder.mp4'], 'missing')


@pytest.mark.parametrize('deep', [False, True])
def test_every_kind_of_file(tmp_path, whole, deep):
    want = spoil(tmp_path, whole)
    t = verify_manifest(manifest(want), tmp_path, deep=deep)
    assert dict(zip(t.path, t.status))==want
    why = dict(zip(t.path, t.reason))
    assert (t.reason.ne('')==t.status.ne('have')).all() and not any(str(tmp_path) in r for r in t.reason)
    assert why['empty.mp4']=='empty file' and why['front.mp4']=='truncated' and why['aac.mp4']==why['wav.mp4']=='no video stream' and why['picture.mp4']=='a picture, not a video'
    assert set(t.packets[(t.status=='have')&(t.path!='p.png')])=={10} and t.seconds[0]==pytest.approx(.4)


def test_hundreds_of_files_end_with_a_row_each(tmp_path, whole):
    names = [f'{i:03d}.mp4' for i in range(300)]
    for i, n in enumerate(names):
        if i%7==3: continue
        (tmp_path/n).write_bytes(whole.read_bytes()[:None if i%11 else 600*(i//11)])
    m = manifest(names).sample(frac=1, random_state=0)
    t = verify_manifest(m, tmp_path, jobs=3)
    assert t.index.equals(m.index) and t.path.equals(m.path)
    i = t.path.str[:3].astype(int)
    assert (t.status.eq('missing')==(i%7==3)).all() and t.status[(i%7!=3)&(i%11!=0)].eq('have').all() and t.status.eq('unreadable').sum()>=5
    assert coverage_of(t)==t.status.eq('have').sum()/300
    pd.testing.assert_frame_equal(t, verify_manifest(m, tmp_path, jobs=1))


def test_header_and_content(tmp_path, whole):
    b = bytearray(whole.read_bytes()); at = b.find(b'stsz')+12; b[at:at+4] = (8).to_bytes(4, 'big')
    (tmp_path/'a.mp4').write_bytes(b)
    r = check_clip(tmp_path/'a.mp4')
    assert (r['status'], r['packets'], r['claimed'], r['reason'])==('mismatch', 8, 10, '10 frames by the header, 8 in the file')
    b = bytearray(whole.read_bytes()); at = len(b)//3; b[at:at+900] = bytes(900)
    (tmp_path/'b.mp4').write_bytes(b)
    assert check_clip(tmp_path/'b.mp4')['status']=='have' and check_clip(tmp_path/'b.mp4', deep=True)['status']!='have'


def test_damage_anywhere_is_a_bad_video_and_nothing_else(tmp_path, whole):
    b, found = whole.read_bytes(), set()
    for at in range(0, len(b), 300):
        (tmp_path/'d.mp4').write_bytes(b[:at]+bytes(300)+b[at+300:])
        found.add(check_clip(tmp_path/'d.mp4', deep=True)['reason'])
        try: assert count_frames(tmp_path/'d.mp4')<=10
        except BadVideo: pass
    assert {'cannot decode'} < found and not any('Error' in r for r in found), found


def test_turned_and_changing_pictures_are_no_fault(tmp_path, whole):
    b = bytearray(whole.read_bytes()); at = b.find(b'tkhd')+4+40           # the matrix of the track: a quarter turn
    b[at:at+36] = b''.join(v.to_bytes(4, 'big', signed=True) for v in (0, 1<<16, 0, -(1<<16), 0, 0, 64<<16, 0, 1<<30))
    (tmp_path/'turned.mp4').write_bytes(b)
    with av.open(str(tmp_path/'turned.mp4')) as c: assert next(c.decode(video=0)).rotation%180==90
    for p in (tmp_path/'turned.mp4', joined(tmp_path/'sizes.mkv')):
        r = check_clip(p, deep=True)
        assert (r['status'], r['packets'])==('have', 10), (p.name, r)
    with av.open(str(tmp_path/'sizes.mkv')) as c: assert len({(f.width, f.height) for f in c.decode(video=0)})==2


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid()==0, reason='the superuser may read everything')
def test_no_permission(tmp_path, whole):
    shutil.copy(whole, tmp_path/'a.mp4'); (tmp_path/'a.mp4').chmod(0)
    assert check_clip(tmp_path/'a.mp4')['status']=='unreadable'


def test_a_surprise_is_a_reason_and_no_crash(tmp_path, whole, monkeypatch):
    def broken(path): raise RuntimeError('surprise')
    monkeypatch.setattr('hff.verify.probe_video', broken)
    assert check_clip(whole)['reason']=='RuntimeError: surprise' and check_clip(tmp_path/('y'*300+'.mp4'))['status']!='have' and check_clip(tmp_path/'a\0b.mp4')['status']!='have'


def test_masks(tmp_path, whole):
    shutil.copy(whole, tmp_path/'a.mp4')
    for n in (7, 10): write_mask_video(tmp_path/f'm{n}.mp4', NOISE[:n, ..., 0])
    write_video(tmp_path/'short.mp4', NOISE[:7])
    m = manifest(['a.mp4', 'a.mp4', 'a.mp4', 'short.mp4', 'gone.mp4'], mask=['m10.mp4', 'm7.mp4', 'none.mp4', 'm10.mp4', 'm10.mp4'])
    t = verify_manifest(m, tmp_path)
    assert t.status.tolist()==['have', 'mismatch', 'mismatch', 'have', 'missing'] and t.reason[1]=='mask has 7 frames, clip 10'
    assert unexpected_files(m, tmp_path)==[] and unexpected_files(m[:1], tmp_path)==['m7.mp4', 'short.mp4']


def test_frames_of_deepfakebench(tmp_path):
    root = build(tmp_path/'datasets')
    read = lambda base: pd.DataFrame(rows_deepfakebench(root/base, dataset=['FF-FS', 'Celeb-DF-v2', 'DFDCP'])).set_index('video', drop=False)
    m, fs = read('rgb'), 'rgb/FaceForensics++/manipulated_sequences/FaceSwap/c23'
    assert set(verify_manifest(m, root/'rgb', deep=True).status)=={'have'}
    (root/fs/'frames/000_003/002.png').unlink(); (root/fs/'frames/001_002/001.png').write_bytes(b''); (root/fs/'frames/002_001/001.png').write_bytes(b'x')
    shutil.rmtree(root/fs/'frames/004_005'); (root/fs/'masks/005_004/010.png').unlink(); shutil.rmtree(root/fs/'frames/006_007'); (root/fs/'frames/006_007').mkdir()
    for deep, more in ((False, {}), (True, {'002_001': 'unreadable'})):
        t = verify_manifest(m, root/'rgb', deep=deep)
        assert t.status[t.status!='have'].to_dict()=={'000_003': 'mismatch', '001_002': 'unreadable', '004_005': 'missing', '005_004': 'mismatch', '006_007': 'mismatch'} | more
    assert t.loc['000_003', ['reason', 'packets', 'claimed']].tolist()==['1 of 5 listed frames are absent, first 002.png', 4, 5]
    assert t.reason['005_004']=='1 of 5 frames have no mask' and t.reason['006_007'].startswith('5 of 5')
    packed = verify_manifest(read('lmdb'), root/'lmdb', deep=True)                   # the databases were opened here first, then in the workers
    assert packed.status[packed.status!='have'].to_dict()=={'006_007': 'mismatch', '643507_C_009': 'missing', '643508_A_001': 'missing'}
    assert packed.reason['006_007']=='1 of 5 listed frames are absent, first 010.png'


def test_borrowed_clips_have_their_own_root(tmp_path, whole):
    for d in ('a', 'b'): (tmp_path/d).mkdir(); shutil.copy(whole, tmp_path/d/f'{d}.mp4')
    m = manifest(['a.mp4', 'b.mp4'], base=['', 'ffpp'])
    assert verify_manifest(m, {'': tmp_path/'a', 'ffpp': tmp_path/'b'}).status.tolist()==['have', 'have']
    assert unexpected_files(m, tmp_path/'a')==[] and unexpected_files(m, tmp_path/'a', 'ffpp')==['a.mp4']
    with pytest.raises(HffError, match="'ffpp', which is not given"): verify_manifest(m, tmp_path/'a')
    with pytest.raises(HffError, match='No folder'): verify_manifest(m, {'': tmp_path/'a', 'ffpp': tmp_path/'c'})
    with pytest.raises(HffError, match='not relative'): verify_manifest(m.assign(path='../a/a.mp4'), tmp_path/'a')


def test_verdicts(tmp_path):
    rows = [('ffpp', m, 'c23', f'{m}{i}', 'test', int(m!='real'), f'{m}{i}.mp4', '', '') for m in ('real', 'DF', 'FS') for i in range(4)]
    t = pd.DataFrame(rows, columns=COLUMNS).assign(status=['have']*7+['missing']+['have']*4, reason='')
    known = pd.DataFrame(dict(dataset='ffpp', split=['test', 'total'], real=pd.array([4, None], 'Int64'), fake=pd.array([4, None], 'Int64'), per='quality, method'))
    s = summary(t, known)
    assert s[['method', 'have', 'published', 'verdict']].values.tolist()==[['real', 4, 4, 'as published'], ['DF', 3, 4, '1 fewer than published'], ['FS', 4, 4, 'as published']]
    assert summary(t, known.drop(columns='per')).verdict.tolist()==['as published', '3 more than published']
    lines = verify_lines(t, known, ['x.mp4'])
    assert lines==['ffpp c23 real test (real): 4 of 4; as published', 'ffpp c23 DF test (fake): 3 of 4, 1 missing; 1 fewer than published', 'ffpp c23 FS test (fake): 4 of 4; as published',
                   'missing: DF3.mp4 ()', 'unexpected: 1 file without a row, first x.mp4', 'coverage 91.67%: 11 of 12 clips are there and whole']
